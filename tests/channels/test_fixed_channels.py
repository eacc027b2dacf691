from itertools import permutations
from pathlib import Path

import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.fixed_channels import FixedChannels, spread
from morphem.errors import ChannelError, ConfigError, WeightsError
from morphem.spec import from_spec, to_spec
from morphem.testing import check_strategy, dense_batch
from tests.channels import golden_networks
from tests.channels.odd_backbones import Averages
from tests.references import golden as golden_cases

PANEL = ("nucleus", "actin", "mitochondria")


@pytest.fixture
def tiny() -> FixedChannels:
    torch.manual_seed(0)
    return FixedChannels.tiny().eval()


def test_the_contract_is_kept() -> None:
    check_strategy(FixedChannels)


@pytest.mark.parametrize("case", ["native", "size_96"])
def test_the_network_of_kim_et_al_gives_what_its_authors_code_gives(golden: Path, case: str) -> None:
    tensors = golden_cases.tensors(golden, "kim_dino")
    weights = golden_networks.load(golden / "kim_dino.ckpt")["teacher"]
    names = ["mitochondria", "AGP", "rna", "endoplasmic reticulum", "nucleus"]
    strategy = FixedChannels(golden_networks.backbone(weights, 6, "module.backbone."), names)
    strategy.load_state_dict(golden_networks.network_keys(weights, "module.backbone."))
    mean = torch.tensor([0.12528631, 0.17596765, 0.14736995, 0.13445823, 0.08349566], dtype=torch.float64)
    std = torch.tensor([0.12594905, 0.15605405, 0.16031352, 0.15751939, 0.15773378], dtype=torch.float64)
    crops = (tensors[f"{case}.crops"].double() / 65535 - mean[:, None, None]) / std[:, None, None]
    batch = golden_networks.dense(list(crops), [strategy.channels] * len(crops))
    with torch.no_grad():
        result = strategy.eval().double()(batch)
    limit = golden_cases.tolerance(golden, "kim_dino", case, "crop_features")
    torch.testing.assert_close(result.float(), tensors[f"{case}.crop_features"], atol=limit, rtol=0)
    torch.testing.assert_close(result.mean(0, keepdim=True), tensors[f"{case}.features_f64"], atol=1e-6, rtol=0)


def test_names_decide_which_weights_a_plane_meets(tiny: FixedChannels) -> None:
    orders = list(permutations(range(3)))
    planes = dense_batch([PANEL]).planes
    batch = dense_batch([PANEL] * 6)._replace(
        planes=torch.cat([planes[list(order)] for order in orders]),
        channel_types=tuple(PANEL[i] for order in orders for i in order),
    )
    result = tiny(batch)
    torch.testing.assert_close(result, result[:1].expand(6, -1), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "panel", [("nucleus", "actin"), ("nucleus", "actin", "rna"), (*PANEL, "rna"), ("nucleus", "nucleus", "actin")]
)
def test_an_image_of_other_channels_is_refused_with_its_name(tiny: FixedChannels, panel: tuple[str, ...]) -> None:
    with pytest.raises(ChannelError, match=r"image 'tiny-0-1' has the channels .* takes exactly nucleus, actin, mito"):
        tiny(dense_batch([PANEL, panel]))


def test_a_token_is_cut_from_all_channels(tiny: FixedChannels) -> None:
    batch = dense_batch([("actin", "mitochondria", "nucleus"), PANEL])
    (part,) = tiny.sequences(batch)
    assert part.tokens.shape == (2, 16, 16)
    assert (part.channels == -1).all()
    assert part.planes.tolist() == [[2, 0, 1], [3, 4, 5]]
    pixels = tiny.pixels(batch, part)
    expected = torch.cat([batch.planes[plane, 0, 8:16, 16:24].flatten() for plane in (2, 0, 1)])
    assert torch.equal(pixels[0, 6], expected)
    projection = tiny.backbone.network.patch_embed.proj
    projected = pixels @ projection.weight.flatten(1).T + projection.bias
    torch.testing.assert_close(part.tokens - part.places, projected, atol=1e-5, rtol=0)


def test_the_same_picture_in_all_channels_gives_what_the_single_channel_network_gave() -> None:
    torch.manual_seed(0)
    bag = BagOfChannels.tiny().eval()
    before = {name: value.clone() for name, value in bag.state_dict().items()}
    fixed = FixedChannels.from_single_channel(bag.backbone, PANEL).eval()
    batch = dense_batch([PANEL, PANEL])
    same = batch._replace(planes=batch.planes[[0, 0, 0, 3, 3, 3]])
    torch.testing.assert_close(fixed(same), bag(batch)[[0, 3]], atol=1e-5, rtol=0)
    assert all(torch.equal(value, bag.state_dict()[name]) for name, value in before.items())


def test_weights_of_a_network_for_colour_pictures_are_spread(tiny: FixedChannels) -> None:
    colour = VisionTransformer.tiny()
    colour.widen(3)
    tiny.load_network({f"network.{key}": value for key, value in colour.network.state_dict().items()})
    batch = dense_batch([PANEL])
    grey = batch.planes[:1]
    expected = colour.eval()(grey.expand(1, 3, -1, -1))
    torch.testing.assert_close(tiny(batch._replace(planes=grey.expand(3, 1, -1, -1))), expected, atol=1e-5, rtol=0)


def test_spreading_keeps_the_sum_over_input_channels() -> None:
    weight = torch.randn(4, 3, 2, 2)
    spread_out = spread(weight, 5)
    assert spread_out.shape == (4, 5, 2, 2)
    torch.testing.assert_close(spread_out.sum(1), weight.sum(1))


def test_weights_of_another_network_are_refused(tiny: FixedChannels) -> None:
    with pytest.raises(WeightsError, match=r"no 'network.patch_embed.proj.weight'"):
        tiny.load_network({})
    other = VisionTransformer("vit_tiny_patch16_224", patch_size_px=8, image_size_px=16, embed_dim=24, n_heads=2)
    with pytest.raises(WeightsError, match="do not fit this network"):
        tiny.load_network(other.state_dict())


def test_it_is_built_again_from_its_spec_with_its_channels(tiny: FixedChannels) -> None:
    again = from_spec(to_spec(tiny))
    assert again.channels == PANEL
    again.load_state_dict(tiny.state_dict())


@pytest.mark.parametrize(
    ("channels", "message"),
    [([], "channels is empty"), (["dapi", "nucleus"], "'nucleus' twice"), (["nukleus"], "No ch")],
)
def test_channels_that_name_nothing_or_one_thing_twice_are_refused(channels: list[str], message: str) -> None:
    with pytest.raises(ChannelError, match=message):
        FixedChannels(VisionTransformer.tiny(), channels)


def test_a_backbone_that_cannot_be_widened_is_refused() -> None:
    with pytest.raises(ConfigError, match="patch projection of Averages cannot be widened"):
        FixedChannels(Averages(), PANEL)  # type: ignore[arg-type]


def test_a_projection_for_as_many_channels_keeps_its_weights() -> None:
    torch.manual_seed(0)
    network = VisionTransformer(
        "vit_tiny_patch16_224", patch_size_px=8, image_size_px=16, embed_dim=16, depth=1, n_heads=2, in_channels=2
    )
    before = network.network.patch_embed.proj.weight
    assert FixedChannels(network, ["nucleus", "actin"]).backbone.network.patch_embed.proj.weight is before


def test_channels_go_by_number_too() -> None:
    strategy = FixedChannels(VisionTransformer.tiny(), ["nucleus", "actin"])
    assert [strategy.resolve(name) for name in (0, 1, "DAPI")] == ["nucleus", "actin", "nucleus"]
    with pytest.raises(ChannelError, match=r"channel 2 is none of the 2 of this encoder.*: nucleus, actin"):
        strategy.resolve(2)


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (["nucleus"], "it lacks actin\\.$"),
        (["nucleus", "actin", "rna"], "leave out rna\\.$"),
        (["nucleus", "rna", "r"], "it lacks actin; leave out rna, r\\.$"),
        (["nucleus", "actin", "actin"], "leave out actin\\.$"),
    ],
)
def test_an_image_of_other_channels_is_told_what_it_lacks_and_what_is_too_many(names: list[str], said: str) -> None:
    strategy = FixedChannels(VisionTransformer.tiny(), ["nucleus", "actin"])
    with pytest.raises(ChannelError, match=f"takes exactly nucleus, actin; {said}"):
        strategy(dense_batch([tuple(names)], size_px=16))

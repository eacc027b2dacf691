import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from morphem.backbones.post_norm import PostNormTransformer
from morphem.channels.slot_attention import SlotAttention
from morphem.encoder import Encoder
from morphem.errors import ChannelError, ConfigError
from morphem.normalizers import SelfNormalize
from morphem.testing import check_encoder, check_strategy, dense_batch
from tests.channels import golden_networks
from tests.references import golden as golden_cases

PANELS = [["rna", "nucleus", "actin"], ["nucleus"], ["actin", "r"]]


def _tiny(**settings) -> SlotAttention:
    torch.manual_seed(0)
    return SlotAttention(PostNormTransformer.tiny(), **settings).eval()


def _chadavit(folder: Path, n_heads: int) -> SlotAttention:
    weights = load_file(folder / "chadavit_hub.safetensors")
    renamed = {
        "self_attn.in_proj_": "qkv.",
        "self_attn.out_proj": "proj",
        "linear1": "fc1",
        "linear2": "fc2",
        "token_learner.proj": "patch_embed",
        "cls_token": "first_token",
        "pos_embed": "position_table",
    }
    own: dict[str, Tensor] = {}
    for key, value in weights.items():
        name = key
        for theirs, ours in renamed.items():
            name = name.replace(theirs, ours)
        own[f"backbone.{name}"] = value[0] if key == "pos_embed" else value
    own["slot_embedding"] = own.pop("backbone.channel_token")[0, :, 0]
    strategy = SlotAttention(PostNormTransformer(embed_dim=24, depth=2, n_heads=n_heads))
    strategy.load_state_dict(own)
    return strategy.eval().double()


def test_the_contract_is_kept() -> None:
    check_strategy(SlotAttention)
    check_encoder(Encoder(SlotAttention.tiny(), SelfNormalize(), input_size_px=16).eval())


@pytest.mark.parametrize("case", ["mixed_counts", "each_alone", "all_slots", "no_native_size", "factory_two_heads"])
def test_chada_vit_gives_what_its_authors_code_gives(golden: Path, case: str) -> None:
    tensors = golden_cases.tensors(golden, "chadavit_hub")
    inputs = json.loads((golden / "chadavit_hub.json").read_text())["cases"][case]["inputs"]
    planes = tensors[inputs["planes"]].double()
    variance = planes.var((2, 3), correction=0, keepdim=True)
    planes = (planes - planes.mean((2, 3), keepdim=True)) / (variance + 1e-5).sqrt()
    counts = inputs["channel_counts"]
    names = [[f"channel {i:02}" for i in range(count)] for count in counts]
    batch = golden_networks.dense([part[:, 0] for part in planes.split(counts)], names)
    strategy = _chadavit(golden, 2 if case == "factory_two_heads" else 12)
    if case == "factory_two_heads":
        strategy.backbone.norm.eps = 1e-6
    with torch.no_grad():
        result = strategy(batch)
    torch.testing.assert_close(result, tensors[f"{case}.features_f64"], atol=1e-6, rtol=0)


def test_slots_are_filled_in_the_order_of_names() -> None:
    assert _tiny().slots(dense_batch(PANELS)).tolist() == [2, 1, 0, 0, 0, 1]


def test_another_order_puts_its_channels_first() -> None:
    assert _tiny(order=["rna", "dapi"]).slots(dense_batch(PANELS)).tolist() == [0, 1, 2, 0, 0, 1]


def test_slots_can_be_filled_in_the_order_of_the_planes_as_the_authors_do() -> None:
    assert _tiny(fill="by_position").slots(dense_batch(PANELS)).tolist() == [0, 1, 2, 0, 0, 1]


def test_a_slot_says_nothing_of_what_a_channel_shows() -> None:
    strategy, batch = _tiny(), dense_batch(PANELS)
    renamed = batch._replace(channel_types=("g", "b", "actin", "rna", "b", "g"))
    torch.testing.assert_close(strategy(batch)[1:], strategy(renamed)[1:])


def test_each_slot_adds_its_own_embedding() -> None:
    strategy = _tiny()
    part = strategy.sequences(dense_batch(PANELS))[2]
    assert part.planes.tolist() == [[0, 1, 2]]
    added = part.places - strategy.backbone.patch_positions((4, 4)).repeat(1, 3, 1)
    expected = strategy.slot_embedding[[2, 1, 0]].repeat_interleave(16, 0)
    torch.testing.assert_close(added[0], expected, atol=1e-6, rtol=0)


def test_more_channels_than_slots_are_refused_with_the_image() -> None:
    with pytest.raises(ChannelError, match="image 'tiny-0-0' has 3 channels, but this encoder has 2 slots"):
        _tiny(n_slots=2)(dense_batch(PANELS))


def test_settings_that_name_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_slots=0 must be at least 1"):
        _tiny(n_slots=0)
    with pytest.raises(ConfigError, match="fill='by_size' must be by_name or by_position"):
        _tiny(fill="by_size")
    with pytest.raises(ConfigError, match="order has no effect with fill='by_position'"):
        _tiny(fill="by_position", order=["rna"])
    with pytest.raises(ChannelError, match="order names 'nucleus' twice"):
        _tiny(order=["dapi", "nucleus"])

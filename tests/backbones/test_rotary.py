from pathlib import Path

import pytest
import torch
from torch import Tensor

from morphem.backbones.rotary import axial_frequencies, mixed_frequencies, place_angles, turn
from morphem.backbones.vit import VisionTransformer, grid_places
from morphem.errors import ConfigError
from morphem.spec import from_spec, to_spec
from tests.references import golden as golden_cases
from tests.references import rotary as plain


def _small(rotary: str, rotation: str = "full") -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        "vit_tiny_patch16_224",
        patch_size_px=8,
        image_size_px=32,
        embed_dim=24,
        depth=2,
        n_heads=3,
        rotary=rotary,  # type: ignore[arg-type]
        rotation=rotation,  # type: ignore[arg-type]
    ).eval()


@pytest.mark.parametrize("rotation", ["full", "cosine"])
def test_pairs_of_values_are_turned_by_the_angle_of_their_place(rotation: str) -> None:
    torch.manual_seed(0)
    values = torch.randn(2, 3, 6, 8, dtype=torch.float64)
    places = grid_places((2, 3), torch.device("cpu")).double()
    frequencies = mixed_frequencies(3, 8, 10.0).double().reshape(2, 3, 4)
    result = turn(values, place_angles(places, frequencies), rotation)  # type: ignore[arg-type]
    torch.testing.assert_close(result, plain.turned(values, places[0], frequencies, rotation), atol=1e-12, rtol=0)


def test_axial_frequencies_tell_columns_in_the_first_half_and_rows_in_the_second() -> None:
    frequencies = axial_frequencies(12, 10.0)[:, 0]
    expected = [10 ** (-4 * k / 12) for k in range(3)]
    assert frequencies[0].tolist() == pytest.approx([*expected, 0, 0, 0])
    assert frequencies[1].tolist() == pytest.approx([0, 0, 0, *expected])


@pytest.mark.parametrize("rotary", ["axial", "mixed"])
def test_attention_scores_depend_on_the_difference_of_places_alone(rotary: str) -> None:
    torch.manual_seed(0)
    query, key = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    frequencies = axial_frequencies(8, 10.0) if rotary == "axial" else mixed_frequencies(1, 8, 10.0).double()

    def score(first: tuple[int, int], second: tuple[int, int]) -> float:
        angles = [place_angles(torch.tensor([[place]]).double(), frequencies) for place in (first, second)]
        return float((turn(query, angles[0], "full") * turn(key, angles[1], "full")).sum())

    assert score((0, 0), (2, 5)) == pytest.approx(score((7, 3), (9, 8)))
    assert score((0, 0), (2, 5)) != pytest.approx(score((0, 0), (5, 2)))


def _golden(golden: Path, name: str, dtype: torch.dtype, **rotary: str) -> tuple[VisionTransformer, Tensor]:
    tensors = torch.load(golden / f"{name}.ckpt", weights_only=True)["state_dict"]
    own = {key.removeprefix("encoder."): value for key, value in tensors.items() if key.startswith("encoder.")}
    own["patch_embed.proj.weight"] = own["patch_embed.proj.weight"][:, :, 0]
    width, heads = own["cls_token"].shape[-1], {"axial": 6, "mixed": 4}[rotary["rotary"]]
    network = VisionTransformer(
        patch_size_px=14, image_size_px=112, embed_dim=width, depth=2, n_heads=heads, positions="sincos", **rotary
    )
    network.network.load_state_dict(own)
    images = golden_cases.tensors(golden, name)["three_channels.images"].double()
    mean, deviation = images.mean((-2, -1), keepdim=True), images.std((-2, -1), correction=0, keepdim=True)
    return network.to(dtype).eval(), ((images - mean) / deviation).to(dtype)


def _campfire(network: VisionTransformer, images: Tensor) -> Tensor:
    """The mean of the patches of all channels, normalised once more, as the authors take it."""
    n, c = images.shape[:2]
    tokens = network.patches(images.flatten(0, 1)[:, None]) + network.patch_positions((8, 8))
    places = grid_places((8, 8), images.device).repeat(1, c, 1)
    encoded = network.encode(tokens.reshape(n, c * 64, -1), places)
    return network.network.norm(encoded[:, 1:].mean(1))


@pytest.mark.parametrize("mode", ["axial", "mixed"])
def test_campfires_rotary_networks_give_what_its_code_gives(golden: Path, mode: str) -> None:
    network, images = _golden(golden, f"campfire_rotary_{mode}", torch.float64, rotary=mode, rotation="cosine")
    expected = golden_cases.tensors(golden, f"campfire_rotary_{mode}")["three_channels.features"]
    with torch.no_grad():
        result = _campfire(network, images)
    torch.testing.assert_close(result.float(), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("mode", ["axial", "mixed"])
def test_full_rotation_gives_something_else_than_the_cosine_alone(golden: Path, mode: str) -> None:
    network, images = _golden(golden, f"campfire_rotary_{mode}", torch.float64, rotary=mode)
    expected = golden_cases.tensors(golden, f"campfire_rotary_{mode}")["three_channels.features"]
    with torch.no_grad():
        assert (_campfire(network, images).float() - expected).abs().max() > 0.3


@pytest.mark.parametrize("rotary", ["axial", "mixed"])
def test_the_class_token_computed_alone_is_that_of_all_tokens(rotary: str) -> None:
    network, planes = _small(rotary), torch.randn(2, 1, 24, 40)
    with torch.no_grad():
        torch.testing.assert_close(network(planes), network.tokens(planes)[:, 0], atol=1e-5, rtol=0)


def test_tokens_in_another_order_with_their_places_give_the_same() -> None:
    network, planes = _small("mixed"), torch.randn(1, 1, 24, 40)
    tokens = network.patches(planes) + network.patch_positions((3, 5))
    places, order = grid_places((3, 5), planes.device), torch.randperm(15)
    with torch.no_grad():
        straight = network.class_token(tokens, places)
        torch.testing.assert_close(network.class_token(tokens[:, order], places[:, order]), straight, atol=1e-5, rtol=0)
        assert not torch.allclose(network.class_token(tokens[:, order], places), straight, atol=1e-3)


def test_tokens_without_their_places_are_refused() -> None:
    network = _small("axial")
    assert network.needs_places
    with pytest.raises(ConfigError, match="needs the place of every token"):
        network.encode(torch.randn(1, 4, 24))


def test_frequencies_of_mixed_positions_are_trained_and_saved() -> None:
    network = _small("mixed")
    network(torch.randn(1, 1, 16, 16)).sum().backward()
    assert network.network.blocks[1].freqs.grad.abs().sum() > 0
    again = from_spec(to_spec(network))
    again.load_state_dict(network.state_dict())
    planes = torch.randn(1, 1, 16, 16)
    assert torch.equal(again.eval()(planes), network(planes))


def test_heads_that_do_not_divide_into_pairs_for_both_axes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"needs heads of a width that 4 divides, not 6"):
        VisionTransformer("vit_tiny_patch16_224", embed_dim=12, depth=1, n_heads=2, rotary="axial")

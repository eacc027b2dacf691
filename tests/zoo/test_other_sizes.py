"""Files of sizes that nobody published, in the authors' containers, against a transformer written plainly."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from morphem.encoder import Encoder
from morphem.recipe import Recipe
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint
from morphem.zoo.cadino import CellDINO, ChannelAdaptiveDINO
from morphem.zoo.chammi75 import DINOBagOfChannels, MAEBagOfChannels, SimCLRBagOfChannels
from morphem.zoo.kim import KimDINO, KimMAE, KimSimCLR
from morphem.zoo.unidino import UniDINO
from tests.references.plain_vit import normed, random_tensors, tokens

FILE = Path("made.pth")
STAINS = ["Mito", "AGP", "RNA", "ER"]


def _prefixed(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in tensors.items()}


def _features(encoder: Encoder, image: np.ndarray, names: list[str]) -> Tensor:
    batch = ChannelBatch.from_planes([list(torch.from_numpy(image))], [names])
    return encoder.double().features(batch)


def _image(channels: int, height: int, width: int, dtype: type = np.uint8) -> np.ndarray:
    return np.random.default_rng(channels).integers(0, np.iinfo(dtype).max, (channels, height, width)).astype(dtype)


def _z(planes: Tensor, eps: float, deviation: bool = False) -> Tensor:
    mean, variance = planes.mean((-2, -1), keepdim=True), planes.var((-2, -1), correction=0, keepdim=True)
    return (planes - mean) / ((variance.sqrt() + eps) if deviation else (variance + eps).sqrt())


def _class_tokens(tensors: dict[str, Tensor], planes: Tensor, n_heads: int) -> Tensor:
    return torch.stack([normed(tensors, tokens(tensors, plane[None], n_heads)[-1])[0] for plane in planes])


@pytest.mark.parametrize("prefix", ["", "module.backbone.", "backbone."])
def test_unidino_of_another_patch_depth_and_native_size(prefix: str) -> None:
    tensors = random_tensors(40, 5, 8, 64, 1, ratio=2.0)
    content = {"teacher": _prefixed(tensors, prefix)} if prefix else tensors
    encoder = UniDINO(n_heads=5).convert(Checkpoint(content, FILE))
    assert encoder.recipe.crops.tile_size_px == 64
    image = _image(2, 24, 40, np.uint16)
    expected = _class_tokens(tensors, torch.from_numpy(image.astype(np.float64)) / 65535, 5)
    torch.testing.assert_close(_features(encoder, image, ["nucleus", "rna"]), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("network", ["student", "teacher"])
def test_dino_of_chammi75_at_another_size_takes_the_network_that_is_asked_for(network: str) -> None:
    both = {"student": random_tensors(24, 3, 32, 224, 1), "teacher": random_tensors(24, 4, 32, 224, 1)}
    content = {
        "student": _prefixed(both["student"], "module.backbone."),
        "teacher": _prefixed(both["teacher"], "backbone."),
        "fp16_scaler": {},
    }
    encoder = DINOBagOfChannels(n_heads=3, network=network).convert(Checkpoint(content, FILE))  # type: ignore[arg-type]
    image = _image(3, 224, 224)
    expected = _class_tokens(both[network], _z(torch.from_numpy(image).double() / 255, 1e-7), 3)
    torch.testing.assert_close(_features(encoder, image, ["r", "g", "b"]), expected, atol=1e-8, rtol=0)


def test_simclr_of_chammi75_at_another_size_normalises_twice() -> None:
    tensors = random_tensors(24, 2, 32, 224, 1)
    theirs = {**tensors, "patch_embed.proj.weight": tensors["patch_embed.proj.weight"][:, :, None]}
    encoder = SimCLRBagOfChannels(n_heads=2).convert(Checkpoint({"model_state_dict": theirs}, FILE))
    image = _image(2, 224, 224)
    planes = _z(_z(torch.from_numpy(image).double() / 255, 1e-7), 1e-5)
    expected = _class_tokens(tensors, planes, 2)
    torch.testing.assert_close(_features(encoder, image, ["r", "g"]), expected, atol=1e-8, rtol=0)


def test_mae_of_chammi75_at_another_size_has_no_biases_where_the_file_has_none() -> None:
    tensors = {k: v for k, v in random_tensors(32, 3, 32, 224, 1).items() if not k.endswith("qkv.bias")}
    theirs = {**tensors, "mask_token": torch.zeros(1, 1, 16), "decoder_embed.weight": torch.zeros(16, 32)}
    encoder = MAEBagOfChannels(n_heads=4).convert(Checkpoint({"model": theirs}, FILE))
    image = _image(1, 224, 224)
    expected = _class_tokens(tensors, _z(torch.from_numpy(image).double() / 255, 1e-7), 4)
    torch.testing.assert_close(_features(encoder, image, ["r"]), expected, atol=1e-8, rtol=0)


def _kim_pixels(image: np.ndarray, mean: list[float], std: list[float]) -> Tensor:
    planes = torch.from_numpy(image.astype(np.float64)) / 65535
    return (planes - torch.tensor(mean).double()[:, None, None]) / torch.tensor(std).double()[:, None, None]


MEAN, STD = [0.1, 0.2, 0.3, 0.4], [0.5, 0.25, 0.125, 1.0]
"""Numbers that binary floats have exactly, or that are rounded once in both."""


@pytest.mark.parametrize("family", [KimDINO, KimSimCLR])
def test_kim_et_al_with_other_channels_and_sizes(family: type[KimDINO] | type[KimSimCLR]) -> None:
    tensors = random_tensors(24, 3, 8, 48, 4, ratio=3.0)
    content = (
        {"teacher": _prefixed(tensors, "module.backbone.")}
        if family is KimDINO
        else {"state_dict": {**_prefixed(tensors, "backbone."), "mlp.0.weight": torch.zeros(2, 24)}}
    )
    encoder = family(4, STAINS, MEAN, STD).convert(Checkpoint(content, FILE))
    assert encoder.recipe.crops.tile_size_px == 48
    image = _image(4, 48, 48, np.uint16)
    pixels = _kim_pixels(image, MEAN, STD)
    expected = normed(tensors, tokens(tensors, pixels, 4)[-1])[:1]
    names = ["mitochondria", "actin golgi plasma membrane", "rna", "endoplasmic reticulum"]
    torch.testing.assert_close(_features(encoder, image, names), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("with_bias", [True, False])
def test_mae_of_kim_et_al_is_the_mean_of_patches_without_a_norm(with_bias: bool) -> None:
    tensors = random_tensors(24, 3, 8, 48, 4)
    content = {"model": {**tensors, "mask_token": torch.zeros(1), "decoder_embed.weight": torch.zeros(1)}}
    encoder = KimMAE(2, STAINS, MEAN, STD, qkv_bias=with_bias).convert(Checkpoint(content, FILE))
    kept = {k: v for k, v in tensors.items() if with_bias or not k.endswith("qkv.bias")}
    image = _image(4, 48, 48, np.uint16)
    expected = tokens(kept, _kim_pixels(image, MEAN, STD), 2)[-1][1:].mean(0, keepdim=True)
    names = ["mitochondria", "actin golgi plasma membrane", "rna", "endoplasmic reticulum"]
    torch.testing.assert_close(_features(encoder, image, names), expected, atol=1e-6, rtol=0)


def _chunked(tensors: dict[str, Tensor], per_chunk: int) -> dict[str, Tensor]:
    """Put blocks into chunks by the words of the record: the index is that in the whole network."""
    found = {}
    for name, value in tensors.items():
        parts = name.split(".")
        if parts[0] == "blocks":
            parts.insert(1, str(int(parts[1]) // per_chunk))
        found[".".join(parts)] = value
    return found


@pytest.mark.parametrize("per_chunk", [1, 2, 3])
def test_channel_adaptive_dino_of_another_depth_in_other_chunks(per_chunk: int) -> None:
    tensors = random_tensors(24, 6, 14, 70, 1, layer_scale=True)
    theirs = {**_chunked(tensors, per_chunk), "mask_token": torch.zeros(1, 24)}
    family = ChannelAdaptiveDINO(n_heads=3, recipe="plain", n_blocks=3, mean_patch=True)
    checkpoint = Checkpoint(theirs, FILE)
    assert ChannelAdaptiveDINO.recognises(checkpoint)
    encoder = family.convert(checkpoint)
    back = family.to_authors(encoder)
    assert back.keys() == _chunked(tensors, per_chunk).keys()
    image = _image(2, 42, 56)
    expected = []
    for plane in _z(torch.from_numpy(image).double() / 255, 1e-7, deviation=True):
        layers = [normed(tensors, x) for x in tokens(tensors, plane[None], 3)[-3:]]
        expected.append(torch.cat([*(x[0] for x in layers), layers[-1][1:].mean(0)]))
    torch.testing.assert_close(_features(encoder, image, ["r", "g"]), torch.stack(expected), atol=1e-9, rtol=0)


def test_cell_dino_of_six_channels_from_a_training_checkpoint() -> None:
    tensors = random_tensors(24, 4, 8, 40, 6, layer_scale=True)
    heads = {"dino_head.mlp.0.weight": torch.zeros(2, 24), "ibot_head.mlp.0.weight": torch.zeros(2, 24)}
    content = {"teacher": {**_prefixed(_chunked(tensors, 1), "backbone."), **heads}}
    names = ["nucleus", "actin", "rna", "mitochondria", "microtubules", "protein"]
    encoder = CellDINO(4, names, recipe="knn").convert(Checkpoint(content, FILE))
    image = _image(6, 51, 47)
    cropped = torch.from_numpy(image).double()[:, 6:46, 4:44] / 255
    expected = normed(tensors, tokens(tensors, _z(cropped, 1e-7, deviation=True), 4)[-1])[:1]
    torch.testing.assert_close(_features(encoder, image, names), expected, atol=1e-9, rtol=0)
    table = encoder.float().embed(image, names)
    np.testing.assert_allclose(table.values, (expected / expected.norm()).numpy(), atol=1e-5)
    whole = encoder.embed(image, names, recipe=Recipe())
    np.testing.assert_allclose(whole.values, expected.numpy(), atol=1e-4)

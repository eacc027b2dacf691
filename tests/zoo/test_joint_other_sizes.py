"""Files of sizes that nobody published, in the authors' containers, against encoders written plainly."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from morphem.backbones.positions import sincos_positions
from morphem.encoder import Encoder
from morphem.zoo.base import Checkpoint
from morphem.zoo.campfire import Campfire
from morphem.zoo.chadavit import ChAdaViT
from morphem.zoo.chammi75_channels import Chammi75Channels
from morphem.zoo.channelvit import ChannelViT
from morphem.zoo.data_sets import JUMPCP
from morphem.zoo.dichavit import DiChaViT
from morphem.zoo.icvit import ICViT
from morphem.zoo.openphenom import OpenPhenom
from morphem.zoo.replaying import embed
from tests.references import plain_joint, plain_vit

FILE = Path("made.pth")
WIDTH, DEPTH, PATCH, SIDE, HEADS = 40, 3, 8, 32, 5
SIZES = [(32, 32), (24, 40)]


def _draw(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * scale


def _image(n_channels: int, size: tuple[int, int]) -> Tensor:
    draw = torch.Generator().manual_seed(n_channels)
    return torch.randint(0, 256, (n_channels, *size), generator=draw, dtype=torch.uint8)


def _z(image: Tensor, eps: float, divide_by: float = 1.0) -> Tensor:
    scaled = image.double() / divide_by
    variance = scaled.var((1, 2), correction=0, keepdim=True)
    return (scaled - scaled.mean((1, 2), keepdim=True)) / (variance + eps).sqrt()


def _features(encoder: Encoder, image: Tensor, names: list[Any]) -> Tensor:
    return embed(encoder.double(), [image], [names], resize=False)[0]


def _three_dimensional(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**tensors, "patch_embed.proj.weight": tensors["patch_embed.proj.weight"].unsqueeze(2)}


def _standardised(image: Tensor, numbers: list[int]) -> Tensor:
    mean, std = (torch.tensor(values, dtype=torch.float64)[numbers, None, None] for values in (JUMPCP.mean, JUMPCP.std))
    return (image.double() - mean) / std


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("numbers", [[6], [3, 0, 7]])
@pytest.mark.parametrize("family", ["rows", "map", "dichavit", "icvit"])
def test_one_network_in_four_containers(family: str, numbers: list[int], size: tuple[int, int]) -> None:
    tensors, table = plain_vit.random_tensors(WIDTH, DEPTH, PATCH, SIDE, 1, ratio=2.0), _draw(8, WIDTH)
    as_map = table.T[None, :, :, None, None]
    encoder = {
        "rows": lambda: ChannelViT(HEADS).convert(
            Checkpoint({**_three_dimensional(tensors), "patch_embed.channel_embed.weight": table}, FILE)
        ),
        "map": lambda: ChannelViT(HEADS).convert(
            Checkpoint({**_three_dimensional(tensors), "patch_embed.channel_embed": as_map}, FILE)
        ),
        "dichavit": lambda: DiChaViT(HEADS, "jumpcp").convert(Checkpoint(_dichavit(tensors, table), FILE)),
        "icvit": lambda: ICViT(HEADS).convert(Checkpoint(_icvit(tensors, table), FILE)),
    }[family]()
    image = _image(len(numbers), size)
    expected = plain_joint.channel_vit(tensors, table, _standardised(image, numbers), numbers, HEADS)
    torch.testing.assert_close(_features(encoder, image, numbers), expected, atol=1e-9, rtol=0)


def _dichavit(tensors: dict[str, Tensor], table: Tensor) -> dict[str, Any]:
    own = {**_three_dimensional(tensors), "patch_embed.channel_embed.weight": table}
    own["patch_embed.channel_emb_proxies"] = _draw(8, WIDTH)
    prefixed = {f"module.feature_extractor.{name}": value for name, value in own.items()}
    return {"model_params": {**prefixed, "module.proxies": _draw(9, WIDTH)}, "epoch": 3}


def _icvit(tensors: dict[str, Tensor], table: Tensor) -> dict[str, Any]:
    own = {**tensors, "patch_embed.channel_embed.weight": table}
    prefixed = {f"backbone.{name}": value for name, value in own.items()}
    return {"state_dict": {**prefixed, "classifier.weight": _draw(3, WIDTH)}, "epoch": 3}


@pytest.mark.parametrize("size", SIZES)
def test_icvit_before_fine_tuning_is_each_channel_alone(size: tuple[int, int]) -> None:
    tensors = plain_vit.random_tensors(WIDTH, DEPTH, PATCH, SIDE, 1)
    encoder, image = ICViT(HEADS).convert(Checkpoint(tensors, FILE)), _image(2, size)
    scaled = _standardised(image, [1, 5])
    expected = [plain_vit.normed(tensors, plain_vit.tokens(tensors, p[None], HEADS)[-1])[0] for p in scaled]
    torch.testing.assert_close(_features(encoder, image, ["AGP", 5]), torch.cat(expected), atol=1e-9, rtol=0)


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("network", ["student", "teacher", "bare"])
def test_chammi75_over_all_channels(network: str, again: bool) -> None:
    tensors, table = plain_vit.random_tensors(WIDTH, DEPTH, PATCH, SIDE, 1), _draw(5, WIDTH)
    own = {**_three_dimensional(tensors), "patch_embed.channel_tokens": table.T[None, :, :, None, None]}
    other = {name: value + 1 for name, value in own.items()}
    prefixes = {"student": "module.backbone.", "teacher": "backbone."}
    content: dict[str, Any] = {"model_state_dict": {**own, "decoder_pred.weight": _draw(4, 4)}}
    if network != "bare":
        content = {
            each: {f"{prefix}{name}": value for name, value in (own if each == network else other).items()}
            for each, prefix in prefixes.items()
        }
    numbers = {"r": 0, "protein": 1, "nucleus": 2, "g": 3, "differential interference contrast": 4}
    family = Chammi75Channels(HEADS, "student" if network == "bare" else network, again, numbers)  # type: ignore[arg-type]
    image, names = _image(3, (24, 40)), ["nucleus", "protein", "protein"]
    scaled = _z(image, 1e-7, 255.0)
    scaled = _z(scaled, 1e-5) if again else scaled
    expected = plain_joint.channel_vit(tensors, table, scaled, [2, 1, 1], HEADS)
    found = _features(family.convert(Checkpoint(content, FILE)), image, names)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("built_by", ["class", "factory"])
def test_chadavit_with_another_mlp_and_number_of_slots(built_by: str, size: tuple[int, int]) -> None:
    width, hidden = 20, 30
    tensors = {
        "cls_token": _draw(1, 1, width),
        "channel_token": _draw(1, 4, 1, width),
        "pos_embed": _draw(1, 1, 17, width, scale=0.5),
        "token_learner.proj.weight": _draw(width, 1, PATCH, PATCH, scale=1 / PATCH),
        "token_learner.proj.bias": _draw(width),
        "norm.weight": _draw(width),
        "norm.bias": _draw(width, seed=1),
    }
    for number in range(2):
        shapes = {"self_attn.in_proj_weight": (60, width), "self_attn.in_proj_bias": (60,)}
        for name, (rows, columns) in {"linear1": (hidden, width), "linear2": (width, hidden)}.items():
            shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
        shapes |= {"self_attn.out_proj.weight": (width, width), "self_attn.out_proj.bias": (width,)}
        shapes |= {f"{name}.{kind}": (width,) for name in ("norm1", "norm2") for kind in ("weight", "bias")}
        for count, (name, shape) in enumerate(shapes.items()):
            scale = shape[-1] ** -0.5 if len(shape) == 2 else 1.0
            tensors[f"blocks.{number}.{name}"] = _draw(*shape, scale=scale, seed=100 * number + count)
    content = {"state_dict": {f"backbone.{name}": value for name, value in tensors.items()}}
    facts: dict[str, Any] = {"n_heads": 5} if built_by == "class" else {"built_by": "factory"}
    encoder, image = ChAdaViT(**facts).convert(Checkpoint(content, FILE)), _image(3, size)
    heads, eps = (5, 1e-5) if built_by == "class" else (2, 1e-6)
    expected = plain_joint.chada_vit(tensors, _z(image, 1e-5), heads, eps)
    found = _features(encoder, image, ["actin", "nucleus", "rna"])  # alphabetical
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("features", ["mean", "channelwise"])
@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_ca_mae_of_another_grid(features: str, size: tuple[int, int]) -> None:
    width, hidden, heads = 8, 24, 2
    positions = torch.cat([torch.zeros(1, 1, width), sincos_positions((2, 2), width)], dim=1)
    tensors = {
        "cls_token": _draw(1, 1, width),
        "patch_embed.proj.weight": _draw(width, 1, PATCH, PATCH, scale=1 / PATCH),
        "patch_embed.proj.bias": _draw(width),
    }
    shapes = {
        "in_norm.weight": (width,),
        "in_norm.bias": (width,),
        "in_proj.weight": (hidden + 3 * width, width),
        "mlp_bias": (hidden,),
        "q_norm.weight": (width // heads,),
        "q_norm.bias": (width // heads,),
        "k_norm.weight": (width // heads,),
        "k_norm.bias": (width // heads,),
        "attn_out_proj.weight": (width, width),
        "attn_out_proj.bias": (width,),
        "mlp_out_proj.weight": (width, hidden),
        "mlp_out_proj.bias": (width,),
        "ls.gamma": (width,),
    }
    for number in range(2):
        for count, (name, shape) in enumerate(shapes.items()):
            tensors[f"blocks.{number}.{name}"] = _draw(*shape, scale=0.5, seed=50 * number + count)
    stored = {**tensors, "pos_embed": torch.cat([positions[:, :1], positions[:, 1:].repeat(1, 3, 1)], dim=1)}
    content = {"state_dict": {f"encoder.vit_backbone.{name}": value for name, value in stored.items()}}
    encoder = OpenPhenom(features, image_size_px=16).convert(Checkpoint(content, FILE))  # type: ignore[arg-type]
    grid = (size[0] // PATCH, size[1] // PATCH)
    own = positions if grid == (2, 2) else torch.cat([positions[:, :1], sincos_positions(grid, width)], dim=1)
    image = _image(2, size)
    tokens = plain_joint.ca_mae(tensors, _z(image, 1e-5, 255.0), own[0])
    expected = tokens.mean(1).flatten() if features == "channelwise" else tokens.mean((0, 1))
    torch.testing.assert_close(_features(encoder, image, ["actin", "nucleus"]), expected, atol=1e-9, rtol=0)


def test_campfire_of_another_width() -> None:
    tensors = plain_vit.random_tensors(WIDTH, DEPTH, PATCH, SIDE, 1)
    tensors["pos_embed"] = torch.cat([torch.zeros(1, 1, WIDTH), sincos_positions((4, 4), WIDTH)], dim=1)
    content = {f"encoder.{name}": value for name, value in _three_dimensional(tensors).items()}
    encoder = Campfire(HEADS, "none").convert(Checkpoint({"state_dict": content, "epoch": 1}, FILE))
    image = _image(1, (SIDE, SIDE))
    last = plain_vit.normed(tensors, plain_vit.tokens(tensors, _z(image, 0.0), HEADS)[-1])
    expected = plain_vit.normed(tensors, last[1:].mean(0, keepdim=True))[0]
    torch.testing.assert_close(_features(encoder, image, ["rna"]), expected, atol=1e-6, rtol=0)

"""A vision transformer written plainly: one image, one block, one head, one matrix product after the other, float64."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tests.references import dino_positions


def random_tensors(
    width: int, depth: int, patch: int, side: int, channels: int, *, ratio: float = 4.0, layer_scale: bool = False
) -> dict[str, Tensor]:
    """Return weights under timm's names for planes of `side` pixels, large enough for mistakes to be seen."""
    generator = torch.Generator().manual_seed(width + depth)

    def draw(*shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(shape, generator=generator) * scale

    hidden, rows = int(width * ratio), (side // patch) ** 2 + 1
    tensors = {
        "cls_token": draw(1, 1, width),
        "pos_embed": draw(1, rows, width, scale=0.5),
        "patch_embed.proj.weight": draw(width, channels, patch, patch, scale=1 / patch),
        "patch_embed.proj.bias": draw(width, scale=0.1),
        "norm.weight": 1 + draw(width, scale=0.1),
        "norm.bias": draw(width, scale=0.1),
    }
    for number in range(depth):
        for name, shape in {
            "attn.qkv": (3 * width, width),
            "attn.proj": (width, width),
            "mlp.fc1": (hidden, width),
            "mlp.fc2": (width, hidden),
        }.items():
            tensors[f"blocks.{number}.{name}.weight"] = draw(*shape, scale=shape[1] ** -0.5)
            tensors[f"blocks.{number}.{name}.bias"] = draw(shape[0], scale=0.1)
        for name in ("norm1", "norm2"):
            tensors[f"blocks.{number}.{name}.weight"] = 1 + draw(width, scale=0.1)
            tensors[f"blocks.{number}.{name}.bias"] = draw(width, scale=0.1)
        if layer_scale:
            for name in ("ls1", "ls2"):
                tensors[f"blocks.{number}.{name}.gamma"] = 1 + draw(width, scale=0.2)
    return tensors


def _norm(x: Tensor, t: Mapping[str, Tensor], name: str, eps: float) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = ((x - mean) ** 2).mean(1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * t[f"{name}.weight"] + t[f"{name}.bias"]


def _linear(x: Tensor, t: Mapping[str, Tensor], name: str) -> Tensor:
    bias = t.get(f"{name}.bias")
    return x @ t[f"{name}.weight"].T + (0 if bias is None else bias)


def _attention(x: Tensor, t: Mapping[str, Tensor], name: str, n_heads: int) -> Tensor:
    width = x.shape[1]
    each = width // n_heads
    query, key, value = _linear(x, t, f"{name}.qkv").split(width, dim=1)
    heads = []
    for head in range(n_heads):
        part = slice(head * each, (head + 1) * each)
        weights = torch.exp(query[:, part] @ key[:, part].T / math.sqrt(each))
        heads.append((weights / weights.sum(1, keepdim=True)) @ value[:, part])
    return _linear(torch.cat(heads, dim=1), t, f"{name}.proj")


def _mlp(x: Tensor, t: Mapping[str, Tensor], name: str) -> Tensor:
    hidden = _linear(x, t, f"{name}.fc1")
    return _linear(0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2))), t, f"{name}.fc2")


def tokens(tensors: Mapping[str, Tensor], image: Tensor, n_heads: int, eps: float = 1e-6) -> list[Tensor]:
    """Return the tokens after every block, not normalised, each (1 + h * w, D), for an image (C, H, W)."""
    t = {name: value.double() for name, value in tensors.items()}
    projection = t["patch_embed.proj.weight"]
    patch, native = projection.shape[-1], math.isqrt(t["pos_embed"].shape[1] - 1)
    grid = (image.shape[1] // patch, image.shape[2] // patch)
    patches = [
        (projection * image[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch]).sum((1, 2, 3))
        for y in range(grid[0])
        for x in range(grid[1])
    ]
    same = grid == (native, native)
    positions = t["pos_embed"] if same else dino_positions.resampled(t["pos_embed"], native, grid)
    x = torch.cat([t["cls_token"][0], torch.stack(patches) + t["patch_embed.proj.bias"]]) + positions[0]
    results = []
    for number in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):
        block = f"blocks.{number}"
        first, second = t.get(f"{block}.ls1.gamma", 1.0), t.get(f"{block}.ls2.gamma", 1.0)
        x = x + first * _attention(_norm(x, t, f"{block}.norm1", eps), t, f"{block}.attn", n_heads)
        x = x + second * _mlp(_norm(x, t, f"{block}.norm2", eps), t, f"{block}.mlp")
        results.append(x)
    return results


def normed(tensors: Mapping[str, Tensor], x: Tensor, eps: float = 1e-6) -> Tensor:
    """Return tokens after the last normalisation."""
    return _norm(x, {name: value.double() for name, value in tensors.items()}, "norm", eps)

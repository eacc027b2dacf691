"""Encoders over all channels written plainly: one image, one sequence, one block after the other, float64."""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tests.references import dino_positions, plain_vit
from tests.references.parallel_block import parallel_block


def patches(projection: Tensor, bias: Tensor, plane: Tensor) -> Tensor:
    """Cut a plane, (H, W), and project each patch, (h * w, D)."""
    side = projection.shape[-1]
    rows = []
    for y in range(0, plane.shape[0], side):
        for x in range(0, plane.shape[1], side):
            rows.append((projection[:, 0] * plane[y : y + side, x : x + side]).sum((1, 2)) + bias)
    return torch.stack(rows)


def _sequence(content: list[Tensor], identity: list[Tensor], positions: Tensor, first: Tensor) -> Tensor:
    """Class token, then channel after channel; all channels have the same positions, (1 + h * w, D)."""
    parts = [first[0] + positions[:1]]
    parts += [tokens + positions[1:] + own for tokens, own in zip(content, identity, strict=True)]
    return torch.cat(parts)


def channel_vit(t: Mapping[str, Tensor], table: Tensor, image: Tensor, numbers: list[int], n_heads: int) -> Tensor:
    """Return the class token of ChannelViT, (D,): with several channels positions are resampled at every size.

    `t` has DINO's names, with a patch projection of four axes; `table` an embedding per channel, (K, D).
    """
    t = {name: value.double() for name, value in t.items()}
    projection = t["patch_embed.proj.weight"]
    side, native = projection.shape[-1], math.isqrt(t["pos_embed"].shape[1] - 1)
    grid = (image.shape[1] // side, image.shape[2] // side)
    as_it_is = grid == (native, native) and len(numbers) == 1
    positions = t["pos_embed"] if as_it_is else dino_positions.resampled(t["pos_embed"], native, grid)
    content = [patches(projection, t["patch_embed.proj.bias"], plane) for plane in image]
    x = _sequence(content, [table[number].double() for number in numbers], positions[0], t["cls_token"])
    for number in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):
        block = f"blocks.{number}"
        x = x + plain_vit._attention(plain_vit._norm(x, t, f"{block}.norm1", 1e-6), t, f"{block}.attn", n_heads)
        x = x + plain_vit._mlp(plain_vit._norm(x, t, f"{block}.norm2", 1e-6), t, f"{block}.mlp")
    return plain_vit._norm(x, t, "norm", 1e-6)[0]


def chada_vit(t: Mapping[str, Tensor], image: Tensor, n_heads: int, final_eps: float) -> Tensor:
    """Return the class token of ChAda-ViT, (D,), for an image whose planes are in the order of their slots."""
    t = {name: value.double() for name, value in t.items()}
    projection = t["token_learner.proj.weight"]
    side, native = projection.shape[-1], math.isqrt(t["pos_embed"].shape[2] - 1)
    grid = (image.shape[1] // side, image.shape[2] // side)
    table = t["pos_embed"][0]
    positions = table if grid == (native, native) else dino_positions.resampled(table, native, grid)
    content = [patches(projection, t["token_learner.proj.bias"], plane) for plane in image]
    x = _sequence(content, list(t["channel_token"][0, : len(image), 0]), positions[0], t["cls_token"])
    for number in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):
        block = f"blocks.{number}"
        own = {
            "a.qkv.weight": t[f"{block}.self_attn.in_proj_weight"],
            "a.qkv.bias": t[f"{block}.self_attn.in_proj_bias"],
        }
        own |= {f"a.proj.{kind}": t[f"{block}.self_attn.out_proj.{kind}"] for kind in ("weight", "bias")}
        seen = plain_vit._attention(plain_vit._norm(x, t, f"{block}.norm1", 1e-5), own, "a", n_heads)
        x = plain_vit._norm(x + seen, t, f"{block}.norm1", 1e-5)
        hidden = (x @ t[f"{block}.linear1.weight"].T + t[f"{block}.linear1.bias"]).clamp(min=0)
        x = plain_vit._norm(
            x + hidden @ t[f"{block}.linear2.weight"].T + t[f"{block}.linear2.bias"], t, f"{block}.norm2", 1e-5
        )
    return plain_vit._norm(x, t, "norm", final_eps)[0]


def ca_mae(t: Mapping[str, Tensor], image: Tensor, positions: Tensor) -> Tensor:
    """Return the patch tokens of CA-MAE's encoder, (C, h * w, D); `positions` are of one grid and the class token."""
    t = {name: value.double() for name, value in t.items()}
    content = [patches(t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], plane) for plane in image]
    none = torch.zeros(content[0].shape[1], dtype=torch.float64)
    x = _sequence(content, [none] * len(image), positions.double(), t["cls_token"])[None]
    n_heads = content[0].shape[1] // len(t["blocks.0.q_norm.weight"])
    for number in range(len({name.split(".")[1] for name in t if name.startswith("blocks.")})):
        start = f"blocks.{number}."
        block = {name.removeprefix(start): value for name, value in t.items() if name.startswith(start)}
        block["gamma"] = block.pop("ls.gamma")
        x = parallel_block(x, block, n_heads, shifted=True)
    return x[0, 1:].reshape(len(image), -1, x.shape[2])

"""Rotary positions in two dimensions: queries and keys are turned by angles that tell their place.

A pair of neighbouring values (2k, 2k + 1) of a head is turned by an angle that rises with the column x and the row y of
the token's patch. Tokens without a place (class token, registers) have the angle 0: they are not turned.

Source: Heo et al. 2024, https://arxiv.org/abs/2403.13298 (axial and mixed frequencies and how the mixed ones start);
GSK-AI/campfire at b034f8d, whose base is 10. Its code casts the complex factors to the type of the activations, which
drops their imaginary part: there pairs are multiplied by the cosine of the angle instead of being turned (`cosine`).
"""

import math
from typing import Any, Literal

import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import linear, scaled_dot_product_attention

from morphem.errors import ConfigError

Rotary = Literal["none", "axial", "mixed"]
Rotation = Literal["full", "cosine"]
ROTARY: tuple[Rotary, ...] = ("none", "axial", "mixed")
ROTATIONS: tuple[Rotation, ...] = ("full", "cosine")


class RotaryBlock(Block):
    """A block of timm whose queries and keys are turned before they meet.

    Made of a block by `make_rotary`.

    Attributes:
        rotation: `full` turns pairs; `cosine` multiplies them by the cosine of the angle.
        freqs: Of mixed positions: angle per column and per row of every head's pairs, (2, 1, h * d / 2), trained.
    """

    rotation: Rotation
    freqs: Tensor

    def forward(  # type: ignore[override]
        self, x: Tensor, places: Tensor, frequencies: Tensor | None, first_only: bool = False
    ) -> Tensor:
        """Map tokens, (B, T, D), to tokens of the same shape, or to the first of them, (B, 1, D).

        Args:
            x: Tokens that enter the block.
            places: Row and column of each token's patch, (B or 1, T, 2), float32 or float64; 0 where it has none.
            frequencies: Of axial positions, the same for all heads, (2, 1, d / 2); None for the block's own.
            first_only: Whether to compute the first token alone.
        """
        kept = x[:, :1] if first_only else x
        x = kept + self.drop_path1(self.ls1(self._attend(self.norm1(x), places, frequencies, first_only)))
        out: Tensor = x + self.drop_path2(self.ls2(self.mlp(self.norm2(x))))
        return out

    def _attend(self, x: Tensor, places: Tensor, frequencies: Tensor | None, first_only: bool) -> Tensor:
        attention: Any = self.attn
        n_heads, (n, n_tokens, _) = attention.num_heads, x.shape
        parts = linear(x, attention.qkv.weight, attention.qkv.bias).reshape(n, n_tokens, 3, n_heads, -1)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, T, d)
        if frequencies is None:
            frequencies = self.freqs.reshape(2, n_heads, -1)
        angles = place_angles(places, frequencies)  # (B or 1, h or 1, T, d / 2)
        query, key = (turn(attention.q_norm(query), angles, self.rotation),
                      turn(attention.k_norm(key), angles, self.rotation))  # fmt: skip
        query = query[:, :, :1] if first_only else query
        drop = attention.attn_drop.p if self.training else 0.0
        seen = scaled_dot_product_attention(query, key, value, dropout_p=drop, scale=attention.scale)
        out: Tensor = attention.proj_drop(attention.proj(attention.norm(seen.transpose(1, 2).flatten(2))))
        return out


def make_rotary(blocks: nn.Sequential, rotary: Rotary, rotation: Rotation, base: float) -> None:
    """Turn the blocks of a vision transformer of timm into rotary ones; their own weights stay.

    Args:
        blocks: Plain ones.
        rotary: `axial` or `mixed`; mixed ones get frequencies to train.
        rotation: See `RotaryBlock`.
        base: The frequencies of pairs fall from 1 to 1 / base.

    Raises:
        ConfigError: If a block is of another kind, or the width of a head does not divide into pairs for x and y.
    """
    for block in blocks:
        attention: Any = getattr(block, "attn", None)
        if not isinstance(block, Block) or getattr(attention, "gate", None) is not None:
            raise ConfigError(f"vit: rotary='{rotary}' needs plain blocks, not {type(block).__name__}.")
        if attention.head_dim % 4:
            raise ConfigError(
                f"vit: rotary='{rotary}' needs heads of a width that 4 divides, not {attention.head_dim}; change "
                "embed_dim or n_heads."
            )
        block.__class__ = RotaryBlock
        rotated: Any = block
        rotated.rotation = rotation
        if rotary == "mixed":
            rotated.freqs = nn.Parameter(mixed_frequencies(attention.num_heads, attention.head_dim, base))


def axial_frequencies(head_dim: int, base: float) -> Tensor:
    """Return the angle per column and per row of the pairs of a head, (2, 1, d / 2), float64.

    The first half of the pairs knows the column alone, the second the row alone; pair k of a half has
    base ** (-4k / d).

    Args:
        head_dim: d, a multiple of 4.
        base: Above 1.
    """
    rates = base ** -(torch.arange(0, head_dim, 4, dtype=torch.float64, device="cpu") / head_dim)  # (d / 4,)
    none = torch.zeros_like(rates)
    return torch.stack([torch.cat([rates, none]), torch.cat([none, rates])])[:, None]


def mixed_frequencies(n_heads: int, head_dim: int, base: float) -> Tensor:
    """Draw the frequencies that mixed positions start with, (2, 1, h * d / 2): a random direction for each head.

    Args:
        n_heads: h.
        head_dim: d, a multiple of 4.
        base: Above 1.
    """
    rates = base ** -(torch.arange(0, head_dim, 4) / head_dim)  # (d / 4,)
    direction = torch.rand(n_heads, 1) * 2 * math.pi
    columns = torch.cat([rates * direction.cos(), rates * (direction + math.pi / 2).cos()], dim=1)  # (h, d / 2)
    rows = torch.cat([rates * direction.sin(), rates * (direction + math.pi / 2).sin()], dim=1)
    return torch.stack([columns.flatten(), rows.flatten()])[:, None]


def place_angles(places: Tensor, frequencies: Tensor) -> Tensor:
    """Return the angles of tokens, (B, h, T, d / 2).

    Args:
        places: Row and column, (B, T, 2).
        frequencies: Angle per column, then per row, (2, h, d / 2).
    """
    rows, columns = places[:, None, :, :1], places[:, None, :, 1:]  # (B, 1, T, 1)
    along_columns, along_rows = frequencies.to(places.dtype)[:, None, :, None]  # (1, h, 1, d / 2)
    angles: Tensor = along_columns * columns + along_rows * rows
    return angles


def turn(values: Tensor, angles: Tensor, rotation: Rotation) -> Tensor:
    """Turn neighbouring pairs of values by angles, (B, h, T, d).

    Args:
        values: Queries or keys, (B, h, T, d).
        angles: (B or 1, h or 1, T, d / 2).
        rotation: `full`, or `cosine` for the cosine alone.
    """
    cosine = angles.cos().to(values.dtype)
    if rotation == "cosine":
        return values * cosine.repeat_interleave(2, dim=-1)
    sine = angles.sin().to(values.dtype)
    even, odd = values[..., 0::2], values[..., 1::2]
    return torch.stack([even * cosine - odd * sine, even * sine + odd * cosine], dim=-1).flatten(-2)

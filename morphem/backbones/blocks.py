"""Transformer blocks of timm for networks beside the encoder, as decoders are."""

from functools import partial
from typing import Any

from timm.layers.mlp import Mlp
from timm.models.vision_transformer import Block
from torch import nn

NORM_EPS = 1e-6


def transformer_blocks(width: int, depth: int, n_heads: int) -> nn.Sequential:
    """Build pre-norm blocks with an MLP of four times the width and biases everywhere, (B, T, width) to the same.

    Args:
        width: A multiple of `n_heads`.
        depth: Number of blocks.
        n_heads: Attention heads.
    """
    norm: Any = partial(nn.LayerNorm, eps=NORM_EPS)
    return nn.Sequential(*(Block(width, n_heads, qkv_bias=True, norm_layer=norm) for _ in range(depth)))


def block_mlp(width: int) -> nn.Module:
    """Build the MLP of such a block.

    Args:
        width: Of what goes in and comes out.
    """
    return Mlp(width, 4 * width)  # type: ignore[no-any-return, unused-ignore]

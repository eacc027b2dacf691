"""A vision transformer whose blocks run attention and MLP side by side: the encoder of CA-MAE and OpenPhenom.

Source: CA-MAE, Kraus et al. 2024, https://arxiv.org/abs/2404.10242, recursionpharma/maes_microscopy at b3e68bb; the
block is timm's `ParallelScalingBlock` after Dehghani et al. 2023, https://arxiv.org/abs/2302.05442. Positions
are fixed.
"""

from typing import Literal, Self, get_args

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear, scaled_dot_product_attention

from morphem.backbones.positions import sincos_positions
from morphem.backbones.projected import ProjectedPatches
from morphem.errors import ConfigError

NORM_EPS = 1e-6
MlpBias = Literal["shifted", "hidden"]


class ParallelBlock(nn.Module):
    """x + scale * (attention(norm(x)) + mlp(norm(x))), with one matrix for hidden units, queries, keys and values.

    Args:
        dim: D.
        n_heads: Must divide D.
        hidden_dim: Width of the MLP, at least D.
        scale: What the factors of the block start with.
        mlp_bias: Where the bias of the MLP goes: see `ParallelTransformer`.
    """

    def __init__(self, dim: int, n_heads: int, hidden_dim: int, scale: float, mlp_bias: MlpBias) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.widths = [hidden_dim, dim, dim, dim]
        self.shifted = mlp_bias == "shifted"
        self.in_norm = nn.LayerNorm(dim, eps=NORM_EPS)
        self.in_proj = nn.Linear(dim, sum(self.widths), bias=False)
        self.mlp_bias = nn.Parameter(torch.zeros(hidden_dim))
        self.q_norm = nn.LayerNorm(dim // n_heads, eps=NORM_EPS)
        self.k_norm = nn.LayerNorm(dim // n_heads, eps=NORM_EPS)
        self.attn_out_proj = nn.Linear(dim, dim)
        self.mlp_out_proj = nn.Linear(hidden_dim, dim)
        self.gamma = nn.Parameter(torch.full((dim,), scale))

    def bias(self) -> Tensor:
        """Return the bias of `in_proj`, (hidden + 3 * D,), in the order of its rows: hidden units, q, k, v."""
        zeros = self.mlp_bias.new_zeros(sum(self.widths[1:]))
        return torch.cat([zeros, self.mlp_bias] if self.shifted else [self.mlp_bias, zeros])

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens, (B, T, D), to tokens of the same shape."""
        projected = linear(self.in_norm(x), self.in_proj.weight, self.bias())
        hidden, *parts = torch.split(projected, self.widths, dim=2)
        heads = (len(x), -1, self.n_heads, x.shape[2] // self.n_heads)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in parts)  # (B, h, T, d)
        seen = scaled_dot_product_attention(self.q_norm(query), self.k_norm(key), value)
        attended = self.attn_out_proj(seen.transpose(1, 2).flatten(2))
        out: Tensor = x + self.gamma * (attended + self.mlp_out_proj(gelu(hidden)))
        return out


class ParallelTransformer(ProjectedPatches):
    """A transformer with parallel blocks and fixed positions on single-channel planes, without a last normalisation.

    `forward` gives the class token. CA-MAE's features are means of patch tokens: `channel_agnostic` with `pooling`
    `mean` or `channelwise`.

    Args:
        patch_size_px: Side of a patch in pixels.
        image_size_px: Side in pixels of the square plane that the stored positions belong to; for other sizes
            positions are computed.
        embed_dim: D, a multiple of 4.
        depth: Number of blocks.
        n_heads: Attention heads; must divide D.
        mlp_ratio: Width of the MLP in units of D, at least 1.
        layer_scale: What the factors of the blocks start with. CA-MAE: 1e-4.
        mlp_bias: `shifted` puts the bias of the MLP behind a zero for each of q, k and v, against the order of the
            rows, so that the first 3 * D hidden units have no bias and q, k and v have one: what timm did until
            January 2026, and what CA-MAE's weights were trained with. `hidden` gives it to the hidden units, as timm
            does since commit 247c545f.

    Raises:
        ConfigError: If a number is out of its range, one does not divide the other, or `mlp_bias` is none of its
            values.
    """

    def __init__(
        self,
        patch_size_px: int = 16,
        image_size_px: int = 256,
        embed_dim: int = 384,
        depth: int = 12,
        n_heads: int = 6,
        mlp_ratio: int = 4,
        layer_scale: float = 1e-4,
        mlp_bias: MlpBias = "shifted",
    ) -> None:
        super().__init__()
        _check(patch_size_px, image_size_px, embed_dim, depth, n_heads, mlp_ratio)
        if mlp_bias not in get_args(MlpBias):
            raise ConfigError(f"parallel_vit: mlp_bias='{mlp_bias}' must be shifted or hidden.")
        self.embed_dim = embed_dim
        side = image_size_px // patch_size_px
        self.trained_grid = (side, side)
        self.patch_embed = nn.Conv2d(1, embed_dim, patch_size_px, patch_size_px)
        self.first_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        table = sincos_positions(self.trained_grid, embed_dim).to(self.first_token.device)
        self.register_buffer("position_table", torch.cat([torch.zeros_like(table[:, :1]), table], dim=1))
        self.blocks = nn.Sequential(
            *(ParallelBlock(embed_dim, n_heads, mlp_ratio * embed_dim, layer_scale, mlp_bias) for _ in range(depth))
        )
        nn.init.trunc_normal_(self.first_token, std=0.02)
        self.blocks.apply(_init_linear)

    position_table: Tensor

    def patch_positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the positions of the patches of a grid, (1, h * w, D): those stored, or computed for other grids.

        Args:
            grid: Patches along height and width.
        """
        if grid == self.trained_grid:
            return self.position_table[:, self.n_prefix :]
        return sincos_positions(grid, self.embed_dim).to(self.position_table.device, self.position_table.dtype)

    def encode(self, tokens: Tensor) -> Tensor:
        """Put the class token before patch tokens and run all blocks, (B, 1 + T, D); nothing is normalised last.

        Args:
            tokens: Patch tokens with their positions, any number of them, in any order, (B, T, D).
        """
        first = (self.first_token + self.position_table[:, : self.n_prefix]).expand(len(tokens), -1, -1)
        out: Tensor = self.blocks(torch.cat([first, tokens], dim=1))
        return out

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works: two blocks of width 16 on patches of 8 pixels."""
        return cls(patch_size_px=8, image_size_px=16, embed_dim=16, depth=2, n_heads=2, mlp_ratio=2, layer_scale=1.0)


def _check(patch_size_px: int, image_size_px: int, embed_dim: int, depth: int, n_heads: int, mlp_ratio: int) -> None:
    sizes = {
        "patch_size_px": patch_size_px,
        "image_size_px": image_size_px,
        "embed_dim": embed_dim,
        "depth": depth,
        "n_heads": n_heads,
        "mlp_ratio": mlp_ratio,
    }
    for key, value in sizes.items():
        if value < 1:
            raise ConfigError(f"parallel_vit: {key}={value} must be at least 1.")
    if embed_dim % n_heads or image_size_px % patch_size_px:
        raise ConfigError(
            f"parallel_vit: n_heads={n_heads} must divide embed_dim={embed_dim}, and "
            f"patch_size_px={patch_size_px} image_size_px={image_size_px}."
        )


def _init_linear(module: nn.Module) -> None:
    """Start linear layers as timm does."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

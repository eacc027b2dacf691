"""A vision transformer with post-norm blocks: the network of ChAda-ViT.

Source: ChAda-ViT, Bourriez et al. 2024, https://arxiv.org/abs/2311.15264, nicoboou/chadavit at 9da56be. A block is, as
there: y = norm1(x); x = norm1(x + attention(y)); x = norm2(x + mlp(x)), with one norm1 used twice.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import relu, scaled_dot_product_attention

from morphem.backbones.positions import resampled_positions
from morphem.backbones.projected import ProjectedPatches
from morphem.errors import ConfigError


class PostNormBlock(nn.Module):
    """Attention and an MLP of two layers, each normalised after its sum.

    Args:
        dim: D.
        n_heads: Must divide D.
        hidden_dim: Width of the MLP.
    """

    def __init__(self, dim: int, n_heads: int, hidden_dim: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.norm1 = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens, (B, T, D), to tokens of the same shape."""
        x = self.norm1(x + self._attend(self.norm1(x)))
        out: Tensor = self.norm2(x + self.fc2(relu(self.fc1(x))))
        return out

    def _attend(self, x: Tensor) -> Tensor:
        parts = self.qkv(x).unflatten(2, (3, self.n_heads, -1)).permute(2, 0, 3, 1, 4)  # (3, B, h, T, d)
        query, key, value = parts.unbind(0)
        out: Tensor = self.proj(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))
        return out


class PostNormTransformer(ProjectedPatches):
    """A transformer with post-norm blocks on single-channel planes; the embedding is the class token.

    Args:
        patch_size_px: Side of a patch in pixels.
        image_size_px: Side in pixels of the square plane that the stored positions belong to; other sizes work, with
            positions resampled as DINO does.
        embed_dim: D.
        depth: Number of blocks.
        n_heads: Attention heads; must divide D. The released ChAda-ViT says 12; its training code builds 2.
        hidden_dim: Width of the blocks' MLP.
        final_norm_eps: Of the last normalisation; above 0. ChAda-ViT's class says 1e-5, its training code 1e-6.

    Raises:
        ConfigError: If a number is below 1, one does not divide the other, or the epsilon is not above 0.
    """

    def __init__(
        self,
        patch_size_px: int = 16,
        image_size_px: int = 224,
        embed_dim: int = 192,
        depth: int = 12,
        n_heads: int = 12,
        hidden_dim: int = 2048,
        final_norm_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        sizes = {
            "patch_size_px": patch_size_px,
            "image_size_px": image_size_px,
            "embed_dim": embed_dim,
            "depth": depth,
            "n_heads": n_heads,
            "hidden_dim": hidden_dim,
        }
        for key, value in sizes.items():
            if value < 1:
                raise ConfigError(f"post_norm_vit: {key}={value} must be at least 1.")
        if embed_dim % n_heads or image_size_px % patch_size_px:
            raise ConfigError(
                f"post_norm_vit: n_heads={n_heads} must divide embed_dim={embed_dim}, and "
                f"patch_size_px={patch_size_px} image_size_px={image_size_px}."
            )
        if not final_norm_eps > 0:
            raise ConfigError(f"post_norm_vit: final_norm_eps={final_norm_eps} must be above 0.")
        self.embed_dim = embed_dim
        side = image_size_px // patch_size_px
        self.trained_grid = (side, side)
        self.patch_embed = nn.Conv2d(1, embed_dim, patch_size_px, patch_size_px)
        self.first_token = nn.Parameter(torch.empty(1, 1, embed_dim))
        self.position_table = nn.Parameter(torch.empty(1, 1 + side * side, embed_dim))
        self.blocks = nn.Sequential(*(PostNormBlock(embed_dim, n_heads, hidden_dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(embed_dim, eps=final_norm_eps)
        nn.init.trunc_normal_(self.first_token, std=0.02)
        nn.init.trunc_normal_(self.position_table, std=0.02)
        self.blocks.apply(_init_linear)

    def patch_positions(self, grid: tuple[int, int]) -> Tensor:
        """Return the positions of the patches of a grid, (1, h * w, D).

        Args:
            grid: Patches along height and width.
        """
        return resampled_positions(self.position_table, self.trained_grid, grid)[:, self.n_prefix :]

    def encode(self, tokens: Tensor) -> Tensor:
        """Put the class token before patch tokens, run all blocks and the last normalisation, (B, 1 + T, D).

        Args:
            tokens: Patch tokens with their positions, any number of them, in any order, (B, T, D).
        """
        first = (self.first_token + self.position_table[:, : self.n_prefix]).expand(len(tokens), -1, -1)
        out: Tensor = self.norm(self.blocks(torch.cat([first, tokens], dim=1)))
        return out

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works: two blocks of width 16 on patches of 8 pixels."""
        return cls(patch_size_px=8, image_size_px=16, embed_dim=16, depth=2, n_heads=2, hidden_dim=32)


def _init_linear(module: nn.Module) -> None:
    """Start linear layers as DINO and timm do."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)

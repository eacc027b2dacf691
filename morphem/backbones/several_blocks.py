"""Tokens of several blocks side by side: what the authors of DINOv2 and Cell-DINO give to a linear classifier.

Source: Oquab et al. 2024, https://arxiv.org/abs/2304.07193; Cell-DINO's evaluation, sondvo/dinov2 at bfb35b5: class
tokens of the last blocks, the oldest first, then the mean patch token of the last block, all after the last norm.
"""

from typing import Self

import torch
from torch import Tensor

from morphem.backbones.base import Backbone
from morphem.backbones.vit import VisionTransformer
from morphem.errors import ConfigError


class SeveralBlocks(Backbone):
    """A vision transformer whose embedding is made of class tokens and patch tokens of its last blocks.

    Args:
        backbone: Gives the tokens.
        n_blocks: Class tokens of so many of the last blocks; at least 1, at most the depth.
        mean_patch: Whether the mean of the patch tokens of the last block follows.

    Raises:
        ConfigError: If `n_blocks` is out of range, or the backbone is of another kind.
    """

    def __init__(self, backbone: VisionTransformer, n_blocks: int = 1, mean_patch: bool = True) -> None:
        super().__init__()
        if not isinstance(backbone, VisionTransformer):
            raise ConfigError(f"several_blocks needs the backbone vit, not {type(backbone).__name__}.")
        depth = len(backbone.network.blocks)
        if not 1 <= n_blocks <= depth:
            raise ConfigError(
                f"several_blocks: n_blocks={n_blocks} must be from 1 to the depth of the network, {depth}."
            )
        self.backbone = backbone
        self.n_blocks = n_blocks
        self.mean_patch = mean_patch
        self.embed_dim = (n_blocks + mean_patch) * backbone.embed_dim

    @property
    def patch_size_px(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""
        return self.backbone.patch_size_px

    @property
    def in_channels(self) -> int:
        """Planes that the patch projection takes at once."""
        return self.backbone.in_channels

    def forward(self, planes: Tensor) -> Tensor:
        """Embed planes, (P, D * (n_blocks + mean_patch)).

        Args:
            planes: Normalised pixels, (P, 1, H, W), or images (N, C, H, W) where the network takes C planes at once.

        Raises:
            DataError: If the patch does not divide H and W.
        """
        layers = self.backbone.last_tokens(planes, self.n_blocks)
        parts = [tokens[:, 0] for tokens in layers]
        if self.mean_patch:
            parts.append(layers[-1][:, self.backbone.n_prefix :].mean(1))
        return torch.cat(parts, dim=1)

    def widen(self, n_channels: int) -> None:
        """Replace the patch projection by an untrained one; see `VisionTransformer.widen`.

        Args:
            n_channels: At least 1.
        """
        self.backbone.widen(n_channels)

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(VisionTransformer.tiny(), n_blocks=2)

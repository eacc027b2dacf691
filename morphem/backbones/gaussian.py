"""Features that know nothing: normal numbers that are a function of the pixels, as a control."""

from typing import Self

import torch
from torch import Tensor

from morphem.backbones.base import Backbone
from morphem.errors import ConfigError
from morphem.rng import mix, mix_tensor, normal


class GaussianFeatures(Backbone):
    """Draw independent normal numbers for every plane, seeded by its pixels: equal pixels, equal features.

    One pixel that changes by the smallest step changes all features. What is drawn does not depend on device, batch or
    order; devices differ in the rounding of logarithm and cosine.

    Args:
        embed_dim: D, at least 1.
        seed: Other seeds give other features.

    Raises:
        ConfigError: If D is below 1.
    """

    def __init__(self, embed_dim: int = 384, seed: int = 0) -> None:
        super().__init__()
        if embed_dim < 1:
            raise ConfigError(f"gaussian: embed_dim={embed_dim} must be at least 1.")
        self.embed_dim = embed_dim
        self.seed = seed

    def forward(self, planes: Tensor) -> Tensor:
        """Draw the features of planes, (P, 1, H, W) to (P, D), of the type of the planes."""
        bits = planes.float().contiguous().view(torch.int32).flatten(1).long()  # (P, H * W)
        place = torch.arange(bits.shape[1], device=bits.device)
        words = mix_tensor(bits, place).sum(1)  # wraps: the order of the sum is nothing
        seeds = mix_tensor(words, mix(self.seed, *planes.shape[-2:]))
        return normal(seeds, "gaussian features", self.embed_dim).to(planes.dtype)

    @classmethod
    def tiny(cls) -> Self:
        """Build an instance of four features."""
        return cls(embed_dim=4)

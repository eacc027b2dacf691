"""A bag of channels over a network for colour pictures: every plane is shown to it as a grey picture.

Source: CHAMMI-75's benchmark (`benchmarks/models.py` at b84a4ec), which runs DINOv2 and DINOv3 this way: each plane is
repeated to red, green and blue, then normalised by the mean and standard deviation of ImageNet.
"""

from collections.abc import Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from morphem.backbones.base import Backbone
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.sequences import Sequences
from morphem.errors import ConfigError
from morphem.types import ChannelBatch

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class RGBBagOfChannels(BagOfChannels):
    """Fold the planes of all images into one batch of grey pictures with three equal colours.

    Args:
        backbone: Embeds pictures, (P, 3, H, W) to (P, D).
        mean: Subtracted from red, green and blue, in the units of what the encoder's normaliser gives.
        std: What red, green and blue are divided by then, above 0.
        planes: As `BagOfChannels` takes it.

    Raises:
        ConfigError: If mean or std are not three numbers, or a std is not above 0.
    """

    def __init__(
        self,
        backbone: Backbone,
        mean: Sequence[float] = IMAGENET_MEAN,
        std: Sequence[float] = IMAGENET_STD,
        planes: Literal["all", "one"] = "all",
    ) -> None:
        super().__init__(backbone, planes)
        if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
            raise ConfigError(
                f"rgb_bag_of_channels: mean={list(mean)} and std={list(std)} must be three numbers each, for red, "
                "green and blue, and every std above 0."
            )
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64).float()[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float64).float()[:, None, None], persistent=False)

    def pictures(self, planes: Tensor) -> Tensor:
        """Show planes as pictures, (P, 1, H, W) to (P, 3, H, W)."""
        return (planes - self.mean) / self.std  # type: ignore[operator]

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every plane of a dense, normalised batch: (P, D)."""
        return self.backbone(self.pictures(batch.planes))  # type: ignore[no-any-return]

    def sequences(self, batch: ChannelBatch) -> list[Sequences]:
        """Turn every plane into one sequence.

        Args:
            batch: Dense and normalised.

        Raises:
            ConfigError: If the backbone does not work on tokens.
        """
        return super().sequences(batch._replace(planes=self.pictures(batch.planes)))

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(
            VisionTransformer(
                "vit_tiny_patch16_224",
                patch_size_px=8,
                image_size_px=16,
                embed_dim=16,
                depth=2,
                n_heads=2,
                in_channels=3,
            )
        )

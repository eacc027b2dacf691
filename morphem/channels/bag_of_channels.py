"""Bag of channels: every plane is embedded alone by one network of one input channel.

Source: CHAMMI-75, https://github.com/CaicedoLab/CHAMMI-75 at b84a4ec9, which trains and evaluates MorphEm this way.
"""

from typing import ClassVar, Self

from torch import Tensor

from morphem.backbones.base import Backbone
from morphem.backbones.vit import VisionTransformer
from morphem.channels.base import ChannelStrategy
from morphem.types import ChannelBatch


class BagOfChannels(ChannelStrategy):
    """Fold the planes of all images into one batch; what a plane shows is not told to the network.

    Args:
        backbone: Embeds planes, (P, 1, H, W) to (P, D).
    """

    per_channel: ClassVar[bool] = True

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone
        self.embed_dim = backbone.embed_dim

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every plane of a dense, normalised batch: (P, D)."""
        return self.backbone(batch.planes)  # type: ignore[no-any-return]

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(VisionTransformer.tiny())

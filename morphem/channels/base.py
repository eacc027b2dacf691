"""What a channel strategy owes."""

from abc import ABC, abstractmethod
from typing import ClassVar, Self

from torch import Tensor, nn

from morphem.spec import Configurable
from morphem.types import ChannelBatch


class ChannelStrategy(nn.Module, Configurable, ABC):
    """How the channel planes of an image become one input of a backbone.

    A subclass sets `embed_dim` in its `__init__` and `per_channel` in its body.

    Attributes:
        per_channel: True where every plane gets an embedding of its own, (P, D); False where an image gets one, (N, D).
        embed_dim: D.
    """

    per_channel: ClassVar[bool]
    embed_dim: int

    @abstractmethod
    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed a batch; in evaluation mode no image may have a say in another's embedding.

        Args:
            batch: Dense and normalised: planes (P, 1, H, W), float.

        Returns:
            (P, D) where `per_channel`, in the order of the planes; else (N, D), in the order of the images.
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works, for planes of 16 x 16 and 32 x 32 pixels."""

"""What a backbone owes."""

from abc import ABC, abstractmethod
from typing import Self

from torch import Tensor, nn

from morphem.spec import Configurable


class Backbone(nn.Module, Configurable, ABC):
    """A network that embeds single planes, each on its own.

    A subclass sets `embed_dim` in its `__init__`.

    Attributes:
        embed_dim: D.
    """

    embed_dim: int

    @abstractmethod
    def forward(self, planes: Tensor) -> Tensor:
        """Embed planes; in evaluation mode no plane may have a say in another's embedding.

        Args:
            planes: Normalised pixels, (P, 1, H, W).

        Returns:
            (P, D).
        """

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works, for planes of 16 x 16 and 32 x 32 pixels."""

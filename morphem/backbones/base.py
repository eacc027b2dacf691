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


class TokenBackbone(Backbone):
    """A backbone on patch tokens, which can start from any tokens of its width.

    Channel strategies of several planes and methods that hide or replace tokens need one. `forward(planes)` equals
    `class_token(patches(planes))`.

    Attributes:
        n_prefix: Tokens that `encode` puts before the patches; the class token is the first of them.
        needs_places: Whether `encode` and `class_token` need the argument `places`, the row and column of each token's
            patch, (B or 1, T, 2): true of rotary positions alone.
    """

    n_prefix: int = 1
    needs_places: bool = False

    @property
    @abstractmethod
    def patch_size_px(self) -> tuple[int, int]:
        """Height and width of a patch in pixels."""

    @abstractmethod
    def patches(self, planes: Tensor) -> Tensor:
        """Cut planes into patches and project them; no position is added.

        Args:
            planes: Normalised pixels, (P, 1, H, W); the patch divides H and W.

        Returns:
            Patch tokens row by row, (P, h * w, D).

        Raises:
            DataError: If the patch does not divide H and W.
        """

    @abstractmethod
    def patch_positions(self, grid: tuple[int, int]) -> Tensor:
        """Return what is added to patch tokens to tell their place, (1, h * w, D).

        Args:
            grid: Patches along height and width.
        """

    @abstractmethod
    def encode(self, tokens: Tensor) -> Tensor:
        """Put the class token before patch tokens, run all blocks and the last normalisation.

        Args:
            tokens: Patch tokens with their positions, any number of them, in any order, (B, T, D).

        Returns:
            (B, n_prefix + T, D).
        """

    def encode_at(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        """Return `encode` of tokens, told their places where the network needs them.

        Args:
            tokens: As `encode` takes them.
            places: Row and column of each token's patch, (B or 1, T, 2).
        """
        return self.encode(tokens, places) if self.needs_places else self.encode(tokens)  # type: ignore[call-arg]

    def class_token_at(self, tokens: Tensor, places: Tensor | None) -> Tensor:
        """Return `class_token` of tokens, told their places where the network needs them.

        Args:
            tokens: As `class_token` takes them.
            places: Row and column of each token's patch, (B or 1, T, 2).
        """
        return self.class_token(tokens, places) if self.needs_places else self.class_token(tokens)  # type: ignore[call-arg]

    def class_token(self, tokens: Tensor) -> Tensor:
        """Return the class token of `encode`, (B, D); a subclass may leave out what only the others need.

        Args:
            tokens: As `encode` takes them.
        """
        return self.encode(tokens)[:, 0]

"""What a channel strategy owes."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

from torch import Tensor, nn

from morphem.channels.sequences import Sequences, patchify
from morphem.errors import ConfigError
from morphem.spec import Configurable
from morphem.types import ChannelBatch
from morphem.vocabulary import resolve_name


class ChannelStrategy(nn.Module, Configurable, ABC):
    """How the channel planes of an image become one input of a backbone.

    A subclass sets `embed_dim` in its `__init__` and `per_channel` in its body. One that works on patch tokens also
    sets `tokenised` and `patch_size_px` and defines `sequences` and `encode`; methods that hide or predict patches
    need these. `forward(batch)` then equals `encode(tokens)[:, 0]` of all sequences, in the rows they name.

    Attributes:
        per_channel: True where every plane gets an embedding of its own, (P, D); False where an image gets one, (N, D).
        embed_dim: D.
        tokenised: Whether `sequences`, `encode` and `pixels` work.
        n_prefix: Tokens that `encode` puts before the patches; the class token is the first of them.
        patch_size_px: Height and width of a patch in pixels, where tokenised.
        needs_places: Whether `encode` needs the argument `places`: true of rotary positions alone.
        panels: Where `tiny()` refuses some channels: the channel types of several images that it takes, for checks.
    """

    per_channel: bool
    panels: ClassVar[Sequence[Sequence[str]]]
    embed_dim: int
    tokenised: bool = False
    n_prefix: int = 1
    needs_places: bool = False
    patch_size_px: tuple[int, int]

    @abstractmethod
    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed a batch; in evaluation mode no image may have a say in another's embedding.

        Args:
            batch: Dense and normalised: planes (P, 1, H, W), float.

        Returns:
            (P, D) where `per_channel`, in the order of the planes; else (N, D), in the order of the images.
        """

    def select(self, batch: ChannelBatch) -> ChannelBatch:
        """Return the planes of a batch that a training step looks at; a method calls it before it makes views.

        Args:
            batch: As the loader yields it.
        """
        return batch

    def resolve(self, name: str | int) -> str:
        """Return the channel type that a user of the encoder means; a strategy may know further names, and numbers.

        Args:
            name: A channel type or an alias of one.

        Raises:
            ChannelError: If it is neither.
        """
        return resolve_name(name)

    def check(self, batch: ChannelBatch) -> None:
        """Refuse images whose channels the strategy cannot take, before anything is done to their pixels.

        Args:
            batch: Any; only its channel types are looked at.

        Raises:
            ChannelError: Says which image lacks what.
        """

    def sequences(self, batch: ChannelBatch) -> list[Sequences]:
        """Turn a batch into patch tokens; sequences of one length stand together.

        Args:
            batch: Dense and normalised.

        Returns:
            Every row of the output belongs to one sequence. Where `per_channel`, a sequence is one plane.

        Raises:
            ConfigError: If the strategy does not work on tokens.
        """
        raise ConfigError(f"{type(self).__name__} gives no patch tokens; take a strategy or backbone that does.")

    def encode(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Run the network on patch tokens.

        Args:
            tokens: Any part or change of the tokens of `sequences`, (B, T', D).
            places: Of these tokens what `Sequences.coordinates` says, (B, T', 2), where the strategy `needs_places`.

        Returns:
            (B, n_prefix + T', D), after the last normalisation; the class token first.

        Raises:
            ConfigError: If the strategy does not work on tokens.
        """
        raise ConfigError(f"{type(self).__name__} gives no patch tokens; take a strategy or backbone that does.")

    def encode_at(self, tokens: Tensor, places: Tensor) -> Tensor:
        """Return `encode` of tokens, told their places where the strategy needs them; what methods call.

        Args:
            tokens: Any part or change of the tokens of `sequences`, (B, T', D).
            places: Of these tokens what `Sequences.coordinates` says, (B, T', 2).
        """
        return self.encode(tokens, places) if self.needs_places else self.encode(tokens)

    def pixels(self, batch: ChannelBatch, sequences: Sequences) -> Tensor:
        """Return the normalised pixels that each token was cut from.

        Args:
            batch: The batch that the sequences were made of.
            sequences: One element of what `sequences` gave for it.

        Returns:
            (B, T, ph * pw) with the pixels of a patch row by row; channel after channel, (B, T, C * ph * pw), where
            a token is cut from all channels.
        """
        patches = patchify(batch.planes, self.patch_size_px)  # (P, h * w, ph * pw)
        return patches[sequences.planes.gather(1, sequences.channels), sequences.patches]

    @classmethod
    @abstractmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works, for planes of 16 x 16 and 32 x 32 pixels."""

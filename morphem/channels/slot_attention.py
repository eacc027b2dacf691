"""Slot attention: all channels of an image in one sequence, told apart by their slot, as ChAda-ViT calls it.

Source: ChAda-ViT, Bourriez et al. 2024, https://arxiv.org/abs/2311.15264, nicoboou/chadavit at 9da56be. Differs from
it: slots are filled in the order of the channels' names, not of the files, so that an image has one embedding whatever
the order of its planes; and empty slots are left out instead of being padded and masked, which gives the same numbers.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor, nn

from morphem.backbones.base import TokenBackbone
from morphem.backbones.post_norm import PostNormTransformer
from morphem.channels.joint import JointChannels
from morphem.errors import ChannelError, ConfigError
from morphem.types import ChannelBatch
from morphem.vocabulary import resolve_distinct


class SlotAttention(JointChannels):
    """One sequence of patch tokens per image, with an embedding of the channel's slot added to each (ChAda-ViT).

    A slot says that channels are different, not what they show: the second channel of one image may be of another type
    than the second of the next.

    Args:
        backbone: Network on tokens; ChAda-ViT's is `post_norm_vit`.
        n_slots: Channels that an image may have at most.
        order: Channel types, by name or alias, that fill the first slots in this order; others come after them, in
            alphabetical order. Null for alphabetical order of all.
        fill: `by_name` fills the slots as `order` says; `by_position` in the order of an image's planes, as ChAda-ViT's
            own code: an image then has another embedding when its planes are handed over in another order.

    Raises:
        ChannelError: If `order` is empty, or has an unknown or repeated name.
        ConfigError: If `n_slots` is below 1, `fill` is none of its values or leaves `order` without effect, or the
            backbone does not work on tokens.
    """

    def __init__(
        self,
        backbone: TokenBackbone,
        n_slots: int = 10,
        order: Sequence[str] | None = None,
        fill: Literal["by_name", "by_position"] = "by_name",
    ) -> None:
        super().__init__(backbone)
        if n_slots < 1:
            raise ConfigError(f"slot_attention: n_slots={n_slots} must be at least 1.")
        if fill not in ("by_name", "by_position"):
            raise ConfigError(f"slot_attention: fill='{fill}' must be by_name or by_position.")
        if fill == "by_position" and order is not None:
            raise ConfigError("slot_attention: order has no effect with fill='by_position'; leave one of the two out.")
        self.fill = fill
        self._first = {} if order is None else {name: i for i, name in enumerate(resolve_distinct(order, "order"))}
        self.slot_embedding = nn.Parameter(torch.empty(n_slots, self.embed_dim))
        nn.init.trunc_normal_(self.slot_embedding, std=0.02)

    def slots(self, batch: ChannelBatch) -> Tensor:
        """Return the slot of each plane, (P,), int64.

        Args:
            batch: Any.

        Raises:
            ChannelError: If an image has more channels than there are slots.
        """
        result: list[int] = []
        for image, (first, last) in enumerate(pairwise(batch.offsets.tolist())):
            if last - first > len(self.slot_embedding):
                raise ChannelError(
                    f"image '{batch.keys[image]}' has {last - first} channels, but this encoder has "
                    f"{len(self.slot_embedding)} slots; leave channels out, or train with a larger n_slots."
                )
            result.extend(self._ranks(batch.channel_types[first:last]))
        return torch.tensor(result, device=batch.offsets.device)

    def _ranks(self, names: Sequence[str]) -> list[int]:
        """Return the slot of each channel of an image; of equal names, the first has the first slot."""
        if self.fill == "by_position":
            return list(range(len(names)))
        keys = [(self._first.get(name, len(self._first)), name) for name in names]
        in_order = sorted(range(len(names)), key=lambda channel: keys[channel])
        slots = {channel: slot for slot, channel in enumerate(in_order)}
        return [slots[channel] for channel in range(len(names))]

    def identity(self, batch: ChannelBatch, planes: Tensor | None) -> Tensor:
        """Return the embedding of the slot of each plane, (P', D).

        Args:
            batch: Dense and normalised.
            planes: The planes that are looked at, (P',), int64; None for all.

        Raises:
            ChannelError: If an image has more channels than there are slots.
        """
        slots = self.slots(batch)
        return self.slot_embedding[slots if planes is None else slots[planes]]

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(PostNormTransformer.tiny(), n_slots=5)

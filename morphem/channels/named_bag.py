"""Bag of channels with a list of channels: for encoders that tell none apart, but whose pixels are scaled by channel.

Source: IC-ViT, Lian et al. 2025, https://arxiv.org/abs/2503.09826, whose single-channel pre-training takes statistics
per channel of a data set.
"""

from collections.abc import Mapping, Sequence
from typing import Self

from morphem.backbones.base import Backbone
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.vocabulary import Vocabulary


class NamedBag(BagOfChannels):
    """Every plane is embedded alone; a user may call it by the names and numbers of the weights' authors.

    Args:
        backbone: Embeds planes.
        vocabulary: Channel types, by name or alias, in the order of the authors' numbers.
        own_names: What the authors call them, each with the entry of the vocabulary that it stands for. An entry that
            stands for itself here needs no channel type of morphem's.

    Raises:
        ChannelError: If the vocabulary is empty, or has an unknown or repeated name, or a name leads nowhere.
    """

    def __init__(
        self, backbone: Backbone, vocabulary: Sequence[str], own_names: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(backbone)
        self.vocabulary = Vocabulary(vocabulary, {}, "error", own_names)

    def resolve(self, name: str | int) -> str:
        """Return the channel type that a user of the encoder means.

        Args:
            name: A name of the weights' authors, a channel type or an alias of one, or a number: the place in the
                vocabulary, from 0.

        Raises:
            ChannelError: If it is none of them, or not in the vocabulary.
        """
        resolved = self.vocabulary.resolve(name)
        self.vocabulary.number(resolved, strict=True)
        return resolved

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(VisionTransformer.tiny(), ["nucleus", "actin", "rna", "r", "g", "b", "bright-field"])

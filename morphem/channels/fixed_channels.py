"""Fixed channels: one patch projection over a list of named channels, as in networks for colour pictures.

Source: Kim et al., https://github.com/Bayer-Group/CellPaintSSL at a2625b0 (five channels of Cell Painting), and the
supervised baseline of CHAMMI-75, whose appendix G.5 replicates the patch projection of a single-channel network.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import ClassVar, Self

import torch
from torch import Tensor

from morphem.backbones.patches import patch_grid
from morphem.backbones.several_blocks import SeveralBlocks
from morphem.backbones.vit import PATCH_PROJECTION, VisionTransformer
from morphem.channels.base import ChannelStrategy
from morphem.channels.sequences import Sequences, patchify
from morphem.errors import ChannelError, ConfigError, WeightsError
from morphem.types import ChannelBatch
from morphem.vocabulary import resolve_distinct


class FixedChannels(ChannelStrategy):
    """All channels of an image in one patch projection; every image has exactly the channels that are named.

    The planes of an image may come in any order: their names decide where they go.

    Args:
        backbone: A vision transformer (`vit`, or `several_blocks` over one). A patch projection for another number of
            channels is replaced by an untrained one.
        channels: What the input channels show, by name or alias, in the order of the weights.

    Raises:
        ChannelError: If there is no channel, or one is unknown or repeated.
        ConfigError: If the backbone cannot be widened.
    """

    per_channel = False
    panels: ClassVar[Sequence[Sequence[str]]] = (
        ("nucleus", "actin", "mitochondria"),
        ("actin", "nucleus", "mitochondria"),
        ("mitochondria", "actin", "nucleus"),
        ("nucleus", "mitochondria", "actin"),
        ("actin", "mitochondria", "nucleus"),
        ("mitochondria", "nucleus", "actin"),
    )
    tokenised = True

    def __init__(self, backbone: VisionTransformer | SeveralBlocks, channels: Sequence[str]) -> None:
        super().__init__()
        if not isinstance(backbone, VisionTransformer | SeveralBlocks):
            raise ConfigError(
                f"fixed_channels: the patch projection of {type(backbone).__name__} cannot be widened; take the "
                "backbone vit."
            )
        self.channels = resolve_distinct(channels, "channels")
        self.backbone = backbone
        self.embed_dim = backbone.embed_dim
        self.patch_size_px = backbone.patch_size_px
        self.tokenised = isinstance(backbone, VisionTransformer)
        if isinstance(backbone, VisionTransformer):
            self.n_prefix = backbone.n_prefix
            self.needs_places = backbone.needs_places
        if backbone.in_channels != len(self.channels):
            backbone.widen(len(self.channels))

    def resolve(self, name: str | int) -> str:
        """Return the channel type that a user means, by name, alias, or place in the order of the weights from 0.

        Args:
            name: A channel type, an alias of one, or a number.

        Raises:
            ChannelError: If it is none of these.
        """
        if isinstance(name, int) and not isinstance(name, bool):
            if not 0 <= name < len(self.channels):
                raise ChannelError(
                    f"channel {name} is none of the {len(self.channels)} of this encoder, which are counted from 0: "
                    f"{', '.join(self.channels)}."
                )
            return self.channels[name]
        return super().resolve(name)

    def ordered(self, batch: ChannelBatch) -> Tensor:
        """Return the planes of every image in the order of the weights, (N, C), int64.

        Args:
            batch: Any.

        Raises:
            ChannelError: If an image lacks a channel, or has another one or one twice.
        """
        rows, wanted = [], sorted(self.channels)
        for image, (first, last) in enumerate(pairwise(batch.offsets.tolist())):
            names = batch.channel_types[first:last]
            if sorted(names) != wanted:
                raise ChannelError(self._refusal(batch.keys[image], names))
            rows.append([first + names.index(name) for name in self.channels])
        return torch.tensor(rows, device=batch.offsets.device)

    def _refusal(self, key: str, names: Sequence[str]) -> str:
        """The sentence for an image of other channels: what it lacks, what is too many, and what to do."""
        lacking = [name for name in self.channels if name not in names]
        surplus = [*(name for name in names if name not in self.channels), *repeated(names)]
        remedy = "; ".join(
            [f"it lacks {', '.join(lacking)}"] * bool(lacking) + [f"leave out {', '.join(surplus)}"] * bool(surplus)
        )
        return (
            f"image '{key}' has the channels {', '.join(names)}, but this encoder takes exactly "
            f"{', '.join(self.channels)}; {remedy}."
        )

    def check(self, batch: ChannelBatch) -> None:
        """Refuse images that have not exactly the channels that are named; see `ordered`."""
        self.ordered(batch)

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every image of a dense, normalised batch: (N, D).

        Args:
            batch: Dense and normalised.

        Raises:
            ChannelError: If an image has not exactly the channels that are named.
        """
        return self.backbone(batch.planes[self.ordered(batch), 0])  # type: ignore[no-any-return]

    def sequences(self, batch: ChannelBatch) -> list[Sequences]:
        """Turn every image into one sequence, with one token for each patch of all its channels.

        Args:
            batch: Dense and normalised.

        Raises:
            ChannelError: If an image has not exactly the channels that are named.
            ConfigError: If the embedding is made of several blocks.
        """
        backbone = self._on_tokens()
        planes = self.ordered(batch)
        grid = patch_grid(batch.planes, self.patch_size_px)
        content = backbone.patches(batch.planes[planes, 0])  # (N, h * w, D)
        places = backbone.patch_positions(grid).expand_as(content)
        patches = torch.arange(content.shape[1], device=content.device).expand(content.shape[:2])
        rows = torch.arange(len(content), device=content.device)
        return [Sequences(content + places, places, torch.full_like(patches, -1), patches, planes, rows, grid)]

    def encode(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Run the network on patch tokens, (N, T', D) to (N, 1 + T', D).

        Args:
            tokens: Any part or change of the tokens of `sequences`.
            places: Row and column of each token's patch, where the backbone needs them.
        """
        return self._on_tokens().encode_at(tokens, places)

    def _on_tokens(self) -> VisionTransformer:
        if not isinstance(self.backbone, VisionTransformer):
            raise ConfigError(
                f"fixed_channels: {type(self.backbone).__name__} gives no patch tokens; take the backbone vit."
            )
        return self.backbone

    def pixels(self, batch: ChannelBatch, sequences: Sequences) -> Tensor:
        """Return the normalised pixels of all channels that each token was cut from, (N, T, C * ph * pw).

        Args:
            batch: The batch that the sequences were made of.
            sequences: What `sequences` gave for it.
        """
        patches = patchify(batch.planes[sequences.planes, 0], self.patch_size_px)  # (N, h * w, C * ph * pw)
        images = torch.arange(len(patches), device=patches.device)[:, None]
        return patches[images, sequences.patches]

    @classmethod
    def from_single_channel(cls, backbone: VisionTransformer, channels: Sequence[str]) -> Self:
        """Build the strategy with the weights of a network of one channel, for example of a bag of channels.

        Args:
            backbone: Trained; it is left as it is.
            channels: As the class takes them.
        """
        weights = backbone.state_dict()
        strategy = cls(deepcopy(backbone), channels)
        strategy.load_network(weights)
        return strategy

    def load_network(self, weights: Mapping[str, Tensor]) -> None:
        """Load a network of any number of input channels; its patch projection is spread over ours.

        Each of our channels gets the sum of the projections of theirs (one, or red, green and blue) over our number of
        channels: an image with the same pixels in all channels gives what it gave the other network.

        Args:
            weights: The tensors of `VisionTransformer.state_dict`; of a network of timm they get the prefix `network.`.

        Raises:
            WeightsError: If a tensor is missing, too many or of another shape.
        """
        if PATCH_PROJECTION not in weights:
            raise WeightsError(f"the weights have no '{PATCH_PROJECTION}'; give the state of a vision transformer.")
        projection = spread(weights[PATCH_PROJECTION], len(self.channels))
        try:
            self.backbone.load_state_dict({**weights, PATCH_PROJECTION: projection})
        except RuntimeError as fault:
            raise WeightsError(f"the weights do not fit this network: {' '.join(str(fault).split())}") from fault

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works, for images of nucleus, actin and mitochondria."""
        return cls(VisionTransformer.tiny(), ["nucleus", "actin", "mitochondria"])


def spread(weight: Tensor, n_channels: int) -> Tensor:
    """Spread a patch projection evenly over other input channels.

    Args:
        weight: (D, c, ph, pw), of c input channels.
        n_channels: C.

    Returns:
        (D, C, ph, pw): the sum over the c channels, divided by C, for each channel.
    """
    return (weight.sum(1, keepdim=True) / n_channels).repeat(1, n_channels, 1, 1)


def repeated(names: Sequence[str]) -> list[str]:
    """Return the names that occur more than once, each once, in order.

    Args:
        names: Any.
    """
    return [name for i, name in enumerate(names) if names.count(name) > 1 and name not in names[:i]]

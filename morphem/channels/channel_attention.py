"""Channel attention: all channels of an image in one sequence, told apart by what they show.

Source: ChannelViT, Bao et al. 2024, https://arxiv.org/abs/2309.16108, insitro/ChannelViT at 1077a10; the multi-channel
attention of CaicedoLab/CHAMMI-75 at b84a4ec; diverse sampling of DiChaViT, chaudatascience/diverse_channel_vit at
c22ed15. Differs from CHAMMI-75's code: images of different channel counts stand in one batch without padding, so no
image sees another's padding.
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Literal, Self

import torch
from torch import Tensor, nn

from morphem.backbones.base import TokenBackbone
from morphem.backbones.vit import VisionTransformer
from morphem.channels.joint import JointChannels, flat_positions
from morphem.channels.sampling import Sampling, check_sampling, sampled_planes
from morphem.channels.sequences import Sequences
from morphem.errors import ConfigError
from morphem.types import ChannelBatch
from morphem.vocabulary import UNKNOWN_POLICIES, Vocabulary

_PADDING = ""  # channel type of planes that fill up an image


class ChannelAttention(JointChannels):
    """One sequence of patch tokens per image, with an embedding of the channel type added to each (ChannelViT).

    One patch projection is shared by all channels. Planes of one type in an image share its embedding.

    Args:
        backbone: Network on tokens.
        vocabulary: Channel types that have an embedding, by name or alias; their order is that of the table.
        aliases: Further channel types, each with the one of the vocabulary whose embedding it uses.
        sampling: Channels that a training step looks at: `none` leaves out none; `batch` draws for the whole batch
            what share of the channels to keep, and which; `sample` draws for every image by itself. Teachers see all
            channels. ChannelViT's authors advise it for supervised training only.
        diversity_temperature: Above 0; with it channels that differ from the first drawn one are likelier (DiChaViT:
            0.1 for CHAMMI, 1000 for JUMP-CP); null for even draws. Needs `sampling`.
        unknown: What a channel type outside the vocabulary gets in use: `error` refuses it; `zero` adds nothing;
            `mean` adds the mean of the table; `nearest` takes the type with the nearest name. Training refuses it.
        embedding_init: `orthogonal`, as CHAMMI-75 and DiChaViT, or `normal` with a standard deviation of 0.02, as
            ChannelViT.
        nudged_positions: Resample the positions of the trained grid too where an image has several channels, by the
            factor (n + 0.1) / n, as the code of ChannelViT, DiChaViT and CHAMMI-75 does; for weights of theirs.
        accidental_positions: Where all channels of a square image together have as many patches as the trained grid,
            lay that grid over all of them as one long row, as the code of ChannelViT does by accident. For comparison
            with such features alone; needs `nudged_positions`.
        padded_channels: Treat images of fewer channels as the code of CHAMMI-75 does in a batch where another image has
            this many: their positions are resampled as those of the larger image, and, with `padding_seen`, empty
            planes without a channel embedding follow. For comparison with such features alone; in use, not in training.
        padding_seen: Whether every token sees the empty planes, as in the DINO network of CHAMMI-75, whose mask never
            reaches its attention; its MAE and SimCLR networks mask them. Needs `padded_channels`.
        own_names: What the weights' authors call the channels, each with the entry of the vocabulary that it stands
            for. An entry that stands for itself here needs no channel type of morphem's.

    Raises:
        ChannelError: If the vocabulary is empty, or has an unknown or repeated name, or an alias leads nowhere.
        ConfigError: If a setting is none of its values or has no effect.
    """

    def __init__(
        self,
        backbone: TokenBackbone,
        vocabulary: Sequence[str],
        aliases: Mapping[str, str] | None = None,
        sampling: Sampling = "none",
        diversity_temperature: float | None = None,
        unknown: Literal["error", "zero", "mean", "nearest"] = "error",
        embedding_init: Literal["orthogonal", "normal"] = "orthogonal",
        nudged_positions: bool = False,
        accidental_positions: bool = False,
        padded_channels: int | None = None,
        padding_seen: bool = False,
        own_names: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(backbone)
        _check(sampling, diversity_temperature, unknown, embedding_init)
        if padded_channels is not None and padded_channels < 1:
            raise ConfigError(f"channel_attention: padded_channels={padded_channels} must be at least 1, or null.")
        if padding_seen and padded_channels is None:
            raise ConfigError("channel_attention: padding_seen=true has no effect without padded_channels.")
        if accidental_positions and (not nudged_positions or padded_channels is not None):
            raise ConfigError(
                "channel_attention: accidental_positions=true needs nudged_positions=true and no padded_channels."
            )
        if nudged_positions and (not isinstance(backbone, VisionTransformer) or backbone.fixed_positions):
            raise ConfigError("channel_attention: nudged_positions=true needs the backbone vit with learned positions.")
        self.vocabulary = Vocabulary(vocabulary, aliases or {}, unknown, own_names)
        self.sampling = sampling
        self.diversity_temperature = diversity_temperature
        self.nudged_positions = nudged_positions
        self.accidental_positions = accidental_positions
        self.padded_channels = padded_channels
        self.padding_seen = padding_seen
        self.channel_embedding = nn.Parameter(torch.empty(len(self.vocabulary.names), self.embed_dim))
        if embedding_init == "orthogonal":
            nn.init.orthogonal_(self.channel_embedding)
        else:
            nn.init.trunc_normal_(self.channel_embedding, std=0.02)

    def resolve(self, name: str | int) -> str:
        """Return the channel type that a user of the encoder means.

        Args:
            name: A name of the weights' authors, a channel type or an alias of one, or a number: the place in the
                vocabulary, from 0.

        Raises:
            ChannelError: If it is none of them.
        """
        return self.vocabulary.resolve(name)

    def types(self, batch: ChannelBatch) -> Tensor:
        """Return the row of the embedding table that each plane uses, (P,), int64.

        Unknown types have, where they are allowed, one of two rows behind the table: no embedding, or the mean.

        Args:
            batch: Any.

        Raises:
            ChannelError: If a type is not in the vocabulary, in training or where `unknown` is `error`.
        """
        behind = len(self.vocabulary.names)
        numbers = [
            behind if name == _PADDING else self.vocabulary.number(name, strict=self.training)
            for name in batch.channel_types
        ]
        return torch.tensor(numbers, device=batch.planes.device)

    def identity(self, batch: ChannelBatch, planes: Tensor | None) -> Tensor:
        """Return the embedding of the channel type of each plane, (P', D).

        Args:
            batch: Dense and normalised.
            planes: The planes that are looked at, (P',), int64; None for all.
        """
        table: Tensor = self.channel_embedding
        if self.padding_seen or self.vocabulary.unknown in ("zero", "mean"):
            table = torch.cat([table, torch.zeros_like(table[:1]), table.mean(0, keepdim=True)])
        types = self.types(batch)
        return table[types if planes is None else types[planes]]

    def kept_planes(self, batch: ChannelBatch) -> Tensor | None:
        """Return the planes that a training step looks at; None for all of them.

        Args:
            batch: Dense and normalised.
        """
        if self.sampling == "none" or not self.training:
            return None
        table = None if self.diversity_temperature is None else self.channel_embedding
        temperature = self.diversity_temperature or 1.0
        return sampled_planes(batch, self.sampling, self.types(batch), table=table, temperature=temperature)

    def select(self, batch: ChannelBatch) -> ChannelBatch:
        """Return the batch; a strategy that repeats what padding does to published features is not trained.

        Args:
            batch: As the loader yields it.

        Raises:
            ConfigError: If `padding_seen` is on.
        """
        if self.padding_seen:
            raise ConfigError(
                "channel_attention: padding_seen=true repeats at inference what published code does to small images; "
                "train with padding_seen=false."
            )
        return batch

    def sequences(self, batch: ChannelBatch) -> list[Sequences]:
        """Turn every image into one sequence; those of one channel count stand together.

        Args:
            batch: Dense and normalised.
        """
        if self.padding_seen and self.padded_channels is not None and not self.training:
            batch = _padded(batch, self.padded_channels)
        return super().sequences(batch)

    def sequence_positions(self, grid: tuple[int, int], n_channels: int) -> Tensor:
        """Return the positions of all patches of an image, (1, 1, h * w, D) or (1, C, h * w, D).

        Args:
            grid: Patches along height and width.
            n_channels: C, planes of the image.
        """
        if self.padded_channels is not None and not self.training:
            n_channels = max(n_channels, self.padded_channels)
            return super().sequence_positions(grid, n_channels)
        if self.accidental_positions and isinstance(self.backbone, VisionTransformer) and grid[0] == grid[1]:
            trained = self.backbone.network.patch_embed.grid_size
            n_patches = grid[0] * grid[1]
            if n_channels > 1 and n_channels * n_patches == trained[0] * trained[1]:
                return flat_positions(self.backbone.patch_positions(tuple(trained)), n_channels, n_patches)
        return super().sequence_positions(grid, n_channels)

    def positions(self, grid: tuple[int, int], n_channels: int) -> Tensor:
        """Return the positions of the patches of a plane, (1, h * w, D).

        Args:
            grid: Patches along height and width.
            n_channels: Planes of the image.
        """
        if self.nudged_positions and n_channels > 1 and isinstance(self.backbone, VisionTransformer):
            return self.backbone.patch_positions(grid, resample_trained=True)
        return super().positions(grid, n_channels)

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        vocabulary = ["nucleus", "actin", "mitochondria", "rna", "bright-field", "r", "g", "b"]
        return cls(VisionTransformer.tiny(), [*vocabulary, "endoplasmic reticulum"])


def _padded(batch: ChannelBatch, n_channels: int) -> ChannelBatch:
    """Add empty planes without a channel embedding to every image of a dense batch that has fewer channels."""
    planes: list[Tensor] = []
    names: list[str] = []
    counts: list[int] = []
    for first, last in pairwise(batch.offsets.tolist()):
        missing = max(0, n_channels - (last - first))
        planes += [batch.planes[first:last], batch.planes.new_zeros(missing, *batch.planes.shape[1:])]
        names += [*batch.channel_types[first:last], *[_PADDING] * missing]
        counts.append(last - first + missing)
    return batch._replace(
        planes=torch.cat(planes),
        sizes=batch.sizes[:1].expand(sum(counts), 2),
        offsets=torch.tensor([0, *counts], device=batch.offsets.device).cumsum(0),
        channel_types=tuple(names),
    )


def _check(sampling: str, diversity_temperature: float | None, unknown: str, embedding_init: str) -> None:
    check_sampling("channel_attention", sampling)
    allowed = {
        "unknown": (unknown, UNKNOWN_POLICIES),
        "embedding_init": (embedding_init, ("orthogonal", "normal")),
    }
    for key, (value, values) in allowed.items():
        if value not in values:
            raise ConfigError(f"channel_attention: {key}='{value}' must be one of {', '.join(values)}.")
    if diversity_temperature is not None and not diversity_temperature > 0:
        raise ConfigError(f"channel_attention: diversity_temperature={diversity_temperature} must be above 0.")
    if diversity_temperature is not None and sampling == "none":
        raise ConfigError(
            "channel_attention: diversity_temperature has no effect without channel sampling; set sampling to 'batch' "
            "or 'sample', or diversity_temperature to null."
        )

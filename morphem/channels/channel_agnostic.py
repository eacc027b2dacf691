"""Channel-agnostic: all channels of an image in one sequence, with nothing that tells channels apart.

Source: the encoders of CA-MAE, Kraus et al. 2024, https://arxiv.org/abs/2404.10242, recursionpharma/maes_microscopy at
b3e68bb, and of Campfire, GSK-AI/campfire at b034f8d. Any channel, also one that was never seen, is taken like others.
"""

from typing import Literal, Self
from zlib import crc32

import torch
from torch import Tensor

from morphem.backbones.base import TokenBackbone
from morphem.backbones.parallel import ParallelTransformer
from morphem.backbones.vit import VisionTransformer
from morphem.channels.joint import JointChannels, flat_positions
from morphem.channels.sampling import Sampling, check_sampling, sampled_planes
from morphem.errors import ConfigError
from morphem.types import ChannelBatch

POOLINGS = ("class", "mean", "mean_norm", "channelwise")


class ChannelAgnostic(JointChannels):
    """One sequence of patch tokens per image; a token knows its place, not its channel (CA-MAE, Campfire).

    Args:
        backbone: Network on tokens; the published ones have `positions: sincos`.
        pooling: What the embedding is: `class`, the class token; `mean`, the mean of all patch tokens after the last
            normalisation, as CA-MAE; `mean_norm`, the same normalised once more, as Campfire. It takes the class
            token's place in what `encode` gives. `channelwise` gives every plane an embedding of its own, the mean of
            its patch tokens, which have seen all channels (CA-MAE's channel-wise features); methods that hide or
            predict patches do not take it.
        sampling: Channels that a training step looks at: `none` leaves out none; `batch` draws for the whole batch
            what share of the channels to keep, and which, as Campfire; `sample` draws for every image by itself. Not
            with `channelwise`.
        cut_positions: Lay the trained grid of positions over the patches of all channels as one long row, whatever the
            size of the planes, as CA-MAE's code does; at the trained size it is the same. For comparison with such
            features alone: at other sizes patches of one place get different positions in different channels. Needs
            the backbone `parallel_vit`.

    Raises:
        ConfigError: If a setting is none of its values or has no effect, or the backbone does not work on tokens or
            does not show the last normalisation that `mean_norm` repeats.
    """

    def __init__(
        self,
        backbone: TokenBackbone,
        pooling: Literal["class", "mean", "mean_norm", "channelwise"] = "class",
        sampling: Sampling = "none",
        cut_positions: bool = False,
    ) -> None:
        super().__init__(backbone)
        check_sampling("channel_agnostic", sampling)
        if pooling not in POOLINGS:
            raise ConfigError(f"channel_agnostic: pooling='{pooling}' must be one of {', '.join(POOLINGS)}.")
        if pooling == "channelwise" and sampling != "none":
            raise ConfigError("channel_agnostic: pooling='channelwise' embeds every plane; it needs sampling='none'.")
        if cut_positions and not isinstance(backbone, ParallelTransformer):
            raise ConfigError("channel_agnostic: cut_positions=true needs the backbone parallel_vit.")
        if pooling == "mean_norm" and not isinstance(backbone, VisionTransformer):
            raise ConfigError("channel_agnostic: pooling='mean_norm' needs the backbone vit; take 'mean'.")
        self.pooling = pooling
        self.sampling = sampling
        self.cut_positions = cut_positions
        self.per_channel = pooling == "channelwise"
        self.tokenised = not self.per_channel

    def identity(self, batch: ChannelBatch, planes: Tensor | None) -> None:
        """Return None: nothing tells channels apart.

        Args:
            batch: Any.
            planes: Any.
        """

    def kept_planes(self, batch: ChannelBatch) -> Tensor | None:
        """Return the planes that a training step looks at; None for all of them.

        Args:
            batch: Dense and normalised.
        """
        if self.sampling == "none" or not self.training:
            return None
        types = torch.tensor([crc32(name.encode()) for name in batch.channel_types], device=batch.offsets.device)
        return sampled_planes(batch, self.sampling, types)

    def sequence_positions(self, grid: tuple[int, int], n_channels: int) -> Tensor:
        """Return the positions of all patches of an image, (1, 1, h * w, D) or (1, C, h * w, D).

        Args:
            grid: Patches along height and width.
            n_channels: C, planes of the image.
        """
        if self.cut_positions and isinstance(self.backbone, ParallelTransformer):
            table = self.backbone.patch_positions(self.backbone.trained_grid)
            return flat_positions(table, n_channels, grid[0] * grid[1])
        return super().sequence_positions(grid, n_channels)

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every image of a dense, normalised batch, (N, D), or every plane, (P, D)."""
        if not self.per_channel:
            return super().forward(batch)
        sequences = self.sequences(batch)
        parts = []
        for part in sequences:
            encoded = self.backbone.encode_at(part.tokens, part.coordinates)
            tokens = encoded[:, self.n_prefix :]  # (B, C * N, D)
            parts.append(tokens.reshape(part.planes.numel(), -1, self.embed_dim).mean(1))
        return torch.cat(parts)[torch.cat([part.planes.flatten() for part in sequences]).argsort()]

    def encode(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Run the network on patch tokens, (B, T', D) to (B, n_prefix + T', D), the embedding first.

        Args:
            tokens: Any part or change of the tokens of `sequences`.
            places: Row and column of each token's patch, where the backbone needs them.
        """
        encoded = self.backbone.encode_at(tokens, places)
        if self.pooling in ("class", "channelwise"):
            return encoded
        return torch.cat([self._mean(encoded)[:, None], encoded[:, 1:]], dim=1)

    def embed(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Return the first token of `encode`, (B, D).

        Args:
            tokens: As `encode` takes them.
            places: The same.
        """
        if self.pooling == "class":
            return super().embed(tokens, places)
        return self._mean(self.backbone.encode_at(tokens, places))

    def _mean(self, encoded: Tensor) -> Tensor:
        mean = encoded[:, self.n_prefix :].mean(1)
        if self.pooling == "mean_norm" and isinstance(self.backbone, VisionTransformer):
            mean = self.backbone.network.norm(mean)
        return mean

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(VisionTransformer.tiny())

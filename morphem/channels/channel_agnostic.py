"""Channel-agnostic: all channels of an image in one sequence, with nothing that tells channels apart.

Source: the encoders of CA-MAE, Kraus et al. 2024, https://arxiv.org/abs/2404.10242, recursionpharma/maes_microscopy at
b3e68bb, and of Campfire, GSK-AI/campfire at b034f8d. Any channel, also one that was never seen, is taken like others.
"""

from typing import Literal, Self
from zlib import crc32

import torch
from torch import Tensor

from morphem.backbones.base import TokenBackbone
from morphem.backbones.vit import VisionTransformer
from morphem.channels.joint import JointChannels
from morphem.channels.sampling import Sampling, check_sampling, sampled_planes
from morphem.errors import ConfigError
from morphem.types import ChannelBatch


class ChannelAgnostic(JointChannels):
    """One sequence of patch tokens per image; a token knows its place, not its channel (CA-MAE, Campfire).

    Args:
        backbone: Network on tokens; the published ones have `positions: sincos`.
        pooling: What the embedding is: `class`, the class token; `mean`, the mean of all patch tokens after the last
            normalisation, as CA-MAE; `mean_norm`, the same normalised once more, as Campfire. It takes the class
            token's place in what `encode` gives.
        sampling: Channels that a training step looks at: `none` leaves out none; `batch` draws for the whole batch
            what share of the channels to keep, and which, as Campfire; `sample` draws for every image by itself.

    Raises:
        ConfigError: If a setting is none of its values, or the backbone does not work on tokens or does not show the
            last normalisation that `mean_norm` repeats.
    """

    def __init__(
        self,
        backbone: TokenBackbone,
        pooling: Literal["class", "mean", "mean_norm"] = "class",
        sampling: Sampling = "none",
    ) -> None:
        super().__init__(backbone)
        check_sampling("channel_agnostic", sampling)
        if pooling not in ("class", "mean", "mean_norm"):
            raise ConfigError(f"channel_agnostic: pooling='{pooling}' must be one of class, mean, mean_norm.")
        if pooling == "mean_norm" and not isinstance(backbone, VisionTransformer):
            raise ConfigError("channel_agnostic: pooling='mean_norm' needs the backbone vit; take 'mean'.")
        self.pooling = pooling
        self.sampling = sampling

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

    def encode(self, tokens: Tensor) -> Tensor:
        """Run the network on patch tokens, (B, T', D) to (B, n_prefix + T', D), the embedding first.

        Args:
            tokens: Any part or change of the tokens of `sequences`.
        """
        encoded = self.backbone.encode(tokens)
        if self.pooling == "class":
            return encoded
        return torch.cat([self._mean(encoded)[:, None], encoded[:, 1:]], dim=1)

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the first token of `encode`, (B, D).

        Args:
            tokens: As `encode` takes them.
        """
        return super().embed(tokens) if self.pooling == "class" else self._mean(self.backbone.encode(tokens))

    def _mean(self, encoded: Tensor) -> Tensor:
        mean = encoded[:, self.n_prefix :].mean(1)
        if self.pooling == "mean_norm" and isinstance(self.backbone, VisionTransformer):
            mean = self.backbone.network.norm(mean)
        return mean

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(VisionTransformer.tiny())

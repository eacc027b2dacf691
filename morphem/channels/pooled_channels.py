"""Fixed channels whose embedding is pooled from all tokens, and the pairing that lets two channels stand for many.

Source: SubCell, Gupta et al. 2024, https://doi.org/10.1101/2024.12.06.627299; the pairing is how CHAMMI-75's benchmark
runs SubCell's two-channel model on images of C channels (`benchmarks/models.py` at b84a4ec).
"""

from collections.abc import Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor

from morphem.backbones.gated_pooling import GatedAttentionPooling
from morphem.backbones.vit import VisionTransformer
from morphem.channels.fixed_channels import FixedChannels
from morphem.errors import ChannelError, ConfigError
from morphem.types import ChannelBatch
from morphem.vocabulary import resolve_distinct


class PooledChannels(FixedChannels):
    """All channels of an image in one patch projection; the embedding is pooled from class token and patches.

    What is left of a side behind the last whole patch is not seen, as in the authors' convolution. The planes of an
    image may come in any order: their names decide where they go. Methods that hide patches predict from the class
    token alone and do not take it.

    Args:
        backbone: A vision transformer, whose patch projection is widened to all channels.
        channels: What the input channels show, by name or alias, in the order of the weights.
        pooling: Of the tokens after the last normalisation.

    Raises:
        ChannelError: If there is no channel, or one is unknown or repeated.
        ConfigError: If the backbone cannot be widened, or the pooling is for tokens of another width.
    """

    def __init__(self, backbone: VisionTransformer, channels: Sequence[str], pooling: GatedAttentionPooling) -> None:
        if not isinstance(backbone, VisionTransformer):
            raise ConfigError(
                f"pooled_channels: {type(backbone).__name__} gives no tokens to pool; take the backbone vit."
            )
        super().__init__(backbone, channels)
        if pooling.token_dim != backbone.embed_dim:
            raise ConfigError(
                f"pooled_channels: the pooling takes tokens of width {pooling.token_dim}, but those of the backbone "
                f"have {backbone.embed_dim}; set token_dim={backbone.embed_dim}."
            )
        self.pooling = pooling
        self.embed_dim = pooling.embed_dim
        self.tokenised = False

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every image of a dense, normalised batch: (N, D).

        Args:
            batch: Dense and normalised.

        Raises:
            ChannelError: If an image has not exactly the channels that are named.
        """
        return self.pooling(self.tokens(batch))  # type: ignore[no-any-return]

    def tokens(self, batch: ChannelBatch) -> Tensor:
        """Return class token and patch tokens of every image after the last normalisation, (N, T, D).

        Args:
            batch: As `forward` takes it.

        Raises:
            ChannelError: If an image has not exactly the channels that are named.
        """
        return self._transformer().tokens(self.pictures(batch))

    def _transformer(self) -> VisionTransformer:
        assert isinstance(self.backbone, VisionTransformer)
        return self.backbone

    def pictures(self, batch: ChannelBatch) -> Tensor:
        """Return what the network takes, (N, C, H, W), without the pixels at right and bottom that fill no patch.

        Args:
            batch: As `forward` takes it.

        Raises:
            ChannelError: If an image has not exactly the channels that are named.
        """
        return whole_patches(batch.planes[self.ordered(batch), 0], self.patch_size_px)

    def attention(self, batch: ChannelBatch) -> Tensor:
        """Return how much each token counts in the embedding, (N, heads, T), the class token first.

        Args:
            batch: As `forward` takes it.

        Raises:
            ChannelError: If an image has not exactly the channels that are named.
        """
        return self.pooling.weights(self.tokens(batch))

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works, for images of nucleus, actin and mitochondria."""
        pooling = GatedAttentionPooling.tiny()
        return cls(VisionTransformer.tiny(), ["nucleus", "actin", "mitochondria"], pooling)


class PairedChannels(PooledChannels):
    """A network of two channels on images of many: one channel is paired with each other one in turn.

    The embedding is that of all pairs side by side, in the order of `partners`. What normalises the pixels sees all
    channels of the image, as in CHAMMI-75's benchmark.

    Args:
        backbone: A vision transformer, whose patch projection is widened to two channels.
        anchor: The channel of every pair that the network takes first, by name or alias: the nucleus for SubCell.
        partners: The other channels, by name or alias; each is the second of one pair.
        pooling: Of the tokens after the last normalisation.

    Raises:
        ChannelError: If there is no partner, or a channel is unknown or repeated.
        ConfigError: If the backbone cannot be widened, or the pooling is for tokens of another width.
    """

    panels: ClassVar[Sequence[Sequence[str]]] = FixedChannels.panels

    def __init__(
        self, backbone: VisionTransformer, anchor: str, partners: Sequence[str], pooling: GatedAttentionPooling
    ) -> None:
        resolve_distinct([anchor, *partners], "anchor and partners")
        if not partners:
            raise ChannelError(f"paired_channels: '{anchor}' has no partner; name at least one other channel.")
        super().__init__(backbone, [anchor, partners[0]], pooling)
        self.channels = resolve_distinct([anchor, *partners], "anchor and partners")
        self.embed_dim = len(partners) * pooling.embed_dim

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every image of a dense, normalised batch, pair after pair: (N, D).

        Args:
            batch: Dense and normalised.

        Raises:
            ChannelError: If an image has not exactly the channels that are named.
        """
        return self.pooling(self.tokens(batch)).reshape(batch.n_images, -1)  # type: ignore[no-any-return]

    def pictures(self, batch: ChannelBatch) -> Tensor:
        """Return all pairs, image after image, (N * pairs, 2, H, W), without the pixels that fill no patch.

        Args:
            batch: As `forward` takes it.

        Raises:
            ChannelError: If an image has not exactly the channels that are named.
        """
        planes = self.ordered(batch)  # (N, C)
        pairs = torch.stack([planes[:, :1].expand(-1, planes.shape[1] - 1), planes[:, 1:]], dim=2)  # (N, C - 1, 2)
        return whole_patches(batch.planes[pairs.flatten(0, 1), 0], self.patch_size_px)

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works, for images of nucleus, actin and mitochondria."""
        return cls(VisionTransformer.tiny(), "nucleus", ["actin", "mitochondria"], GatedAttentionPooling.tiny())


def whole_patches(images: Tensor, patch_size_px: tuple[int, int]) -> Tensor:
    """Leave out what remains at the right and the bottom behind the last whole patch.

    Args:
        images: (N, C, H, W).
        patch_size_px: Height and width of a patch in pixels.
    """
    height, width = (side - side % patch for side, patch in zip(images.shape[-2:], patch_size_px, strict=True))
    return images[..., :height, :width] if height and width else images

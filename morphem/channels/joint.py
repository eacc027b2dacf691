"""What strategies share that put all planes of an image into one sequence of tokens."""

from abc import abstractmethod
from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor

from morphem.backbones.base import TokenBackbone
from morphem.backbones.patches import patch_grid
from morphem.channels.base import ChannelStrategy
from morphem.channels.sequences import Sequences
from morphem.errors import ConfigError
from morphem.types import ChannelBatch


class Bucket(NamedTuple):
    """Images of one channel count.

    Attributes:
        rows: Which images, (B,), int64.
        kept: Their planes, counted among all planes that are looked at, (B, C), int64.
    """

    rows: Tensor
    kept: Tensor


def buckets(counts: Tensor) -> list[Bucket]:
    """Sort images by their number of planes, so that nothing has to be padded.

    Args:
        counts: Planes of each image, (N,), int64; their planes follow each other.

    Returns:
        One bucket for each number of planes that occurs, the smallest first.
    """
    images: dict[int, list[int]] = defaultdict(list)
    for image, count in enumerate(counts.tolist()):
        images[count].append(image)
    starts = counts.cumsum(0) - counts
    result = []
    for count in sorted(images):
        rows = torch.tensor(images[count], device=counts.device)
        result.append(Bucket(rows, starts[rows][:, None] + torch.arange(count, device=counts.device)))
    return result


def flat_positions(table: Tensor, n_channels: int, n_patches: int) -> Tensor:
    """Lay the table of one grid over the patches of all channels as if they were one long row, as some code does.

    Args:
        table: Positions of the patches of a grid, (1, n, D).
        n_channels: C.
        n_patches: N, patches of each channel.

    Returns:
        (1, C, N, D): patch p of channel c has row (c * N + p) mod n.
    """
    rows = torch.arange(n_channels * n_patches, device=table.device) % table.shape[1]
    return table[:, rows].reshape(1, n_channels, n_patches, -1)


class JointChannels(ChannelStrategy):
    """One sequence of patch tokens per image, channel after channel; every token sees all others.

    Images of different channel counts are computed one count after another: no token is padding, and no image sees
    another. A subclass says what tells channels apart.

    Args:
        backbone: Network on tokens; its patch projection is shared by all channels.

    Raises:
        ConfigError: If the backbone does not work on tokens.
    """

    per_channel = False
    tokenised = True

    def __init__(self, backbone: TokenBackbone) -> None:
        super().__init__()
        if not isinstance(backbone, TokenBackbone):
            raise ConfigError(
                f"{type(self).__name__}: {type(backbone).__name__} gives no patch tokens; take a backbone that does, "
                "for example vit."
            )
        self.backbone = backbone
        self.embed_dim = backbone.embed_dim
        self.n_prefix = backbone.n_prefix
        self.patch_size_px = backbone.patch_size_px
        self.needs_places = backbone.needs_places

    @abstractmethod
    def identity(self, batch: ChannelBatch, planes: Tensor | None) -> Tensor | None:
        """Return what tells the channels of an image apart, added to all patches of a plane, (P', D), or None.

        Args:
            batch: Dense and normalised.
            planes: The planes that are looked at, (P',), int64; None for all.
        """

    def kept_planes(self, batch: ChannelBatch) -> Tensor | None:
        """Return the planes that are looked at, in rising order, at least one of each image; None for all of them.

        Args:
            batch: Dense and normalised.
        """
        return None

    def positions(self, grid: tuple[int, int], n_channels: int) -> Tensor:
        """Return the positions of the patches of a plane, (1, h * w, D).

        Args:
            grid: Patches along height and width.
            n_channels: Planes of the image.
        """
        return self.backbone.patch_positions(grid)

    def sequence_positions(self, grid: tuple[int, int], n_channels: int) -> Tensor:
        """Return the positions of all patches of an image, (1, C, h * w, D), or (1, 1, h * w, D) for every channel.

        Args:
            grid: Patches along height and width.
            n_channels: C, planes of the image.
        """
        return self.positions(grid, n_channels)[:, None]

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every image of a dense, normalised batch: (N, D)."""
        sequences = self.sequences(batch)
        embeddings = torch.cat([self.embed(part.tokens, part.coordinates) for part in sequences])
        return embeddings[torch.cat([part.rows for part in sequences]).argsort()]

    def embed(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Return the first token of `encode`, (B, D); a subclass may leave out what only the others need.

        Args:
            tokens: As `encode` takes them.
            places: The same.
        """
        return self.backbone.class_token_at(tokens, places)

    def sequences(self, batch: ChannelBatch) -> list[Sequences]:
        """Turn every image into one sequence; those of one channel count stand together.

        Args:
            batch: Dense and normalised.
        """
        grid = patch_grid(batch.planes, self.patch_size_px)
        kept = self.kept_planes(batch)
        content = self.backbone.patches(batch.planes if kept is None else batch.planes[kept])  # (P', h * w, D)
        identity = self.identity(batch, kept)
        counts = (
            batch.offsets.diff()
            if kept is None
            else torch.bincount(batch.image_of_plane()[kept], minlength=batch.n_images)
        )
        return [self._sequences(bucket, content, identity, kept, grid) for bucket in buckets(counts)]

    def _sequences(
        self, bucket: Bucket, content: Tensor, identity: Tensor | None, kept: Tensor | None, grid: tuple[int, int]
    ) -> Sequences:
        n_images, n_channels = bucket.kept.shape
        n_patches = content.shape[1]
        places = self.sequence_positions(grid, n_channels)  # (1, 1 or C, h * w, D)
        places = places + identity[bucket.kept][:, :, None] if identity is not None else places
        places = places.expand(n_images, n_channels, -1, -1).flatten(1, 2)  # (B, C * h * w, D)
        shape, device = (n_images, n_channels, n_patches), content.device
        return Sequences(
            tokens=content[bucket.kept].flatten(1, 2) + places,
            places=places,
            channels=torch.arange(n_channels, device=device)[:, None].expand(shape).flatten(1),
            patches=torch.arange(n_patches, device=device).expand(shape).flatten(1),
            planes=bucket.kept if kept is None else kept[bucket.kept],
            rows=bucket.rows,
            grid=grid,
        )

    def encode(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Run the network on patch tokens, (B, T', D) to (B, n_prefix + T', D).

        Args:
            tokens: Any part or change of the tokens of `sequences`.
            places: Row and column of each token's patch, where the backbone needs them.
        """
        return self.backbone.encode_at(tokens, places)

"""Bag of channels: every plane is embedded alone by one network of one input channel.

Source: CHAMMI-75, https://github.com/CaicedoLab/CHAMMI-75 at b84a4ec9, which trains and evaluates MorphEm this way;
one random channel per image: uniDINO, https://github.com/Bayer-Group/uniDINO at 03c5ee3.
"""

from typing import Literal, Self

import torch
from torch import Tensor

from morphem.backbones.base import Backbone, TokenBackbone
from morphem.backbones.patches import patch_grid
from morphem.backbones.vit import VisionTransformer
from morphem.channels.base import ChannelStrategy
from morphem.channels.selection import keep_planes
from morphem.channels.sequences import Sequences
from morphem.errors import ConfigError
from morphem.rng import uniform
from morphem.types import ChannelBatch


class BagOfChannels(ChannelStrategy):
    """Fold the planes of all images into one batch; what a plane shows is not told to the network.

    Args:
        backbone: Embeds planes, (P, 1, H, W) to (P, D).
        planes: What a training step looks at: `all` planes of an image, or `one` drawn at random, the same in all
            views. In use every plane is embedded all the same.

    Raises:
        ConfigError: If `planes` is neither.
    """

    per_channel = True
    tokenised = True

    def __init__(self, backbone: Backbone, planes: Literal["all", "one"] = "all") -> None:
        super().__init__()
        if planes not in ("all", "one"):
            raise ConfigError(f"bag_of_channels: planes='{planes}' must be 'all' or 'one'.")
        self.backbone = backbone
        self.planes = planes
        self.embed_dim = backbone.embed_dim
        self.tokenised = isinstance(backbone, TokenBackbone)
        if isinstance(backbone, TokenBackbone):
            self.n_prefix = backbone.n_prefix
            self.patch_size_px = backbone.patch_size_px
            self.needs_places = backbone.needs_places

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every plane of a dense, normalised batch: (P, D)."""
        return self.backbone(batch.planes)  # type: ignore[no-any-return]

    def select(self, batch: ChannelBatch) -> ChannelBatch:
        """Return the batch, or one plane of each image, drawn with the image's own seed.

        Args:
            batch: As the loader yields it.
        """
        if self.planes == "all":
            return batch
        counts = batch.offsets.diff()
        drawn = (uniform(batch.seeds, "bag_of_channels/plane")[:, 0] * counts).long().clamp(max=counts - 1)
        return keep_planes(batch, batch.offsets[:-1] + drawn)

    def sequences(self, batch: ChannelBatch) -> list[Sequences]:
        """Turn every plane into one sequence.

        Args:
            batch: Dense and normalised.

        Raises:
            ConfigError: If the backbone does not work on tokens.
        """
        backbone = self._on_tokens()
        content = backbone.patches(batch.planes)  # (P, T, D)
        grid = patch_grid(batch.planes, backbone.patch_size_px)
        places = backbone.patch_positions(grid).expand_as(content)
        rows = torch.arange(len(content), device=content.device)
        patches = torch.arange(content.shape[1], device=content.device).expand(content.shape[:2])
        return [
            Sequences(content + places, places, torch.zeros_like(patches), patches, rows[:, None], rows, grid),
        ]

    def encode(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Run the network on patch tokens, (P, T', D) to (P, n_prefix + T', D).

        Args:
            tokens: Any part or change of the tokens of `sequences`.
            places: Row and column of each token's patch, where the backbone needs them.

        Raises:
            ConfigError: If the backbone does not work on tokens.
        """
        return self._on_tokens().encode_at(tokens, places)

    def _on_tokens(self) -> TokenBackbone:
        if not isinstance(self.backbone, TokenBackbone):
            raise ConfigError(
                f"bag_of_channels: {type(self.backbone).__name__} gives no patch tokens; take a backbone that does, "
                "for example vit."
            )
        return self.backbone

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(VisionTransformer.tiny())

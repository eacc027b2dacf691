"""Sequences of patch tokens: what a channel strategy makes of a batch, for methods that hide or predict patches."""

from typing import NamedTuple

import torch
from torch import Tensor


class Sequences(NamedTuple):
    """Sequences of one length, B of them with T tokens each; nothing is padded.

    Attributes:
        tokens: Patch tokens with position and channel identity added, without class token, (B, T, D).
        places: What position and channel identity added to them, (B, T, D): a mask token replaces `tokens - places`.
        channels: Column of `planes` that each token was cut from, (B, T), int64; -1 where it was cut from all of them.
        patches: Patch of the grid that each token was cut from, counted row by row, (B, T), int64.
        planes: Planes of the batch that each sequence is made of, (B, C), int64.
        rows: Row of the strategy's output that each sequence gives, (B,), int64.
        grid: Patches along height and width.
    """

    tokens: Tensor
    places: Tensor
    channels: Tensor
    patches: Tensor
    planes: Tensor
    rows: Tensor
    grid: tuple[int, int]

    @property
    def coordinates(self) -> Tensor:
        """Row and column of the patch that each token was cut from, (B, T, 2), int64: what rotary positions turn by."""
        width = self.grid[1]
        return torch.stack([self.patches // width, self.patches % width], dim=2)


def patchify(planes: Tensor, patch_size_px: tuple[int, int]) -> Tensor:
    """Cut planes into patches of pixels.

    Args:
        planes: (P, C, H, W); the patch divides H and W.
        patch_size_px: Height ph and width pw of a patch in pixels.

    Returns:
        (P, h * w, C * ph * pw): patches row by row, in a patch channel after channel, in a channel row by row.
    """
    n_planes, n_channels, height, width = planes.shape
    h, w = height // patch_size_px[0], width // patch_size_px[1]
    cut = planes.reshape(n_planes, n_channels, h, patch_size_px[0], w, patch_size_px[1])
    return cut.permute(0, 2, 4, 1, 3, 5).reshape(n_planes, h * w, -1)

"""DINO's resampling of position embeddings, written plainly: one call of torch's own bicubic interpolation."""

import torch
from torch import Tensor
from torch.nn import functional


def resampled(table: Tensor, trained: int, grid: tuple[int, int]) -> Tensor:
    """Return class and patch positions (1, 1 + h * w, D) for a table trained on `trained` x `trained` patches."""
    patches = table[:, 1:].reshape(1, trained, trained, -1).permute(0, 3, 1, 2)
    factors = ((grid[0] + 0.1) / trained, (grid[1] + 0.1) / trained)
    patches = functional.interpolate(patches, scale_factor=factors, mode="bicubic")
    assert patches.shape[-2:] == grid
    return torch.cat([table[:, :1], patches.permute(0, 2, 3, 1).reshape(1, grid[0] * grid[1], -1)], dim=1)

"""Where views are cut from crops: boxes as y, x, height, width in pixels of the crop.

Source: the draw of a random resized crop is that of torchvision's RandomResizedCrop (ten tries, then the middle),
https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.v2.RandomResizedCrop.html.
"""

import torch
from torch import Tensor

from morphem.errors import DataError
from morphem.types import ChannelBatch

# Tries of torchvision's RandomResizedCrop before it falls back to a crop in the middle.
TRIES = 10


def crop_sizes(batch: ChannelBatch) -> Tensor:
    """Height and width of each image's crop in pixels, (N, 2), int64.

    Raises:
        DataError: If the planes of an image differ in size.
    """
    sizes = batch.sizes[batch.offsets[:-1]]
    different = (batch.sizes != sizes[batch.image_of_plane()]).any(1)
    if different.any():
        image = int(batch.image_of_plane()[different][0])
        found = batch.sizes[batch.offsets[image] : batch.offsets[image + 1]].tolist()
        raise DataError(
            f"The planes of image '{batch.keys[image]}' differ in size ({found} pixels), so no view can be cut from "
            "all of them; bring its channels to one grid before they are ingested."
        )
    return sizes


def whole(crops: Tensor) -> Tensor:
    """The whole of each crop, (N, 4), from heights and widths (N, 2)."""
    return torch.cat([torch.zeros_like(crops), crops], dim=1)


def plain(crops: Tensor, side_px: int, draws: Tensor, keys: tuple[str, ...]) -> Tensor:
    """A square at a random place in each crop, (N, 4).

    Args:
        crops: Height and width, (N, 2).
        side_px: Side of the square.
        draws: Uniform numbers, (N, 2), float64.
        keys: Names of the images, for the error.

    Raises:
        DataError: If a crop is smaller than the square.
    """
    small = (crops < side_px).any(1)
    if small.any():
        image = int(small.nonzero()[0])
        raise DataError(
            f"The crop of image '{keys[image]}' has {crops[image].tolist()} pixels, smaller than a plain view of "
            f"size_px={side_px}; use larger crops (scales), a smaller size_px, or mode: random_resized."
        )
    size = torch.full_like(crops, side_px)
    return torch.cat([_corner(crops - size, draws), size], dim=1)


def random_resized(crops: Tensor, area: tuple[float, float], aspect: tuple[float, float], draws: Tensor) -> Tensor:
    """A box of random area and aspect at a random place in each crop, (N, 4).

    Where no try fits, the box is the largest one of an allowed aspect, in the middle.

    Args:
        crops: Height and width, (N, 2).
        area: Range of the box's area as a fraction of the crop's; uniform.
        aspect: Range of width / height; its logarithm is uniform.
        draws: Uniform numbers, (N, 2 * TRIES + 2), float64: areas, aspects, place.
    """
    full = crops.double()
    areas = full.prod(1, keepdim=True) * (area[0] + (area[1] - area[0]) * draws[:, :TRIES])
    least, most = torch.tensor(aspect, dtype=torch.float64).log()
    aspects = (least + (most - least) * draws[:, TRIES : 2 * TRIES]).exp()
    tries = torch.stack([(areas / aspects).sqrt(), (areas * aspects).sqrt()], dim=2).round()  # (N, tries, 2)
    fits = ((tries >= 1) & (tries <= full[:, None])).all(2)
    chosen = tries[torch.arange(len(crops)), fits.int().argmax(1)]  # the first that fits
    fitted = fits.any(1)[:, None]
    size = torch.where(fitted, chosen, _largest(full, aspect)).long()
    corner = torch.where(fitted, _corner(crops - size, draws[:, 2 * TRIES :]), (crops - size) // 2)
    return torch.cat([corner, size], dim=1)


def _largest(full: Tensor, aspect: tuple[float, float]) -> Tensor:
    """Height and width of the largest box of an allowed aspect, (N, 2), float64."""
    height, width = full.unbind(1)
    sides = [torch.minimum(height, (width / aspect[0]).round()), torch.minimum(width, (height * aspect[1]).round())]
    return torch.stack(sides, dim=1).clamp(min=1.0)


def _corner(free: Tensor, draws: Tensor) -> Tensor:
    """A corner from 0 to `free`, both included."""
    return (draws * (free + 1)).long()

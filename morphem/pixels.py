"""Pixels that a user hands in: split into images, and made into a batch."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from morphem.data.schema import resolve_channel
from morphem.errors import ChannelError, DataError
from morphem.rng import mix
from morphem.types import ChannelBatch

Planes = NDArray[Any] | Tensor


def crop_seed(key: str, box: tuple[int, int, int, int]) -> int:
    """Return the seed of all noise in the embedding of a crop: a function of its image's key and its place alone.

    Args:
        key: The image's key.
        box: y, x, height and width in pixels.
    """
    return mix("embed", key, *box)


def split_images(planes: Planes | Sequence[Planes]) -> list[Tensor]:
    """Split what `embed` was given into images, each (C, H, W), of the type that they have.

    Args:
        planes: One image (C, H, W), images (N, C, H, W), or a list of images (C, H, W).

    Raises:
        DataError: If there are no pixels, or an image has another number of axes.
    """
    arrays: list[Planes] = list(planes) if isinstance(planes, Sequence) else [planes]
    images: list[Tensor] = []
    for array in arrays:
        tensor = _tensor(array)
        if tensor.ndim == 4 and len(arrays) == 1:
            images.extend(tensor)
        elif tensor.ndim == 3:
            images.append(tensor)
        else:
            raise DataError(
                f"an image has the axes (channel, height, width), not {tuple(tensor.shape)}; "
                "give (C, H, W), (N, C, H, W), or a list of (C, H, W)."
            )
    if not images or not all(image.numel() for image in images):
        raise DataError("there is no pixel to embed; give at least one image that is not empty.")
    return images


def _tensor(array: object) -> Tensor:
    """Return an array as a tensor; it is copied only where torch takes it in no other way."""
    if isinstance(array, Tensor):
        return array
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "uif":
        kind = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else f"a {type(array).__name__}"
        raise DataError(f"an image is an array of numbers or a tensor, not {kind}.")
    if array.dtype.kind == "f" and array.dtype.itemsize not in (4, 8):
        array = array.astype(np.float32)
    native = array.dtype.newbyteorder("=")
    # torch takes neither flipped nor read-only arrays, nor those of another byte order
    return torch.from_numpy(np.require(array, native, requirements=["C", "W"]))


def resolve_channels(
    channels: Sequence[str | int], images: Sequence[Tensor], resolve: Callable[[Any], str] = resolve_channel
) -> list[str]:
    """Return the canonical names of channels.

    Args:
        channels: Names or aliases, or what else `resolve` takes.
        images: Images that shall have these channels, each (C, H, W).
        resolve: Gives the canonical name of one; what an encoder knows, see `ChannelStrategy.resolve`.

    Raises:
        ChannelError: If a name is unknown or repeated, or an image has another number of planes.
    """
    if isinstance(channels, str):
        raise ChannelError(f"channels must be a list of names, not the one string '{channels}'.")
    names = [resolve(channel) for channel in channels]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ChannelError(
            f"channel {', '.join(repr(name) for name in repeated)} is named more than once (after aliases) in "
            f"{list(channels)}; every plane of a call needs a name of its own."
        )
    wrong = next((image for image in images if len(image) != len(names)), None)
    if wrong is not None:
        raise ChannelError(f"{len(names)} channels ({', '.join(names)}) are named for an image of {len(wrong)} planes.")
    return names


def select_images(batch: ChannelBatch, images: Tensor, planes: Tensor, size: Sequence[int]) -> ChannelBatch:
    """Return some images of a ragged batch as a dense one.

    Args:
        batch: Ragged.
        images: Which images, (N',), int64.
        planes: Their planes, (P',), int64.
        size: Height and width of every one of these planes in pixels.
    """
    height, width = size
    pixels = torch.arange(height * width, device=batch.planes.device)
    gathered = batch.planes[batch.starts()[planes][:, None] + pixels]  # (P', H * W)
    counts = batch.offsets.diff()[images]
    chosen = images.tolist()
    return ChannelBatch(
        planes=gathered.reshape(-1, 1, height, width),
        sizes=batch.sizes[planes],
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        channel_types=tuple(batch.channel_types[i] for i in planes.tolist()),
        keys=tuple(batch.keys[i] for i in chosen),
        seeds=batch.seeds[images],
        boxes=batch.boxes[images],
        rows=batch.rows[images],
        labels=batch.labels[images] if batch.labels.shape[1] else batch.labels,
    )

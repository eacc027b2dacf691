"""A few small images whose every pixel is a function of a seed: what the checks and third-party tests run on."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from morphem import rng
from morphem.types import ChannelBatch

PANELS: tuple[tuple[str, ...], ...] = (
    ("nucleus", "actin", "mitochondria", "endoplasmic reticulum", "rna"),
    ("nucleus",),
    ("bright-field",),
    ("nucleus", "actin"),
    ("mitochondria", "nucleus", "actin"),
    ("r", "g", "b"),
)
SIZES_PX: tuple[tuple[int, int], ...] = ((40, 48), (37, 33), (64, 40), (48, 48), (33, 52), (41, 41))


def tiny_images(
    panels: Sequence[Sequence[str]] = PANELS, sizes_px: Sequence[tuple[int, int]] = SIZES_PX, *, seed: int = 0
) -> list[list[Tensor]]:
    """Draw images: soft spots on a slope, with camera noise; every plane differs from every other.

    Args:
        panels: The channel types of each of N images.
        sizes_px: Height and width of each image in pixels; used in turns where there are fewer than images.
        seed: Other seeds give other images.

    Returns:
        For each image its planes, each (H, W), uint8.
    """
    return [
        [_plane(*sizes_px[i % len(sizes_px)], seed=rng.mix("tiny", seed, i, channel)) for channel in range(len(panel))]
        for i, panel in enumerate(panels)
    ]


def _plane(height: int, width: int, *, seed: int, n_spots: int = 6) -> Tensor:
    """Draw one plane, (H, W), uint8."""
    seeds = torch.tensor([seed])
    y, x, radius, level = rng.uniform(seeds, "spots", 4 * n_spots)[0].reshape(4, n_spots, 1, 1)
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None, :]
    distance = (rows - y * height) ** 2 + (columns - x * width) ** 2  # (n_spots, H, W), pixels squared
    spots = ((60 + 120 * level) * torch.exp(-distance / (2 * (1.5 + 5 * radius) ** 2))).amax(0)
    slope = 20 + 20 * rows / height + 10 * columns / width
    noise = 4 * rng.normal(seeds, "noise", height * width).reshape(height, width)
    plane: Tensor = (spots + slope + noise).clamp(0, 254).round()
    return plane.to(torch.uint8)


def tiny_batch(
    panels: Sequence[Sequence[str]] = PANELS, sizes_px: Sequence[tuple[int, int]] = SIZES_PX, *, seed: int = 0
) -> ChannelBatch:
    """Return a ragged batch as the loader yields it: one to five channels, images of different sizes.

    It has one label column: class 0 and class 1 in turns, and unknown for every sixth image. The label can be seen:
    every second image is dark on bright.

    Args:
        panels: The channel types of each of N images.
        sizes_px: Height and width of each image in pixels, at least 33; used in turns where there are fewer.
        seed: Other seeds give other images, keys and random numbers.
    """
    count = len(panels)
    images = tiny_images(panels, sizes_px, seed=seed)
    return ChannelBatch.from_planes(
        [[254 - plane for plane in image] if i % 2 else image for i, image in enumerate(images)],
        panels,
        keys=[f"tiny-{seed}-{i}" for i in range(count)],
        seeds=[rng.mix("tiny batch", seed, i) for i in range(count)],
        rows=[seed * count + i for i in range(count)],
        labels=[[-1 if i % 6 == 5 else i % 2] for i in range(count)],
    )


def dense_batch(panels: Sequence[Sequence[str]] = PANELS, size_px: int = 32, *, seed: int = 0) -> ChannelBatch:
    """Return a dense, normalised batch as a channel strategy takes it.

    Args:
        panels: The channel types of each of N images.
        size_px: Height and width of all planes.
        seed: Other seeds give other images.
    """
    ragged = tiny_batch(panels, [(size_px, size_px)], seed=seed)
    planes = ragged.planes.reshape(-1, 1, size_px, size_px).float()
    mean, std = planes.mean((2, 3), keepdim=True), planes.std((2, 3), keepdim=True, correction=0)
    return ragged._replace(planes=(planes - mean) / std)


def take(batch: ChannelBatch, images: Sequence[int]) -> ChannelBatch:
    """Return some images of a batch, in the order asked for.

    Args:
        batch: Ragged or dense.
        images: Which images.
    """
    planes = [p for i in images for p in range(int(batch.offsets[i]), int(batch.offsets[i + 1]))]
    counts = [int(batch.offsets[i + 1] - batch.offsets[i]) for i in images]
    return _of_planes(batch, planes)._replace(
        offsets=torch.tensor([0, *counts]).cumsum(0),
        keys=tuple(batch.keys[i] for i in images),
        seeds=batch.seeds[list(images)],
        boxes=batch.boxes[list(images)],
        rows=batch.rows[list(images)],
        labels=batch.labels[list(images)] if batch.labels.shape[1] else batch.labels,
    )


def permute_channels(batch: ChannelBatch) -> tuple[ChannelBatch, Tensor]:
    """Return the batch with the planes of every image turned round together with their names.

    Args:
        batch: Ragged or dense.

    Returns:
        The new batch, and for each of its planes its index in the old one, (P,).
    """
    bounds = batch.offsets.tolist()
    order = [p for first, last in pairwise(bounds) for p in reversed(range(first, last))]
    return _of_planes(batch, order), torch.tensor(order)


def _of_planes(batch: ChannelBatch, order: Sequence[int]) -> ChannelBatch:
    """Return the batch with other planes, of as many images."""
    if batch.ragged:
        starts, areas = batch.starts().tolist(), batch.sizes.prod(1).tolist()
        planes = torch.cat([batch.planes[starts[p] : starts[p] + areas[p]] for p in order])
    else:
        planes = batch.planes[list(order)]
    return batch._replace(
        planes=planes, sizes=batch.sizes[list(order)], channel_types=tuple(batch.channel_types[p] for p in order)
    )

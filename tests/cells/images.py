"""Small images with a known answer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.data.record import ImageRecord


def record(planes: Sequence[NDArray[Any]], types: Sequence[str], image_id: str = "i", **columns: str) -> ImageRecord:
    rows = [
        {
            "experiment.study": "s",
            "imaging.multi_channel_id": image_id,
            "imaging.channel": i + 1,
            "imaging.channel_type": kind,
            "storage.path": f"{image_id}/{kind}.png",
            **{name.replace("__", "."): value for name, value in columns.items()},
        }
        for i, kind in enumerate(types)
    ]
    return ImageRecord(image_id, planes, rows, list(types))


def discs(
    centres: Sequence[tuple[int, int]], radius: float, shape: tuple[int, int] = (120, 160), level: float = 2000
) -> NDArray[np.uint16]:
    """Draw discs at (x, y), on a background of 300 with noise of a standard deviation of 20."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    noise = np.random.default_rng(0).normal(300, 20, shape)
    covered = np.zeros(shape, bool)
    for cx, cy in centres:
        covered |= (x - cx) ** 2 + (y - cy) ** 2 <= radius**2
    noise[covered] += level
    return noise.clip(0, 65535).astype(np.uint16)

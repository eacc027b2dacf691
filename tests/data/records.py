"""Small images for tests of shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.data.shards import ImageRecord, ShardWriter, finish_set


def make_plane(seed: int, height: int = 20, width: int = 30) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def make_image(
    image_id: str = "image",
    *,
    study: str = "study",
    types: Sequence[str] = ("nucleus", "actin"),
    size: tuple[int, int] = (20, 30),
    cells: Sequence[tuple[int, int]] | None = ((3, 4), (29, 19)),
    labels: dict[str, Any] | None = None,
    cell_labels: dict[str, Any] | None = None,
    seed: int = 0,
) -> ImageRecord:
    row = {
        "experiment.study": study,
        "imaging.multi_channel_id": image_id,
        "microscopy.type": "fluorescence",
        "geometry.height": size[0],
        "geometry.width": size[1],
        "geometry.channels": len(types),
    }
    rows = [
        row | {"imaging.channel": i + 1, "imaging.channel_type": kind} | (labels or {}) for i, kind in enumerate(types)
    ]
    return ImageRecord(
        image_id=image_id,
        planes=[make_plane(100 * seed + i, *size) for i in range(len(types))],
        rows=rows,
        channel_names=[f"stain {i}" for i in range(len(types))],
        clip_limits=[(1.5, 200.0 + i) for i in range(len(types))],
        cells=None if cells is None else np.array(cells, np.int32).reshape(-1, 2),
        cell_labels=cell_labels,
    )


def write_set(root: Path, images: Sequence[ImageRecord], study: str = "study", **settings: Any) -> list[str]:
    """Write one study and return the keys of its images."""
    with ShardWriter(root, study, **settings) as writer:
        keys = [writer.add(image) for image in images]
    finish_set(root)
    return keys

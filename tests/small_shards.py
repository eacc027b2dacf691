"""Small shard sets of random pixels for tests of reading and embedding."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from morphem.data.commit import finish_set
from morphem.data.record import ImageRecord
from morphem.data.writer import ShardWriter

PANEL = ("nucleus", "actin", "mitochondria")


def image(
    image_id: str,
    channels: Sequence[str] = PANEL,
    size: tuple[int, int] = (40, 48),
    *,
    well: str = "A01",
    cells: int | None = None,
    seed: int = 0,
    **labels: str | None,
) -> ImageRecord:
    """One image of random pixels (some of them saturated), with a row per plane."""
    generator = np.random.default_rng([seed, *image_id.encode()])
    planes = [generator.integers(0, 256, size, dtype=np.uint8) for _ in channels]
    rows = [
        {
            "experiment.study": "study",
            "experiment.plate": "P1",
            "experiment.well": well,
            "experiment.control": "no",
            "imaging.multi_channel_id": image_id,
            "imaging.channel": number + 1,
            "imaging.channel_type": channel,
            "microscopy.type": "bright-field" if channel == "bright-field" else "fluorescence",
            "microscopy.fov": "1",
            "geometry.height": size[0],
            "geometry.width": size[1],
            "geometry.channels": len(channels),
            **labels,
        }
        for number, channel in enumerate(channels)
    ]
    centres = None
    if cells is not None:
        centres = np.stack([generator.integers(0, size[1], cells), generator.integers(0, size[0], cells)], 1)
        centres = centres.astype(np.int32)
    kinds = {"kind": [f"k{i % 2}" for i in range(cells)]} if cells else None
    return ImageRecord(image_id, planes, rows, list(channels), cells=centres, cell_labels=kinds)


def write(root: Path, images: Sequence[ImageRecord], study: str = "study") -> str:
    """Write a shard set of one study, two images to a shard; return its root."""
    with ShardWriter(root, study, max_images=2) as writer:
        for record in images:
            writer.add(record)
    finish_set(root)
    return str(root)

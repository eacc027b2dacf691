"""A labelled shard set in which the label shows in the texture, and a run on which probes can look."""

from pathlib import Path

import numpy as np

from morphem.data.commit import finish_set
from morphem.data.record import ImageRecord
from morphem.data.writer import ShardWriter


def _plane(kind: str, generator: np.random.Generator) -> np.ndarray:
    """Fine or coarse noise, 32 x 32, of one mean and spread."""
    block = 1 if kind == "fine" else 8
    coarse = generator.normal(size=(32 // block, 32 // block))
    plane = np.kron(coarse, np.ones((block, block)))
    return np.clip(128 + 40 * plane, 0, 255).astype(np.uint8)


def write_labelled(
    root: Path, *, n_wells: int = 6, per_well: int = 2, labels: dict[int, str | None] | None = None, cells: bool = False
) -> str:
    """Write images whose label `texture` alternates from well to well; `labels` overrides that of single images."""
    with ShardWriter(root, "study") as writer:
        for well in range(n_wells):
            for site in range(per_well):
                number = well * per_well + site
                kind = "fine" if well % 2 else "coarse"
                label = kind if labels is None else labels.get(number, kind)
                row = {
                    "experiment.study": "study",
                    "experiment.plate": "P1",
                    "experiment.well": f"A{well:02d}",
                    "imaging.multi_channel_id": f"i{number}",
                    "imaging.channel": 1,
                    "imaging.channel_type": "nucleus",
                    "microscopy.type": "fluorescence",
                    "microscopy.fov": str(site),
                    "geometry.height": 32,
                    "geometry.width": 32,
                    "geometry.channels": 1,
                    "texture": label,
                }
                planes = [_plane(kind, np.random.default_rng(number))]
                centres = np.asarray([[16, 16], [8, 8]], np.int32) if cells else None
                kinds: dict[str, list[str | None]] | None = {"phase": [kind, kind]} if cells else None
                record = ImageRecord(f"i{number}", planes, [row], ["nucleus"], cells=centres, cell_labels=kinds)
                writer.add(record)
    finish_set(root)
    return str(root)

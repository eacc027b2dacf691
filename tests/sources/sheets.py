"""Small study folders for tests."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import tifffile
from numpy.typing import NDArray


def counts(seed: int, height: int = 12, width: int = 16) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(100, 4000, (height, width), dtype=np.uint16)


def write_sheet(folder: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def write_study(folder: Path, n_images: int = 3, study: str = "study") -> Path:
    """Write images of two 16-bit planes with labels."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for image in range(n_images):
        for channel, kind in enumerate(("DNA", "actin")):
            name = f"i{image}c{channel}.tif"
            tifffile.imwrite(folder / name, counts(10 * image + channel))
            rows.append(
                {
                    "file": name,
                    "experiment.study": study,
                    "imaging.multi_channel_id": f"i{image}",
                    "imaging.channel_type": kind,
                    "label": "xy"[image % 2],
                    "dose": "",
                }
            )
    return write_sheet(folder, rows)

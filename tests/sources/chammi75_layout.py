"""The layout of CHAMMI-75 in small: two studies, a metadata CSV, PNGs, guidance, in a folder and in zips."""

import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import save_file

TRAIN, GUIDANCE = "CHAMMI-75_train", "CHAMMI-75_guidance"


@dataclass
class Layout:
    """What was written: pixels of each path, rows of the CSV, where things lie."""

    root: Path
    rows: list[dict[str, str]] = field(default_factory=list)
    pixels: dict[str, NDArray[np.uint8]] = field(default_factory=dict)

    @property
    def metadata(self) -> Path:
        return self.root / "CHAMMI-75_small_metadata.csv"

    def zipped(self, folder: str, to: Path, as_root: str | None = None) -> Path:
        """Put a folder into a zip, under its own name or another."""
        with zipfile.ZipFile(to, "w") as archive:
            for path in sorted((self.root / folder).rglob("*.*")):
                archive.write(path, f"{as_root or folder}/{path.relative_to(self.root / folder)}")
        return to


def write_layout(root: Path) -> Layout:
    """Write hpa0018 (2 images of 3 channels, two of them `protein`) and a study of names with odd signs."""
    layout = Layout(root)
    rng = np.random.default_rng(5)
    studies = {"hpa0018": ("nucleus", "protein", "protein"), "idr0002": ("nucleus", "cell body")}
    for study, types in studies.items():
        for image in range(2):
            name = f"plate 1/a+b[{image}].x" if study == "idr0002" else f"uuid-{image}"
            for channel, kind in enumerate(types):
                path = f"{TRAIN}/{study}/{name}-ch{channel}.png"
                plane = rng.integers(0, 256, (24, 30), dtype=np.uint8)
                layout.pixels[path] = plane
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(plane).save(root / path)
                guidance = root / GUIDANCE / Path(path).relative_to(TRAIN).with_suffix(".safetensors")
                guidance.parent.mkdir(parents=True, exist_ok=True)
                points = np.array([[15, 12], [4 + image, 7], [20, 3]])
                save_file({"data": points, "sizes": np.array([600, 30, 40])}, guidance)
                layout.rows.append(_row(study, name, channel, types, kind, path))
    layout.rows.sort(key=lambda row: row["imaging.channel"])  # as the published CSV need not be in image order
    write_metadata(layout)
    return layout


def write_metadata(layout: Layout) -> None:
    pd.DataFrame(layout.rows).to_csv(layout.metadata, index=False)


def _row(study: str, name: str, channel: int, types: tuple[str, ...], kind: str, path: str) -> dict[str, str]:
    return {
        "experiment.study": study,
        "experiment.plate": "007",  # a text that looks like a number
        "experiment.well": "B02",
        "experiment.reagent": "unknown",
        "experiment.control": "no",
        "biology.organism": "Homo sapiens",
        "biology.cell_line": "U2OS",
        "biology.cell_type": "unknown",
        "imaging.multi_channel_id": f"{study}-{name}",
        "imaging.panel": ",".join(types),
        "imaging.channel": str(channel + 1),
        "imaging.channel_type": kind,
        "microscopy.type": "fluorescence",
        "microscopy.magnification": "20",
        "microscopy.fov": "03",
        "geometry.width": "30",
        "geometry.height": "24",
        "geometry.depth": "1",
        "geometry.channels": str(len(types)),
        "geometry.z_slice": "unknown",
        "geometry.timepoint": "unknown",
        "storage.path": path,
    }

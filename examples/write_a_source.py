"""Teach morphem a new image format: a data source in one class, checked, ingested and selected from.

The format here is one NumPy file per field of view, (C, H, W), with the stains in its name:
`plate1_A01_f1_dna-actin.npy`. In a package of its own, one entry point makes it a plug-in:

    [project.entry-points."morphem.sources"]
    stacks = "my_lab.stacks:StackSource"

    python examples/write_a_source.py
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Self

import numpy as np

from morphem.data.record import ImageRecord
from morphem.data.schema import resolve_channel
from morphem.data.shards import ShardSet
from morphem.ingest import ingest
from morphem.sources.base import Source
from morphem.testing import check_source


class StackSource(Source):
    """Reads a folder of NumPy files named `{plate}_{well}_{field}_{stain}-{stain}.npy`.

    Args:
        folder: The study folder; its name is that of the study.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.study = self.folder.name

    def image_ids(self) -> list[str]:
        """Return the names of the files without their ending, sorted."""
        return sorted(path.stem for path in self.folder.glob("*.npy"))

    def load(self, image_id: str) -> ImageRecord:
        """Read one file."""
        planes = np.load(self.folder / f"{image_id}.npy")  # (C, H, W)
        plate, well, field, stains = image_id.split("_")
        names = stains.split("-")
        rows = [
            {
                "experiment.study": self.study,
                "experiment.plate": plate,
                "experiment.well": well,
                "microscopy.fov": field,
                "microscopy.type": "fluorescence",
                "imaging.multi_channel_id": image_id,
                "imaging.channel": number,
                "imaging.channel_type": resolve_channel(name),
                "geometry.height": planes.shape[1],
                "geometry.width": planes.shape[2],
                "geometry.channels": len(planes),
            }
            for number, name in enumerate(names, start=1)
        ]
        return ImageRecord(image_id, list(planes), rows, names)

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write four fields of two wells, and return their source."""
        generator = np.random.default_rng(0)
        for well in ("A01", "B01"):
            for field in ("f1", "f2"):
                stack = generator.poisson(200, (2, 64, 72)).astype(np.uint16)
                np.save(folder / f"plate1_{well}_{field}_dna-actin.npy", stack)
        return cls(str(folder))


def main() -> None:
    """Check the source, ingest a study with it, and select from the shards."""
    check_source(StackSource)
    print("StackSource keeps the contract of a source")
    with TemporaryDirectory() as name:
        folder = Path(name) / "my-study"
        folder.mkdir()
        shards = Path(name) / "shards"
        report = ingest([StackSource.tiny(folder)], shards)
        print(
            f"ingested {len(report.studies)} study, {report.n_bytes / 1e3:.0f} kB, {report.n_failures} images left out"
        )
        columns = ["key", "experiment.well", "imaging.channel_type"]
        found = ShardSet(shards).table(columns, "imaging.channel_type == 'nucleus' and experiment.well == 'A01'")
        print(found.to_pandas().to_string(index=False))


if __name__ == "__main__":
    main()

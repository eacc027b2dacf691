"""A study whose images come out of their names, and helpers to compare shard sets."""

import os
import time
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from morphem.data import layout
from morphem.data.record import ImageRecord
from morphem.errors import DataError
from morphem.sources.base import Source

DELAY = "MORPHEM_TEST_DELAY"
LOG = "MORPHEM_TEST_LOG"


class NamedStudy(Source):
    """Images whose pixels follow from their names; every third one has cells, and every image the label `parity`.

    Reading can be slowed down (seconds in the variable `DELAY`) and is noted in a file (`LOG`), so that tests can stop
    a run and see what was read.

    Args:
        study: Name of the study.
        n_images: How many.
        bad: Numbers of images that cannot be read.
        plates: Number of plates over which the images are spread.
    """

    def __init__(self, study: str = "study", n_images: int = 7, bad: tuple[int, ...] = (), plates: int = 2) -> None:
        self.study = study
        self.n_images = n_images
        self.bad = bad
        self.plates = plates

    def image_ids(self) -> list[str]:
        return [f"image {number}" for number in range(self.n_images)]

    def table(self) -> pd.DataFrame:
        rows = [row for number in range(self.n_images) for row in self.rows(number)]
        return pd.DataFrame(rows).astype(str)

    def rows(self, number: int) -> list[dict[str, Any]]:
        common = {
            "experiment.study": self.study,
            "experiment.plate": f"plate {number % self.plates}",
            "imaging.multi_channel_id": f"image {number}",
            "microscopy.type": "fluorescence",
            "geometry.width": 40,
            "geometry.height": 32,
            "geometry.channels": 2,
            "parity": "even" if number % 2 == 0 else "odd",
        }
        kinds = enumerate(("nucleus", "actin"), start=1)
        return [common | {"imaging.channel": channel, "imaging.channel_type": kind} for channel, kind in kinds]

    def load(self, image_id: str) -> ImageRecord:
        if path := os.environ.get(LOG):
            with open(path, "a") as file:
                file.write(f"{image_id}, {os.getpid()}\n")
        time.sleep(float(os.environ.get(DELAY, "0")))
        number = int(image_id.removeprefix("image "))
        if number in self.bad:
            raise DataError(f"'{image_id}.tif' is cut off; restore it.")
        generator = np.random.default_rng(number)
        planes = [generator.integers(100, 4000, (32, 40), dtype=np.uint16) for _ in range(2)]
        cells = np.array([[number % 40, 3], [5, number % 32]], np.int32) if number % 3 == 0 else None
        return ImageRecord(
            image_id,
            planes,
            self.rows(number),
            ["DAPI", "phalloidin"],
            cells=cells,
            cell_labels=None if cells is None else {"kind": ["a", None]},
            remarks=["every fifth"] if number % 5 == 0 else [],
        )

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        return cls(n_images=2)


def images_read(log: Path) -> list[str]:
    """Names of the images that were read, in order."""
    return [line.partition(",")[0] for line in log.read_text().splitlines()]


def files_of(root: Path) -> dict[str, bytes]:
    """Every file under a folder, hidden ones included."""
    return {str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def finished_parts(root: Path) -> list[Path]:
    """Folders of finished parts of all studies of an unfinished set."""
    return sorted(root.glob(f"{layout.INCOMING}/*/parts-*/[0-9]*"))


def wait_for_parts(root: Path, count: int, seconds: float = 60) -> None:
    """Wait until so many parts are finished."""
    end = time.monotonic() + seconds
    while len(finished_parts(root)) < count:
        assert time.monotonic() < end, f"{len(finished_parts(root))} parts after {seconds} s"
        time.sleep(0.01)

"""CHAMMI: the six-task benchmark of 2023 as its three folders of tapes (Allen, HPA, CP).

Source: Chen et al. 2023, arXiv 2310.19224; Zenodo record 7988357; channel types as in the models of CHAMMI-75.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import pandas as pd

from morphem.errors import DataError, unknown_name
from morphem.readers.files import Files, open_files
from morphem.sources.sheets import read_sheet
from morphem.sources.table import TableSource
from morphem.sources.tapes import tape_table, tiny_planes, with_image_names, write_tape

_SHEET = "enriched_meta.csv"
CHANNELS: dict[str, tuple[tuple[str, str], ...]] = {
    "Allen": (("nucleus", "nucleus"), ("membrane", "cell membrane"), ("protein", "protein")),
    "HPA": (
        ("microtubules", "microtubules"),
        ("protein", "protein"),
        ("nucleus", "nucleus"),
        ("ER", "endoplasmic reticulum"),
    ),
    "CP": (
        ("nucleus", "nucleus"),
        ("ER", "endoplasmic reticulum"),
        ("RNA", "rna"),
        ("AGP", "golgi body"),  # so the published channel models call it
        ("mitochondria", "mitochondria"),
    ),
}
"""Name of the stain and channel type of each plane of a tape, from left to right, by data set."""
_NAMES = {"Plate": "experiment.plate", "cell_type": "biology.cell_type"}


class ChammiSource(TableSource):
    """Reads one of the three data sets of CHAMMI; the study is called chammi-allen, chammi-hpa or chammi-cp.

    Images keep the order of `enriched_meta.csv`. Its columns `train_test_split`, `Label`, `Task_one` and so on are
    labels. Each plane must be `channel_width` pixels wide.

    Args:
        location: Folder, zip or address with the folders Allen, HPA and CP.
        dataset: Which of them; by default the only one that is there (`open` gives one source for each).
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        DataError: If the data set is not there or its table is malformed.
    """

    priority: ClassVar[int] = 10

    def __init__(
        self, location: str, dataset: str | None = None, channel_aliases: Mapping[str, str] | None = None
    ) -> None:
        files = open_files(location)
        there = _datasets(files)
        if dataset is None and len(there) == 1:
            dataset = there[0]
        if dataset not in there:
            raise DataError(
                f"'{location}': {unknown_name('data set of CHAMMI', str(dataset), there)}"
                if there
                else f"'{location}' has no folder {', '.join(CHANNELS)} with {_SHEET}; give the folder of CHAMMI."
            )
        needed = ("file_path", "channel_width", "train_test_split", "Label")
        images, problems = read_sheet(files, f"{dataset}/{_SHEET}", needed)
        images = with_image_names(images.rename(columns={"file_path": "file", **_NAMES}))
        images = images.assign(**{"experiment.study": f"chammi-{dataset.lower()}", "biology.organism": "Homo sapiens"})
        super().__init__(files, tape_table(images, CHANNELS[dataset]), channel_aliases=channel_aliases)
        self.problems[:0] = problems

    @classmethod
    def open(cls, location: str, **settings: Any) -> list[Self]:
        """Return one source for each data set in a location.

        Args:
            location: As in the constructor.
            settings: As in the constructor.
        """
        there = _datasets(open_files(location))
        if settings.get("dataset") is not None or not there:
            return [cls(location, **settings)]
        return [cls(location, **{**settings, "dataset": name}) for name in there]

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether one of the three folders has an `enriched_meta.csv`.

        Args:
            files: Of the location.
        """
        return bool(_datasets(files))

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write two tapes of the data set CP, planes of 16 x 20 pixels, and return their source.

        Args:
            folder: Exists and is empty.
        """
        return cls(str(write_tiny(folder, "CP")))


def write_tiny(folder: Path, dataset: str, n_images: int = 2) -> Path:
    """Write a data set in the layout of CHAMMI, for tests and docs, and return the folder.

    Args:
        folder: Exists.
        dataset: Allen, HPA or CP.
        n_images: How many images.
    """
    rows = []
    for image in range(n_images):
        path = f"{dataset}/images/{image}.png"
        write_tape(folder / path, tiny_planes(len(CHANNELS[dataset]), image))
        split = "Train" if image % 2 == 0 else "Task_one"
        rows.append({"file_path": path, "channel_width": 20, "train_test_split": split, "Label": f"label{image}"})
    pd.DataFrame(rows).to_csv(folder / dataset / _SHEET, index=False)
    return folder


def _datasets(files: Files) -> list[str]:
    return [name for name in CHANNELS if files.has(f"{name}/{_SHEET}")]

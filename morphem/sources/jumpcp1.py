"""JUMP-CP1 as in the evaluation of CHAMMI-75: cells of seven plates, cut out, five channels side by side.

Source: Chandrasekaran et al. 2024, doi 10.1038/s41592-024-02241-6 (data set cpg0000); layout of the evaluation code of
CHAMMI-75. That code does not state the order of the channels; it is taken to be that of CHAMMI's Cell Painting tapes.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Self

import pandas as pd

from morphem.errors import DataError
from morphem.readers.files import Files, open_files
from morphem.sources.chammi import CHANNELS
from morphem.sources.sheets import read_sheet
from morphem.sources.table import TableSource
from morphem.sources.tapes import image_name, tape_table, tiny_planes, write_tape

_SHEET = "sc-metadata.csv"


class JumpCP1Source(TableSource):
    """Reads the cells of all plates as one study; an image is one cell, 160 x 160 pixels, with the cell in its middle.

    `<plate>/sc-metadata.csv` has a row per cell with `Image_Name` (relative to the location or to the plate) and, if
    known, `Key` (plate/well/site). Its other columns are labels. Order: plates by name, cells as in the table.

    Args:
        location: Folder, zip or address with a folder for each plate.
        plates: Names of plates with commas between, to read these alone.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        DataError: If there is no plate, or a table is malformed.
    """

    priority: ClassVar[int] = 10

    def __init__(
        self, location: str, plates: str | None = None, channel_aliases: Mapping[str, str] | None = None
    ) -> None:
        files = open_files(location)
        there = _plates(files)
        chosen = [name.strip() for name in plates.split(",")] if plates else there
        lost = [name for name in chosen if name not in there]
        if lost or not there:
            raise DataError(
                f"'{location}' has no plate {', '.join(lost)} with {_SHEET} (plates: {', '.join(there) or 'none'}); "
                "give the folder of the evaluation set."
            )
        problems: list[tuple[str, str]] = []
        images = pd.concat([_cells_of(files, plate, problems) for plate in chosen], ignore_index=True).fillna("")
        images = images.assign(**{"experiment.study": "jumpcp1", "biology.organism": "Homo sapiens"})
        images["biology.cell_line"] = "U2OS"
        super().__init__(files, tape_table(images, CHANNELS["CP"]), channel_aliases=channel_aliases)
        self.problems[:0] = problems

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether there are folders with an `sc-metadata.csv`.

        Args:
            files: Of the location.
        """
        return bool(_plates(files))

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write a plate of two cells, planes of 16 x 20 pixels, and return their source.

        Args:
            folder: Exists and is empty.
        """
        rows = []
        for cell in range(2):
            name = f"P1/cells/A01-{cell}.png"
            write_tape(folder / name, tiny_planes(5, cell))
            rows.append({"Image_Name": name, "Key": "P1/A01/1", "Metadata_broad_sample": "BRD-1"})
        pd.DataFrame(rows).to_csv(folder / "P1" / _SHEET, index=False)
        return cls(str(folder))


def _plates(files: Files) -> list[str]:
    return [name.removesuffix(f"/{_SHEET}") for name in files.names() if name.endswith(f"/{_SHEET}")]


def _cells_of(files: Files, plate: str, problems: list[tuple[str, str]]) -> pd.DataFrame:
    """Return the table of one plate with file, name, well and site of each cell."""
    table, bad = read_sheet(files, f"{plate}/{_SHEET}", ("Image_Name",))
    problems += bad
    # the evaluation code joined the names to the plate's folder once, and to the root later
    beside = files.has(f"{plate}/{table['Image_Name'].iloc[0]}") and not files.has(table["Image_Name"].iloc[0])
    names = (f"{plate}/" if beside else "") + table.pop("Image_Name")
    found = table.assign(**{"file": names, "imaging.multi_channel_id": names.map(image_name)})
    found["experiment.plate"] = plate.rpartition("/")[2]
    if "Key" in found.columns:
        parts = found.pop("Key").str.split("/", expand=True).reindex(columns=[0, 1, 2]).fillna("")
        found["experiment.well"], found["microscopy.fov"] = parts[1], parts[2]
    return found

"""HPAv23 as in the evaluation of CHAMMI-75: single cells of the Human Protein Atlas, one PNG of four channels each.

Source: Gupta et al. 2024 (SubCell), doi 10.1101/2024.12.06.627299; layout of the evaluation code of CHAMMI-75.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd

from morphem.errors import DataError
from morphem.readers.files import Files, open_files
from morphem.sources.sheets import columns_of, read_sheet
from morphem.sources.table import TableSource
from morphem.sources.tapes import tiny_planes

_SHEET = "metadata.csv"
_NEEDED = ("if_plate_id", "position", "sample", "cell_id", "antibody", "locations", "atlas_name")
_IDS = ("if_plate_id", "position", "sample", "cell_id")
_ENDING = "_cell_image.png"
# The evaluation code reads with OpenCV: blue, green, red, alpha. Ours are red, green, blue, alpha.
_CHANNELS = (
    ("2", "microtubules", "microtubules"),
    ("1", "ER", "endoplasmic reticulum"),
    ("0", "DNA", "nucleus"),
    ("3", "protein", "protein"),
)


class HPAv23Source(TableSource):
    """Reads the cells of HPAv23; an image is one cell, its planes in the order microtubules, ER, DNA, protein.

    Args:
        location: Folder, zip or address with metadata.csv and a folder for each plate.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        DataError: If the table is missing or malformed, or the number of a cell is no number.
    """

    priority: ClassVar[int] = 10

    def __init__(self, location: str, channel_aliases: Mapping[str, str] | None = None) -> None:
        files = open_files(location)
        images, problems = read_sheet(files, _SHEET, _NEEDED)
        ids = [images[name].map(_whole) for name in _IDS]  # written as 3.0 by some tools
        wrong = ~ids[3].str.isdecimal()
        if wrong.any():
            raise DataError(
                f"'{files.describe(_SHEET)}': cell_id '{ids[3][wrong].iloc[0]}' is no whole number; correct it."
            )
        plate, position, sample, cell = ids
        names = plate + "_" + position + "_" + sample + "_" + cell
        known: dict[str, Any] = {
            "file": plate + "/" + names + _ENDING,
            "imaging.multi_channel_id": names,
            "experiment.study": "hpav23",
            "experiment.plate": plate,
            "experiment.well": position,
            "microscopy.fov": sample,
            "cell_id": cell,
            "biology.organism": "Homo sapiens",
        }
        images = images.drop(columns=list(_IDS)).assign(**known)
        table = images.loc[images.index.repeat(len(_CHANNELS))].reset_index(drop=True)
        sides = [np.tile(np.array(side, dtype=object), len(images)) for side in zip(*_CHANNELS, strict=True)]
        numbers = np.tile(np.arange(1, len(_CHANNELS) + 1), len(images)).astype(str)
        places: dict[str, Any] = {
            "plane_axis": "sample",
            "plane_index": sides[0],
            "channel_name": sides[1],
            "imaging.channel_type": sides[2],
            "imaging.channel": numbers,
        }
        super().__init__(files, table.assign(**places), channel_aliases=channel_aliases)
        self.problems[:0] = problems

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether metadata.csv has the columns of this set.

        Args:
            files: Of the location.
        """
        return files.has(_SHEET) and set(_NEEDED) <= set(columns_of(files, _SHEET))

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write two cells of 16 x 20 pixels and return their source.

        Args:
            folder: Exists and is empty.
        """
        from PIL import Image

        rows = []
        (folder / "7").mkdir()
        for cell in range(1, 3):
            Image.fromarray(np.stack(tiny_planes(4, cell), axis=-1)).save(folder / f"7/7_A1_2_{cell}{_ENDING}")
            values = ("7", "A1", "2", f"{cell}.0", "HPA000001", "Nucleoplasm", "U2OS")
            rows.append(dict(zip(_NEEDED, values, strict=True)))
        pd.DataFrame(rows).to_csv(folder / _SHEET, index=False)
        return cls(str(folder))


def _whole(text: str) -> str:
    return text.removesuffix(".0")

"""A folder of images with a sheet of the schema's columns, one row per channel plane."""

from collections.abc import Callable, Mapping
from pathlib import Path, PurePath
from typing import Any, Self

import numpy as np
import pandas as pd

from morphem.cells.base import CellReader
from morphem.cells.readers import BoxReader, MaskReader
from morphem.data.schema import UNKNOWN, is_missing, missing_in
from morphem.errors import DataError, MorphemError
from morphem.readers.files import Files, FolderFiles, open_files
from morphem.sources.sheets import SUFFIXES, columns_of, read_sheet, sheets_in
from morphem.sources.table import TableSource

SHEET = "metadata.csv"
BOXES = "boxes.csv"
MASKS = "masks"
_NEEDED = ("file", "imaging.multi_channel_id", "imaging.channel_type")


class SheetSource(TableSource):
    """Reads a study with a sheet.

    The sheet is `metadata.csv` of a folder, the one CSV or Parquet file in it, or a file that is named. Needed columns:
    `file` (path inside the folder; `storage.path` if there is none), `imaging.multi_channel_id` and
    `imaging.channel_type`. The other columns of the schema are taken where they are given and must then be true.
    `plane_axis` and `plane_index` say where a plane sits in its file, `channel_name` how the source calls the stain,
    `dtype` what pixel type the file has; `note` is for people. All further columns that are not empty are labels. Cells
    come from `boxes.csv` (columns file, xmin, ymin, xmax, ymax, and labels of cells) or from a folder `masks` of files
    whose names begin with that of an image. Rows without a needed value are left out with their images and named.

    Args:
        location: A folder, a zip, an address of an object store, or the path of a sheet.
        channel_aliases: Further names of channel types, each with the type that it stands for.
        images: Where the images are, if not beside the sheet.
        study: Which study to read, where the sheet holds several.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        DataError: If the sheet is missing or malformed, or of several studies.
    """

    def __init__(
        self,
        location: str,
        channel_aliases: Mapping[str, str] | None = None,
        images: str | None = None,
        study: str | None = None,
    ) -> None:
        beside, sheet = located_sheet(
            location, _is_sheet, SHEET, f"a row per channel plane ({', '.join(_NEEDED)}, ...)"
        )
        table, problems = read_sheet(beside, sheet, _needed(beside, sheet))
        if "file" not in table.columns:
            table = table.assign(file=table["storage.path"])
        where = beside.describe(sheet)
        name = _study_of(table, study, where, location)
        if "experiment.study" in table.columns:
            said = table["experiment.study"]
            table = table[missing_in(said) | said.isin((UNKNOWN, name))]
        table, bad = _complete_rows(table, where)
        try:
            files = open_files(images) if images else beside
            super().__init__(files, table, study=name, cells=_cells_beside(beside), channel_aliases=channel_aliases)
        except MorphemError as fault:
            raise type(fault)(f"'{where}': {fault}") from fault
        self.problems[:0] = [*problems, *bad]

    @classmethod
    def open(cls, location: str, **settings: Any) -> list[Self]:
        """Return one source for each study of a sheet.

        Args:
            location: As in the constructor.
            settings: As in the constructor.
        """
        beside, sheet = located_sheet(
            location, _is_sheet, SHEET, f"a row per channel plane ({', '.join(_NEEDED)}, ...)"
        )
        if settings.get("study") is not None or "experiment.study" not in columns_of(beside, sheet):
            return [cls(location, **settings)]
        named = read_sheet(beside, sheet, ())[0]["experiment.study"].unique()
        studies = [study for study in named if not _says_nothing(study)]
        if len(studies) < 2:
            return [cls(location, **settings)]
        return [cls(location, **{**settings, "study": study}) for study in studies]

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether there is a metadata.csv, or one sheet with the needed columns.

        Args:
            files: Of the location.
        """
        sheets = sheets_in(files)
        return SHEET in sheets or (len(sheets) == 1 and _is_sheet(columns_of(files, sheets[0])))

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write two images of two channels, 16 x 20 pixels, and return their source.

        Args:
            folder: Exists and is empty.
        """
        from PIL import Image

        ramp = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20)
        rows = []
        for image in range(2):
            for channel, kind in enumerate(("nucleus", "actin")):
                name = f"image{image}-{kind}.png"
                Image.fromarray((ramp * (channel + 1) + image).astype(np.uint16)).save(folder / name)
                rows.append(
                    {
                        "file": name,
                        "experiment.study": "tiny",
                        "imaging.multi_channel_id": f"image{image}",
                        "imaging.channel_type": kind,
                        "microscopy.type": "fluorescence",
                    }
                )
        pd.DataFrame(rows).to_csv(folder / SHEET, index=False)
        return cls(str(folder))


def located_sheet(location: str, fits: Callable[[list[str]], bool], usual: str, content: str) -> tuple[Files, str]:
    """Return the files beside a sheet, and the sheet's name.

    Args:
        location: Of a folder, a zip, an object store or the sheet itself.
        fits: Whether column names are those of such a sheet.
        usual: Name of the sheet that is taken if there are several.
        content: What to write into such a sheet, for the message.

    Raises:
        DataError: If there is no such sheet, or several and none of the usual name.
    """
    path = Path(location)
    if "://" not in location and path.is_file() and path.suffix.lower() in SUFFIXES:
        return FolderFiles(path.parent), path.name
    files = open_files(location)
    if files.has(usual):
        return files, usual
    found = [name for name in sheets_in(files) if fits(columns_of(files, name))]
    if len(found) > 1:
        raise DataError(f"'{location}' has {len(found)} sheets ({', '.join(found)}); give the path of one of them.")
    if not found:
        raise DataError(f"'{location}' has no {usual}; write one with {content}.")
    return files, found[0]


def _is_sheet(columns: list[str]) -> bool:
    return {"imaging.multi_channel_id", "imaging.channel_type"} <= set(columns) and bool(
        {"file", "storage.path"} & set(columns)
    )


def _needed(files: Files, sheet: str) -> tuple[str, ...]:
    """The column of paths may be that of the schema."""
    columns = columns_of(files, sheet)
    return ("storage.path", *_NEEDED[1:]) if "file" not in columns and "storage.path" in columns else _NEEDED


def _says_nothing(value: str) -> bool:
    return is_missing(value) or value == UNKNOWN


def _study_of(table: pd.DataFrame, study: str | None, where: str, location: str) -> str:
    """The one study of a sheet, or the name of its folder where the sheet does not tell."""
    named = table.get("experiment.study", pd.Series(dtype=str))
    studies = sorted(name for name in named.unique() if not _says_nothing(name))
    if study is not None:
        if studies and study not in studies:
            raise DataError(f"'{where}' has no study '{study}'; it holds {', '.join(studies)}.")
        return study
    if len(studies) > 1:
        raise DataError(
            f"'{where}' holds {len(studies)} studies ({', '.join(studies)}); say which with 'study', or give each its "
            "own folder."
        )
    return studies[0] if studies else place_name(location)


def place_name(location: str) -> str:
    """Return what to call a study that nobody named: its folder, or its file without the ending.

    Args:
        location: As the user gave it.
    """
    if "://" in location:
        return PurePath(location.rstrip("/")).stem
    path = Path(location).resolve()
    return path.stem if path.is_file() else path.name


def _complete_rows(table: pd.DataFrame, where: str) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Leave out images with a row that lacks a needed value, and say which.

    Raises:
        DataError: If nothing is left.
    """
    problems: dict[str, str] = {}
    for column in _NEEDED:
        for line in table.index[missing_in(table[column])]:
            image = str(table.at[line, _NEEDED[1]])
            name = f"row {line}" if is_missing(image) else image
            problems.setdefault(name, f"'{where}', line {line}: '{column}' is empty; every plane needs one.")
    good = ~table[_NEEDED[1]].isin(list(problems)) & ~missing_in(table[_NEEDED[1]])
    if not good.any():
        raise DataError(next(iter(problems.values())))
    return table[good], list(problems.items())


def _cells_beside(files: Files) -> CellReader | None:
    if files.has(BOXES):
        return BoxReader(files, BOXES)
    return MaskReader(files, MASKS) if files.has_folder(MASKS) else None

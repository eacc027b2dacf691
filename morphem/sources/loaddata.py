"""Sheets for CellProfiler's LoadData: one row per image, with a file name for every channel.

Source: the manual of the LoadData module, https://cellprofiler-manual.s3.amazonaws.com/CellProfiler-4.2.6/modules/input.html
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Self

import pandas as pd

from morphem.data.schema import COLUMNS, UNKNOWN, is_missing
from morphem.data.wells import normalise_well, well_name
from morphem.errors import DataError, MorphemError
from morphem.readers.files import Files, open_files
from morphem.sources.nearest_paths import PathFinder
from morphem.sources.sheet import located_sheet, place_name
from morphem.sources.sheets import columns_of, read_sheet, sheets_in
from morphem.sources.table import TableSource

SHEET = "load_data.csv"
_FILE, _PATH, _URL, _FRAME, _SERIES, _METADATA = "FileName_", "PathName_", "URL_", "Frame_", "Series_", "Metadata_"
_META = {  # spelling without Metadata_, case and underscores -> column
    "study": "experiment.study",
    "plate": "experiment.plate",
    "well": "experiment.well",
    "site": "microscopy.fov",
    "field": "microscopy.fov",
    "fieldid": "microscopy.fov",
    "fov": "microscopy.fov",
    "planeid": "geometry.z_slice",
    "z": "geometry.z_slice",
    "zslice": "geometry.z_slice",
    "timepoint": "geometry.timepoint",
    "t": "geometry.timepoint",
}
_ROW_COLUMN = (("row", "wellrow"), ("col", "column", "wellcol", "wellcolumn"))
_ID = (
    ("", "experiment.plate"),
    ("", "experiment.well"),
    ("s", "microscopy.fov"),
    ("z", "geometry.z_slice"),
    ("t", "geometry.timepoint"),
)


class LoadDataSource(TableSource):
    """Reads a sheet for LoadData.

    `FileName_X` (or `URL_X`) with `PathName_X` is the file of channel X, `Frame_X` its page (from 0) and `Series_X` its
    series. Paths of another machine are found by their ends. `Metadata_Plate`, `Metadata_Well` (or `Metadata_Row` and
    `Metadata_Col`), `Metadata_Site` (or `Metadata_Field`, `Metadata_FieldID`), `Metadata_PlaneID` and
    `Metadata_Timepoint` name the image; the other `Metadata_` columns are labels, without that word. Illumination
    functions (`FileName_Illum...`) are not applied.

    Args:
        location: A folder, a zip or an object store with `load_data.csv` or one such sheet, or the path of the sheet.
        channel_aliases: Further names of channel types, each with the type that it stands for.
        images: Where the images are, if not beside the sheet.
        study: Name of the study; by default `Metadata_Study`, or the name of the location.

    Raises:
        DataError: If there is no such sheet, or no image of it can be used.
    """

    priority = -5

    def __init__(
        self,
        location: str,
        channel_aliases: Mapping[str, str] | None = None,
        images: str | None = None,
        study: str | None = None,
    ) -> None:
        beside, sheet = located_sheet(location, _is_loaddata, SHEET, "a column FileName_X for each channel X")
        table, problems = read_sheet(beside, sheet, ())
        files = open_files(images) if images else beside
        where = beside.describe(sheet)
        channels = _channels_of(table)
        if not channels:
            raise DataError(f"'{where}' has no column FileName_X or URL_X; give one for each channel X.")
        facts = _facts_of(table)
        planes = pd.concat([_planes_of(table, facts, name, number) for number, name in enumerate(channels, start=1)])
        planes = planes.sort_index(kind="stable").assign(**{"imaging.panel": ",".join(channels)})
        planes, lost = _found(planes, PathFinder(files))
        if planes.empty:
            raise DataError(f"'{where}' has no image that can be used; the first one: {next(iter(lost.values()))}")
        named = study or _one_study(planes) or place_name(location)
        try:
            super().__init__(files, planes, study=named, channel_aliases=channel_aliases)
        except MorphemError as fault:
            raise type(fault)(f"'{where}': {fault}") from fault
        self.problems[:0] = [*problems, *lost.items()]
        if any(column.startswith(f"{_FILE}Illum") for column in table.columns):
            self.remarks["illumination functions of the sheet are not applied"] += len(table)

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether there is a load_data.csv, or one sheet with columns `FileName_...`.

        Args:
            files: Of the location.
        """
        sheets = sheets_in(files)
        name = SHEET if SHEET in sheets else sheets[0] if len(sheets) == 1 else None
        return name is not None and _is_loaddata(columns_of(files, name))

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write two fields of one well with two channels, 16 x 20 pixels, and return their source.

        Args:
            folder: Exists and is empty.
        """
        import numpy as np
        import tifffile

        ramp = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20)
        rows = []
        for site in (1, 2):
            row = {
                "Metadata_Plate": "P1",
                "Metadata_Well": "A01",
                "Metadata_Site": str(site),
                "Metadata_compound": "DMSO",
            }
            for number, name in enumerate(("DNA", "ER"), start=1):
                tifffile.imwrite(folder / f"s{site}w{number}.tif", (ramp * number + site).astype(np.uint16))
                row |= {f"{_FILE}{name}": f"s{site}w{number}.tif", f"{_PATH}{name}": "/home/microscope/P1"}
            rows.append(row)
        pd.DataFrame(rows).to_csv(folder / SHEET, index=False)
        return cls(str(folder))


def _is_loaddata(columns: list[str]) -> bool:
    return any(column.startswith((_FILE, _URL)) for column in columns)


def _channels_of(table: pd.DataFrame) -> list[str]:
    """Names of the channels in the order of their columns."""
    names = [
        column.removeprefix(prefix) for column in table.columns for prefix in (_FILE, _URL) if column.startswith(prefix)
    ]
    return [name for name in dict.fromkeys(names) if not name.startswith("Illum")]


def _planes_of(table: pd.DataFrame, facts: pd.DataFrame, name: str, number: int) -> pd.DataFrame:
    """Return the planes of one channel; an image without a file for it has none."""
    empty = pd.Series("", index=table.index)
    folder, file = table.get(_PATH + name, empty), table.get(_FILE + name, empty)
    path = file.where(folder == "", folder.str.rstrip("/\\") + "/" + file).where(
        file != "", table.get(_URL + name, empty)
    )
    frame = table.get(_FRAME + name, empty)
    planes = facts.assign(
        file=path,
        channel_name=name,
        plane_axis=frame.where(frame == "", "page").replace("", "none"),
        plane_index=frame,
        series=table.get(_SERIES + name, empty),
        **{"imaging.channel": str(number)},
    )
    return planes[path != ""]


def _facts_of(table: pd.DataFrame) -> pd.DataFrame:
    """Return what the sheet says of each image: columns of the schema, labels, and the image's name."""
    named = {column: _spelling(column) for column in table.columns if column.startswith(_METADATA)}
    facts: dict[str, pd.Series[str]] = {}
    for column, spelling in named.items():
        target = _META.get(spelling, column.removeprefix(_METADATA))
        said = ~table[column].map(is_missing)
        facts.setdefault(target, table[column].where(said, UNKNOWN if target in COLUMNS else ""))
    if "experiment.well" not in facts and (wells := _wells(table, named)) is not None:
        facts["experiment.well"] = wells
    frame = pd.DataFrame(facts, index=table.index)
    return frame.assign(**{"imaging.multi_channel_id": _image_names(table, frame)})


def _spelling(column: str) -> str:
    return column.removeprefix(_METADATA).replace("_", "").casefold()


def _wells(table: pd.DataFrame, named: Mapping[str, str]) -> "pd.Series[str] | None":
    """Wells of a sheet that gives row and column, each as a number or the row as letters."""
    found = [next((column for column, spelling in named.items() if spelling in known), None) for known in _ROW_COLUMN]
    if found[0] is None or found[1] is None:
        return None
    pairs = zip(table[found[0]], table[found[1]], strict=True)
    return pd.Series([_well(row.strip(), column.strip()) for row, column in pairs], index=table.index)


def _well(row: str, column: str) -> str:
    if row.isdecimal() and column.isdecimal() and 1 <= int(row) <= 32:
        return well_name(int(row), int(column))
    return normalise_well(row + column)


def _image_names(table: pd.DataFrame, facts: pd.DataFrame) -> "pd.Series[str]":
    """Name each image after plate, well, field, slice and frame, or its row where the sheet tells none of them."""
    names = pd.Series("", index=facts.index)
    for prefix, column in _ID:
        if column not in facts.columns or (prefix in ("z", "t") and facts[column].nunique() < 2):
            continue
        value = facts[column].map(normalise_well) if column == "experiment.well" else facts[column]
        names = names.where(value == UNKNOWN, names + "-" + prefix + value)
    numbers = table.get("ImageNumber", pd.Series(table.index.astype(str), index=table.index))
    return names.str.removeprefix("-").where(names != "", "image" + numbers)


def _found(planes: pd.DataFrame, finder: PathFinder) -> tuple[pd.DataFrame, dict[str, str]]:
    """Put the names of files in place of paths; images of which a file is not found are left out and named."""
    names: list[str] = []
    lost: dict[str, str] = {}
    for path, image in zip(planes["file"], planes["imaging.multi_channel_id"], strict=True):
        try:
            names.append(finder.find(path))
        except DataError as fault:
            lost.setdefault(image, f"image '{image}': {fault}")
            names.append("")
    planes = planes.assign(file=names, **{"storage.path": planes["file"]})
    return planes[~planes["imaging.multi_channel_id"].isin(list(lost))], lost


def _one_study(planes: pd.DataFrame) -> str | None:
    """The study that the sheet names, if it names one alone."""
    named = planes.get("experiment.study", pd.Series(dtype=str)).unique()
    return str(named[0]) if len(named) == 1 and named[0] != UNKNOWN else None

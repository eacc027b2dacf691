"""Cells that lie in a table or in label images of the user's own, matched to images by name or by well and site."""

from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.cells.base import CellFinder, Cells, cells_inside
from morphem.cells.readers import cells_from_mask, find_mask
from morphem.data.schema import UNKNOWN
from morphem.data.wells import normalise_well
from morphem.errors import DataError

if TYPE_CHECKING:
    from morphem.data.record import ImageRecord

Key: TypeAlias = tuple[str, ...]

_POINTS = (
    ("x", "y"),
    ("Nuclei_Location_Center_X", "Nuclei_Location_Center_Y"),
    ("Location_Center_X", "Location_Center_Y"),
    ("Nuclei_AreaShape_Center_X", "Nuclei_AreaShape_Center_Y"),
    ("AreaShape_Center_X", "AreaShape_Center_Y"),
    ("Cells_Location_Center_X", "Cells_Location_Center_Y"),
)
_PLATE = ("Metadata_Plate", "Image_Metadata_Plate", "experiment.plate")
_WELL = ("Metadata_Well", "Image_Metadata_Well", "experiment.well")
_SITE = ("Metadata_Site", "Image_Metadata_Site", "Metadata_Field", "microscopy.fov")
_IMAGE = ("image", "imaging.multi_channel_id")


class CellsFromTable(CellFinder):
    """Cells of all images in one CSV: columns `image`, `x`, `y`, or a table that CellProfiler wrote.

    Coordinates are pixels, x to the right and y down, from 0. A row belongs to the image that its `image` (or
    `imaging.multi_channel_id`) names, or that lies at its plate, well and site (`Metadata_Plate`, `Metadata_Well`,
    `Metadata_Site`; z slices and time points of a site share its cells), or that has a file of the name in one of its
    `FileName_*` columns. In a table with `ImageNumber` alone, these columns are taken from the `Image.csv` that
    CellProfiler writes beside it.

    Args:
        path: The CSV.
    """

    def __init__(self, path: str) -> None:
        self.path = path

    def find(self, image: "ImageRecord") -> Cells | None:
        """Return the cells of an image; none at all if the table does not name it.

        Args:
            image: Any image.

        Raises:
            DataError: If the table cannot be read or names no images.
        """
        table = _table_of(self.path, Path(self.path).stat().st_mtime_ns if Path(self.path).exists() else 0)
        height, width = image.planes[0].shape
        keys = _keys_of_image(image)
        plate = str(image.rows[0].get("experiment.plate") or UNKNOWN)
        if ("place", "") in table and plate != UNKNOWN:
            raise DataError(
                f"'{self.path}' has wells but no plates, and image '{image.image_id}' is of plate '{plate}'; "
                "add a column Metadata_Plate."
            )
        found = next((table[key] for key in keys if key in table), None)
        if found is None:
            return Cells(np.empty((0, 2), np.int32), {}, "not in the table of cells")
        return cells_inside(found, height, width, "cell")


class CellsFromLabelImages(CellFinder):
    """Cells from label images (0 is background) or masks in a folder, named as the image or one of its files begins.

    Args:
        folder: The folder, with folders inside it.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def without_cells(self, image: "ImageRecord") -> str | None:
        """Say that the file is missing."""
        return "no cells, because there is no label image of it"

    def find(self, image: "ImageRecord") -> Cells | None:
        """Return the centres of the objects in the image's label image; None if it has none.

        Args:
            image: Any image.

        Raises:
            DataError: If the folder is missing, several files fit, or the file is no label image of that size.
        """
        from morphem.readers.files import open_files
        from morphem.readers.planes import read_plane

        files = open_files(self.folder)
        stems = [image.image_id, *(PurePosixPath(str(row["storage.path"])).stem for row in image.rows)]
        name = find_mask(files.names(), list(dict.fromkeys(stems)))
        if name is None:
            return None
        mask, _ = read_plane(files, name)
        height, width = image.planes[0].shape
        return cells_from_mask(mask, height, width, files.describe(name))


def _keys_of_image(image: "ImageRecord") -> list[Key]:
    """How a table may name an image, the surest first."""
    row = image.rows[0]
    names = [str(each["storage.path"]) for each in image.rows]
    plate, well, site = (
        str(row.get(column) or "") for column in ("experiment.plate", "experiment.well", "microscopy.fov")
    )
    place = [("place", plate, normalise_well(well), _number(site)), ("place", "", normalise_well(well), _number(site))]
    by_name: list[Key] = [("image", image.image_id), *(("image", name) for name in names)]
    return [*by_name, *place, *(("file", PurePosixPath(name).name) for name in names)]


@lru_cache(maxsize=2)
def _table_of(path: str, changed_ns: int) -> dict[Key, NDArray[np.float64]]:
    """Read a table of cells once in each process: points, (N, 2), by key."""
    table = _read(Path(path))
    columns = next((pair for pair in _POINTS if set(pair) <= set(table.columns)), None)
    if columns is None:
        pairs = "; ".join(f"{x}, {y}" for x, y in _POINTS)
        raise DataError(f"'{path}' has no coordinates of cells; give one of these pairs of columns: {pairs}.")
    points = table[list(columns)].apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    keys = _keys_of_rows(table, path)
    if not keys and "ImageNumber" in table.columns:
        keys = _keys_of_rows(_image_sheet(Path(path), table["ImageNumber"]), path)
    if not keys:
        raise DataError(
            f"'{path}' does not tell which image a cell is in; give a column 'image', FileName_* or Metadata_Well with "
            "Metadata_Site, or put the Image.csv of the same run beside it."
        )
    cells: dict[Key, NDArray[np.float64]] = {}
    for column in keys:
        numbers, first = pd.factorize(np.fromiter(column, object, len(column)))
        order = np.argsort(numbers, kind="stable")
        parts = np.split(points[order], np.flatnonzero(np.diff(numbers[order])) + 1)
        cells |= dict(zip(first, parts, strict=True))
    if any(key[:2] == ("place", "") for key in cells):
        cells["place", ""] = np.empty((0, 2))
    return cells


def _keys_of_rows(table: pd.DataFrame, path: str) -> list[list[Key]]:
    """For each way in which a table names images, the key of each row."""
    if table.empty:
        return []
    ways: list[list[Key]] = []
    for column in table.columns:
        if column in _IMAGE:
            ways.append([("image", value) for value in table[column]])
    well, site, plate = (
        next((name for name in names if name in table.columns), None) for names in (_WELL, _SITE, _PLATE)
    )
    if well and site:
        plates = table[plate] if plate else [""] * len(table)
        places = zip(plates, table[well], table[site], strict=True)
        ways.append([("place", str(p), normalise_well(str(w)), _number(str(s))) for p, w, s in places])
    if not ways:
        ways = [[("file", value) for value in table[name]] for name in _file_columns(table, path)]
    return ways


def _file_columns(table: pd.DataFrame, path: str) -> list[str]:
    """Columns of file names that say which image a row is of: one image for each name."""
    names = [name for name in map(str, table.columns) if name.removeprefix("Image_").startswith("FileName_")]
    if "ImageNumber" not in table.columns:
        return names
    single = [name for name in names if table.groupby(name)["ImageNumber"].nunique().max() == 1]
    if names and not single:
        raise DataError(
            f"'{path}': files of one name belong to several images; add the columns Metadata_Plate, _Well and _Site."
        )
    return single


def _image_sheet(path: Path, numbers: "pd.Series[str]") -> pd.DataFrame:
    """Rows of CellProfiler's Image.csv for each cell, or an empty table if there is none."""
    sheets = [path.with_name(name) for name in ("Image.csv", path.name.replace("Nuclei", "Image"))]
    found = next((sheet for sheet in sheets if sheet != path and sheet.exists()), None)
    if found is None:
        return pd.DataFrame()
    sheet = _read(found)
    if "ImageNumber" not in sheet.columns or sheet["ImageNumber"].duplicated().any():
        raise DataError(f"'{found}' needs a column ImageNumber with one row per image.")
    unknown = sorted(set(numbers) - set(sheet["ImageNumber"]))
    if unknown:
        raise DataError(f"'{found}' has no ImageNumber {unknown[0]}, which '{path.name}' names; export both together.")
    return sheet.set_index("ImageNumber").loc[numbers.tolist()].reset_index()


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        raise DataError(f"'{path}' cannot be read as a table of cells: {str(fault).strip()}.") from fault


def _number(text: str) -> str:
    """A site as CellProfiler and microscopes write it: `3` for `03` and for `3.0`."""
    digits = text.strip().removesuffix(".0")
    return str(int(digits)) if digits.isdecimal() else digits

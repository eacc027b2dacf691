"""A folder of images with a `metadata.csv`, one row per channel plane."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.data.record import ImageRecord
from morphem.data.schema import COLUMNS, UNKNOWN, is_missing, resolve_channel, resolve_microscopy
from morphem.errors import DataError, MorphemError
from morphem.sources.base import Source
from morphem.sources.cells import Cells, cells_from_boxes, cells_from_mask, find_mask, read_boxes
from morphem.sources.planes import Place, read_plane

SHEET = "metadata.csv"
BOXES = "boxes.csv"
MASKS = "masks"
_NEEDED = ("file", "imaging.multi_channel_id", "imaging.channel_type")
_OWN = ("file", "channel_name", "plane_axis", "plane_index", "dtype", "note")


class SheetSource(Source):
    """Reads a study folder with a sheet.

    Needed columns of `metadata.csv`: `file` (path inside the folder), `imaging.multi_channel_id` and
    `imaging.channel_type`. The other columns of the schema are taken where they are given and must then be true.
    `plane_axis` and `plane_index` say where a plane sits in its file, `channel_name` how the source calls the stain,
    `dtype` what pixel type the file has; `note` is for people. All further columns that are not empty are labels. Cells
    come from `boxes.csv` (columns file, xmin, ymin, xmax, ymax, and labels of cells) or from a folder `masks` of files
    whose names begin with that of an image.

    Args:
        folder: The study folder.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        DataError: If the sheet is missing, malformed, or of several studies.
    """

    def __init__(self, folder: str, channel_aliases: Mapping[str, str] | None = None) -> None:
        self.folder = Path(folder)
        self.sheet = self.folder / SHEET
        table = _read_sheet(self.sheet)
        self._aliases = channel_aliases
        self.study = _study_of(table, self.folder)
        self.labels = tuple(
            name for name in table.columns if name not in (*COLUMNS, *_OWN) and not table[name].map(is_missing).all()
        )
        self._images = _grouped(table, self.sheet)
        self._check_vocabularies(table)
        self._boxes = read_boxes(self.folder / BOXES) if (self.folder / BOXES).exists() else None

    def image_ids(self) -> list[str]:
        """Return the values of `imaging.multi_channel_id` in order of appearance."""
        return list(self._images)

    def load(self, image_id: str) -> ImageRecord:
        """Read one image with its rows and cells.

        Args:
            image_id: One of `image_ids()`.

        Raises:
            DataError: If a file is missing or damaged, or is not what the sheet says.
        """
        rows = self._images[image_id]
        planes, remarks = [], []
        for row in rows:
            plane, remark = self._plane(row)
            planes.append(plane)
            remarks.append(remark)
        height, width = planes[0].shape
        full = [self._full_row(row, i, rows, planes[i], remarks[i]) for i, row in enumerate(rows)]
        cells = self._cells(rows, height, width)
        said = [*dict.fromkeys(filter(None, remarks)), *([cells.remark] if cells and cells.remark else [])]
        return ImageRecord(
            image_id=image_id,
            planes=planes,
            rows=full,
            channel_names=[_or(row.get("channel_name"), row["imaging.channel_type"]) for row in rows],
            cells=cells.centres if cells else None,
            cell_labels=cells.labels if cells else None,
            remarks=said,
        )

    def _plane(self, row: Mapping[str, str]) -> tuple[NDArray[Any], str | None]:
        path = self.folder / row["file"]
        index = _or(row.get("plane_index"), "0")
        if not index.isdecimal():
            raise DataError(f"'{self.sheet}': plane_index of '{row['file']}' is '{index}'; it must be 0 or more.")
        place = Place(
            _or(row.get("plane_axis"), "none"),
            int(index),
            _or(row.get("geometry.z_slice"), "all"),
            _or(row.get("geometry.timepoint"), UNKNOWN),
        )
        plane, remark = read_plane(path, place)
        promised = _or(row.get("dtype"), str(plane.dtype))
        if str(plane.dtype) != promised and promised != UNKNOWN:
            raise DataError(
                f"'{path}' holds {plane.dtype} pixels where '{self.sheet}' promises {promised}; correct one."
            )
        return plane, remark

    def _full_row(
        self, row: Mapping[str, str], i: int, rows: list[dict[str, str]], plane: NDArray[Any], remark: str | None
    ) -> dict[str, Any]:
        """Return a plane's row with what the pixels tell; what the sheet says must agree with it."""
        height, width = plane.shape
        told = {"geometry.height": height, "geometry.width": width, "geometry.channels": len(rows)}
        for column, value in told.items():
            said = _or(row.get(column), UNKNOWN)
            if said not in (UNKNOWN, str(value)):
                raise DataError(
                    f"'{self.sheet}' says {column} of '{row['file']}' is {said}, but it is {value}; correct it."
                )
        full: dict[str, Any] = {column: row.get(column) for column in COLUMNS} | told
        full["experiment.study"] = self.study
        full["imaging.channel"] = _or(row.get("imaging.channel"), str(i + 1))
        full["imaging.channel_type"] = resolve_channel(row["imaging.channel_type"], self._aliases)
        full["storage.path"] = _or(row.get("storage.path"), row["file"])
        if remark:
            full["geometry.z_slice"] = "max"
        return full | {label: row[label] for label in self.labels}

    def _cells(self, rows: list[dict[str, str]], height: int, width: int) -> Cells | None:
        files = list(dict.fromkeys(row["file"] for row in rows))
        if self._boxes is not None:
            named = {*files, *(Path(file).name for file in files)}
            return cells_from_boxes(self._boxes[self._boxes["file"].isin(named)], height, width)
        masks = self.folder / MASKS
        if masks.is_dir() and (mask := find_mask(masks, [Path(file).stem for file in files])):
            return cells_from_mask(mask, height, width)
        return None

    def _check_vocabularies(self, table: pd.DataFrame) -> None:
        """Refuse unknown words before a single image is read."""
        try:
            for name in table["imaging.channel_type"].unique():
                resolve_channel(name, self._aliases)
            for name in table.get("microscopy.type", pd.Series(dtype=str)).unique():
                resolve_microscopy(_or(name, UNKNOWN))
        except MorphemError as fault:
            raise type(fault)(f"'{self.sheet}': {fault}") from fault

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


def _or(value: str | None, default: str) -> str:
    return default if value is None or is_missing(value) else value


def _read_sheet(path: Path) -> pd.DataFrame:
    if not path.parent.is_dir():
        raise DataError(f"There is no folder '{path.parent}'; give the folder of a study.")
    if not path.exists():
        raise DataError(
            f"'{path.parent}' has no {SHEET}; write one with a row per channel plane ({', '.join(_NEEDED)}, ...)."
        )
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        raise DataError(f"'{path}' cannot be read as a table: {str(fault).strip()}.") from fault
    for column in _NEEDED:
        if column not in table.columns:
            raise DataError(f"'{path}' has no column '{column}'; needed: {', '.join(_NEEDED)}.")
        empty = table[column].map(is_missing)
        if empty.any():
            raise DataError(
                f"'{path}', line {int(empty.to_numpy().argmax()) + 2}: '{column}' is empty; every plane needs one."
            )
    if table.empty:
        raise DataError(f"'{path}' has no row; give one per channel plane.")
    return table


def _study_of(table: pd.DataFrame, folder: Path) -> str:
    """The one study of a sheet, or the name of its folder where the sheet does not tell."""
    named = table.get("experiment.study", pd.Series(dtype=str))
    studies = sorted({name for name in named if not is_missing(name) and name != UNKNOWN})
    if len(studies) > 1:
        raise DataError(
            f"'{folder / SHEET}' holds {len(studies)} studies ({', '.join(studies)}); give each its own folder."
        )
    return studies[0] if studies else folder.resolve().name


def _grouped(table: pd.DataFrame, sheet: Path) -> dict[str, list[dict[str, str]]]:
    """Rows of each image in panel order, images in order of appearance."""
    images: dict[str, list[dict[str, str]]] = {}
    for row in table.to_dict("records"):
        images.setdefault(row["imaging.multi_channel_id"], []).append({str(k): str(v) for k, v in row.items()})
    if "imaging.channel" not in table.columns:
        return images
    for image_id, rows in images.items():
        numbers = [row["imaging.channel"] for row in rows]
        if not all(number.isdecimal() and int(number) >= 1 for number in numbers) or len(set(numbers)) < len(numbers):
            raise DataError(
                f"'{sheet}': image '{image_id}' has the channel numbers {', '.join(numbers)}; "
                "each plane of an image needs a number of its own, from 1."
            )
        rows.sort(key=lambda row: int(row["imaging.channel"]))
    return images

"""A source made of a plane table: one row per channel plane, with where its pixels are and what is known of it."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.cells.base import CellReader
from morphem.data.record import ImageRecord
from morphem.data.schema import COLUMNS, UNKNOWN, is_missing, missing_in
from morphem.errors import DataError
from morphem.readers.files import Files
from morphem.readers.planes import MAX_PIXELS, PROJECTION, Place, PlaneReader
from morphem.sources.base import Source, copied
from morphem.sources.completeness import faulty_images
from morphem.sources.wording import worded

PLACE_COLUMNS = ("file", "plane_axis", "plane_index", "plane_count", "series", "channel_name", "dtype", "note")
"""Columns of a plane table that are neither of the schema nor labels."""

_IMAGE = "imaging.multi_channel_id"


class TableSource(Source):
    """Base of sources that can build a plane table; everything but building it.

    A subclass builds `files` and `table` in its constructor and calls this one. Where it has a `max_pixels` setting it
    assigns `self.max_pixels`. Where pixels are not in image files it overrides `read_row`.

    The table has the column `imaging.multi_channel_id`, and where pixels are in files `file`, `plane_axis`,
    `plane_index`, `plane_count` (of a tape), `series` (see `planes.Place`); `channel_name`, `dtype` (promised),
    `note`; columns of the schema; every other column that is not empty is a label. Channel types that are not stated
    are guessed from `channel_name`; names that tell nothing become `unknown` and are counted in `unrecognised`, as are
    wells that are none. Rows without `imaging.channel` are numbered in order.

    Args:
        files: Of the location; None where pixels are not in files.
        table: One row per channel plane; values are texts.
        study: Name of the study; by default the one in `experiment.study`.
        cells: Gives the cells of an image, where the source knows them.
        labels: Label columns; by default all that are neither of the schema nor of `PLACE_COLUMNS` and not empty.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Attributes:
        labels: Names of the label columns.
        max_pixels: Largest number of pixels of a plane.

    Raises:
        ChannelError: If a channel type that is stated is not in the vocabulary.
        DataError: If the table has no row or is of several studies, or none of its images can be right.
    """

    max_pixels = MAX_PIXELS

    def __init__(
        self,
        files: Files | None,
        table: pd.DataFrame,
        *,
        study: str | None = None,
        cells: CellReader | None = None,
        labels: Sequence[str] | None = None,
        channel_aliases: Mapping[str, str] | None = None,
    ) -> None:
        if table.empty:
            raise DataError(f"{self._where(files)} has no plane; give one row per channel plane.")
        table = table.fillna("").astype(str)
        self.files = files
        self.study = study or _study_of(table, self._where(files))
        self._cells = cells
        as_given = table
        table = worded(table.assign(**{"experiment.study": self.study}), self.unrecognised, channel_aliases)
        self.labels = tuple(labels) if labels is not None else _labels_of(table)
        faults = faulty_images(table)
        table = table.assign(channel_name=_names_of(as_given))
        self.problems.extend(faults.items())
        if len(faults) == table[_IMAGE].nunique():
            raise DataError(
                f"{self._where(files)} has no image that can be used; the first one: {next(iter(faults.values()))}"
            )
        self._set_table(_in_order(table[~table[_IMAGE].isin(list(faults))]))

    @staticmethod
    def _where(files: Files | None) -> str:
        return f"'{files.location}'" if files is not None else "the table of planes"

    def _set_table(self, table: pd.DataFrame) -> None:
        """Keep a table whose rows are in order, and where the rows of each image begin."""
        self._table = table.reset_index(drop=True)
        ids = self._table[_IMAGE].to_numpy()
        starts = np.flatnonzero(np.r_[True, ids[1:] != ids[:-1]]) if len(ids) else np.empty(0, np.intp)
        ends = np.r_[starts[1:], len(ids)].tolist() if len(ids) else []
        self._spans = dict(zip(ids[starts].tolist(), zip(starts.tolist(), ends, strict=True), strict=True))

    def image_ids(self) -> list[str]:
        """Return the names of the images in order of appearance."""
        return list(self._spans)

    def table(self) -> pd.DataFrame:
        """Return the plane table."""
        return self._table

    def rows_of(self, image_id: str) -> list[dict[str, str]]:
        """Return the rows of one image.

        Args:
            image_id: One of `image_ids()`.

        Raises:
            DataError: If there is no such image.
        """
        if image_id not in self._spans:
            raise DataError(f"study '{self.study}' has no image '{image_id}'; see image_ids().")
        start, end = self._spans[image_id]
        return [{str(name): value for name, value in row.items()} for row in self._table[start:end].to_dict("records")]

    def only(self, image_ids: Sequence[str]) -> Self:
        """Return the source with these images alone, in this order, without counts of what was odd in the study.

        Args:
            image_ids: Some of `image_ids()`.
        """
        spans = [self._spans[image_id] for image_id in image_ids]
        rows = np.concatenate([np.arange(*span) for span in spans]) if spans else np.empty(0, np.intp)
        other: Self = copied(self)
        other._set_table(self._table.iloc[rows])
        return other

    def load(self, image_id: str) -> ImageRecord:
        """Read one image with its rows and cells.

        Args:
            image_id: One of `image_ids()`.

        Raises:
            DataError: If a file is missing or damaged, or is not what the table says.
        """
        rows = self.rows_of(image_id)
        try:
            read = [self.read_row(row) for row in rows]
        finally:
            self._close_reader()
        planes, remarks = [plane for plane, _ in read], [remark for _, remark in read]
        _check_sizes(planes, rows, image_id)
        height, width = planes[0].shape
        full = [self._full_row(row, len(rows), plane, remark) for row, (plane, remark) in zip(rows, read, strict=True)]
        cells = self._cells(rows, height, width) if self._cells is not None else None
        said = [*dict.fromkeys(filter(None, remarks)), *([cells.remark] if cells and cells.remark else [])]
        return ImageRecord(
            image_id=image_id,
            planes=planes,
            rows=full,
            channel_names=[row["channel_name"] for row in rows],
            cells=cells.centres if cells else None,
            masks=cells.objects if cells else None,
            cell_labels=cells.labels if cells else None,
            remarks=said,
        )

    def read_row(self, row: Mapping[str, str]) -> tuple[NDArray[Any], str | None]:
        """Read the plane of one row.

        Args:
            row: Of the plane table.

        Returns:
            Pixels, (H, W), as stored; and a remark, or None. A remark that begins with `planes.PROJECTION` sets
            `geometry.z_slice` to `max`.

        Raises:
            DataError: If there is no such plane.
        """
        if self.files is None:
            raise DataError(f"study '{self.study}' has no files; its source must define read_row.")
        if self.__dict__.get("_reader") is None:
            self._reader: PlaneReader | None = PlaneReader(self.files, self.max_pixels)
        plane, remark = self._reader.read(row["file"], _place(row))  # type: ignore[union-attr]
        promised = or_else(row.get("dtype"), UNKNOWN)
        if promised not in (UNKNOWN, str(plane.dtype)):
            raise DataError(
                f"'{self.files.describe(row['file'])}' holds {plane.dtype} pixels where the table promises {promised}; "
                "correct one."
            )
        return plane, remark

    def _close_reader(self) -> None:
        reader = self.__dict__.pop("_reader", None)
        if reader is not None:
            reader.close()

    def _full_row(
        self, row: Mapping[str, str], n_channels: int, plane: NDArray[Any], remark: str | None
    ) -> dict[str, Any]:
        """Return a plane's row with what the pixels tell; what the table says must agree with it."""
        height, width = plane.shape
        told = {"geometry.height": height, "geometry.width": width, "geometry.channels": n_channels}
        for column, value in told.items():
            said = or_else(row.get(column), UNKNOWN)
            if said not in (UNKNOWN, str(value)):
                what = row.get("file", row[_IMAGE])
                raise DataError(f"the table says {column} of '{what}' is {said}, but it is {value}; correct it.")
        full: dict[str, Any] = {column: row.get(column) for column in COLUMNS} | told
        full["storage.path"] = or_else(row.get("storage.path"), row.get("file", UNKNOWN))
        if remark and PROJECTION in remark:
            full["geometry.z_slice"] = "max"
        return full | {label: row[label] for label in self.labels}


def or_else(value: str | None, default: str) -> str:
    """Return a value of a table, or the default where it says nothing.

    Args:
        value: A cell of a table, or None.
        default: What to take instead.
    """
    return default if value is None or is_missing(value) else value


def _place(row: Mapping[str, str]) -> Place:
    numbers = {}
    for column in ("plane_index", "plane_count", "series"):
        text = or_else(row.get(column), "")
        if text and not text.isdecimal():
            raise DataError(f"{column} of '{row['file']}' is '{text}'; it must be a whole number of 0 or more.")
        numbers[column] = int(text) if text else None
    return Place(
        or_else(row.get("plane_axis"), "none"),
        numbers["plane_index"] or 0,
        or_else(row.get("geometry.z_slice"), "all"),
        or_else(row.get("geometry.timepoint"), UNKNOWN),
        numbers["series"],
        numbers["plane_count"] or 1,
    )


def _check_sizes(planes: Sequence[NDArray[Any]], rows: Sequence[Mapping[str, str]], image_id: str) -> None:
    for plane, row in zip(planes, rows, strict=True):
        if plane.shape != planes[0].shape:
            raise DataError(
                f"image '{image_id}': '{row.get('file', row['imaging.channel_type'])}' has {plane.shape[1]} x "
                f"{plane.shape[0]} pixels where '{rows[0].get('file', rows[0]['imaging.channel_type'])}' has "
                f"{planes[0].shape[1]} x {planes[0].shape[0]} (width x height); all channels need one size."
            )


def _labels_of(table: pd.DataFrame) -> tuple[str, ...]:
    return tuple(
        name
        for name in map(str, table.columns)
        if name not in COLUMNS and name not in PLACE_COLUMNS and not missing_in(table[name]).all()
    )


def _names_of(table: pd.DataFrame) -> "pd.Series[str]":
    """The stain of each plane as the source spells it: its name, or its channel type where it has none."""
    types = table.get("imaging.channel_type", pd.Series(UNKNOWN, index=table.index))
    names = table.get("channel_name", types)
    names = names.where(~missing_in(names), types)
    return names.where(~missing_in(names), UNKNOWN)


def _study_of(table: pd.DataFrame, where: str) -> str:
    named = table.get("experiment.study", pd.Series(dtype=str))
    studies = sorted({name for name in named.unique() if not is_missing(name) and name != UNKNOWN})
    if len(studies) != 1:
        what = f"holds {len(studies)} studies ({', '.join(studies)})" if studies else "does not tell the study's name"
        raise DataError(f"{where} {what}; give each its own folder, and its name in 'experiment.study'.")
    return str(studies[0])


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    """Rows of each image in panel order, images in order of appearance; rows without a channel number get one."""
    image = pd.factorize(table[_IMAGE])[0]
    order = pd.Series(np.arange(len(table)), index=table.index).groupby(image).cumcount() + 1
    given = table["imaging.channel"] if "imaging.channel" in table.columns else pd.Series("", index=table.index)
    said = ~missing_in(given)
    table = table.assign(**{"imaging.channel": given.where(said, order.astype(str))})
    rank = pd.to_numeric(table["imaging.channel"], errors="coerce").fillna(np.inf).to_numpy()
    return table.iloc[np.lexsort((rank, image))]

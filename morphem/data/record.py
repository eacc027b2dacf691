"""One image on its way into a shard set, and all that can be wrong with it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.data import layout
from morphem.data.schema import COLUMNS, complete
from morphem.errors import DataError

_STORED = (np.dtype(np.uint8), np.dtype(np.uint16))


@dataclass(frozen=True)
class ImageRecord:
    """One multi-channel image as a source gives it, and as the writer takes it.

    Attributes:
        image_id: The source's name of the image, unique in its study.
        planes: Pixels of each channel, (H, W), all of one size; of any number type from a source, for the writer uint8
            (levels) or uint16 (intensities).
        rows: For each plane the 22 columns of the schema; further columns are labels of the image.
        channel_names: For each plane the stain as the source names it.
        clip_limits: For each plane the values that became 0 and 255; NaN where not given. Intensities need them: a
            reader scales with them.
        cells: Centres of cells, (N, 2), x then y in pixels, int32; None where nobody looked for cells.
        cell_labels: For each label column one text (or None) per cell.
        masks: Where the cells are, (H, W), uint16: 0 is background, n + 1 the n-th cell; None where only their centres
            are known.
        remarks: What reading the image decided, for example a projection; kept in the sample's JSON.
        quality: For each plane what was measured, by name of a quality column of the layout; may lack some.
    """

    image_id: str
    planes: Sequence[NDArray[Any]]
    rows: Sequence[Mapping[str, Any]]
    channel_names: Sequence[str]
    clip_limits: Sequence[tuple[float, float]] | None = None
    cells: NDArray[np.int32] | None = None
    cell_labels: Mapping[str, Sequence[str | None]] | None = None
    remarks: Sequence[str] = ()
    quality: Sequence[Mapping[str, float]] | None = None
    masks: NDArray[np.uint16] | None = None


def checked_rows(image: ImageRecord, study: str) -> list[dict[str, Any]]:
    """Return the completed rows of an image, after all that can be wrong with it was looked for.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        DataError: If planes, rows, names, sizes or cells do not fit each other.
    """
    where = f"image '{image.image_id}' of study '{study}'"
    n_planes = len(image.planes)
    if not n_planes or {len(image.rows), len(image.channel_names)} != {n_planes} or n_planes > 100:
        raise DataError(
            f"{where} has {n_planes} planes, {len(image.rows)} rows and {len(image.channel_names)} channel names; "
            "each plane needs one of each, 1 to 100 planes in all."
        )
    if image.clip_limits is not None and len(image.clip_limits) != n_planes:
        raise DataError(f"{where} has {n_planes} planes but {len(image.clip_limits)} clip limits.")
    _check_pixels(image, where)
    rows = [complete(row) for row in image.rows]
    _check_quality(image, where)
    _check_columns(rows, image, where, study)
    _check_cells(image, where)
    return rows


def _check_pixels(image: ImageRecord, where: str) -> None:
    first = image.planes[0]
    for i, plane in enumerate(image.planes):
        alike = plane.shape == first.shape and plane.dtype == first.dtype
        if plane.ndim != 2 or not plane.size or plane.dtype not in _STORED or not alike:
            raise DataError(
                f"{where}: plane {i} is {plane.dtype} of shape {plane.shape}; all planes of an image must be uint8 of "
                f"one size, or all uint16, here {first.shape}."
            )
        if plane.dtype == np.uint16 and (image.clip_limits is None or not np.isfinite(image.clip_limits[i]).all()):
            raise DataError(f"{where}: plane {i} is uint16 without clip limits, which readers need; give both of them.")


def _check_quality(image: ImageRecord, where: str) -> None:
    if image.quality is None:
        return
    if len(image.quality) != len(image.planes):
        raise DataError(f"{where} has {len(image.planes)} planes but {len(image.quality)} sets of quality values.")
    for name in (name for values in image.quality for name in values):
        if name not in layout.QUALITY_COLUMNS:
            raise DataError(f"{where}: '{name}' is no quality column; allowed: {', '.join(layout.QUALITY_COLUMNS)}.")


def _check_columns(rows: list[dict[str, Any]], image: ImageRecord, where: str, study: str) -> None:
    height, width = image.planes[0].shape
    expected = {
        "experiment.study": study,
        "imaging.multi_channel_id": image.image_id,
        "geometry.height": height,
        "geometry.width": width,
        "geometry.channels": len(rows),
    }
    for i, row in enumerate(rows):
        for column, value in expected.items():
            if row[column] != value:
                raise DataError(f"{where}: plane {i} says {column} is {row[column]!r}, but it is {value!r}.")
        for label in labels_of([row]):
            if label in (*layout.POSITION_COLUMNS, *layout.QUALITY_COLUMNS, *layout.MASK_COLUMNS):
                raise DataError(f"{where}: '{label}' is a column of the shard set itself; rename the label.")


def _check_cells(image: ImageRecord, where: str) -> None:
    if image.cells is None:
        if image.cell_labels or image.masks is not None:
            raise DataError(f"{where} has {'labels' if image.cell_labels else 'masks'} of cells but no cells.")
        return
    cells = np.asarray(image.cells)
    if cells.ndim != 2 or cells.shape[1] != 2 or cells.dtype.kind not in "iu":
        raise DataError(
            f"{where}: cells must be whole numbers of shape (N, 2), x then y; got {cells.dtype} {cells.shape}."
        )
    height, width = image.planes[0].shape
    outside = ((cells < 0) | (cells >= (width, height))).any(axis=1)
    if outside.any():
        x, y = cells[outside.argmax()].tolist()
        raise DataError(
            f"{where}: the cell at x={x}, y={y} is outside of its {width} x {height} pixels (width x height)."
        )
    for label, values in (image.cell_labels or {}).items():
        if len(values) != len(cells):
            raise DataError(f"{where} has {len(cells)} cells but {len(values)} values of the cell label '{label}'.")
        if label in layout.CELL_COLUMNS:
            raise DataError(f"{where}: '{label}' is a column of the cell table itself; rename the label.")
    _check_masks(image, where)


def _check_masks(image: ImageRecord, where: str) -> None:
    if image.masks is None:
        return
    n_cells, shape = len(image.cells if image.cells is not None else ()), image.planes[0].shape
    if image.masks.dtype != np.uint16 or image.masks.shape != shape or int(image.masks.max()) > n_cells:
        raise DataError(
            f"{where}: its masks are {image.masks.dtype} {image.masks.shape} with numbers up to {image.masks.max()}; "
            f"they must be uint16 of shape {shape} with numbers up to {n_cells}, one per cell."
        )


def labels_of(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the label columns of some rows, in order of appearance."""
    return list(dict.fromkeys(column for row in rows for column in row if column not in COLUMNS))

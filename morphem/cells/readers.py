"""Cells that lie beside the images of a study: boxes in a table, masks and label images, guidance files."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.cells.base import CellReader, Cells, cells_inside, numbered
from morphem.errors import DataError

if TYPE_CHECKING:
    from morphem.readers.files import Files

CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KINDS = ("nucle", "cell")
_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".gif")

BACKGROUND_REMARK = "background point in row 0 of the guidance dropped"


def read_table(files: "Files", name: str, columns: Iterable[str] | None = None) -> pd.DataFrame:
    """Read a CSV of a source, every value as text.

    Args:
        files: The source's files.
        name: Of the CSV, inside the location.
        columns: Those to read; None for all.

    Raises:
        DataError: If it is no table.
    """
    wanted = None if columns is None else list(columns)
    try:
        with files.open(name) as stream:
            return pd.read_csv(stream, dtype=str, keep_default_na=False, encoding="utf-8-sig", usecols=wanted)
    except (OSError, ValueError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        if isinstance(fault, DataError):
            raise
        raise DataError(f"'{files.describe(name)}' cannot be read as a table: {str(fault).strip()}.") from fault


def read_boxes(files: "Files", name: str) -> pd.DataFrame:
    """Read a table of boxes: columns file, xmin, ymin, xmax, ymax (pixels, ends included), and labels of cells.

    Args:
        files: The source's files.
        name: Of the CSV, inside the location.

    Raises:
        DataError: If it is not such a table.
    """
    table = read_table(files, name)
    where = f"'{files.describe(name)}'"
    missing = [column for column in ("file", *CORNERS) if column not in table.columns]
    if missing:
        raise DataError(f"{where} has no column '{missing[0]}'; needed: file, {', '.join(CORNERS)}.")
    try:
        return table.astype(dict.fromkeys(CORNERS, float))
    except ValueError as fault:
        raise DataError(f"{where}: a corner of a box is not a number: {fault}.") from fault


def cells_from_boxes(boxes: pd.DataFrame, height: int, width: int) -> Cells:
    """Return the centres of the boxes of one image; boxes without area are left out.

    Args:
        boxes: Rows of that image.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
    """
    good = boxes[(boxes["xmax"] > boxes["xmin"]) & (boxes["ymax"] > boxes["ymin"])]
    x = np.floor((good["xmin"].to_numpy() + good["xmax"].to_numpy()) / 2).clip(0, width - 1)
    y = np.floor((good["ymin"].to_numpy() + good["ymax"].to_numpy()) / 2).clip(0, height - 1)
    labels = {
        str(name): [value or None for value in good[name]] for name in good.columns if name not in ("file", *CORNERS)
    }
    left_out = len(boxes) - len(good)
    remark = f"{left_out} box{'es' if left_out > 1 else ''} without area left out" if left_out else None
    return Cells(np.stack([x, y], axis=1).astype(np.int32), labels, remark)


class BoxReader(CellReader):
    """Cells from a table of boxes of all images.

    Args:
        files: The source's files.
        name: Of the CSV, inside the location.

    Raises:
        DataError: If it is not a table of boxes.
    """

    def __init__(self, files: "Files", name: str) -> None:
        table = read_boxes(files, name)
        self._by_file = dict(list(table.groupby("file", sort=False)))
        self._none = table.iloc[:0]

    def __call__(self, rows: Sequence[Mapping[str, str]], height: int, width: int) -> Cells:
        """Return the centres of the boxes whose `file` is the path or the bare name of one of the image's files."""
        named = [name for row in rows for name in (row["file"], PurePosixPath(row["file"]).name)]
        found = [self._by_file[name] for name in dict.fromkeys(named) if name in self._by_file]
        return cells_from_boxes(pd.concat(found) if found else self._none, height, width)


def find_mask(names: Iterable[str], stems: Sequence[str]) -> str | None:
    """Return the mask file of an image: one whose name begins with that of a plane, nuclei before cells.

    Args:
        names: Mask files of all images.
        stems: File names of the image's planes, without folder and suffix.

    Raises:
        DataError: If several files fit and none is named after nuclei or cells.
    """
    found = [name for name in sorted(names) if PurePosixPath(name).name.startswith(tuple(stems))]
    for kind in _KINDS:
        named = [name for name in found if kind in PurePosixPath(name).stem.casefold()]
        if len(named) == 1:
            return named[0]
    if len(found) > 1:
        shown = ", ".join(PurePosixPath(name).name for name in found)
        folder = PurePosixPath(found[0]).parent
        raise DataError(
            f"'{folder}' has several masks for one image ({shown}); keep one, or name one 'Nuclei' or 'Cells'."
        )
    return found[0] if found else None


def cells_from_mask(mask: NDArray[Any], height: int, width: int, name: str) -> Cells:
    """Return the centres of the objects of a mask.

    In a mask of two values (0 and another) each connected region is an object, diagonal neighbours included; in one of
    more values each value above 0 is.

    Args:
        mask: Whole numbers, (H, W).
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        name: Of the mask, for messages.

    Raises:
        DataError: If the mask has another size than the image or is not of whole numbers.
    """
    from scipy import ndimage

    if mask.shape != (height, width) or mask.dtype.kind not in "uib":
        raise DataError(
            f"mask '{name}' is {mask.dtype} {mask.shape}; its image needs whole numbers ({height}, {width})."
        )
    values = np.unique(mask)
    if len(values[values != 0]) <= 1:
        objects, count = ndimage.label(mask, structure=np.ones((3, 3), int))
        numbers = np.arange(1, count + 1)
    else:
        objects, numbers = mask, values[values > 0]
    yx = np.reshape(ndimage.center_of_mass(np.ones(mask.shape, np.uint8), objects, numbers), (-1, 2))
    return Cells(np.rint(yx[:, ::-1]).astype(np.int32), {}, None, numbered(objects, numbers))


class MaskReader(CellReader):
    """Cells from mask files in a folder, named as the images' files begin.

    Args:
        files: The files among which the masks are.
        folder: Folder of the masks inside the location; empty for the location itself.
    """

    def __init__(self, files: "Files", folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        self._files = files
        self._names = [
            name for name in files.names() if name.startswith(prefix) and name.lower().endswith(_MASK_SUFFIXES)
        ]

    def __call__(self, rows: Sequence[Mapping[str, str]], height: int, width: int) -> Cells | None:
        """Return the centres of the objects in the image's mask; None if it has no mask.

        Raises:
            DataError: If several masks fit, or the mask cannot be read or has another size than the image.
        """
        from morphem.readers.planes import read_plane

        name = find_mask(self._names, list(dict.fromkeys(PurePosixPath(row["file"]).stem for row in rows)))
        if name is None:
            return None
        mask, _ = read_plane(self._files, name)
        return cells_from_mask(mask, height, width, self._files.describe(name))


def cells_from_guidance(data: bytes, height: int, width: int, name: str) -> Cells:
    """Return the cells of a CHAMMI-75 guidance file, without the background point that some have in row 0.

    The tool that writes them visits the labels from 0, which is the background, to n - 1; so the first point is the
    middle of the background, with its area, and the last cell is missing. Such a first point gives itself away: its
    area is more than half of the image, or it is far larger than the others while all areas together fill the image.

    Args:
        data: Content of the file: safetensors with `data` (N, 2), x then y, and perhaps `sizes` (N,), areas in pixels.
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        name: Of the file, for messages.

    Raises:
        DataError: If it is no such file.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        tensors = load(data)
    except SafetensorError as fault:
        raise DataError(f"guidance '{name}' is no safetensors file ({fault}); download it again.") from fault
    points = tensors.get("data")
    if points is None or points.ndim != 2 or points.shape[1] != 2:
        shape = "no 'data'" if points is None else f"'data' of shape {points.shape}"
        raise DataError(f"guidance '{name}' has {shape}; needed: 'data' of shape (N, 2), x then y in pixels.")
    background = len(points) > 0 and _starts_with_background(tensors.get("sizes"), len(points), height * width)
    cells = cells_inside(points[int(background) :].astype(np.float64), height, width, "centroid")
    said = [BACKGROUND_REMARK] if background else []
    return cells._replace(remark="; ".join([*said, *([cells.remark] if cells.remark else [])]) or None)


def _starts_with_background(sizes: NDArray[Any] | None, count: int, area: int) -> bool:
    if sizes is None or sizes.shape != (count,):
        return False
    first, others = float(sizes[0]), sizes[1:].astype(np.float64)
    if first > 0.5 * area:
        return True
    # In a crowded image the background is smaller, but with it all areas sum up to the image less one cell.
    return len(others) > 0 and first > 10 * float(np.median(others)) and first + others.sum() > 0.9 * area


class GuidanceReader(CellReader):
    """Cells from CHAMMI-75 guidance files.

    Args:
        files: Where the guidance files are.
        prefix: What stands before a file's path, for example `CHAMMI-75_guidance/`.
    """

    def __init__(self, files: "Files", prefix: str = "") -> None:
        self._files = files
        self._prefix = prefix

    def __call__(self, rows: Sequence[Mapping[str, str]], height: int, width: int) -> Cells | None:
        """Return the cells of the first plane that has a file: all planes of an image have the same points.

        Raises:
            DataError: If the file is damaged or of another format.
        """
        for row in rows:
            name = self._prefix + guidance_name(row["storage.path"])
            if _exists(self._files, name):
                return cells_from_guidance(self._files.read(name), height, width, self._files.describe(name))
        return None

    def knows(self, path: str) -> bool:
        """Whether there is a guidance file of a PNG, by the list of all files.

        Args:
            path: As in `storage.path`.
        """
        return self._prefix + guidance_name(path) in self._files.known


def guidance_name(path: str) -> str:
    """Return the guidance file of a PNG: its path without the first folder, with the suffix `.safetensors`.

    Args:
        path: As in `storage.path`.
    """
    inside = path.partition("/")[2] or path
    stem, _, ending = inside.rpartition(".")  # plain text handling: this runs for millions of paths
    return (stem if stem and "/" not in ending else inside) + ".safetensors"


def _exists(files: "Files", name: str) -> bool:
    """Whether there is a file, without a list of all of them, which takes minutes in a bucket of millions."""
    try:
        files.size(name)
    except DataError:
        return False
    return True

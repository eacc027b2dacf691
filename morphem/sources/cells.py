"""Cells that lie beside the images of a study: boxes in a table, or masks in a folder."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import DataError
from morphem.sources.planes import Place, read_plane

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_KINDS = ("nucle", "cell")


class Cells(NamedTuple):
    """Cells of one image.

    Attributes:
        centres: x then y in pixels, (N, 2), int32.
        labels: For each label column one text or None per cell.
        remark: What was left out, or None.
    """

    centres: NDArray[np.int32]
    labels: dict[str, list[str | None]]
    remark: str | None


def read_boxes(path: Path) -> pd.DataFrame:
    """Read boxes.csv: columns file, xmin, ymin, xmax, ymax (pixels, ends included), and labels of cells.

    Raises:
        DataError: If it is not such a table.
    """
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
        missing = [column for column in ("file", *_CORNERS) if column not in table.columns]
        if missing:
            raise DataError(f"'{path}' has no column '{missing[0]}'; needed: file, {', '.join(_CORNERS)}.")
        return table.astype(dict.fromkeys(_CORNERS, float))
    except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as fault:
        raise DataError(f"'{path}' cannot be read as a table: {fault}.") from fault
    except ValueError as fault:
        if isinstance(fault, DataError):
            raise
        raise DataError(f"'{path}': a corner of a box is not a number: {fault}.") from fault


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
        str(name): [value or None for value in good[name]] for name in good.columns if name not in ("file", *_CORNERS)
    }
    left_out = len(boxes) - len(good)
    remark = f"{left_out} box{'es' if left_out > 1 else ''} without area left out" if left_out else None
    return Cells(np.stack([x, y], axis=1).astype(np.int32), labels, remark)


def find_mask(folder: Path, stems: list[str]) -> Path | None:
    """Return the mask file of an image: one whose name begins with that of a plane, nuclei before cells.

    Args:
        folder: Holds mask files of all images.
        stems: File names of the image's planes, without suffix.

    Raises:
        DataError: If several files fit and none is named after nuclei or cells.
    """
    found = [path for path in sorted(folder.iterdir()) if any(path.stem.startswith(stem) for stem in stems)]
    for kind in _KINDS:
        named = [path for path in found if kind in path.stem.casefold()]
        if len(named) == 1:
            return named[0]
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise DataError(
            f"'{folder}' has several masks for one image ({names}); keep one, or name one 'Nuclei' or 'Cells'."
        )
    return found[0] if found else None


def cells_from_mask(path: Path, height: int, width: int) -> Cells:
    """Return the centres of the objects of a mask.

    In a mask of two values (0 and another) each connected region is an object, diagonal neighbours included; in one of
    more values each value above 0 is.

    Args:
        path: Mask file, one plane of whole numbers.
        height: Of the image, in pixels.
        width: Of the image, in pixels.

    Raises:
        DataError: If the mask cannot be read or has another size than the image.
    """
    from scipy import ndimage

    mask, _ = read_plane(path, Place())
    if mask.shape != (height, width) or mask.dtype.kind not in "uib":
        raise DataError(
            f"mask '{path}' is {mask.dtype} {mask.shape}; its image needs whole numbers ({height}, {width})."
        )
    values = np.unique(mask)
    if len(values[values != 0]) <= 1:
        objects, count = ndimage.label(mask, structure=np.ones((3, 3), int))
        numbers = np.arange(1, count + 1)
    else:
        objects, numbers = mask, values[values > 0]
    yx = np.reshape(ndimage.center_of_mass(np.ones(mask.shape, np.uint8), objects, numbers), (-1, 2))
    return Cells(np.rint(yx[:, ::-1]).astype(np.int32), {}, None)

"""Cells of an image, and what a cell finder and a cell reader owe."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphem.spec import Configurable

if TYPE_CHECKING:
    from morphem.data.record import ImageRecord


class Cells(NamedTuple):
    """Cells of one image.

    Attributes:
        centres: x then y in pixels, (N, 2), int32.
        labels: For each label column one text or None per cell.
        remark: What was left out, or None.
        objects: Where the cells are, (H, W), uint16: 0 is background, n + 1 the n-th cell; None where only their
            centres are known.
    """

    centres: NDArray[np.int32]
    labels: dict[str, list[str | None]]
    remark: str | None
    objects: NDArray[np.uint16] | None = None


def numbered(objects: NDArray[Any], numbers: NDArray[Any]) -> NDArray[np.uint16] | None:
    """Return a label image whose cells are numbered from 1 in their order, or None where they are more than 65,535.

    Args:
        objects: Whole numbers, (H, W); what is none of `numbers` is background.
        numbers: Of the cells, rising, above 0.
    """
    if len(numbers) > np.iinfo(np.uint16).max:
        return None
    if not len(numbers):
        return np.zeros(objects.shape, np.uint16)
    place = np.searchsorted(numbers, objects).clip(0, len(numbers) - 1)
    return np.where(numbers[place] == objects, place + 1, 0).astype(np.uint16)


class CellFinder(Configurable, ABC):
    """Finds the cells of an image, the same ones whenever it is asked."""

    def without_cells(self, image: "ImageRecord") -> str | None:
        """Return what to remark of an image for which `find` gave None; None where nobody wanted cells.

        Args:
            image: As `find` saw it.
        """
        return f"no cells: {type(self).__name__} found nothing to look at"

    @abstractmethod
    def find(self, image: "ImageRecord") -> Cells | None:
        """Return the cells of an image, or None where nobody could look for them.

        Args:
            image: As a source gives it: pixels of any number type.

        Raises:
            DataError: If cells were promised and cannot be read.
        """


class CellReader(ABC):
    """Knows where the cells of a source's images are written; needs the rows of an image, not its pixels.

    It is called by the source, `reader(rows, height, width)`, and pickled with it.
    """

    @abstractmethod
    def __call__(self, rows: Sequence[Mapping[str, str]], height: int, width: int) -> Cells | None:
        """Return the cells of one image, or None where nobody looked for them.

        Args:
            rows: Rows of the image in the plane table, with `file` (name inside the location).
            height: Of the image, in pixels.
            width: Of the image, in pixels.

        Raises:
            DataError: If cells were promised and cannot be read.
        """


def cells_inside(points: NDArray[np.floating], height: int, width: int, what: str) -> Cells:
    """Round points to pixels and leave out those that are not numbers or not in the image.

    Args:
        points: x then y in pixels, (N, 2).
        height: Of the image, in pixels.
        width: Of the image, in pixels.
        what: How the remark calls a point, for example `centroid`.
    """
    finite = np.isfinite(points).all(axis=1)
    rounded = np.rint(np.where(finite[:, None], points, -1))
    good = finite & (rounded >= 0).all(axis=1) & (rounded < (width, height)).all(axis=1)
    remark = None if good.all() else f"{what}s outside of the image left out"
    return Cells(rounded[good].astype(np.int32), {}, remark)

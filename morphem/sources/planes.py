"""One channel plane out of an image file, without guessing: pages, axes, colours and palettes are asked for or refused.

The stored numbers are the intensities. A palette is allowed only where it is a ramp of greys, and is then not applied.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from morphem.errors import DataError

Array: TypeAlias = NDArray[Any]

AXES = ("none", "page", "C", "sample")
_TIFF_SUFFIXES = (".tif", ".tiff")
_PHOTOMETRIC_WHITE_IS_ZERO = 0
_PHOTOMETRIC_PALETTE = 3


class Place(NamedTuple):
    """Where a plane sits in its file.

    Attributes:
        axis: `none` (the file is the plane), `page`, `C` (channel axis of the stack) or `sample` (r, g, b).
        number: Position along it, from 0.
        z_slice: Slice of a stack, a number as text; anything else means all of them.
        timepoint: Frame of a series, a number as text.
    """

    axis: str = "none"
    number: int = 0
    z_slice: str = "all"
    timepoint: str = "unknown"


class Stack(NamedTuple):
    """Pixels of a file with a letter for each axis.

    Attributes:
        pixels: Any shape and number type.
        axes: One letter per axis: Y, X, C (channels), S (colour samples), Z, T, or Q and I for pages of no known kind.
    """

    pixels: Array
    axes: str


def read_plane(path: Path, place: Place) -> tuple[Array, str | None]:
    """Read one plane.

    Args:
        path: A TIFF, OME-TIFF, PNG, JPEG or BMP file.
        place: Where the plane sits in it.

    Returns:
        Pixels, (H, W), as stored; and a remark where slices were combined.

    Raises:
        DataError: If the file is missing or damaged, or holds no such plane.
    """
    if place.axis not in AXES:
        raise DataError(f"'{path}': plane_axis is '{place.axis}'; allowed: {', '.join(AXES)}.")
    stack = _guarded(
        path, lambda: _read_tiff(path, place) if path.suffix.lower() in _TIFF_SUFFIXES else _read_other(path)
    )
    return _select(stack, place, path)


def _guarded(path: Path, read: Callable[[], Stack]) -> Stack:
    try:
        return read()
    except DataError:
        raise
    except FileNotFoundError as fault:
        raise DataError(f"'{path}' is missing; restore it or take its rows out of metadata.csv.") from fault
    except Exception as fault:  # decoders of damaged files raise whatever they stumble over
        reason = str(fault).splitlines()[0] if str(fault) else ""
        raise DataError(f"'{path}' cannot be read: {type(fault).__name__}: {reason}.") from fault


def _read_tiff(path: Path, place: Place) -> Stack:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages.first
        if place.axis == "page":
            if place.number >= len(file.pages):
                raise DataError(f"'{path}' has {len(file.pages)} pages; plane_index {place.number} is not among them.")
            page = file.pages[place.number]
            stack = Stack(page.asarray(), page.axes)
        else:
            if len(file.series) > 1:
                raise DataError(f"'{path}' holds {len(file.series)} series of images; say plane_axis 'page'.")
            stack = Stack(file.series[0].asarray(), file.series[0].axes)
        if page.photometric == _PHOTOMETRIC_PALETTE:
            _check_ramp(np.asarray(page.colormap), int(stack.pixels.max(initial=0)), path)
        if page.photometric == _PHOTOMETRIC_WHITE_IS_ZERO and stack.pixels.dtype.kind == "u":
            stack = stack._replace(pixels=np.iinfo(stack.pixels.dtype).max - stack.pixels)
        return stack


def _check_ramp(palette: Array, largest: int, path: Path) -> None:
    """Refuse a palette, (3, levels), that is not grey of rising level in the indices that are in use."""
    used = palette[:, : largest + 1].astype(np.int64)
    if (used != used[0]).any() or (np.diff(used[0]) < 0).any():
        raise DataError(f"'{path}' is a colour image with a palette; split it into r, g and b planes first.")


def _read_other(path: Path) -> Stack:
    from PIL import Image

    with Image.open(path) as image:
        if image.mode == "P":
            palette = np.asarray(image.getpalette("RGB")).reshape(-1, 3).T
            pixels = np.array(image)
            _check_ramp(palette, int(pixels.max()), path)
            return Stack(pixels, "YX")
        if image.mode == "1":
            return Stack(np.array(image.convert("L")), "YX")
        pixels = np.array(image)
        return Stack(pixels, "YXS" if pixels.ndim == 3 else "YX")


def _select(stack: Stack, place: Place, path: Path) -> tuple[Array, str | None]:
    """Cut one plane out of a stack."""
    remark = None
    if place.axis in ("C", "sample"):
        stack = _take(stack, "C" if place.axis == "C" else "S", place.number, path)
    if "T" in stack.axes and place.timepoint.isdecimal() and stack.pixels.shape[stack.axes.index("T")] > 1:
        stack = _take(stack, "T", int(place.timepoint), path)
    if "Z" in stack.axes:
        depth = stack.pixels.shape[stack.axes.index("Z")]
        if place.z_slice.isdecimal() and depth > 1:
            stack = _take(stack, "Z", int(place.z_slice), path)
        elif depth > 1:
            stack = Stack(stack.pixels.max(axis=stack.axes.index("Z")), stack.axes.replace("Z", ""))
            remark = f"maximum projection over {depth} slices"
    shape = stack.pixels.shape
    kept = [axis for axis, length in zip(stack.axes, shape, strict=True) if length > 1 or axis in "YX"]
    if sorted(kept) != ["X", "Y"]:
        found = " x ".join(f"{axis} {length}" for axis, length in zip(stack.axes, shape, strict=True))
        what = "is a colour image" if "S" in kept else "is no single plane"
        raise DataError(f"'{path}' {what} ({found}) where one grey plane was promised; set plane_axis and plane_index.")
    plane = stack.pixels.reshape([shape[stack.axes.index(axis)] for axis in kept])
    return (plane.T if kept == ["X", "Y"] else plane), remark


def _take(stack: Stack, axis: str, index: int, path: Path) -> Stack:
    if axis not in stack.axes:
        raise DataError(f"'{path}' has no axis {axis} (its axes are {stack.axes}); correct plane_axis.")
    where = stack.axes.index(axis)
    if index >= stack.pixels.shape[where]:
        raise DataError(f"'{path}': axis {axis} has {stack.pixels.shape[where]} entries; there is no {index}.")
    return Stack(np.take(stack.pixels, index, axis=where), stack.axes[:where] + stack.axes[where + 1 :])

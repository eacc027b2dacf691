"""One channel plane out of an image file, without guessing: pages, axes, colours and palettes are asked for or refused.

The stored numbers are the intensities. A palette is allowed only where it is a ramp of greys, and is then not applied.
What kind of file it is is read from its first bytes, not from its name.
"""

import io
from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, NoReturn, Protocol, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray

from morphem.errors import DataError
from morphem.readers.files import Files

Array: TypeAlias = NDArray[Any]

AXES = ("none", "page", "C", "sample", "tape")
MAX_PIXELS = 2**30
PROJECTION = "maximum projection"
_BYTES_PER_PIXEL = 16  # of the largest pixels that TIFF files hold (complex128)


class Place(NamedTuple):
    """Where a plane sits in its file.

    Attributes:
        axis: `none` (the file is the plane), `page`, `C` (channel axis of the stack), `sample` (r, g, b) or `tape`
            (planes side by side, from the left).
        number: Position along it, from 0.
        z_slice: Slice of a stack, a number as text; anything else means all of them.
        timepoint: Frame of a time series, a number as text.
        series: Image inside a file that holds several, from 0; None where it holds one.
        n_beside: Planes side by side, for `tape`.
    """

    axis: str = "none"
    number: int = 0
    z_slice: str = "all"
    timepoint: str = "unknown"
    series: int | None = None
    n_beside: int = 1


class Stack(NamedTuple):
    """Pixels with a letter for each axis.

    Attributes:
        pixels: Any shape and number type.
        axes: One letter per axis: Y, X, C (channels), S (colour samples), Z, T, or Q and I for pages of no known kind.
        remark: What reading decided, or None.
        taken: Axes of which the entry that was asked for is taken already.
    """

    pixels: Array
    axes: str
    remark: str | None = None
    taken: str = ""


class FileHeader(NamedTuple):
    """What an image file says of itself.

    Attributes:
        axes: One letter per axis, as in `Stack`.
        shape: Length of each axis.
        dtype: Pixel type.
        n_series: Images in the file.
        page_count: Pages in the file.
        channel_names: As the file calls its channels; empty where it does not.
        pixel_um: Width of a pixel in micrometres, or None.
    """

    axes: str
    shape: tuple[int, ...]
    dtype: str
    n_series: int
    page_count: int
    channel_names: tuple[str, ...]
    pixel_um: float | None


class OpenImage(Protocol):
    """An image file that is open for reading."""

    def stack(self, place: Place) -> Stack:
        """Read what holds a plane, or no more than that."""

    def header(self) -> FileHeader:
        """Tell what the file says of itself."""

    def close(self) -> None:
        """Close the file."""


class PlaneReader:
    """Reads planes, keeping the last file open, so that a file of several planes is opened once.

    Args:
        files: Of the study.
        max_pixels: Largest number of pixels of one plane (or of one decoded picture); larger ones are refused, as a
            small damaged or hostile file can claim to be huge.
    """

    def __init__(self, files: Files, max_pixels: int = MAX_PIXELS) -> None:
        self._files = files
        self._max_pixels = max_pixels
        self._open: tuple[str, OpenImage] | None = None

    def read(self, name: str, place: Place) -> tuple[Array, str | None]:
        """Read one plane; see `read_plane`."""
        where = self._files.describe(name)
        if place.axis not in AXES:
            raise DataError(f"'{where}': plane_axis is '{place.axis}'; allowed: {', '.join(AXES)}.")
        try:
            return _select(self._image(name).stack(place), place, where)
        except DataError:
            raise
        except Exception as fault:  # decoders of damaged files raise whatever they stumble over
            raise _unreadable(where, fault) from fault

    def header(self, name: str) -> FileHeader:
        """Read what a file says of itself; see `read_header`."""
        try:
            return self._image(name).header()
        except DataError:
            raise
        except Exception as fault:  # as in read
            raise _unreadable(self._files.describe(name), fault) from fault

    def _image(self, name: str) -> OpenImage:
        if self._open is None or self._open[0] != name:
            self.close()
            self._open = (name, _opened(self._files, name, self._max_pixels))
        return self._open[1]

    def close(self) -> None:
        """Close the file that is open, if any."""
        if self._open is not None:
            self._open[1].close()
            self._open = None

    def __enter__(self) -> Self:
        """Return the reader."""
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        """Close the file that is open."""
        self.close()


def read_plane(
    files: Files, name: str, place: Place | None = None, *, max_pixels: int = MAX_PIXELS
) -> tuple[Array, str | None]:
    """Read one plane.

    Args:
        files: Of the study.
        name: A TIFF, OME-TIFF, PNG, JPEG or BMP file among them.
        place: Where the plane sits in it; by default the file is the plane.
        max_pixels: Largest number of pixels.

    Returns:
        Pixels, (H, W), as stored; and a remark where slices were combined or equal colour samples taken as grey.

    Raises:
        DataError: If the file is missing, damaged or too large, or holds no such plane.
    """
    with PlaneReader(files, max_pixels) as reader:
        return reader.read(name, place or Place())


def read_header(files: Files, name: str) -> FileHeader:
    """Return what an image file says of itself, without decoding pixels.

    Args:
        files: Of the study.
        name: A file among them.

    Raises:
        DataError: If the file is missing or is no image.
    """
    with PlaneReader(files) as reader:
        return reader.header(name)


def _opened(files: Files, name: str, max_pixels: int) -> OpenImage:
    """Open an image file by what its first bytes say it is."""
    from morphem.readers.raster import RasterImage, raster_kind
    from morphem.readers.tiffs import TIFF_MAGIC, TiffImage

    where = files.describe(name)
    size = files.size(name)
    if not size:
        raise DataError(f"'{where}' cannot be read: it is empty (0 bytes); fetch it again.")
    if files.local(name) is None and size > max_pixels * _BYTES_PER_PIXEL:
        raise DataError(f"'{where}' unpacks to {size} bytes, more than allowed; raise --max-pixels if that is right.")
    # what is packed or far away is fetched once: decoders jump back and forth, which costs little in memory alone
    file = files.open(name) if files.local(name) is not None else io.BytesIO(files.read(name))
    start = file.read(16)
    file.seek(0)
    if start[:4] in TIFF_MAGIC:
        return TiffImage(file, where, max_pixels)
    if kind := raster_kind(start):
        return RasterImage(file, where, max_pixels, kind)
    file.close()
    raise DataError(
        f"'{where}' cannot be read: it is no TIFF, PNG, JPEG or BMP (it starts with {start[:8]!r}); fetch it again, or "
        "take its rows out of the table."
    )


def _unreadable(where: str, fault: Exception) -> DataError:
    reason = str(fault).splitlines()[0] if str(fault) else ""
    return DataError(f"'{where}' cannot be read: {type(fault).__name__}: {reason}.")


def check_pixels(count: int, max_pixels: int, where: str) -> None:
    """Refuse a picture of too many pixels before it is decoded.

    Args:
        count: Pixels that the file claims.
        max_pixels: Largest number allowed.
        where: How to call the file.

    Raises:
        DataError: If there are too many.
    """
    if count > max_pixels:
        raise DataError(
            f"'{where}' claims {count} pixels, more than the {max_pixels} allowed; pass a larger --max-pixels if right."
        )


def check_ramp(palette: Array, largest: int, where: str) -> None:
    """Refuse a palette that is not grey of rising level in the indices that are in use.

    Args:
        palette: Red, green and blue of each index, (3, levels).
        largest: Largest index in use.
        where: How to call the file.

    Raises:
        DataError: If it is a palette of colours.
    """
    used = palette[:, : largest + 1].astype(np.int64)
    if (used != used[0]).any() or (np.diff(used[0]) < 0).any():
        raise DataError(f"'{where}' is a colour image with a palette; split it into r, g and b planes first.")


def _select(stack: Stack, place: Place, where: str) -> tuple[Array, str | None]:
    """Cut one plane out of a stack."""
    remarks = [stack.remark] if stack.remark else []
    asked = {"C": "C", "sample": "S"}.get(place.axis, "")
    if asked and asked not in stack.taken:
        stack = take(stack, asked, place.number, where)
    if "T" in stack.axes and place.timepoint.isdecimal() and stack.pixels.shape[stack.axes.index("T")] > 1:
        stack = take(stack, "T", int(place.timepoint), where)
    if "Z" in stack.axes and (depth := stack.pixels.shape[stack.axes.index("Z")]) > 1:
        if place.z_slice.isdecimal():
            stack = take(stack, "Z", int(place.z_slice), where)
        else:
            stack = Stack(stack.pixels.max(axis=stack.axes.index("Z")), stack.axes.replace("Z", ""))
            remarks.append(f"{PROJECTION} over {depth} slices")
    if place.axis != "sample" and (grey := _equal_samples(stack)) is not None:
        stack = grey
        remarks.append("grey stored as equal colours, taken as one plane")
    plane = _plane_of(stack, where)
    if place.axis == "tape":
        plane = _cut_tape(plane, place, where)
    return plane, "; ".join(remarks) or None


def _equal_samples(stack: Stack) -> Stack | None:
    """Return the one grey plane of a colour stack whose colours are equal and whose opacity does not vary."""
    if "S" not in stack.axes:
        return None
    samples = np.moveaxis(stack.pixels, stack.axes.index("S"), 0)
    if len(samples) not in (2, 3, 4):
        return None
    colours, opacity = (samples[:3], samples[3:]) if len(samples) > 2 else (samples[:1], samples[1:])
    if any(not np.array_equal(colour, colours[0]) for colour in colours[1:]) or any(
        o.min() != o.max() for o in opacity
    ):
        return None
    return Stack(colours[0], stack.axes.replace("S", ""))


def _plane_of(stack: Stack, where: str) -> Array:
    shape = stack.pixels.shape
    kept = [axis for axis, length in zip(stack.axes, shape, strict=True) if length > 1 or axis in "YX"]
    if sorted(kept) != ["X", "Y"]:
        refuse_axes(list(zip(stack.axes, shape, strict=True)), where)
    plane = stack.pixels.reshape([shape[stack.axes.index(axis)] for axis in kept])
    return plane.T if kept == ["X", "Y"] else plane


def refuse_axes(axes: Sequence[tuple[str, int]], where: str) -> NoReturn:
    """Refuse a stack where one grey plane was promised.

    Args:
        axes: Letter and length of each axis.
        where: How to call the file.

    Raises:
        DataError: Always.
    """
    found = " x ".join(f"{axis} {length}" for axis, length in axes)
    what = "is a colour image" if any(axis == "S" and length > 1 for axis, length in axes) else "is no single plane"
    raise DataError(f"'{where}' {what} ({found}) where one grey plane was promised; set plane_axis and plane_index.")


def _cut_tape(plane: Array, place: Place, where: str) -> Array:
    """Cut one of several planes that lie side by side."""
    width = plane.shape[1]
    if place.n_beside < 1 or width % place.n_beside:
        raise DataError(f"'{where}' is {width} pixels wide, which cannot be {place.n_beside} planes side by side.")
    if place.number >= place.n_beside:
        raise DataError(f"'{where}' has {place.n_beside} planes side by side; there is no {place.number}.")
    step = width // place.n_beside
    return np.ascontiguousarray(plane[:, place.number * step : (place.number + 1) * step])


def take(stack: Stack, axis: str, index: int, where: str) -> Stack:
    """Return the entry of a stack at an index along an axis.

    Args:
        stack: The stack.
        axis: Letter of the axis.
        index: Position along it, from 0.
        where: How to call the file.

    Raises:
        DataError: If there is no such axis or entry.
    """
    if axis not in stack.axes:
        raise no_axis(stack.axes, axis, where)
    at = stack.axes.index(axis)
    if index >= stack.pixels.shape[at]:
        raise DataError(f"'{where}': axis {axis} has {stack.pixels.shape[at]} entries; there is no {index}.")
    return Stack(np.take(stack.pixels, index, axis=at), stack.axes[:at] + stack.axes[at + 1 :])


def no_axis(axes: str, axis: str, where: str) -> DataError:
    """Return the error for an axis that a file does not have.

    Args:
        axes: Letters of those that it has.
        axis: Letter of the one that was asked for.
        where: How to call the file.
    """
    return DataError(f"'{where}' has no axis {axis} (its axes are {axes}); correct plane_axis.")

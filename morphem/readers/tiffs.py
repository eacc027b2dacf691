"""TIFF files, read page by page, so that one plane of a large stack costs one plane."""

import math
from typing import Any, BinaryIO
from xml.etree import ElementTree

import numpy as np

from morphem.errors import DataError
from morphem.readers.planes import (
    PROJECTION,
    Array,
    FileHeader,
    Place,
    Stack,
    check_pixels,
    check_ramp,
    no_axis,
    refuse_axes,
    take,
)

TIFF_MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_WHITE_IS_ZERO = 0
_PALETTE = 3
_PER_UM = {"µm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "\\u00b5m": 1.0, "nm": 1e-3, "mm": 1e3, "cm": 1e4}


class TiffImage:
    """A TIFF that is open for reading.

    Args:
        file: Open at its start; closed by `close`.
        where: How to call it.
        max_pixels: Largest number of pixels of one page.
    """

    def __init__(self, file: BinaryIO, where: str, max_pixels: int) -> None:
        import tifffile

        self._file = file
        self._where = where
        self._max_pixels = max_pixels
        try:
            # files that an OME-TIFF names beside itself are not followed: their names could lead anywhere
            self._tiff = tifffile.TiffFile(file, _multifile=False)
        except BaseException:
            file.close()
            raise

    def close(self) -> None:
        """Close the file."""
        self._tiff.close()
        self._file.close()

    def stack(self, place: Place) -> Stack:
        """Read the pages that hold a plane.

        Args:
            place: Where the plane sits.

        Raises:
            DataError: If there is no such page, axis or series, or a page is too large.
        """
        pages = self._tiff.pages if place.series is None else self._series(place).pages
        if place.axis == "page":
            if place.number >= len(pages):
                raise DataError(
                    f"'{self._where}' has {len(pages)} pages; plane_index {place.number} is not among them."
                )
            page: Any = pages[place.number]
            return Stack(self._decode(page), page.keyframe.axes)
        return self._from_series(self._series(place), place)

    def _series(self, place: Place) -> Any:
        series = self._tiff.series
        if place.series is None and len(series) > 1:
            raise DataError(
                f"'{self._where}' holds {len(series)} series of images; say which in 'series', or plane_axis 'page'."
            )
        number = place.series or 0
        if number >= len(series):
            raise DataError(f"'{self._where}' has {len(series)} series of images; there is no {number}.")
        return series[number]

    def _from_series(self, series: Any, place: Place) -> Stack:
        """Read only the pages that the plane needs, where the pages of a series can be told apart."""
        key = series.keyframe
        n_inner = len(key.shape)
        outer, axes = series.shape[:-n_inner], series.axes
        if tuple(series.shape[-n_inner:]) != tuple(key.shape) or math.prod(outer) != len(series.pages):
            check_pixels(math.prod(series.shape), self._max_pixels, self._where)
            return Stack(self._intensities(series.asarray(), key), axes)
        n_outer = len(outer)
        chosen = Stack(np.arange(len(series.pages)).reshape(outer), axes[:n_outer])
        if place.axis == "sample" and "S" not in axes:
            raise no_axis(axes, "S", self._where)
        if place.axis == "C" and "C" in chosen.axes:
            chosen = take(chosen, "C", place.number, self._where)
        if place.timepoint.isdecimal() and _length(chosen, "T") > 1:
            chosen = take(chosen, "T", int(place.timepoint), self._where)
        if place.z_slice.isdecimal() and _length(chosen, "Z") > 1:
            chosen = take(chosen, "Z", int(place.z_slice), self._where)
        depth = _length(chosen, "Z")
        if chosen.pixels.size > depth:
            left = [(axis, n) for axis, n in zip(chosen.axes, chosen.pixels.shape, strict=True) if axis != "Z"]
            refuse_axes([*left, *zip(axes[n_outer:], key.shape, strict=True)], self._where)
        projected = self._projected(series, chosen.pixels.ravel().tolist(), axes[n_outer:])
        return projected._replace(taken="C" if "C" in axes[:n_outer] else "")

    def _projected(self, series: Any, numbers: list[int], axes: str) -> Stack:
        """Return the maximum over some pages, of which one at a time is in memory."""
        pixels = self._decode(series.pages[numbers[0]])
        for number in numbers[1:]:
            pixels = np.maximum(pixels, self._decode(series.pages[number]))
        remark = f"{PROJECTION} over {len(numbers)} slices" if len(numbers) > 1 else None
        return Stack(pixels, axes, remark)

    def _decode(self, page: Any) -> Array:
        if page is None:
            raise DataError(
                f"'{self._where}' does not hold all planes of its series; name the file that holds this one."
            )
        check_pixels(math.prod(page.shape), self._max_pixels, self._where)
        return self._intensities(page.asarray(), page)

    def _intensities(self, pixels: Array, page: Any) -> Array:
        """Refuse a palette of colours, and turn pixels round where 0 is white."""
        page = page.keyframe
        if page.photometric == _PALETTE:
            check_ramp(np.asarray(page.colormap), int(pixels.max(initial=0)), self._where)
        if page.photometric == _WHITE_IS_ZERO and pixels.dtype.kind == "u":
            largest = 2 ** int(page.bitspersample) - 1  # 4095 of 12-bit pixels, though they are kept in 16 bits
            return np.asarray(largest - pixels, dtype=pixels.dtype)
        return pixels

    def header(self) -> FileHeader:
        """Tell what the file says of itself; axes and shape are those of its first series."""
        series = self._tiff.series[0]
        names: tuple[str, ...] = ()
        pixel_um = None
        if self._tiff.is_ome:
            names, pixel_um = _ome_facts(self._tiff.ome_metadata or "")
        elif self._tiff.is_imagej:
            names, pixel_um = _imagej_facts(self._tiff, series)
        return FileHeader(
            series.axes,
            tuple(series.shape),
            str(series.dtype),
            len(self._tiff.series),
            len(self._tiff.pages),
            names,
            pixel_um,
        )


def _length(stack: Stack, axis: str) -> int:
    return int(stack.pixels.shape[stack.axes.index(axis)]) if axis in stack.axes else 1


def _ome_facts(xml: str) -> tuple[tuple[str, ...], float | None]:
    """Return channel names and pixel width (micrometres) of the first image of OME-XML."""
    try:
        pixels = ElementTree.fromstring(xml).find(".//{*}Image/{*}Pixels")
    except ElementTree.ParseError:  # a header without facts is better than none: pixels do not depend on it
        return (), None
    if pixels is None:
        return (), None
    names = tuple(channel.get("Name", "") for channel in pixels.findall("{*}Channel"))
    unit = _PER_UM.get(pixels.get("PhysicalSizeXUnit", "µm"))
    size = pixels.get("PhysicalSizeX")
    return (names if all(names) else ()), float(size) * unit if size and unit else None


def _imagej_facts(tiff: Any, series: Any) -> tuple[tuple[str, ...], float | None]:
    """Return channel names and pixel width (micrometres) of an ImageJ file."""
    facts = tiff.imagej_metadata or {}
    labels = facts.get("Labels") or []
    n_channels = series.shape[series.axes.index("C")] if "C" in series.axes else 1
    names = tuple(map(str, labels)) if len(labels) == n_channels else ()
    unit = _PER_UM.get(str(facts.get("unit", "")))
    resolution = tiff.pages.first.tags.get("XResolution")
    if unit is None or resolution is None or not resolution.value[0]:
        return names, None
    return names, unit * resolution.value[1] / resolution.value[0]

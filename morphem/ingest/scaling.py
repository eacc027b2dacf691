"""Where a plane is clipped, and how it becomes 8 bit: percentiles by counting, scaling by looking up.

Whole numbers are counted once; percentiles, levels and mean come from the counts, and a table of levels scales the
pixels. The result is bit for bit that of `numpy.percentile` (linear interpolation) and of the formula in float64.

Source: clip at the 0.1 and 99.9 percentiles: CHAMMI-75, https://arxiv.org/abs/2512.20833, appendix A.
"""

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from morphem.data.intensities import level_table, to_levels
from morphem.errors import ConfigError, DataError

BitDepth: TypeAlias = Literal[8, 16]

_MAX_VALUES = 2**16  # more different numbers than this are not counted
_ROWS_AT_ONCE = 64  # pixels are counted and looked up in pieces that fit the processor's cache
_RANGE = "range:"


@dataclass(frozen=True)
class Percentiles:
    """Clip each plane at two of its own percentiles.

    Attributes:
        low: Becomes 0; from 0 to 100, below `high`.
        high: Becomes 255; from 0 to 100.
    """

    low: float = 0.1
    high: float = 99.9

    def __post_init__(self) -> None:
        """Refuse what are no two rising percentiles."""
        if not 0 <= self.low < self.high <= 100:
            raise ConfigError(
                f"clip is {self.low:g},{self.high:g}; it must be two rising percentiles from 0 to 100, for example "
                "0.1,99.9 (intensities are written range:200,4095)."
            )

    def __str__(self) -> str:
        """As on the command line."""
        return f"{self.low:g},{self.high:g}"


@dataclass(frozen=True)
class Range:
    """Clip all planes at two fixed intensities, so that levels can be compared between images.

    Attributes:
        low: Intensity that becomes 0, below `high`.
        high: Intensity that becomes 255.
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        """Refuse what are no two rising numbers."""
        if not -np.inf < self.low < self.high < np.inf:
            raise ConfigError(
                f"clip is {_RANGE}{self.low:g},{self.high:g}; it must be two rising intensities, for example "
                f"{_RANGE}200,4095."
            )

    def __str__(self) -> str:
        """As on the command line."""
        return f"{_RANGE}{self.low:g},{self.high:g}"


Clip: TypeAlias = Percentiles | Range | None

DEFAULT_CLIP = Percentiles(0.1, 99.9)


def parse_clip(text: str) -> Clip:
    """Read what `--clip` says: `0.1,99.9` (percentiles), `range:200,4095` (intensities), or `none`.

    Raises:
        ConfigError: If it is none of these.
    """
    text = text.strip()
    if text.lower() == "none":
        return None
    kind = Range if text.startswith(_RANGE) else Percentiles
    try:
        low, high = (float(number) for number in text.removeprefix(_RANGE).split(","))
    except ValueError as fault:
        raise ConfigError(
            f"clip is '{text}'; allowed are two percentiles such as 0.1,99.9, two intensities such as "
            f"{_RANGE}200,4095, or none."
        ) from fault
    return kind(low, high)


class Scaled(NamedTuple):
    """A plane as it is stored, and what was counted on the way.

    Attributes:
        plane: Pixels, (H, W): uint8 levels, or the intensities themselves as uint16.
        low: Intensity that becomes level 0.
        high: Intensity that becomes level 255.
        flat: Whether all pixels have one level.
        levels: Number of pixels of each level, (256,), int64.
        mean: Mean intensity.
        at_maximum: Share of pixels that have the largest intensity of the plane, 0 to 1.
    """

    plane: NDArray[Any]
    low: float
    high: float
    flat: bool
    levels: NDArray[np.int64]
    mean: float
    at_maximum: float


class _Counts(NamedTuple):
    """How often each whole number occurs: `counts[i]` pixels have the intensity `first + i`."""

    first: int
    counts: NDArray[np.int64]


def to_uint8(plane: NDArray[Any], clip: Clip, name: str = "plane") -> Scaled:
    """Clip a plane and scale what is between the limits to 0..255, rounding to the nearest.

    Args:
        plane: Pixels, (H, W), any number type.
        clip: Where to clip; None keeps uint8 as it is.
        name: What to call the plane in an error.

    Raises:
        DataError: If it is no grey image, holds NaN or infinity, or `clip` is None and it is not uint8.
    """
    return scale(plane, clip, 8, name)


def scale(plane: NDArray[Any], clip: Clip, bit_depth: BitDepth = 8, name: str = "plane") -> Scaled:
    """Bring a plane into the form in which it is stored.

    Args:
        plane: Pixels, (H, W), any number type.
        clip: Where to clip. None keeps levels as they are: uint8 at 8 bit; at 16 bit the limits are those of the type.
        bit_depth: 8: the levels are stored. 16: the intensities are stored exactly, with the limits beside them.
        name: What to call the plane in an error.

    Raises:
        DataError: If it is no grey image, holds NaN or infinity, or cannot be stored without loss where that was asked
            for.
    """
    _check(plane, name)
    if clip is None and bit_depth == 8 and plane.dtype != np.uint8:
        raise DataError(
            f"{name} is {plane.dtype}; without clipping only uint8 can be kept: pass --clip 0,100 to scale it, or "
            "--bit-depth 16 to keep its intensities."
        )
    counted = _count(plane)
    low, high = _limits(plane, counted, clip)
    if counted is None:
        values = plane.astype(np.float64)
        levels = to_levels(values, low, high)
        counts = np.bincount(levels.ravel(), minlength=256)
        mean, at_maximum = float(values.mean()), float((values == values.max()).mean())
    else:
        table = level_table(low, high, counted.first, len(counted.counts))
        counts = np.bincount(table, counted.counts, 256).astype(np.int64)
        mean, at_maximum = _mean(counted), float(counted.counts[-1] / plane.size)
        levels = _look_up(plane, table, counted.first) if bit_depth == 8 else plane
    stored = levels if bit_depth == 8 else _to_uint16(plane, name)
    return Scaled(stored, low, high, bool(counts.max() == plane.size), counts, mean, at_maximum)


def _check(plane: NDArray[Any], name: str) -> None:
    if plane.ndim != 2 or not plane.size or plane.dtype.kind not in "buif":
        raise DataError(f"{name} is {plane.dtype} of shape {plane.shape}; a plane must be numbers of shape (H, W).")
    if plane.dtype.kind == "f" and not (finite := np.isfinite(plane)).all():
        raise DataError(f"{name} has {plane.size - int(finite.sum())} pixels that are NaN or infinite; replace them.")


def _limits(plane: NDArray[Any], counted: _Counts | None, clip: Clip) -> tuple[float, float]:
    if clip is None:
        return (0.0, 255.0) if plane.dtype == np.uint8 else (0.0, 65535.0)
    if isinstance(clip, Range):
        return float(clip.low), float(clip.high)
    if counted is None:
        low, high = np.percentile(plane.astype(np.float64), (clip.low, clip.high))
        return float(low), float(high)
    return _percentile(counted, clip.low), _percentile(counted, clip.high)


def _count(plane: NDArray[Any]) -> _Counts | None:
    """Count the intensities of a plane from its smallest on; None where they are too many or no integers."""
    if plane.dtype.kind == "f":
        return None
    smallest, largest = int(plane.min()), int(plane.max())
    if largest - smallest >= _MAX_VALUES or max(-smallest, largest) >= 2**52:
        return None
    counts = np.zeros(largest - smallest + 1, np.int64)
    for top in range(0, len(plane), _ROWS_AT_ONCE):
        part = np.bincount(_offset(plane[top : top + _ROWS_AT_ONCE], smallest).ravel())
        counts[: len(part)] += part
    return _Counts(smallest, counts)


def _offset(pixels: NDArray[Any], first: int) -> NDArray[np.intp]:
    """Pixels counted from `first`."""
    places = pixels.astype(np.intp)
    places -= first
    return places


def _look_up(plane: NDArray[Any], table: NDArray[np.uint8], first: int) -> NDArray[np.uint8]:
    """Replace each pixel by its level."""
    if plane.dtype == np.uint8:
        whole = np.zeros(256, np.uint8)
        whole[first : first + len(table)] = table
        return np.frombuffer(plane.tobytes().translate(whole.tobytes()), np.uint8).reshape(plane.shape)
    levels = np.empty(plane.shape, np.uint8)
    for top in range(0, len(plane), _ROWS_AT_ONCE):
        rows = slice(top, top + _ROWS_AT_ONCE)
        table.take(_offset(plane[rows], first), out=levels[rows], mode="clip")  # nothing is outside; `clip` is fastest
    return levels


def _percentile(counted: _Counts, percentile: float) -> float:
    """The percentile of counted numbers by linear interpolation, in the steps (and roundings) of numpy."""
    below = np.cumsum(counted.counts)
    position = float((below[-1] - 1) * np.true_divide(percentile, 100))
    nearest = int(np.floor(position))
    share = position - nearest
    left, right = (
        float(counted.first + int(np.searchsorted(below, min(place, int(below[-1]) - 1), side="right")))
        for place in (nearest, nearest + 1)
    )
    gap = right - left
    return right - gap * (1 - share) if share >= 0.5 else left + gap * share


def _mean(counted: _Counts) -> float:
    total = int(
        counted.counts @ np.arange(len(counted.counts))
    )  # whole numbers, so the order of adding does not matter
    return counted.first + total / int(counted.counts.sum())


def _to_uint16(plane: NDArray[Any], name: str) -> NDArray[np.uint16]:
    """The same numbers as uint16, (H, W).

    Raises:
        DataError: If a number would change.
    """
    if plane.dtype.kind not in "bu" or plane.dtype.itemsize > 2:
        stored = plane.clip(0, 65535).astype(np.uint16)
        if not np.array_equal(stored, plane):
            raise DataError(
                f"{name} is {plane.dtype} from {plane.min()} to {plane.max()}, which 16 bit cannot keep exactly; only "
                "whole numbers from 0 to 65535 can: use --bit-depth 8."
            )
        return stored
    return np.ascontiguousarray(plane, np.uint16)

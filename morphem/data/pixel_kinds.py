"""What the pixels that an encoder sees stand for, made from what the shards hold.

Shards hold 8-bit levels, or 16-bit intensities with the two limits between which they become levels. An encoder was
made for one kind of numbers, and the most frequent silent mistake of this field is to hand it another.
"""

from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphem.data.intensities import level_table
from morphem.errors import DataError

PixelKind = Literal["levels", "counts", "stretched", "unit"]
PIXEL_KINDS: tuple[PixelKind, ...] = ("levels", "counts", "stretched", "unit")
FULL_SCALE = 65535
_LEVELS_TO_FULL = FULL_SCALE // 255
_8_BIT, _12_BIT = 255, 4095


def to_kind(stored: NDArray[Any], kind: PixelKind, low: float, high: float, name: str) -> NDArray[Any]:
    """Return pixels as an encoder sees them.

    Args:
        stored: What a plane of the shards holds: uint8 levels or uint16 intensities, of any shape.
        kind: `levels`: 0 to 255 between the clip limits of the plane, uint8. `counts`: the intensities of the original
            file, uint16; only 16-bit shards have them. `stretched`: 0 to 65535 between the clip limits, uint16.
            `unit`: 0 to 1 between the clip limits, float32.
        low: Intensity that is level 0.
        high: Intensity that is level 255.
        name: What to call the plane in an error.

    Raises:
        DataError: If intensities are wanted and the shards hold levels.
    """
    if stored.dtype == np.uint8:
        if kind == "counts":
            raise DataError(f"{name}: {no_counts()}")
        if kind == "unit":
            return stored.astype(np.float32) / np.float32(_8_BIT)
        return stored if kind == "levels" else stored.astype(np.uint16) * np.uint16(_LEVELS_TO_FULL)
    if kind == "counts":
        return stored
    if not (np.isfinite(low) and np.isfinite(high)):
        raise DataError(f"{name} has 16 bit but no clip limits, which say what is dark and bright; ingest it again.")
    make = {"levels": _levels, "stretched": _stretch, "unit": _unit}[kind]
    return np.asarray(make(low, high)).take(stored)


def no_counts() -> str:
    """Return the sentence for an encoder of 16-bit intensities over shards of levels."""
    return (
        "the shards hold 8-bit levels, and the encoder was made for 16-bit intensities; ingest the images with "
        "--bit-depth 16, or stretch the levels to the full range with --pixels stretched."
    )


def check_range(kind: PixelKind, highs: NDArray[np.float64], bit_depth: int) -> str | None:
    """Refuse intensities that are 8-bit numbers in a 16-bit file, and return a remark where they look like 12 bit.

    Args:
        kind: As in `to_kind`.
        highs: The upper clip limit of every plane; NaN where there is none.
        bit_depth: Of the shards' planes.

    Raises:
        DataError: If intensities are wanted and there are none, or none is above 255.
    """
    if kind != "counts":
        return None
    if bit_depth == 8:
        raise DataError(f"{no_counts()[0].upper()}{no_counts()[1:]}")
    most = float(np.nanmax(highs)) if np.isfinite(highs).any() else float(FULL_SCALE)
    if most <= _8_BIT:
        raise DataError(
            f"the brightest pixels of these images are {most:g}, so they are 8-bit numbers, which an encoder of 16-bit "
            "intensities (0 to 65535) would see as black; stretch them with --pixels stretched."
        )
    if most <= _12_BIT:
        return (
            f"the brightest pixels are {most:g} of 65535, as a 12-bit camera gives them; the encoder may have been "
            "made for images that use the full range (--pixels stretched)"
        )
    return None


@lru_cache(maxsize=64)
def _levels(low: float, high: float) -> NDArray[np.uint8]:
    return level_table(low, high, 0, FULL_SCALE + 1)


@lru_cache(maxsize=64)
def _stretch(low: float, high: float) -> NDArray[np.uint16]:
    return np.rint(_share(low, high) * FULL_SCALE).astype(np.uint16)


@lru_cache(maxsize=64)
def _unit(low: float, high: float) -> NDArray[np.float32]:
    return _share(low, high).astype(np.float32)


def _share(low: float, high: float) -> NDArray[np.float64]:
    """How far each intensity is between two limits, 0 to 1, (65536,)."""
    if not high > low:
        return np.zeros(FULL_SCALE + 1)
    values = np.clip(np.arange(FULL_SCALE + 1, dtype=np.float64), low, high)
    return np.asarray((values - low) / (high - low))

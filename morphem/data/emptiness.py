"""Which tiles of an image show nothing: a threshold on one channel, a least share of pixels above it.

Source: Kim et al. (Bayer-Group/CellPaintSSL at a2625b0): a pixel counts if the DNA channel is above 0.7 times its Otsu
threshold, which is found on every 10th row and column of the image; a tile is kept if at least 1 % of its pixels count;
where no tile of an image is kept, the middle one is. uniDINO (Bayer-Group/uniDINO at 03c5ee3) runs the same function
with threshold 0, so that it leaves out blank tiles only. Otsu 1979, doi 10.1109/TSMC.1979.4310076.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphem.errors import ConfigError

Threshold = Literal["zero", "otsu"]


@dataclass(frozen=True)
class EmptyRule:
    """Which tiles are left out.

    Attributes:
        channel: Channel type to look at; None takes the nucleus where an image has it, and else the first of its
            channels in alphabetical order, so that the order of planes changes nothing.
        threshold: `zero`: a pixel counts if it is above 0; `otsu`: if it is above `factor` times Otsu's threshold of
            the whole plane.
        factor: Above 0; with `otsu` only.
        least_share: A tile is kept if at least this share of its pixels counts; above 0, at most 1.
        stride: Otsu's threshold is found on every `stride`-th row and column; at least 1, with `otsu` only.
        keep_middle: Keep the middle tile of an image that would lose all of them (number n // 2 of n); without it the
            image has no row.

    Raises:
        ConfigError: If a number is out of range or has no effect.
    """

    channel: str | None = None
    threshold: Threshold = "otsu"
    factor: float = 0.7
    least_share: float = 0.01
    stride: int = 10
    keep_middle: bool = True

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.threshold not in ("zero", "otsu"):
            raise ConfigError(f"skip_empty.threshold='{self.threshold}' must be zero or otsu.")
        if not 0 < self.least_share <= 1:
            raise ConfigError(f"skip_empty.least_share={self.least_share} must be above 0 and at most 1.")
        if self.stride < 1 or not self.factor > 0:
            raise ConfigError(f"skip_empty.stride={self.stride} must be at least 1, and factor={self.factor} above 0.")

    def nth_channel(self, panel: list[str]) -> int | None:
        """Return which plane of an image is looked at; None where it lacks the channel that the rule names.

        Args:
            panel: Channel types of the image's planes.
        """
        if self.channel is not None:
            return panel.index(self.channel) if self.channel in panel else None
        return panel.index("nucleus" if "nucleus" in panel else min(panel))

    def cut(self, plane: NDArray[Any]) -> float:
        """Return the value above which a pixel of a plane counts.

        Args:
            plane: All pixels of the channel, (H, W).
        """
        return 0.0 if self.threshold == "zero" else self.factor * otsu(plane[:: self.stride, :: self.stride])

    def kept(self, plane: NDArray[Any], boxes: list[tuple[int, int, int, int]]) -> NDArray[np.bool_]:
        """Return which tiles of an image are kept, (K,).

        Args:
            plane: All pixels of the channel, (H, W).
            boxes: y, x, height and width of the K tiles.
        """
        counts = plane > self.cut(plane)
        shares = [float(counts[y : y + h, x : x + w].mean()) for y, x, h, w in boxes]
        result = np.asarray(shares, np.float64) >= self.least_share
        if self.keep_middle and len(boxes) and not result.any():
            result[len(boxes) // 2] = True
        return result


def otsu(pixels: NDArray[Any]) -> float:
    """Return Otsu's threshold as scikit-image finds it: each whole number is a bin of its own, floats have 256 bins.

    Args:
        pixels: Numbers of any shape, at least one. Where all are equal, that number is the threshold.
    """
    from skimage.filters import threshold_otsu

    return float(threshold_otsu(pixels))  # type: ignore[no-untyped-call]

"""What an intensity becomes among the 256 grey levels that encoders see: the one formula, for writing and reading."""

import numpy as np
from numpy.typing import NDArray


def to_levels(values: NDArray[np.float64], low: float, high: float) -> NDArray[np.uint8]:
    """Scale intensities between two limits to 0..255, rounding to the nearest.

    Args:
        values: Intensities of any shape; those outside the limits become 0 or 255.
        low: Intensity that becomes 0.
        high: Intensity that becomes 255. Where it is not above `low`, everything becomes 0.

    Returns:
        Levels of the same shape, uint8.
    """
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.clip(values, low, high) - low) * (255.0 / (high - low))
    return np.rint(scaled).astype(np.uint8)


def level_table(low: float, high: float, first: int, count: int) -> NDArray[np.uint8]:
    """Return the levels of the whole numbers `first` to `first + count - 1`, (count,).

    Looking a pixel up gives bit for bit what `to_levels` gives.

    Args:
        low: Intensity that becomes 0.
        high: Intensity that becomes 255.
        first: The first number, below 2**52 in size.
        count: At least 1.
    """
    return to_levels(np.arange(first, first + count, dtype=np.float64), low, high)

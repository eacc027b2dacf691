"""Plain reference: fixed positions of patches, one number after another."""

import math

import numpy as np
from numpy.typing import NDArray


def positions(height: int, width: int, dim: int) -> NDArray[np.float64]:
    """Return (height * width, dim): sines and cosines of the row, then of the column."""
    quarter = dim // 4
    table = np.zeros((height * width, dim))
    for row in range(height):
        for column in range(width):
            for k in range(quarter):
                rate = 1 / 10000 ** (k / quarter)
                values = (math.sin(row * rate), math.cos(row * rate), math.sin(column * rate), math.cos(column * rate))
                for part, value in enumerate(values):
                    table[row * width + column, part * quarter + k] = value
    return table

"""Changes of intensity and focus of one plane, written plainly, in float64."""

import math

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]


def color(plane: Plane, shift: float, gamma: float) -> Plane:
    """Shift, clip to [0, 1], raise to a power."""
    return np.clip(plane + shift, 0.0, 1.0) ** gamma


def blurred(plane: Plane, sigma: float, kernel: int) -> Plane:
    """Gaussian blur, pixel by pixel, with the plane mirrored at its edges (the edge itself not repeated)."""
    reach = kernel // 2
    line = [math.exp(-0.5 * (k / sigma) ** 2) for k in range(-reach, reach + 1)]
    line = [value / sum(line) for value in line]
    mirrored = np.pad(plane, reach, mode="reflect")
    out = np.zeros_like(plane)
    for y in range(plane.shape[0]):
        for x in range(plane.shape[1]):
            for i in range(kernel):
                for j in range(kernel):
                    out[y, x] += line[i] * line[j] * mirrored[y + i, x + j]
    return out


def self_normalized(plane: Plane, eps: float, divide_by: float) -> Plane:
    """(x - mean) / sqrt(population variance + eps), of pixels divided by `divide_by`."""
    x = plane.astype(np.float64) / divide_by
    mean = sum(x.flat) / x.size
    variance = sum((value - mean) ** 2 for value in x.flat) / x.size
    return (x - mean) / math.sqrt(variance + eps)

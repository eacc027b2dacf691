"""Crop, resize, flip and turn of one plane, written plainly from the definition, in float64."""

import math

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]


def hat(x: float) -> float:
    return max(0.0, 1.0 - abs(x))


def cubic(x: float, a: float) -> float:
    x = abs(x)
    if x < 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    if x < 2:
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
    return 0.0


def weights(length: int, out: int, interpolation: str, antialias: bool) -> Plane:
    """The matrix (out, length) that resizes an axis."""
    scale = length / out
    stretch = max(scale, 1.0) if antialias else 1.0
    half = {"bicubic": 2, "bilinear": 1}[interpolation]
    matrix = np.zeros((out, length))
    for i in range(out):
        center = (i + 0.5) * scale
        for j in range(math.floor(center - half * stretch) - 2, math.ceil(center + half * stretch) + 2):
            distance = (j + 0.5 - center) / stretch
            weight = hat(distance) if interpolation == "bilinear" else cubic(distance, -0.5 if antialias else -0.75)
            if antialias and not 0 <= j < length:
                continue
            matrix[i, min(max(j, 0), length - 1)] += weight
        if antialias:
            matrix[i] /= matrix[i].sum()
    return matrix


def resampled(
    plane: Plane,
    box: tuple[int, int, int, int],
    size: tuple[int, int],
    *,
    flip_x: bool = False,
    flip_y: bool = False,
    quarter_turns: int = 0,
    interpolation: str = "bicubic",
    antialias: bool = True,
) -> Plane:
    """Crop a box (y, x, height, width), resize it, mirror it, turn it."""
    y, x, h, w = box
    crop = plane[y : y + h, x : x + w].astype(np.float64)
    out = weights(h, size[0], interpolation, antialias) @ crop @ weights(w, size[1], interpolation, antialias).T
    if flip_x:
        out = out[:, ::-1]
    if flip_y:
        out = out[::-1]
    return np.rot90(out, quarter_turns)

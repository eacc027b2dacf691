"""Input normalisation written plainly: loops over pixels in Python's own floats."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.generic]
Doubles = NDArray[np.float64]


def _pixels(plane: Plane) -> list[float]:
    return [float(value) for value in plane.flatten()]


def _each(plane: Plane, change: "dict[str, float]") -> Doubles:
    values = [(value - change["minus"]) / change["by"] for value in _pixels(plane)]
    return np.array(values).reshape(plane.shape)


def divided(plane: Plane, by: float) -> Doubles:
    return _each(plane, {"minus": 0.0, "by": by})


def z_score(plane: Plane, eps: float, eps_on: str) -> Doubles:
    values = _pixels(plane)
    mean = math.fsum(values) / len(values)
    variance = math.fsum((value - mean) ** 2 for value in values) / len(values)
    by = math.sqrt(variance + eps) if eps_on == "variance" else math.sqrt(variance) + eps
    return _each(plane, {"minus": mean, "by": by})


def joint_min_max(planes: Sequence[Plane], eps: float) -> list[Doubles]:
    everything = [value for plane in planes for value in _pixels(plane)]
    low, high = min(everything), max(everything)
    return [_each(plane, {"minus": low, "by": high - low + eps}) for plane in planes]


def joint_maximum(planes: Sequence[Plane]) -> list[Doubles]:
    high = max(value for plane in planes for value in _pixels(plane))
    return [_each(plane, {"minus": 0.0, "by": high}) for plane in planes]


def percentile(plane: Plane, percent: float) -> float:
    """Between the two nearest of the sorted pixels, in proportion."""
    values = sorted(_pixels(plane))
    place = percent / 100 * (len(values) - 1)
    below = math.floor(place)
    above = min(below + 1, len(values) - 1)
    return values[below] + (place - below) * (values[above] - values[below])


def percentiles(plane: Plane, low: float, high: float, eps: float) -> Doubles:
    if len(set(_pixels(plane))) == 1:
        return divided(plane, 1.0)
    bottom, top = percentile(plane, low), percentile(plane, high)
    return _each(plane, {"minus": bottom, "by": (top - bottom) or eps})

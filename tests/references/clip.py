"""Percentile clipping written plainly, from the definition: sort, interpolate between neighbours, scale, round."""

from collections.abc import Sequence


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(float(value) for value in values)
    position = (len(ordered) - 1) * percent / 100
    below = int(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (position - below) * (ordered[above] - ordered[below])


def scaled(values: Sequence[float], low_percent: float, high_percent: float) -> list[float]:
    """Values in 0..255 before rounding."""
    low, high = percentile(values, low_percent), percentile(values, high_percent)
    return [255 * (min(max(float(value), low), high) - low) / (high - low) for value in values]

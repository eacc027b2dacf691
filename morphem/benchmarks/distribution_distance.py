"""How far two sets of numbers are apart as distributions, quickly where one set is large and used often."""

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def wasserstein(first: Doubles, second: Doubles) -> float:
    """Return the 1-Wasserstein distance of two samples, the area between their distribution functions.

    Exact. Between two neighbours of the smaller set its distribution function is constant, so the area follows from
    running sums of the larger one: m log n steps instead of sorting all n + m numbers again.

    Args:
        first: Sorted, (n,), n at least 1.
        second: Sorted, (m,), m at least 1; the smaller set where one is much smaller.
    """
    n, m = len(first), len(second)
    sums = np.concatenate([[0.0], np.cumsum(first)])

    def below(x: Doubles) -> Doubles:
        """Area under the distribution function of `first` from minus infinity to x."""
        count = np.searchsorted(first, x, side="right")
        return np.asarray((count * x - sums[count]) / n)

    left, right = second[:-1], second[1:]
    step = np.arange(1, m)
    level = step / m
    # where the distribution function of `first` reaches the level; whole numbers, so that no rounding moves the place
    cross = np.clip(first[-(-step * n // m) - 1], left, right)
    lower = level * (cross - left) - (below(cross) - below(left))
    upper = (below(right) - below(cross)) - level * (right - cross)
    lowest, highest = second[:1], second[-1:]
    above = below(highest) - highest + sums[-1] / n  # area over the function, from the largest of `second` on
    return float(np.abs(lower).sum() + np.abs(upper).sum() + below(lowest)[0] + max(above[0], 0.0))

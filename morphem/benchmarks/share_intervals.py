"""The interval of a share of hits when whole units (plates, compounds) are drawn."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.bootstrap import interval
from morphem.benchmarks.score import Interval


def interval_of_share(hits: NDArray[Any], units: NDArray[Any], unit: str, seed: int) -> Interval:
    """Return the interval of the mean of hits over rows; units with more rows weigh more, as they do in the score.

    Args:
        hits: 0 to 1 for every row, (R,).
        units: Of the rows, (R,).
        unit: What a unit is called.
        seed: Of the draws.
    """
    names, number = np.unique(np.asarray(units).astype(str), return_inverse=True)
    sums = np.bincount(number.reshape(-1), weights=np.asarray(hits, np.float64))
    counts = np.bincount(number.reshape(-1))
    return interval(lambda drawn: float(sums[drawn].sum() / counts[drawn].sum()), len(names), unit, seed=seed)

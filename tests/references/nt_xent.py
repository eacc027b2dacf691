"""NT-Xent written plainly from the pseudocode of SimCLR (algorithm 1): loops, float64, no cleverness."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def nt_xent(first: Floats, second: Floats, temperature: float) -> float:
    """Mean over all 2M rows of -log(exp(s(i, j) / t) / sum over k != i of exp(s(i, k) / t)); views (M, D) each."""
    rows = [row / math.sqrt(float(row @ row)) for view in (first, second) for row in view]
    count = len(first)
    total = 0.0
    for i, row in enumerate(rows):
        partner = i + count if i < count else i - count
        others = [math.exp(float(row @ rows[k]) / temperature) for k in range(2 * count) if k != i]
        total -= math.log(math.exp(float(row @ rows[partner]) / temperature) / math.fsum(others))
    return total / (2 * count)

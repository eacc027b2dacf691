"""A screen for nearest neighbours: few coordinates that bound all scalar products from above.

Rows are turned into an orthonormal basis of the directions of largest variance, and what is left of each row is
replaced by its length: x.y <= p.q + |x - p| |y - q| for projections p and q. The bound holds whatever the basis; a good
basis only makes it tight. White noise has no such basis, which a sample tells beforehand.

Source: the inequality is Cauchy's and Schwarz's.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.bootstrap import generator

Floats32 = NDArray[np.float32]
Screen = Callable[[Floats32], Floats32]
_DIRECTIONS = 96
_SAMPLE = 2048
_PAYS_BELOW = 0.005  # share of pairs that the bound leaves on a sample


def fit_screen(rows: Floats32, asked: Floats32, half: NDArray[np.float32]) -> Screen | None:
    """Return the map to few coordinates, or None where it would leave too many pairs.

    Args:
        rows: Reference, centred or of unit length, (R, F).
        asked: Queries, (Q, F).
        half: What is taken off the product of every row to give its score, (R,).
    """
    if rows.shape[1] < 4 * _DIRECTIONS:
        return None
    sample = rows[:: max(1, len(rows) // _SAMPLE)][:_SAMPLE]
    start = generator(0, "screen").normal(size=(rows.shape[1], _DIRECTIONS)).astype(np.float32)
    for _ in range(2):  # subspace iteration
        start, _ = np.linalg.qr(sample.T @ (sample @ start))
    basis = np.ascontiguousarray(start, np.float32)

    def screen(values: Floats32) -> Floats32:
        kept = values @ basis
        squares = np.einsum("rf,rf->r", values, values) - np.einsum("rf,rf->r", kept, kept)
        return np.concatenate([kept, np.sqrt(np.maximum(squares, 0))[:, None]], axis=1).astype(np.float32)

    step = max(1, len(rows) // _SAMPLE)
    taken = half[::step][:_SAMPLE]
    few = asked[:: max(1, len(asked) // 256)][:256]
    full = few @ sample.T - taken
    known = np.partition(full, -3, axis=1)[:, -3]  # the query itself may be among the sample, and so may its copy
    bound = screen(few) @ screen(sample).T - taken
    left = float((bound >= known[:, None]).mean())
    return screen if left < _PAYS_BELOW + 3 / len(sample) else None

"""Bootstrap intervals of classification scores: groups of rows are drawn, not rows."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.bootstrap import interval, rows_of_units
from morphem.benchmarks.metrics import confusion
from morphem.benchmarks.neighbours import Ints
from morphem.benchmarks.score import Interval

_Counts = NDArray[np.int64]


def balanced_accuracy_of(counts: _Counts, totals: NDArray[np.int64]) -> float:
    """Return balanced accuracy from a confusion matrix (K, K) and the rows of every true class (K,)."""
    known = totals > 0
    return float((np.diag(counts)[known] / totals[known]).mean()) if known.any() else float("nan")


def macro_f1_of(counts: _Counts, totals: NDArray[np.int64]) -> float:
    """Return macro F1 over the classes that occur in the truth."""
    known = totals > 0
    score = 2 * np.diag(counts) / np.maximum(totals + counts.sum(0), 1)
    return float(score[known].mean()) if known.any() else float("nan")


def accuracy_of(counts: _Counts, totals: NDArray[np.int64]) -> float:
    """Return accuracy."""
    return float(np.trace(counts) / totals.sum()) if totals.sum() else float("nan")


def interval_of_classes(
    truth: Ints,
    predicted: Ints,
    groups: Sequence[Any] | NDArray[Any],
    unit: str,
    *,
    seed: int,
    metric: Callable[[_Counts, NDArray[np.int64]], float] = balanced_accuracy_of,
    draws: int = 200,
) -> Interval:
    """Return the interval of a classification score when groups are drawn with replacement.

    A draw without rows of some class scores the classes that it has.

    Args:
        truth: (R,), from 0.
        predicted: (R,), from 0, or -1.
        groups: Of the rows.
        unit: What a group is called.
        seed: Of the draws.
        metric: From a confusion matrix and the rows of every true class to the score.
        draws: Number of draws.
    """
    n_classes = int(max(truth.max(), predicted.max())) + 1
    units = rows_of_units(groups)
    matrices = np.stack([confusion(truth[rows], predicted[rows], n_classes) for rows in units])
    totals = np.stack([np.bincount(truth[rows], minlength=n_classes) for rows in units])

    def statistic(drawn: Ints) -> float:
        times = np.bincount(drawn, minlength=len(units))
        return metric(np.tensordot(times, matrices, 1), times @ totals)

    return interval(statistic, len(units), unit, seed=seed, draws=draws)

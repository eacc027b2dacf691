"""Scores of predictions in plain numpy, with the conventions of the papers; integers of classes in, numbers out."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.neighbours import Ints
from morphem.errors import DataError

Floats = NDArray[np.floating[Any]]


def class_numbers(labels: Sequence[Any] | NDArray[Any], where: str) -> tuple[Ints, list[str]]:
    """Number labels by their sorted text.

    Args:
        labels: Of R rows.
        where: For the message.

    Returns:
        Numbers (R,) and names.

    Raises:
        DataError: If there is one class only.
    """
    names, numbers = np.unique(np.asarray([str(label) for label in labels]), return_inverse=True)
    if len(names) < 2:
        found = f"all {len(numbers)} rows are '{names[0]}'" if len(names) else "there is no row"
        raise DataError(f"{where} needs two classes, but {found}; choose another label or more data.")
    return numbers.reshape(-1).astype(np.int64), [str(name) for name in names]


def confusion(truth: Ints, predicted: Ints, n_classes: int) -> NDArray[np.int64]:
    """Return counts, true class by predicted class, (K, K); a prediction of -1 (none) counts in no column."""
    result = np.zeros((n_classes, n_classes + 1), np.int64)
    np.add.at(result, (truth, np.where(predicted < 0, n_classes, predicted)), 1)
    return result[:, :n_classes]


def accuracy(truth: Ints, predicted: Ints) -> float:
    """Share of rows that are predicted right."""
    return float((truth == predicted).mean())


def balanced_accuracy(truth: Ints, predicted: Ints) -> float:
    """Mean over the classes that occur in the truth of the share predicted right; chance is 1 / classes."""
    kinds, inverse, counts = np.unique(truth, return_inverse=True, return_counts=True)
    hits = np.bincount(inverse.reshape(-1), weights=(truth == predicted), minlength=len(kinds))
    return float((hits / counts).mean())


def f1_of_classes(truth: Ints, predicted: Ints) -> dict[int, float]:
    """F1 of every class that occurs in the truth.

    A prediction of a class that does not occur is a miss of the true class and adds no class.
    """
    scores = {}
    for kind in np.unique(truth):
        hits = int(((truth == kind) & (predicted == kind)).sum())
        scores[int(kind)] = 2 * hits / (int((truth == kind).sum()) + int((predicted == kind).sum()))
    return scores


def macro_f1(truth: Ints, predicted: Ints) -> float:
    """Mean F1 over the classes that occur in the truth."""
    return float(np.mean(list(f1_of_classes(truth, predicted).values())))


def auroc(truth: NDArray[np.bool_], values: Floats) -> float:
    """Area under the ROC curve: chance that a positive scores above a negative; ties count half.

    Raises:
        DataError: If there are no positives or no negatives.
    """
    truth = np.asarray(truth, bool)
    positives, negatives = int(truth.sum()), int((~truth).sum())
    if not positives or not negatives:
        raise DataError(f"AUROC needs positives and negatives, but there are {positives} and {negatives}.")
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse.reshape(-1)]  # mid-ranks, from 1
    return float((ranks[truth].sum() - positives * (positives + 1) / 2) / (positives * negatives))


def average_precision(truth: NDArray[np.bool_], values: Floats) -> float:
    """Step-wise average precision, ties taken together, as scikit-learn defines it.

    Raises:
        DataError: If there are no positives.
    """
    truth = np.asarray(truth, bool)
    if not truth.any():
        raise DataError("average precision needs at least one positive.")
    order = np.argsort(-np.asarray(values), kind="stable")
    sorted_values, hits = np.asarray(values)[order], truth[order]
    last = np.flatnonzero(np.append(np.diff(sorted_values) != 0, True))  # last row of every group of ties
    found = np.cumsum(hits)[last]
    precision = found / (last + 1)
    return float((np.diff(found, prepend=0) * precision).sum() / found[-1])

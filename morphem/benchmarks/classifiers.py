"""Linear classifiers on features: what is fitted is fitted on the rows to learn from alone.

scikit-learn is imported when a classifier is fitted, torch never.
"""

import warnings
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.neighbours import Ints
from morphem.errors import DataError

Floats = NDArray[np.floating[Any]]


def standardise(train: Floats, test: Floats) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale features to mean 0 and deviation 1 of the rows to learn from; features constant there become 0.

    Args:
        train: (M, F).
        test: (T, F).
    """
    mean = train.mean(0, dtype=np.float64)
    deviation = train.std(0, dtype=np.float64)
    flat = deviation <= 1e-12 * np.maximum(1.0, np.abs(mean))
    scale = np.where(flat, 1.0, deviation)
    keep = ~flat
    return (train - mean) / scale * keep, (test - mean) / scale * keep


def linear_probe(train: Floats, classes: Ints, test: Floats, *, ridge: float = 1e-2) -> Ints:
    """Predict classes by least squares on one-hot targets of standardised features, with a ridge.

    Classes weigh alike, whatever their size. The ridge is relative: `ridge * M` is added to the diagonal of the M rows'
    Gram matrix, so its effect does not depend on the number of rows. Solved in closed form, over features or over rows,
    whichever are fewer.

    Args:
        train: (M, F), finite.
        classes: (M,), any integers.
        test: (T, F), finite.
        ridge: Above 0.

    Returns:
        (T,).

    Raises:
        DataError: If there is one class only.
    """
    kinds, number, counts = np.unique(classes, return_inverse=True, return_counts=True)
    _check_classes(kinds, classes)
    known, asked = standardise(train, test)
    weight = (len(number) / len(kinds) / counts)[number][:, None]  # (M, 1), mean 1
    target = np.eye(len(kinds))[number]
    center = (weight * target).mean(0)
    root = np.sqrt(weight)
    offset = (weight * known).mean(0)
    rows, goal = root * (known - offset), root * (target - center)
    if rows.shape[1] <= rows.shape[0]:
        gram = rows.T @ rows
        gram[np.diag_indices_from(gram)] += ridge * len(rows)
        slope = np.linalg.solve(gram, rows.T @ goal)
    else:
        gram = rows @ rows.T
        gram[np.diag_indices_from(gram)] += ridge * len(rows)
        slope = rows.T @ np.linalg.solve(gram, goal)
    scores = (asked - offset) @ slope + center
    return np.asarray(kinds[np.argmax(scores, axis=1)], np.int64)


def logistic_regression(
    train: Floats,
    classes: Ints,
    test: Floats,
    *,
    c: float = 1.0,
    max_iter: int = 1000,
    class_weight: Literal["balanced"] | None = None,
    scale: bool = True,
) -> tuple[Ints, bool]:
    """Predict classes by multinomial logistic regression (L-BFGS, L2).

    Args:
        train: (M, F), finite.
        classes: (M,), any integers.
        test: (T, F), finite.
        c: Inverse strength of the penalty, as scikit-learn counts it.
        max_iter: Largest number of iterations.
        class_weight: `balanced`: classes weigh alike.
        scale: Standardise on the rows to learn from.

    Returns:
        Predictions (T,), and whether the solver converged.

    Raises:
        DataError: If there is one class only.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    _check_classes(np.unique(classes), classes)
    known, asked = standardise(train, test) if scale else (train, test)
    model = LogisticRegression(C=c, max_iter=max_iter, class_weight=class_weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.fit(known, classes)
    converged = not any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    return np.asarray(model.predict(asked), np.int64), converged


def _check_classes(kinds: NDArray[Any], classes: Ints) -> None:
    if len(kinds) < 2:
        raise DataError(f"a classifier needs two classes, but all {len(classes)} rows to learn from are of one.")

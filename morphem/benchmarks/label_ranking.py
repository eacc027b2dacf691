"""Rankings of all other rows by similarity: average precision, F1 at k, precision at R, by one label.

Source: Kim et al., self-supervision for Cell Painting; Bayer-Group/CellPaintSSL at a2625b0.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.metrics import average_precision

KS = tuple(range(1, 50, 2))
"""Neighbours at which F1 is computed: 1, 3, ..., 49."""
_BLOCK = 1024
_DECIMALS = 12  # products of the same rows in blocks of other sizes differ after that
Doubles = NDArray[np.float64]


class Precisions:
    """Average precision of profiles, by label.

    Args:
        values: Of the profiles that have a positive, (Q,).
        labels: Of these, (Q,).
        without: Profiles that have none, which are left out.
    """

    def __init__(self, values: Doubles, labels: NDArray[Any], without: int) -> None:
        self.values = values
        self.labels = labels
        self.without = without

    @property
    def mean(self) -> float:
        """Mean over profiles."""
        return float(np.sort(self.values).mean())

    def table(self) -> dict[str, float]:
        """Mean by label, names sorted."""
        return {str(name): float(self.values[self.labels == name].mean()) for name in np.unique(self.labels)}

    def by_group(self) -> list[float]:
        """Mean of every label, names sorted."""
        return list(self.table().values())


def ranked_precision(unit: Doubles, labels: NDArray[Any]) -> Doubles:
    """Return average precision of every row among all others, (R,); NaN where no other row has its label.

    Equal similarities are taken together, as scikit-learn does.

    Args:
        unit: Rows whose products are similarities, (R, F).
        labels: (R,).
    """
    result = np.full(len(unit), np.nan)
    for begin in range(0, len(unit), _BLOCK):
        similar = np.round(unit[begin : begin + _BLOCK] @ unit.T, _DECIMALS)
        for row, line in enumerate(similar, begin):
            others = np.arange(len(unit)) != row
            positive = labels[others] == labels[row]
            if positive.any():
                result[row] = average_precision(positive, line[others])
    return result


def ranked_neighbours(unit: Doubles, count: int) -> NDArray[np.int64]:
    """Return the most similar other rows of every row, most similar first, (R, count); ties go to the lower row.

    Args:
        unit: Rows whose products are similarities, (R, F).
        count: Below R.
    """
    result = np.empty((len(unit), count), np.int64)
    for begin in range(0, len(unit), _BLOCK):
        similar = np.round(unit[begin : begin + _BLOCK] @ unit.T, _DECIMALS)
        own = np.arange(len(similar))
        similar[own, own + begin] = -np.inf
        result[begin : begin + _BLOCK] = np.argsort(-similar, axis=1, kind="stable")[:, :count]
    return result


def f1_at_k(unit: Doubles, labels: NDArray[Any], ks: tuple[int, ...] = KS) -> dict[int, float]:
    """Return F1 of mean precision and mean recall among the k nearest rows, for every k that the table allows.

    Rows whose label no other row has are left out.

    Args:
        unit: Rows whose products are similarities, (R, F).
        labels: (R,), at least one of them twice.
        ks: Numbers of neighbours.
    """
    number = np.unique(labels, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(number)[number] - 1
    asking = counts > 0
    order = ranked_neighbours(unit, min(max(ks), len(unit) - 1))
    hits = (number[order] == number[:, None])[asking]
    result = {}
    for k in ks:
        if k <= hits.shape[1]:
            found = hits[:, :k].sum(1)
            precision, recall = float((found / k).mean()), float((found / counts[asking]).mean())
            result[k] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return result


def precision_at_r(unit: Doubles, labels: NDArray[Any]) -> float:
    """Return the mean share of a row's label among its R nearest rows, R being the number of other rows of the label.

    Rows whose label no other row has are left out.

    Args:
        unit: Rows whose products are similarities, (R, F).
        labels: (R,), at least one of them twice.
    """
    number = np.unique(labels, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(number)[number] - 1
    order = ranked_neighbours(unit, int(counts.max()))
    hits = (number[order] == number[:, None]) & (np.arange(order.shape[1]) < counts[:, None])
    shares = hits.sum(1)[counts > 0] / counts[counts > 0]
    return float(np.sort(shares).mean())


def median_correlation(unit: Doubles) -> float:
    """Return the median similarity of two different rows.

    Args:
        unit: At least two rows whose products are similarities, (R, F).
    """
    return float(np.median((unit @ unit.T)[np.triu_indices(len(unit), 1)]))


def replicating(
    unit: Doubles, labels: NDArray[Any], *, random: np.random.Generator, null_draws: int, replicates: int
) -> tuple[dict[str, float], float]:
    """Return the median correlation of every label's rows, and the bar: the 95th percentile of random sets.

    A random set holds rows of different labels, as many as asked for or as there are labels.

    Args:
        unit: Rows whose products are correlations, (R, F), in an order that their content decides.
        labels: (R,).
        random: Draws.
        null_draws: Random sets.
        replicates: Rows of a set.

    Returns:
        Medians by label, for labels of two rows or more, and the bar.
    """
    names, number = np.unique(labels, return_inverse=True)
    members = [np.flatnonzero(number == i) for i in range(len(names))]
    size = min(replicates, len(names))
    null = []
    for _ in range(null_draws):
        chosen = random.choice(len(names), size, replace=False)
        null.append(median_correlation(unit[[random.choice(members[i]) for i in chosen]]))
    medians = {
        str(name): median_correlation(unit[own]) for name, own in zip(names, members, strict=True) if len(own) > 1
    }
    return medians, float(np.quantile(null, 0.95))


def best_f1(f1: dict[int, float]) -> tuple[float, int]:
    """Return the largest F1 and its k, the smallest of several."""
    k = max(f1, key=lambda k: (f1[k], -k))
    return f1[k], k

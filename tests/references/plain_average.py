"""Averages over groups, written plainly: one dictionary, one loop."""

from collections.abc import Sequence

import numpy as np


def averages(values: np.ndarray, names: Sequence[object]) -> np.ndarray:
    """Return the mean of the rows of each name, in order of first appearance, in float64."""
    rows: dict[object, list[np.ndarray]] = {}
    for name, row in zip(names, values, strict=True):
        rows.setdefault(name, []).append(row.astype(np.float64))
    return np.stack([sum(group) / len(group) for group in rows.values()])

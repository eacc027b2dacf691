"""Splits that keep groups together, drawn by the names of groups, so that the order of rows does not matter."""

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem import rng
from morphem.benchmarks.neighbours import Ints, codes
from morphem.errors import DataError

Fold = tuple[Ints, Ints]


def leave_one_group_out(groups: Sequence[Any] | NDArray[Any]) -> list[tuple[str, Ints, Ints]]:
    """Return name, rows to learn from and rows to test on for every group, groups sorted by name.

    Args:
        groups: Of R rows.

    Raises:
        DataError: If there are fewer than two groups.
    """
    names = np.asarray([str(group) for group in groups])
    known = np.unique(names)
    if len(known) < 2:
        raise DataError(f"leaving one group out needs two groups, but all {len(names)} rows are of '{known[0]}'.")
    return [(str(name), np.flatnonzero(names != name), np.flatnonzero(names == name)) for name in known]


def group_folds(
    labels: Sequence[Any] | NDArray[Any],
    groups: Sequence[Hashable] | NDArray[np.generic],
    n_folds: int,
    *,
    seed: int,
) -> list[Fold]:
    """Return folds so that no group is on both sides and classes are spread as evenly as groups allow.

    A group counts to the class that most of its rows have (the first by name of several). The groups of each class are
    drawn into an order by name and seed, and dealt to the folds one by one, going on where the class before stopped.

    Args:
        labels: Of R rows.
        groups: Of R rows; give every row its own name where rows are independent.
        n_folds: At least 2; fewer are made where there are fewer groups.
        seed: Other seeds deal otherwise.

    Returns:
        Rows to learn from and rows to test on per fold; every row is tested once.

    Raises:
        DataError: If there is one group only.
    """
    of_group = np.asarray([str(group) for group in groups])
    names, number = np.unique(of_group, return_inverse=True)
    if len(names) < 2:
        raise DataError(f"cross-validation needs two groups, but all {len(of_group)} rows are of one.")
    kinds = codes(labels)
    votes = np.zeros((len(names), int(kinds.max()) + 1), np.int64)
    np.add.at(votes, (number, kinds), 1)
    majority = votes.argmax(1)
    keys = [(int(majority[i]), rng.mix(seed, "folds", str(name)), str(name)) for i, name in enumerate(names)]
    order = sorted(range(len(names)), key=keys.__getitem__)
    fold_of_group = np.empty(len(names), np.int64)
    n_folds = min(n_folds, len(names))
    fold_of_group[order] = np.arange(len(names)) % n_folds
    fold = fold_of_group[number]
    return [(np.flatnonzero(fold != i), np.flatnonzero(fold == i)) for i in range(n_folds)]


def check_disjoint(groups: Sequence[Hashable] | NDArray[np.generic], train: Ints, test: Ints) -> None:
    """Refuse a split with a row or a group on both sides.

    Args:
        groups: Of R rows.
        train: Rows to learn from.
        test: Rows to test on.

    Raises:
        DataError: With the number of shared groups and one of them.
    """
    names = np.asarray([str(group) for group in groups])
    shared = np.intersect1d(names[train], names[test])
    if len(shared):
        raise DataError(
            f"{len(shared)} groups (for example '{shared[0]}') are both learnt from and tested on; the score would "
            "measure memory; split by group."
        )

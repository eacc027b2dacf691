"""Splits that keep groups together."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphem import rng
from morphem.errors import DataError


class Split(NamedTuple):
    """Rows to learn from and rows to test on.

    Attributes:
        train: Indices of rows, (M,).
        test: Indices of rows, (T,).
        classes: Class of every row, (R,), 0 to n_classes - 1; -1 for rows that are left out.
        n_classes: Classes that occur on both sides.
        left_out: Classes that only one group has.
        n_left_out: Their rows.
    """

    train: NDArray[np.int64]
    test: NDArray[np.int64]
    classes: NDArray[np.int64]
    n_classes: int
    left_out: tuple[str, ...]
    n_left_out: int


def split_by_group(
    labels: Sequence[str],
    groups: Sequence[Hashable],
    *,
    test_fraction: float,
    seed: int,
    where: str = "the split",
) -> Split:
    """Split rows so that no group is on both sides and every class is on both.

    A group counts to the class that most of its rows have. Of the groups of each class a share is drawn for the test,
    at least one, and at least one is left to learn from. The draw depends on the names of groups and the seed, not on
    the order of rows. Classes that do not come to lie on both sides are left out.

    Args:
        labels: Of R rows.
        groups: Of R rows, with a `repr` that tells them apart.
        test_fraction: Share of groups for the test, between 0 and 1.
        seed: Other seeds draw other groups.
        where: For messages.

    Raises:
        DataError: If fewer than two classes can be told apart.
    """
    tested = _draw(labels, groups, test_fraction, seed)
    in_test = np.asarray([group in tested for group in groups], bool)
    sides = [{label for label, test in zip(labels, in_test, strict=True) if test == side} for side in (False, True)]
    kept = sorted(sides[0] & sides[1])
    if len(kept) < 2:
        found = sorted(set(labels))
        raise DataError(
            f"{where}: a probe needs two classes with two groups each, but of the classes {found[:8]} in "
            f"{len(set(groups))} groups {len(kept)} can be both learnt and tested; use other columns as group "
            "(an empty list makes every image a group), or data with more classes."
        )
    number = {label: i for i, label in enumerate(kept)}
    classes = np.asarray([number.get(label, -1) for label in labels], np.int64)
    left_out = tuple(sorted(set(labels) - set(kept)))
    return Split(
        np.flatnonzero(~in_test & (classes >= 0)),
        np.flatnonzero(in_test & (classes >= 0)),
        classes,
        len(kept),
        left_out,
        int((classes < 0).sum()),
    )


def _draw(labels: Sequence[str], groups: Sequence[Hashable], fraction: float, seed: int) -> set[Hashable]:
    """Return the groups of the test."""
    votes: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for label, group in zip(labels, groups, strict=True):
        votes[group][label] += 1
    by_class: dict[str, list[Hashable]] = defaultdict(list)
    for group, counts in votes.items():
        by_class[min(counts, key=lambda label: (-counts[label], label))].append(group)
    tested: set[Hashable] = set()
    for members in by_class.values():
        members.sort(key=lambda group: (rng.mix(seed, "test groups", repr(group)), repr(group)))
        count = min(max(1, round(fraction * len(members))), len(members) - 1)
        tested.update(members[:count])
    return tested

"""Splits keep groups together and every class on both sides."""

import itertools

import pytest

from morphem.callbacks.splits import split_by_group
from morphem.errors import DataError


def _rows(n_classes: int, wells: int, per_well: int) -> tuple[list[str], list[tuple[str, str]]]:
    rows = [(f"c{c}", ("plate", f"w{c}-{w}")) for c in range(n_classes) for w in range(wells) for _ in range(per_well)]
    return [label for label, _ in rows], [group for _, group in rows]


@pytest.mark.parametrize(
    ("n_classes", "wells", "fraction", "seed"), [*itertools.product([2, 5], [2, 3, 7], [0.01, 0.3, 0.99], [0, 1])]
)
def test_no_group_is_on_both_sides_and_every_class_is(n_classes: int, wells: int, fraction: float, seed: int) -> None:
    labels, groups = _rows(n_classes, wells, per_well=3)
    split = split_by_group(labels, groups, test_fraction=fraction, seed=seed)
    sides = [{groups[i] for i in rows} for rows in (split.train, split.test)]
    assert not sides[0] & sides[1]
    assert all(set(split.classes[rows]) == set(range(n_classes)) for rows in (split.train, split.test))
    assert len(split.train) + len(split.test) == len(labels)
    assert split.left_out == ()


def test_groups_of_mixed_classes_stay_together() -> None:
    labels = ["a", "b", "b", "a", "b", "a", "a", "b"] * 3
    groups = [i // 3 for i in range(24)]
    split = split_by_group(labels, groups, test_fraction=0.4, seed=0)
    assert not {groups[i] for i in split.train} & {groups[i] for i in split.test}


def test_the_split_does_not_depend_on_the_order_of_rows() -> None:
    labels, groups = _rows(3, 5, per_well=2)
    split = split_by_group(labels, groups, test_fraction=0.3, seed=0)
    turned = split_by_group(labels[::-1], groups[::-1], test_fraction=0.3, seed=0)
    last = len(labels) - 1
    assert {groups[i] for i in split.test} == {groups[last - i] for i in turned.test}


def test_another_seed_gives_another_split() -> None:
    labels, groups = _rows(3, 12, per_well=1)
    tests = {tuple(split_by_group(labels, groups, test_fraction=0.3, seed=seed).test) for seed in range(4)}
    assert len(tests) > 1


def test_the_share_of_the_test_is_as_asked() -> None:
    labels, groups = _rows(2, 10, per_well=4)
    split = split_by_group(labels, groups, test_fraction=0.3, seed=0)
    assert len(split.test) == 2 * 3 * 4


def test_a_class_of_one_group_is_left_out_and_counted() -> None:
    labels, groups = _rows(2, 3, per_well=2)
    split = split_by_group([*labels, "rare"], [*groups, ("plate", "only")], test_fraction=0.3, seed=0)
    assert split.left_out == ("rare",)
    assert split.n_left_out == 1
    assert split.classes[-1] == -1
    assert len(labels) not in {*split.train, *split.test}


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        (["a"] * 4, [1, 2, 3, 4]),  # one class
        (["a", "b"] * 2, [1, 1, 1, 1]),  # one group
        (["a", "b"], [1, 2]),  # one group per class
    ],
)
def test_what_cannot_be_split_is_refused(labels: list[str], groups: list[int]) -> None:
    with pytest.raises(DataError, match="two classes with two groups each"):
        split_by_group(labels, groups, test_fraction=0.3, seed=0)

"""Splits that keep groups together, and bootstrap intervals over units."""

import numpy as np
import pytest

from morphem.benchmarks.bootstrap import interval, interval_of_mean, rows_of_units
from morphem.benchmarks.intervals import accuracy_of, balanced_accuracy_of, interval_of_classes, macro_f1_of
from morphem.benchmarks.metrics import accuracy, balanced_accuracy, confusion, macro_f1
from morphem.benchmarks.score import Interval, Score, to_plain
from morphem.benchmarks.splits import check_disjoint, group_folds, leave_one_group_out
from morphem.errors import DataError

GROUPS = np.asarray([f"well{i // 3}" for i in range(60)])
LABELS = np.asarray(["treated" if i // 3 % 4 == 0 else "control" for i in range(60)])


def test_no_group_is_on_both_sides_and_every_row_is_tested_once() -> None:
    folds = group_folds(LABELS, GROUPS, 4, seed=0)
    tested = np.concatenate([test for _, test in folds])
    assert sorted(tested) == list(range(60))
    for train, test in folds:
        assert not set(GROUPS[train]) & set(GROUPS[test])
        check_disjoint(GROUPS, train, test)


def test_classes_are_spread_over_folds() -> None:
    counts = [(LABELS[test] == "treated").sum() for _, test in group_folds(LABELS, GROUPS, 4, seed=0)]
    assert max(counts) - min(counts) <= 3


def test_folds_do_not_depend_on_the_order_of_rows() -> None:
    order = np.random.default_rng(0).permutation(60)
    straight = [set(test) for _, test in group_folds(LABELS, GROUPS, 3, seed=1)]
    turned = [set(order[test]) for _, test in group_folds(LABELS[order], GROUPS[order], 3, seed=1)]
    assert straight == turned
    assert straight != [set(test) for _, test in group_folds(LABELS, GROUPS, 3, seed=2)]


def test_a_split_with_a_group_on_both_sides_is_refused() -> None:
    with pytest.raises(DataError, match=r"1 groups \(for example 'well0'\) are both learnt from and tested on"):
        check_disjoint(GROUPS, np.arange(0, 2), np.arange(2, 6))


def test_one_group_cannot_be_left_out() -> None:
    with pytest.raises(DataError, match="needs two groups, but all 3 rows are of 'a'"):
        leave_one_group_out(["a", "a", "a"])
    with pytest.raises(DataError, match="needs two groups"):
        group_folds(["x", "y"], ["a", "a"], 2, seed=0)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(0).normal(3, 2, 400)
    found = interval_of_mean(values, "well", seed=0)
    half = 1.96 * values.std() / 20
    assert found.low == pytest.approx(values.mean() - half, abs=0.05)
    assert found.high == pytest.approx(values.mean() + half, abs=0.05)
    assert (found.unit, found.n_units) == ("well", 400)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        found = interval_of_mean(random.exponential(1.0, 60), "well", seed=seed, draws=300)
        covered += found.low <= 1 <= found.high
    assert 0.86 <= covered / 200 <= 0.99


def test_intervals_do_not_depend_on_order_and_do_on_the_seed() -> None:
    values = np.random.default_rng(0).normal(size=50)
    assert interval_of_mean(values, "well", seed=0) == interval_of_mean(values[::-1], "well", seed=0)
    assert interval_of_mean(values, "well", seed=0) != interval_of_mean(values, "well", seed=1)


def test_drawing_groups_gives_wider_intervals_than_drawing_rows_that_copy_each_other() -> None:
    truth = np.repeat(np.arange(2), 300)
    groups = np.repeat(np.arange(20), 30)
    right = np.random.default_rng(0).random(20) < 0.7
    predicted = np.where(np.repeat(right, 30), truth, 1 - truth)
    of_groups = interval_of_classes(truth, predicted, groups, "group", seed=0)
    of_rows = interval_of_classes(truth, predicted, np.arange(600), "row", seed=0)
    assert of_groups.high - of_groups.low > 3 * (of_rows.high - of_rows.low)


@pytest.mark.parametrize(
    ("fast", "slow"), [(balanced_accuracy_of, balanced_accuracy), (macro_f1_of, macro_f1), (accuracy_of, accuracy)]
)
def test_scores_from_counts_are_the_scores(fast, slow) -> None:
    random = np.random.default_rng(0)
    truth, predicted = random.integers(0, 3, 50), random.integers(0, 4, 50)
    counts = confusion(truth, predicted, 4)
    assert fast(counts, np.bincount(truth, minlength=4)) == pytest.approx(slow(truth, predicted))


def test_an_interval_of_a_statistic_that_is_mostly_undefined_is_refused() -> None:
    with pytest.raises(DataError, match="give no score; there are too few"):
        interval(lambda rows: float("nan"), 3, "plate", seed=0)
    with pytest.raises(DataError, match="needs finite values of at least one plate"):
        interval_of_mean([], "plate", seed=0)


def test_units_are_sorted_by_name() -> None:
    assert [rows.tolist() for rows in rows_of_units(["b", "a", "b"])] == [[1], [0, 2]]


def test_a_score_is_never_nan() -> None:
    with pytest.raises(DataError, match="the score mean_map came out as NaN or infinite"):
        Score({"mean_map": float("nan")})
    with pytest.raises(DataError, match="given and said to be missing"):
        Score({"a": 1.0}, missing={"a": "why"})


def test_details_become_plain_data() -> None:
    found = to_plain({"a": np.float32(1.5), "b": (np.int64(2), None), "c": Interval(0, 1, "x", 2), "d": float("nan")})
    assert found["a"] == 1.5
    assert found["b"] == [2, None]
    assert found["c"]["unit"] == "x"
    assert found["d"] is None
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        to_plain(object())

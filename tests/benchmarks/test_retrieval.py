"""Retrieval: average precision, nulls, p-values, limits."""

import time

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score

from morphem.benchmarks.nulls import Nulls, benjamini_hochberg
from morphem.benchmarks.retrieval import (
    NothingToRetrieveError,
    PairRule,
    average_precision,
    mean_average_precision,
    multilabel_average_precision,
    predict_cost,
)
from morphem.errors import ConfigError, DataError
from tests.references import scores as plain


def _data(seed: int, n: int = 60, dim: int = 8) -> tuple[np.ndarray, pd.DataFrame]:
    random = np.random.default_rng(seed)
    metadata = pd.DataFrame(
        {
            "Metadata_compound": random.integers(0, 6, n).astype(str),
            "Metadata_plate": random.integers(0, 3, n).astype(str),
            "Metadata_kind": random.integers(0, 4, n).astype(str),
        }
    )
    return random.normal(size=(n, dim)).astype(np.float32), metadata


RULES = [
    PairRule(("Metadata_compound",), (), ("Metadata_plate",), ("Metadata_compound",)),
    PairRule(("Metadata_compound",), ("Metadata_plate",), (), ("Metadata_compound",)),
    PairRule(("Metadata_compound", "Metadata_kind"), ("Metadata_plate",), ("Metadata_kind",), ("Metadata_compound",)),
    PairRule(("Metadata_kind",), (), ("Metadata_plate",), ("Metadata_kind", "Metadata_compound")),
]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("rule", RULES)
def test_average_precision_is_that_of_loops_over_pairs(rule: PairRule, seed: int) -> None:
    values, metadata = _data(seed)
    values[3:6] = values[7]  # ties
    found = average_precision(values, metadata, rule)["average_precision"].to_numpy()
    columns = {name: metadata[name].tolist() for name in metadata}
    expected = plain.retrieval(values, columns, rule.pos_sameby, rule.pos_diffby, rule.neg_sameby, rule.neg_diffby)
    np.testing.assert_allclose(found, [np.nan if value is None else value for value in expected], atol=1e-9)


@pytest.mark.parametrize("rule", RULES[:2])
def test_average_precision_agrees_with_copairs(rule: PairRule) -> None:
    from copairs.map import average_precision as copairs

    values, metadata = _data(2, n=150)
    ours = average_precision(values, metadata, rule)
    theirs = copairs(
        metadata, values, list(rule.pos_sameby), list(rule.pos_diffby), list(rule.neg_sameby), list(rule.neg_diffby),
        progress_bar=False,
    )  # fmt: skip
    known = theirs["n_pos_pairs"].to_numpy() > 0
    np.testing.assert_allclose(ours["average_precision"][known], theirs["average_precision"][known], atol=1e-5)
    np.testing.assert_array_equal(ours["n_total_pairs"][known], theirs["n_total_pairs"][known])


def test_p_values_agree_with_copairs_within_the_noise_of_the_null(tmp_path) -> None:
    from copairs.map import average_precision as copairs
    from copairs.map import mean_average_precision as copairs_mean

    values, metadata = _data(3, n=150)
    values[metadata["Metadata_compound"] == "1"] += 1.0
    rule = RULES[0]
    ranked = average_precision(values, metadata, rule)
    ours = mean_average_precision(ranked, metadata["Metadata_compound"].to_numpy(), Nulls(5000, 0), count_ties=False)
    columns = (["Metadata_compound"], [], ["Metadata_plate"], ["Metadata_compound"])
    theirs = copairs_mean(
        copairs(metadata, values, *columns, progress_bar=False),
        ["Metadata_compound"], null_size=5000, threshold=0.05, seed=0, progress_bar=False, cache_dir=tmp_path,
    )  # fmt: skip
    assert ours["group"].tolist() == theirs["Metadata_compound"].tolist()
    np.testing.assert_allclose(ours["mean_average_precision"], theirs["mean_average_precision"], atol=1e-5)
    np.testing.assert_allclose(ours["p_value"], theirs["p_value"], atol=0.035)
    assert ours["significant"].tolist() == theirs["below_corrected_p"].tolist()


def test_one_ranking_is_scikit_learns_average_precision_also_with_ties() -> None:
    random = np.random.default_rng(0)
    values = np.concatenate([np.ones((1, 2)), random.integers(1, 4, (30, 2))]).astype(np.float32)
    metadata = pd.DataFrame({"Metadata_c": ["a"] * 12 + ["b"] * 19})
    found = average_precision(values, metadata, PairRule(("Metadata_c",), (), (), ("Metadata_c",)))
    similarity = [round(plain.cosine(values[0], row), 12) for row in values[1:]]
    assert found["average_precision"][0] == pytest.approx(average_precision_score([1] * 11 + [0] * 19, similarity))


def test_multilabel_average_precision_is_that_of_loops() -> None:
    random = np.random.default_rng(4)
    values = random.normal(size=(25, 6))
    labels = [tuple(f"T{t}" for t in np.flatnonzero(random.random(8) < 0.25)) or ("T0",) for _ in range(25)]
    found = multilabel_average_precision(values, labels)
    ours = {(row.row, row.label): row.average_precision for row in found.itertuples()}
    expected = plain.multilabel_retrieval(values, labels)
    assert {key for key, value in ours.items() if value == value} == set(expected)
    for key, value in expected.items():
        assert ours[key] == pytest.approx(value, abs=1e-9)


def test_multilabel_average_precision_agrees_with_copairs() -> None:
    from copairs.map.multilabel import average_precision as copairs

    random = np.random.default_rng(5)
    values = random.normal(size=(40, 6)).astype(np.float32)
    labels = [[f"T{t}" for t in np.flatnonzero(random.random(9) < 0.25)] or ["T0"] for _ in range(40)]
    metadata = pd.DataFrame({"id": range(40), "targets": labels})
    theirs = copairs(metadata, values, ["targets"], [], [], ["targets"], multilabel_col="targets", progress_bar=False)
    expected = {(int(row.id), row.targets): row.average_precision for row in theirs.itertuples()}
    ours = multilabel_average_precision(values, labels)
    assert len(ours) == len(expected)
    for row in ours.itertuples():
        assert row.average_precision == pytest.approx(expected[row.row, row.label], abs=1e-5)


@pytest.mark.parametrize(("positives", "total"), [(1, 7), (3, 9), (5, 8), (8, 9)])
def test_the_null_has_the_mean_and_spread_of_all_rankings(positives: int, total: int) -> None:
    exact = np.asarray(plain.exact_null(positives, total))
    drawn = Nulls(20_000, 0).draws(positives, total)
    assert drawn.mean() == pytest.approx(exact.mean(), abs=5 * exact.std() / 140)
    assert drawn.std() == pytest.approx(exact.std(), rel=0.05)
    assert set(np.round(drawn, 5)) <= set(np.round(exact.astype(np.float32), 5))


def test_p_values_of_the_null_itself_are_uniform() -> None:
    exact = plain.exact_null(3, 9)
    nulls = Nulls(20_000, 1)
    p_values = [nulls.p_value(value, [(3, 9)]) for value in exact]
    for level in (0.1, 0.25, 0.5):
        assert np.mean(np.asarray(p_values) <= level) <= level + 0.02


def test_draws_depend_on_seed_and_configuration_alone() -> None:
    alone = Nulls(500, 7).draws(4, 20)
    after_others = Nulls(500, 7)
    after_others.draws(2, 9)
    np.testing.assert_array_equal(alone, after_others.draws(4, 20))
    assert not np.array_equal(alone, Nulls(500, 8).draws(4, 20))


def test_the_correction_is_that_of_its_definition() -> None:
    p_values = [0.01, 0.5, 0.01, 0.04, 0.9, 0.03]
    np.testing.assert_allclose(benjamini_hochberg(np.asarray(p_values)), plain.benjamini_hochberg(p_values))


def test_perfect_features_give_one_and_shuffled_ones_the_share_of_positives() -> None:
    _, metadata = _data(6, n=400)
    number = metadata["Metadata_compound"].astype(int).to_numpy()
    perfect = np.eye(6)[number]
    rule = PairRule(("Metadata_compound",), (), (), ("Metadata_compound",))
    assert (average_precision(perfect, metadata, rule)["average_precision"] == 1).all()
    noise = np.random.default_rng(0).normal(size=(400, 30))
    found = average_precision(noise, metadata, rule)
    share = (found["n_pos_pairs"] / found["n_total_pairs"]).mean()
    assert found["average_precision"].mean() == pytest.approx(share, abs=0.03)


def test_the_order_of_rows_does_not_matter() -> None:
    values, metadata = _data(7)
    order = np.random.default_rng(1).permutation(len(values))
    straight = average_precision(values, metadata, RULES[0]).sort_values("row")["average_precision"].to_numpy()
    turned = average_precision(values[order], metadata.iloc[order].reset_index(drop=True), RULES[0])
    np.testing.assert_array_equal(straight[order], turned["average_precision"])


def test_too_many_pairs_are_refused_with_what_they_would_take() -> None:
    values, metadata = _data(0)
    rule = PairRule(("Metadata_compound",), (), (), ("Metadata_compound",))
    with pytest.raises(
        ConfigError, match=r"60 rows .* needs 3\.6e\+03 similarities.*GiB.*restrict negatives to a plate"
    ):
        average_precision(values, metadata, rule, pair_limit=1000)


def test_the_predicted_time_is_of_the_right_order() -> None:
    random = np.random.default_rng(0)
    metadata = pd.DataFrame({"Metadata_c": random.integers(0, 300, 3000).astype(str)})
    values = random.normal(size=(3000, 400))
    rule = PairRule(("Metadata_c",), (), (), ("Metadata_c",))
    cost = predict_cost(metadata, rule, 400)
    begin = time.process_time()
    average_precision(values, metadata, rule)
    assert cost.pairs == 9_000_000
    assert cost.seconds / 10 < time.process_time() - begin < cost.seconds * 10


def test_a_row_without_direction_is_refused() -> None:
    values, metadata = _data(0)
    values[5] = 0
    with pytest.raises(DataError, match=r"1 rows \(first: row 5\) have no direction"):
        average_precision(values, metadata, RULES[0])


def test_no_pair_at_all_is_an_error_not_a_number() -> None:
    metadata = pd.DataFrame({"Metadata_c": ["a", "b", "c"]})
    with pytest.raises(NothingToRetrieveError, match="no row has both positives"):
        average_precision(np.eye(3), metadata, PairRule(("Metadata_c",), (), (), ("Metadata_c",)))


def test_a_rule_that_pairs_everything_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs columns in pos_sameby and in neg_diffby"):
        PairRule(("a",))

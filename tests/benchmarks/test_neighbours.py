"""Nearest neighbours under exclusion rules, exact and fast."""

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from morphem.benchmarks import knn
from morphem.benchmarks.neighbours import EXCLUSIONS, exclusion
from morphem.benchmarks.screen import fit_screen
from morphem.errors import ConfigError, DataError
from tests.references import scores as plain

# what the papers' words and codes exclude, written out; i is the query, j the candidate
MEANINGS = {
    "nn": lambda c, i, j: False,
    "nsc": lambda c, i, j: c["compound"][i] == c["compound"][j],
    "nsb": lambda c, i, j: c["batch"][i] == c["batch"][j] and c["label"][i] == c["label"][j],
    "nsb_words": lambda c, i, j: c["batch"][i] == c["batch"][j],
    "nscb": lambda c, i, j: MEANINGS["nsc"](c, i, j) or MEANINGS["nsb"](c, i, j),
    "nscb_words": lambda c, i, j: MEANINGS["nsc"](c, i, j) or MEANINGS["nsb_words"](c, i, j),
    "nss": lambda c, i, j: c["source"][i] == c["source"][j] and c["label"][i] == c["label"][j],
    "nss_words": lambda c, i, j: c["source"][i] == c["source"][j],
    "nspw": lambda c, i, j: (
        c["well"][i] == c["well"][j] or (c["plate"][i] == c["plate"][j] and c["label"][i] == c["label"][j])
    ),
    "nspw_words": lambda c, i, j: c["well"][i] == c["well"][j] or c["plate"][i] == c["plate"][j],
    "nscp": lambda c, i, j: (
        MEANINGS["nsc"](c, i, j) or (c["plate"][i] == c["plate"][j] and c["label"][i] == c["label"][j])
    ),
    "nscp_words": lambda c, i, j: MEANINGS["nsc"](c, i, j) or c["plate"][i] == c["plate"][j],
    "nsbp": lambda c, i, j: c["well"][i] == c["well"][j] or MEANINGS["nsb"](c, i, j),
    "nsbp_words": lambda c, i, j: c["batch"][i] == c["batch"][j] or c["compound"][i] == c["compound"][j],
}


def _columns(n: int) -> dict[str, np.ndarray]:
    random = np.random.default_rng(1)
    names = ("label", "compound", "batch", "source", "plate", "well")
    return {name: random.integers(0, 4, n).astype(str) for name in names}


def _values(n: int = 80, dim: int = 5) -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(n, dim)).astype(np.float32) + 3
    values[10:14] = values[20:24]  # ties
    return values


@pytest.mark.parametrize("metric", knn.METRICS)
@pytest.mark.parametrize("name", sorted(EXCLUSIONS))
def test_every_rule_excludes_what_its_words_say(name: str, metric: knn.Metric) -> None:
    values, columns = _values(), _columns(80)
    found = knn.nearest_by_rule(values, exclusion(name), columns, metric=metric)
    expected = plain.nearest_allowed(values, metric, lambda i, j: not MEANINGS[name](columns, i, j))
    assert found.row.tolist() == expected


def test_the_meanings_cover_all_rules() -> None:
    assert set(MEANINGS) == set(EXCLUSIONS)


@pytest.mark.parametrize("metric", knn.METRICS)
def test_blocks_do_not_change_the_answer(metric: knn.Metric, monkeypatch: pytest.MonkeyPatch) -> None:
    values, groups = _values(), _columns(80)["plate"]
    whole = knn.leave_one_group_out(values[20:], groups[20:], always=values[:20], metric=metric)
    monkeypatch.setattr(knn, "_BLOCK", 7)
    cut = knn.leave_one_group_out(values[20:], groups[20:], always=values[:20], metric=metric)
    np.testing.assert_array_equal(whole.row, cut.row)
    np.testing.assert_allclose(whole.distance, cut.distance, atol=1e-10)


def test_leaving_a_group_out_never_finds_the_group_and_may_find_the_reference() -> None:
    values, groups = _values(), _columns(80)["plate"]
    found = knn.leave_one_group_out(values[20:], groups[20:], always=values[:20])
    own = groups[20:]
    from_task = found.row >= 20
    assert from_task.any()
    assert (~from_task).any()
    assert (own[found.row[from_task] - 20] != own[from_task]).all()
    banned = (np.arange(80)[None] >= 20) & (groups[:, None] == groups[None])
    distance = np.asarray([[plain.distance(a, b, "l2") for b in values] for a in values])
    assert found.row.tolist() == np.where(banned, np.inf, distance)[20:].argmin(1).tolist()


def test_a_query_without_an_allowed_row_is_told_not_guessed() -> None:
    found = knn.nearest_by_rule(np.eye(3), exclusion("nsb_words"), {"batch": ["a", "a", "b"]})
    assert found.row.tolist() == [2, 2, 0]
    alone = knn.nearest_by_rule(np.eye(2), exclusion("nsb_words"), {"batch": ["a", "a"]})
    assert alone.row.tolist() == [-1, -1]
    assert np.isinf(alone.distance).all()


def test_features_far_from_the_origin_lose_no_digits() -> None:
    values = _values(200, 8).astype(np.float64)
    far = (values + 1e4).astype(np.float32)
    found = knn.nearest_within(far, metric="l2").row
    assert found.tolist() == plain.nearest_allowed(far.astype(np.float64), "l2", lambda i, j: True)


@pytest.mark.parametrize("k", [1, 3, 10])
def test_votes_agree_with_scikit_learn_where_votes_are_clear(k: int) -> None:
    random = np.random.default_rng(2)
    train, test = random.normal(size=(120, 6)).astype(np.float32), random.normal(size=(50, 6)).astype(np.float32)
    classes = random.integers(0, 3, 120)
    model = KNeighborsClassifier(k, algorithm="brute", metric="cosine").fit(train, classes)
    share = np.sort(model.predict_proba(test), axis=1)
    clear = share[:, -1] > share[:, -2]
    found = knn.vote(test, train, classes, k=k)
    np.testing.assert_array_equal(found[clear], model.predict(test)[clear])


def test_a_rule_without_its_columns_names_them() -> None:
    with pytest.raises(DataError, match=r"nspw .* needs label, plate; name their columns"):
        knn.nearest_by_rule(np.eye(3), exclusion("nspw"), {"well": ["a", "b", "c"]})


def test_an_unknown_rule_or_metric_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'nscb'"):
        exclusion("nscbb")
    with pytest.raises(ConfigError, match="did you mean 'cosine'"):
        knn.nearest_within(np.eye(3), metric="cosin")  # type: ignore[arg-type]


@pytest.mark.parametrize("metric", knn.METRICS)
@pytest.mark.parametrize("power", [0.0, 1.0])
def test_the_screen_changes_no_answer(metric: knn.Metric, power: float, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(3)
    values = random.normal(size=(900, 400)) * np.arange(1, 401) ** -power + 0.3
    values[100:160] = values[200:260]  # ties
    values, groups = values.astype(np.float32), random.integers(0, 7, 900)
    plainly = knn.leave_one_group_out(values[300:], groups[300:], always=values[:300], metric=metric)
    used: list[bool] = []
    fit = knn.fit_screen

    def watched(*args: np.ndarray) -> object:
        screen = fit(*args)
        used.append(screen is not None)
        return screen

    monkeypatch.setattr(knn, "fit_screen", watched)
    monkeypatch.setattr(knn, "_SCREEN_PAIRS", 1)
    monkeypatch.setattr(knn, "_BLOCK", 128)
    screened = knn.leave_one_group_out(values[300:], groups[300:], always=values[:300], metric=metric)
    np.testing.assert_array_equal(plainly.row, screened.row)
    np.testing.assert_allclose(plainly.distance, screened.distance, atol=1e-9)
    assert used == [power > 0] * 2  # white noise has no directions to look at first


def test_the_screen_bounds_every_product_from_above() -> None:
    random = np.random.default_rng(4)
    values = (random.normal(size=(500, 400)) * np.arange(1, 401) ** -1.0).astype(np.float32)
    screen = fit_screen(values, values, np.zeros(500, np.float32))
    assert screen is not None
    few = screen(values)
    assert few.shape[1] < 100
    assert (few @ few.T - values @ values.T).min() > -1e-5

"""Linear classifiers and the scores of predictions."""

import numpy as np
import pytest
from sklearn import metrics as sk
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from morphem.benchmarks import metrics
from morphem.benchmarks.classifiers import linear_probe, logistic_regression, standardise
from morphem.errors import DataError
from tests.references import scores as plain


def _clusters(seed: int, n: int = 90, dim: int = 7, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    classes = np.sort(random.choice(3, n, p=[0.6, 0.3, 0.1]))
    return (np.eye(3, dim)[classes] * 2 + spread * random.normal(size=(n, dim))).astype(np.float32), classes


@pytest.mark.parametrize("dim", [7, 200])
def test_the_linear_probe_is_weighted_ridge_regression(dim: int) -> None:
    train, classes = _clusters(0, dim=dim)
    test, _ = _clusters(1, dim=dim)
    expected = plain.weighted_ridge(train.astype(float), classes.tolist(), test.astype(float), 1e-2)
    assert linear_probe(train, classes, test).tolist() == expected


def test_the_linear_probe_is_perfect_on_what_can_be_told_and_by_chance_on_noise() -> None:
    train, classes = _clusters(0, spread=0.1)
    test, truth = _clusters(1, spread=0.1)
    assert metrics.balanced_accuracy(truth, linear_probe(train, classes, test)) == 1
    noise = np.random.default_rng(0).normal(size=(2, 3000, 6))
    labels = np.arange(3000) % 3
    assert metrics.accuracy(labels, linear_probe(noise[0], labels, noise[1])) == pytest.approx(1 / 3, abs=0.04)


def test_logistic_regression_is_scikit_learns() -> None:
    train, classes = _clusters(0)
    test, _ = _clusters(1)
    model = make_pipeline(StandardScaler(), LogisticRegression(C=0.5)).fit(train.astype(float), classes)
    found, converged = logistic_regression(train, classes, test, c=0.5)
    assert converged
    np.testing.assert_array_equal(found, model.predict(test.astype(float)))
    assert not logistic_regression(train, classes, test, max_iter=1)[1]


def test_scaling_is_learnt_from_the_rows_to_learn_from_alone() -> None:
    train, _ = _clusters(0)
    test = train[:5] + 100
    known, asked = standardise(train, test)
    np.testing.assert_allclose(known.mean(0), 0, atol=1e-6)
    assert asked.min() > 20


def test_a_constant_feature_does_nothing() -> None:
    train, classes = _clusters(0)
    test, _ = _clusters(1)
    flat = np.full((len(train), 1), 3.3, np.float32)
    moved = np.linspace(-1e6, 1e6, len(test), dtype=np.float32)[:, None]
    found = linear_probe(np.hstack([train, flat]), classes, np.hstack([test, moved]))
    np.testing.assert_array_equal(found, linear_probe(train, classes, test))


def test_one_class_is_refused() -> None:
    with pytest.raises(DataError, match="needs two classes, but all 4 rows to learn from are of one"):
        linear_probe(np.eye(4), np.zeros(4, np.int64), np.eye(4))
    with pytest.raises(DataError, match="needs two classes, but all 3 rows are 'x'"):
        metrics.class_numbers(["x", "x", "x"], "the label")


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_those_of_their_definitions_and_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    truth, predicted = random.integers(0, 4, 60), random.integers(0, 5, 60)
    truth, predicted = truth.astype(np.int64), predicted.astype(np.int64)
    assert metrics.macro_f1(truth, predicted) == pytest.approx(plain.macro_f1(truth.tolist(), predicted.tolist()))
    assert metrics.macro_f1(truth, predicted) == pytest.approx(
        sk.f1_score(truth, predicted, labels=np.unique(truth), average="macro", zero_division=0)
    )
    balanced = plain.balanced_accuracy(truth.tolist(), predicted.tolist())
    assert metrics.balanced_accuracy(truth, predicted) == pytest.approx(balanced)
    hits, values = random.random(60) < 0.3, random.integers(0, 12, 60).astype(float)
    assert metrics.auroc(hits, values) == pytest.approx(plain.auroc(hits.tolist(), values.tolist()))
    assert metrics.auroc(hits, values) == pytest.approx(sk.roc_auc_score(hits, values))
    assert metrics.average_precision(hits, values) == pytest.approx(sk.average_precision_score(hits, values))


def test_scores_without_positives_are_errors_not_numbers() -> None:
    with pytest.raises(DataError, match="AUROC needs positives and negatives, but there are 0 and 3"):
        metrics.auroc(np.zeros(3, bool), np.arange(3.0))
    with pytest.raises(DataError, match="average precision needs at least one positive"):
        metrics.average_precision(np.zeros(3, bool), np.arange(3.0))

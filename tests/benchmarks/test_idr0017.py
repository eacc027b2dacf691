"""IDR0017: effects against loops over pairs, ranks by name where equal, lines apart, refusals."""

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks.base import Inputs, take, with_values
from morphem.benchmarks.distribution_distance import wasserstein
from morphem.benchmarks.idr0017 import IDR0017, NEGATIVE, Whitening, area_under_precision
from morphem.errors import DataError
from tests.benchmarks.protocols import (
    changed,
    score_of,
    shuffled,
    with_column,
    with_pixel,
    with_side,
    without_column,
)
from tests.references import chammi75_scores as plain
from tests.references.scores import auroc

HITS = {
    "02-006": 104,
    "02-008": 43,
    "02-030": 59,
    "02-031": 35,
    "104-001": 63,
    "104-004": 73,
    "104-007": 79,
    "104-008": 96,
}
"""Hits of the published list by line."""
TOP_50 = {
    "02-006": 32,
    "02-008": 19,
    "02-030": 9,
    "02-031": 11,
    "104-001": 12,
    "104-004": 17,
    "104-007": 17,
    "104-008": 18,
}
"""Hits of DINO-BoC among its first 50."""


def _of_line(inputs: Inputs, line: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    metadata, values = inputs.table.metadata, inputs.table.values
    mine = metadata["Metadata_Cell_Line"].eq(line)
    controls = values[mine & metadata["Metadata_Control"].eq(NEGATIVE)]
    treated = metadata[mine & metadata["Metadata_Control"].ne(NEGATIVE)]
    return controls, {name: values[rows] for name, rows in treated.groupby("Metadata_Reagent").groups.items()}


def test_recall_and_areas_are_those_of_loops_over_pairs() -> None:
    inputs = IDR0017.tiny(0, 0.4)
    first = inputs.table.metadata["Metadata_Cell_Line"].eq("HCT116-02-006").to_numpy()
    inputs = changed(inputs, lambda t: take(t, first))
    found = score_of(IDR0017, inputs)
    hits = inputs.side["hits"]
    recalls, areas, curves = [], [], []
    for line in found.details["lines"]:
        controls, treated = _of_line(inputs, line)
        few = {name: treated[name] for name in sorted(treated)}
        effects = plain.idr0017_effects(controls, few)
        truth = {name: bool(hits.loc[hits["matched_drug_name"] == name, line].any()) for name in effects}
        ranked = sorted(effects, key=lambda name: (-effects[name], name))
        recalls.append(sum(truth[name] for name in ranked[:50]) / sum(truth.values()))
        areas.append(auroc(list(truth.values()), list(effects.values())))
        curves.append(plain.precision_recall_area(list(truth.values()), list(effects.values())))
    assert found.values["recall_50"] == pytest.approx(np.mean(recalls))
    assert found.values["auroc"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert found.values["auprc"] == pytest.approx(np.mean(curves), abs=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_the_distance_of_distributions_is_that_of_scipy_and_of_plain_integration(seed: int) -> None:
    from scipy.stats import wasserstein_distance

    random = np.random.default_rng(seed)
    first = np.sort(np.round(random.normal(size=random.integers(1, 60)), 1))  # with ties
    second = np.sort(np.round(random.normal(random.normal(), 2, size=random.integers(1, 30)), 1))
    found = wasserstein(first, second)
    assert found == pytest.approx(wasserstein_distance(first, second), abs=1e-12)
    assert found == pytest.approx(plain.wasserstein(first, second), abs=1e-12)
    assert wasserstein(first, first) == pytest.approx(0, abs=1e-12)


def test_the_area_under_precision_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import auc, precision_recall_curve

    random = np.random.default_rng(0)
    for _ in range(20):
        truth, values = random.random(40) < 0.3, np.round(random.normal(size=40), 1)
        precision, recall, _ = precision_recall_curve(truth, values)
        assert area_under_precision(truth, values) == pytest.approx(auc(recall, precision))


@pytest.mark.parametrize("n_controls", [30, 6])
def test_whitening_of_few_and_of_many_controls_is_that_of_the_full_matrix(n_controls: int) -> None:
    random = np.random.default_rng(0)
    controls, rows = random.normal(size=(n_controls, 12)) @ random.normal(size=(12, 12)), random.normal(size=(5, 12))
    covariance = np.cov(controls.T, bias=True)
    values, vectors = np.linalg.eigh(covariance)
    matrix = vectors @ np.diag((np.maximum(values, 0) + 1e-5) ** -0.5) @ vectors.T
    expected = (rows - controls.mean(0)) @ matrix
    np.testing.assert_allclose(Whitening(controls, 1e-5)(rows), expected, rtol=1e-6, atol=1e-6)


def test_published_recalls_are_whole_numbers_of_hits() -> None:
    shares = [TOP_50[line] / HITS[line] for line in HITS]
    (row,) = [row for row in IDR0017.published if "MorphEm" in row.model]
    assert row.scores["recall_50"] == pytest.approx(np.mean(shares), abs=5e-5)
    assert np.mean([min(1, 50 / count) for count in HITS.values()]) == pytest.approx(0.745, abs=5e-4)


def test_perfect_features_find_every_hit_and_shuffled_ones_as_many_as_chance() -> None:
    best = score_of(IDR0017, IDR0017.tiny(0, np.inf)).values
    assert best["recall_50"] == 1.0  # thirty hits on each line
    assert best["auroc"] == 1.0
    areas = [score_of(IDR0017, changed(IDR0017.tiny(0, 1.0), shuffled(seed))).values["auroc"] for seed in range(4)]
    assert np.mean(areas) == pytest.approx(0.5, abs=0.1)


def test_a_treated_image_has_no_say_in_the_effect_of_another_compound() -> None:
    inputs = IDR0017.tiny(0, 0.5)
    metadata = inputs.table.metadata
    one = metadata["Metadata_Reagent"].eq("compound007").to_numpy()
    before = score_of(IDR0017, inputs)
    wild = changed(inputs, lambda t: with_values(t, np.where(one[:, None], 1e3 + t.values, t.values)))
    after = score_of(IDR0017, wild)
    for line in before.details["lines"]:
        hit = bool(inputs.side["hits"].set_index("matched_drug_name").loc["compound007", line])
        moved = after.details["lines"][line]["hits_50"] - before.details["lines"][line]["hits_50"]
        assert moved in ((0, 1) if hit else (0, -1))  # it alone moves to the first place


def test_the_other_line_has_no_influence() -> None:
    inputs = IDR0017.tiny(0, 0.5)
    lines = inputs.table.metadata["Metadata_Cell_Line"]
    alone = changed(inputs, lambda t: take(t, lines.eq(lines.iloc[0]).to_numpy()))
    first = lines.iloc[0]
    assert score_of(IDR0017, alone).details["lines"][first] == score_of(IDR0017, inputs).details["lines"][first]


def test_lines_that_are_missing_are_noted() -> None:
    (note,) = score_of(IDR0017, IDR0017.tiny(0, 1.0)).notes
    assert "6 of the eight published lines are missing" in note


def test_a_hit_without_images_is_counted_and_does_not_lower_recall() -> None:
    inputs = IDR0017.tiny(0, np.inf)
    more = pd.concat([inputs.side["hits"], inputs.side["hits"].tail(1).assign(matched_drug_name="unknown")])
    more.iloc[-1, 1:] = True
    found = score_of(IDR0017, with_side(inputs, hits=more))
    assert found.values["recall_50"] == 1.0
    assert all(line["hits_listed_without_images"] == 1 for line in found.details["lines"].values())


def test_positive_controls_are_ranked_and_negative_ones_are_not() -> None:
    inputs = IDR0017.tiny(0, 1.0)
    metadata = inputs.table.metadata
    positive = metadata["Metadata_Control"].where(metadata["Metadata_Reagent"].ne("compound003"), "positive control")
    found = score_of(IDR0017, changed(inputs, with_column(Metadata_Control=positive)))
    assert found.details["lines"] == score_of(IDR0017, inputs).details["lines"]
    assert all(line["compounds"] == 200 for line in found.details["lines"].values())


def test_constant_features_give_a_number_and_rank_by_name() -> None:
    inputs = changed(IDR0017.tiny(0, 1.0), lambda t: with_values(t, np.ones_like(t.values)))
    found = score_of(IDR0017, inputs)
    assert found.values["auroc"] == 0.5
    assert all(np.isfinite(value) for value in found.values.values())


def test_the_variants_differ_in_what_they_do_to_crops() -> None:
    prepare = {name: IDR0017(variant=name).parts_in_use()[0].recipe.prepare for name in IDR0017.variants}
    assert prepare == {"standardised": "without_noise", "unstandardised": "resized_only"}


BAD = {
    "spelling": (
        with_column(Metadata_Cell_Line="HCT116 02-006"),
        "no cell line of the table is among those of the list of hits .*spell them alike, for example HCT116-02-006",
    ),
    "no controls": (
        with_column(Metadata_Control="no"),
        "has 0 images of 'negative control'; whitening needs at least 3",
    ),
    "only controls": (with_column(Metadata_Control=NEGATIVE), "has no treated image"),
    "other names": (with_column(Metadata_Reagent="x"), "0 of 1 compounds on .* are hits; .*spelt as in the list"),
    "no line": (without_column("Metadata_Cell_Line"), "lacks the cell line, spelt as in the list of hits"),
    "nan": (with_pixel(0, np.nan), "1 rows with NaN or infinite features"),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_that_do_not_allow_the_score_are_one_sentence(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(DataError, match=message) as told:
        score_of(IDR0017, changed(IDR0017.tiny(0, 1.0), change))
    assert "\n" not in str(told.value)


def test_lists_of_hits_that_are_wrong_are_one_sentence() -> None:
    inputs = IDR0017.tiny(0, 1.0)
    hits = inputs.side["hits"]
    with pytest.raises(DataError, match="the list of hits names 'compound000' twice; keep one row"):
        score_of(IDR0017, with_side(inputs, hits=pd.concat([hits, hits.head(1)])))
    with pytest.raises(DataError, match="side table 'hits': No column 'matched_drug_name'"):
        score_of(IDR0017, with_side(inputs, hits=hits.rename(columns={"matched_drug_name": "drug"})))
    with pytest.raises(DataError, match=r"side table 'hits' .* was not found; put a file ground_truth.csv"):
        score_of(IDR0017, Inputs(inputs.tables))

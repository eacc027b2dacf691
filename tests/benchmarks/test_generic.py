"""Generic scores: agreement with scikit-learn, groups, chance, perfection."""

import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from morphem.benchmarks.base import make_table, take, with_values
from morphem.benchmarks.generic import Generic
from morphem.benchmarks.runner import score_tables
from morphem.benchmarks.splits import group_folds
from morphem.errors import DataError
from tests.benchmarks.tables import plates


def _score(table, **settings):
    benchmark = Generic(label="treatment", null_size=500, **settings)
    return score_tables("generic", benchmark, {"table": table}).score


def test_logistic_regression_over_groups_is_scikit_learns() -> None:
    table = plates(effect=0.5)
    treated = take(table, table.metadata["Metadata_treatment"].notna().to_numpy())
    labels = treated.metadata["Metadata_treatment"].to_numpy(str)
    groups = (treated.metadata["Metadata_Plate"] + "/" + treated.metadata["Metadata_Well"]).to_numpy(str)
    predicted = np.empty(len(labels), object)
    for train, test in group_folds(labels, groups, 5, seed=0):
        model = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
        predicted[test] = model.fit(treated.values[train].astype(float), labels[train]).predict(treated.values[test])
    expected = balanced_accuracy_score(labels, predicted.astype(str))
    assert _score(table).values["logistic_regression"] == pytest.approx(expected)


def test_perfect_features_give_one_in_every_score() -> None:
    found = _score(plates(effect=np.inf)).values
    assert found == dict.fromkeys(found, 1.0)


def test_shuffled_labels_give_chance_on_average() -> None:
    table = plates(effect=1.0, wells=48)
    scores = []
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(len(table))
        scores.append(_score(with_values(table, table.values[order])).values)
    for name in ("linear_probe", "logistic_regression", "knn"):
        assert np.mean([score[name] for score in scores]) == pytest.approx(0.25, abs=0.06)
    assert np.mean([score["retrieved_fraction"] for score in scores]) <= 0.15


def test_images_of_a_well_never_help_each_other() -> None:
    table = plates(effect=0.0)
    twice = take(table, np.repeat(np.arange(len(table)), 3))  # three images of a well that are the same
    by_well = _score(twice, k=1)
    by_row = _score(twice, k=1, group=())
    assert by_well.values["knn"] < 0.45
    assert by_row.values["knn"] > 0.8
    assert by_well.counts["groups"] == 64


def test_intervals_draw_wells() -> None:
    found = _score(plates())
    assert found.intervals["linear_probe"].unit == "group"
    assert found.intervals["linear_probe"].n_units == 64
    assert found.intervals["linear_probe"].low <= found.values["linear_probe"] <= found.intervals["linear_probe"].high


def test_every_variant_gives_its_score_alone() -> None:
    for variant in ("linear_probe", "logistic_regression", "knn", "map"):
        found = score_tables(
            "generic", Generic(variant=variant, label="treatment", null_size=500), {"table": plates()}
        ).score  # fmt: skip
        assert next(iter(found.values)) == variant
        assert set(found.values) <= {variant, "retrieved_fraction"}


def test_a_label_of_one_well_is_left_out_and_said() -> None:
    table = plates()
    labels = table.metadata["Metadata_treatment"].to_numpy(object).copy()
    labels[1] = "rare"
    rare = make_table(table.values, table.metadata.assign(Metadata_treatment=labels))
    found = _score(rare)
    assert any("labels of one group only are neither learnt nor tested: rare" in note for note in found.notes)
    assert "rare" not in found.details["knn"]["accuracy_per_label"]


def test_labels_without_replicates_are_an_error_for_the_headline() -> None:
    metadata = pd.DataFrame(
        {"Metadata_treatment": list("abcdef"), "Metadata_Plate": "P", "Metadata_Well": list("123456")}
    )
    table = make_table(np.random.default_rng(0).normal(size=(6, 4)), metadata)
    with pytest.raises(DataError, match="there is no linear_probe: fewer than two labels have rows in two groups"):
        _score(table)


def test_columns_of_shards_are_found_by_the_label_that_the_user_knows() -> None:
    table = plates()
    renamed = make_table(
        table.values, table.metadata.rename(columns={"Metadata_treatment": "Metadata_Label_treatment"})
    )
    assert _score(renamed).values == _score(table).values


def test_negatives_are_within_the_plate_and_named() -> None:
    assert _score(plates()).rules["negatives"] == "rows of the same place (by default the plate) with another label"
    assert _score(plates(), within=()).rules["negatives"] == "rows of all rows with another label"


def test_another_column_called_label_is_never_taken_for_the_one_that_was_asked_for() -> None:
    table = plates(effect=np.inf)
    noise = np.random.default_rng(0).integers(0, 2, len(table)).astype(str)
    both = make_table(table.values, table.metadata.assign(Metadata_label=noise, Metadata_Label_label=noise))
    assert _score(both).values["knn"] == 1
    with pytest.raises(DataError, match="lacks the label 'treatment'"):
        _score(make_table(table.values, both.metadata.drop(columns="Metadata_treatment")))

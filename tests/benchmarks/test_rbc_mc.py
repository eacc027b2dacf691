"""RBC-MC: the classifier against a general optimiser, laboratories apart, refusals."""

import numpy as np
import pytest

from morphem.benchmarks.base import take, with_values
from morphem.benchmarks.rbc_mc import CLASSES, RbcMc
from morphem.errors import ConfigError, DataError
from tests.benchmarks.protocols import changed, score_of, shuffled, with_column, with_pixel, without_column
from tests.references import chammi75_scores as plain


def _sides(table):
    sites = table.metadata["Metadata_Site_Name"].to_numpy()
    shapes = table.metadata["Metadata_Label"].to_numpy()
    kept = shapes != "Undecidable"
    return table.values[kept].astype(np.float64), sites[kept], shapes[kept]


@pytest.mark.parametrize("effect", [0.3, 0.7])
def test_both_accuracies_are_those_of_a_general_optimiser(effect: float) -> None:
    inputs = RbcMc.tiny(0, effect)
    values, sites, shapes = _sides(inputs.table)
    found = score_of(RbcMc, inputs).values
    for site in ("Swiss", "Canadian"):
        test = sites == site
        said = plain.multinomial_logistic(values[~test], shapes[~test].tolist(), values[test])
        assert found[site.lower()] == pytest.approx((said == shapes[test]).mean(), abs=1.01 / test.sum())
    assert found["overall"] == pytest.approx((found["swiss"] + found["canadian"]) / 2)


def test_published_overall_values_are_means_of_both() -> None:
    for row in RbcMc.published:
        mean = (row.scores["swiss"] + row.scores["canadian"]) / 2
        assert row.scores["overall"] == pytest.approx(mean, abs=6e-4), row.model


def test_perfect_features_give_one_and_shuffled_ones_chance() -> None:
    assert score_of(RbcMc, RbcMc.tiny(0, np.inf)).values["overall"] == 1.0
    values = [score_of(RbcMc, changed(RbcMc.tiny(0, 1.0), shuffled(seed))).values["overall"] for seed in range(6)]
    assert np.mean(values) == pytest.approx(1 / 7, abs=0.05)


def test_a_laboratory_never_learns_from_its_own_cells() -> None:
    """Features that tell shapes within a laboratory alone: nothing carries over."""
    inputs = RbcMc.tiny(0, 0.0)
    sites = inputs.table.metadata["Metadata_Site_Name"].to_numpy()
    shapes = inputs.table.metadata["Metadata_Label"].to_numpy()
    names = [*CLASSES, "Undecidable"]
    values = np.zeros((len(sites), 16))
    for i, (site, shape) in enumerate(zip(sites, shapes, strict=True)):
        values[i, 8 * (site == "Swiss") + names.index(shape)] = 5.0
    found = score_of(RbcMc, changed(inputs, lambda t: with_values(t, values + 0.01 * t.values))).values
    assert found["overall"] < 0.35


def test_undecidable_cells_have_no_influence() -> None:
    inputs = RbcMc.tiny(0, 0.7)
    decided = ~inputs.table.metadata["Metadata_Label"].eq("Undecidable").to_numpy()
    without = changed(inputs, lambda t: take(t, decided))
    assert score_of(RbcMc, without).values == score_of(RbcMc, inputs).values
    wild = changed(inputs, lambda t: with_values(t, np.where(decided[:, None], t.values, 1e4)))
    assert score_of(RbcMc, wild).values == score_of(RbcMc, inputs).values


def test_scaling_is_learnt_from_the_cells_to_learn_from() -> None:
    inputs = RbcMc.tiny(0, 0.7)
    benchmark = RbcMc(variant="standardised")
    swiss = inputs.table.metadata["Metadata_Site_Name"].eq("Swiss").to_numpy()
    before = score_of(RbcMc, inputs, benchmark)
    doubled = changed(inputs, lambda t: with_values(t, np.concatenate([t.values, np.where(swiss, 9e3, 0)[:, None]], 1)))
    after = score_of(RbcMc, doubled, benchmark)  # constant where Canadian cells are learnt from, so it says nothing
    assert after.values["swiss"] == before.values["swiss"]


def test_the_variants_differ_in_what_they_do_to_pixels() -> None:
    prepare = {name: RbcMc(variant=name).parts_in_use()[0].recipe.prepare for name in RbcMc.variants}
    assert prepare == {"published": "unresized", "resized": "own", "standardised": "unresized"}


def test_the_record_says_what_the_most_frequent_shape_gives() -> None:
    found = score_of(RbcMc, RbcMc.tiny(0, 1.0))
    assert found.details["swiss"]["largest_class"] == pytest.approx(1 / 7)
    assert found.details["swiss"]["confusion"].sum() == 140
    assert found.intervals["overall"].low <= found.values["overall"] <= found.intervals["overall"].high


def test_cells_of_a_class_of_their_own_are_noted() -> None:
    inputs = RbcMc.tiny(0, 1.0)
    shapes = inputs.table.metadata["Metadata_Label"].replace("Side", "Sideways")
    (note,) = score_of(RbcMc, changed(inputs, with_column(Metadata_Label=shapes))).notes
    assert "40 cells are of classes that the paper does not have (Sideways)" in note


def test_a_solver_that_stops_early_is_noted() -> None:
    notes = score_of(RbcMc, RbcMc.tiny(0, 1.0), RbcMc(max_iter=2)).notes
    assert len(notes) == 2
    assert "stopped at 2 iterations before it converged" in notes[0]


BAD = {
    "site": (with_column(Metadata_Site_Name="Swis"), "Metadata_Site_Name holds 'Swis'; it says Swiss or Canadian"),
    "one site": (with_column(Metadata_Site_Name="Swiss"), "cells of both laboratories, but all are Swiss"),
    "one class": (with_column(Metadata_Label="Side"), "rbc_mc needs two classes, but all 290 rows are 'Side'"),
    "undecided": (with_column(Metadata_Label="Undecidable"), "rbc_mc needs two classes, but there is no row"),
    "no label": (without_column("Metadata_Label"), "lacks the shape of the cell"),
    "infinite": (with_pixel(0, np.inf), "1 rows with NaN or infinite features"),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_that_do_not_allow_the_score_are_one_sentence(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(DataError, match=message) as told:
        score_of(RbcMc, changed(RbcMc.tiny(0, 1.0), change))
    assert "\n" not in str(told.value)


def test_a_number_of_iterations_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_iter=0 must be at least 1"):
        RbcMc(max_iter=0)

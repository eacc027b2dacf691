"""Leak probes: what else than biology features tell."""

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks.base import make_table, take
from morphem.benchmarks.leaks import held_by_design, nuisance_columns, probe_leaks
from morphem.features import FeatureTable
from tests.benchmarks.tables import plates


def _leak(table: FeatureTable, name: str, biology: str | None = "Metadata_treatment"):
    report = probe_leaks(table, biology=biology)
    return next(leak for leak in report.leaks if leak.nuisance == name), report


def test_a_plate_effect_in_the_controls_is_found_and_its_absence_too() -> None:
    found, _ = _leak(plates(plate_effect=1.0), "plate")
    assert found.score > 0.9
    assert found.readable
    assert found.chance == 0.25
    absent, _ = _leak(plates(plate_effect=0.0), "plate")
    assert absent.score < 0.5
    assert not absent.readable


def test_a_row_effect_is_found_on_plates_that_the_probe_did_not_see() -> None:
    found, _ = _leak(plates(row_effect=4.0, wells=48), "row")
    assert found.score > 0.9
    assert found.split == "plate"


def test_treatment_alone_leaves_the_probes_at_chance() -> None:
    report = probe_leaks(plates(effect=5.0, wells=48), biology="Metadata_treatment")
    assert not any(leak.readable for leak in report.leaks)
    assert not report.warnings


def test_a_leak_that_the_layout_ties_to_the_biology_gives_a_warning() -> None:
    table = plates(row_effect=4.0, wells=48)
    rows = table.metadata["Metadata_Well"].str[0]
    tied = table.metadata["Metadata_treatment"].mask(table.metadata["Metadata_treatment"].notna(), "drug-" + rows)
    layout = FeatureTable(table.values, table.metadata.assign(Metadata_treatment=tied), table.columns, table.dictionary)
    _, report = _leak(layout, "row")
    assert any("tell their row" in text and "part of the score could be row" in text for text in report.warnings)
    _, fair = _leak(table, "row")
    assert not fair.warnings


def test_a_label_that_is_the_plate_gives_a_warning_even_without_controls() -> None:
    table = plates()
    metadata = table.metadata.assign(
        Metadata_treatment="drug of " + table.metadata["Metadata_Plate"], Metadata_control_type="none"
    )
    report = probe_leaks(
        FeatureTable(table.values, metadata, table.columns, table.dictionary), biology="Metadata_treatment"
    )
    assert any("plate alone tells the treatment" in text for text in report.warnings)
    assert report.missing["row"] == "no row says that it is a control"


def test_cell_counts_are_read_from_features_that_hold_them() -> None:
    table = plates()
    counts = np.exp(np.random.default_rng(0).normal(5, 0.5, len(table)))
    values = table.values.copy()
    values[:, 0] = 3 * np.log(counts)
    metadata = table.metadata.assign(Metadata_Count_Cells=counts)
    found, _ = _leak(FeatureTable(values, metadata, table.columns, table.dictionary), "cell_count")
    assert found.score > 0.5
    assert found.readable
    shuffled = metadata.assign(Metadata_Count_Cells=np.random.default_rng(1).permutation(counts))
    absent, _ = _leak(FeatureTable(values, shuffled, table.columns, table.dictionary), "cell_count")
    assert absent.score < 0.15


def test_probes_do_not_depend_on_the_order_of_rows() -> None:
    table = plates(plate_effect=0.3)
    turned = take(table, np.random.default_rng(0).permutation(len(table)))
    first, second = (probe_leaks(item, biology="Metadata_treatment") for item in (table, turned))
    for mine, other in zip(first.leaks, second.leaks, strict=True):
        assert mine.score == pytest.approx(other.score)
        assert mine.held_by_design == pytest.approx(other.held_by_design)


def test_what_cannot_be_probed_is_said_with_its_reason() -> None:
    report = probe_leaks(take(plates(), np.arange(12)))
    assert report.missing["batch"] == "the table has no such column"
    assert report.missing["row"] == "the table has 4 control rows; 20 are needed"


def test_rows_and_columns_are_read_off_the_well() -> None:
    found = nuisance_columns(pd.DataFrame({"Metadata_Well": ["A01", "b-2", "AA12"]}))
    assert found["row"].tolist() == ["A", "B", "AA"]
    assert found["column"].tolist() == ["1", "2", "12"]
    assert "row" not in nuisance_columns(pd.DataFrame({"Metadata_Well": ["A01", "unknown"]}))


def test_the_share_held_by_design_is_one_for_a_copy_and_near_zero_for_a_random_layout() -> None:
    random = np.random.default_rng(0)
    label = pd.Series(random.integers(0, 10, 300).astype(str))
    assert held_by_design(label, "x" + label, 0) == pytest.approx(1)
    assert held_by_design(label, pd.Series(random.integers(0, 10, 300).astype(str)), 0) < 0.05
    halves = (label.astype(int) // 5).astype(str)
    assert held_by_design(label, halves, 0) == pytest.approx(np.log(2) / np.log(10), abs=0.03)


def test_many_controls_are_sampled_by_content_not_by_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("morphem.benchmarks.leaks._MAX_ROWS", 25)
    table = make_table(plates().values, plates().metadata)
    turned = take(table, np.random.default_rng(0).permutation(len(table)))
    first, second = (probe_leaks(item) for item in (table, turned))
    assert first.leaks[0].n_rows == 25
    assert first.leaks[0].score == second.leaks[0].score

"""JUMP-CP1: the published number, and the protocol against its words."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

import morphem
from morphem.benchmarks.jumpcp1 import JumpCP1
from morphem.benchmarks.nulls import Nulls
from morphem.cli import main
from tests.references import scores as plain

PROFILES = Path(morphem.__file__).parents[2] / "shared" / "data" / "jumpcp1-profiles"
needs_profiles = pytest.mark.skipif(not PROFILES.is_dir(), reason=f"the profiles of {PROFILES} are not here")


@needs_profiles
def test_the_documented_command_gives_the_published_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.json"
    features = os.path.relpath(PROFILES)
    assert main(["benchmark", "jumpcp1", "--features", features, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert record["scores"]["active_fraction"] == pytest.approx(250 / 306)
    assert record["scores"]["jump_cp1"] == pytest.approx(0.587109, abs=5e-5)
    assert 0.0385 <= record["scores"]["jump_cp2"] <= 0.0405
    assert record["counts"] | {
        "wells": 2688, "control_wells": 448, "features": 602, "compounds": 306, "active_compounds": 250, "targets": 758,
        "targets_with_two_active_compounds": 340,
    } == record["counts"]  # fmt: skip
    plate = next(leak for leak in record["leaks"]["table"]["probes"] if leak["nuisance"] == "plate")
    assert plate["score"] > 0.9  # the published profiles tell the plate of a DMSO well
    shown = capsys.readouterr().out
    assert "CellProfiler (paper)" in shown
    assert "negatives" in shown
    assert "p_value" in shown


@needs_profiles
@pytest.mark.slow
def test_the_variants_and_other_seeds_on_the_real_plates() -> None:
    from morphem.benchmarks.runner import score_features

    bright = score_features("jumpcp1", PROFILES, {"variant": "with_brightfield"}, leaks=False).score
    assert bright.values["active_fraction"] == pytest.approx(0.8203, abs=1e-4)
    assert bright.values["jump_cp1"] == pytest.approx(0.5973, abs=1e-4)
    assert bright.values["jump_cp2"] == pytest.approx(0.0447, abs=5e-4)
    sphered = score_features("jumpcp1", PROFILES, {"variant": "sphered"}, leaks=False).score
    assert sphered.values["active_fraction"] > 0.95
    assert sphered.counts["features"] == 602
    other = score_features("jumpcp1", PROFILES, {"seed": 3}, leaks=False).score
    assert other.values["jump_cp1"] == pytest.approx(0.587109, abs=5e-5)
    assert 0.0385 <= other.values["jump_cp2"] <= 0.0405


@pytest.mark.parametrize("effect", [0.2, 0.5])
def test_activity_is_that_of_the_protocols_words(effect: float) -> None:
    benchmark = JumpCP1.tiny_instance()
    inputs = benchmark.adapt(JumpCP1.tiny(0, effect))
    found = benchmark.score(inputs)
    metadata = inputs.table.metadata
    nulls = Nulls(benchmark.activity_null_size, benchmark.seed)
    maps, active, score = plain.jump_cp1(
        inputs.table.values,
        metadata["Metadata_compound"].tolist(),
        metadata["Metadata_Plate"].tolist(),
        metadata["Metadata_control_type"].eq("negcon").tolist(),
        nulls.draws,
    )
    assert {row["group"]: row["mean_average_precision"] for row in found.details["compounds"]} == pytest.approx(maps)
    assert {row["group"] for row in found.details["compounds"] if row["significant"]} == active
    assert found.values["jump_cp1"] == pytest.approx(score)


def test_consistency_counts_targets_that_do_not_appear_as_zero() -> None:
    benchmark = JumpCP1.tiny_instance()
    found = benchmark.score(benchmark.adapt(JumpCP1.tiny(0, np.inf)))
    hits = [row["mean_average_precision"] for row in found.details["targets"] if row["significant"]]
    assert found.counts["targets"] == 8  # five pairs and three families
    assert found.values["jump_cp2"] == pytest.approx(sum(hits) / 8)


def test_a_target_table_that_knows_more_compounds_does_not_change_the_denominator() -> None:
    import pandas as pd

    benchmark = JumpCP1.tiny_instance()
    inputs = benchmark.adapt(JumpCP1.tiny(0, 1.0))
    other = pd.DataFrame({"broad_sample": ["BRD-99"], "target_list": ["T98|T99"]})
    more = type(inputs)(inputs.tables, {"targets": pd.concat([inputs.side["targets"], other])})
    assert benchmark.score(more).values == benchmark.score(inputs).values


def test_sphering_whitens_the_controls_of_all_plates_together() -> None:
    benchmark = JumpCP1(variant="sphered", activity_null_size=2000, consistency_null_size=2000)
    table = benchmark.adapt(JumpCP1.tiny(0, 1.0)).table
    controls = table.values[table.metadata["Metadata_control_type"].eq("negcon").to_numpy()]
    np.testing.assert_allclose(np.cov(controls, rowvar=False), np.eye(16), atol=2e-3)


def test_features_that_are_sums_of_others_are_sphered_over_components_and_said() -> None:
    inputs = JumpCP1.tiny(0, 1.0)
    values = inputs.table.values
    dependent = np.hstack([values, values.sum(1, keepdims=True)])
    from morphem.benchmarks.base import with_values

    benchmark = JumpCP1(variant="sphered", activity_null_size=2000, consistency_null_size=2000)
    wide = type(inputs)({"table": with_values(inputs.table, dependent)}, inputs.side)
    adapted = benchmark.adapt(wide)
    assert adapted.table.values.shape[1] == 16
    found = benchmark.score(adapted)
    assert any("some features are sums of others" in note for note in found.notes)
    plain_scores = benchmark.score(benchmark.adapt(inputs)).values
    assert found.values["mean_map"] == pytest.approx(plain_scores["mean_map"], abs=0.05)

"""What a faithful run of MorphEm must give, beside the published rows of the classes."""

import json
from pathlib import Path

import numpy as np
import pytest

import morphem
from morphem import registry

FOLDER = Path(morphem.__file__).parents[1] / "benchmarks"
NAMES = ("chammi", "hpav23", "idr0017", "cellphie", "rbc_mc")


@pytest.mark.parametrize("name", NAMES)
def test_the_published_row_lies_in_the_range_that_a_faithful_run_must_reach(name: str) -> None:
    expected = json.loads((FOLDER / name / "expected.json").read_text())
    run = expected["faithful_run"]
    (row,) = [row for row in registry.get("benchmarks", name).published if "MorphEm)" in row.model]
    for score, bounds in run["scores"].items():
        assert bounds["low"] <= row.scores[score] <= bounds["high"], score
        assert bounds["low"] < bounds["value"] < bounds["high"]
    assert f"morphem benchmark {name} --model CaicedoLab/MorphEm" in expected["command_on_real_data"]
    assert f"--source {name} --clip none" in expected["command_on_real_data"]


@pytest.mark.parametrize("k", [50, 100])
def test_the_hits_of_idr0017_give_the_published_recall(k: int) -> None:
    run = json.loads((FOLDER / "idr0017" / "expected.json").read_text())["faithful_run"]
    (row,) = [row for row in registry.get("benchmarks", "idr0017").published if "MorphEm)" in row.model]
    mean = np.mean([run[f"hits_{k}"][line] / run["hits"][line] for line in run["hits"]])
    assert row.scores[f"recall_{k}"] == pytest.approx(mean, abs=5e-5)

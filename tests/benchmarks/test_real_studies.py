"""Real studies with labels: a linear probe, a kNN and, where there are replicates, an mAP with an untrained encoder."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from morphem.benchmarks.record import Record
from morphem.benchmarks.runner import score_model
from morphem.cli import main
from morphem.errors import DataError
from tests.tiny_fit import tiny_dino

pytestmark = pytest.mark.slow


def _score(real_data: Path, folder: Path, study: str, recipe: dict[str, Any], **settings: Any) -> Record:
    shards = folder / study
    assert main(["ingest", str(real_data / study), "--output", str(shards)]) == 0
    encoder = tiny_dino().exported_encoder()
    return score_model("generic", encoder, shards, settings, cache=folder / "cache", recipe=recipe)


def test_wells_with_and_without_spots(real_data: Path, tmp_path: Path) -> None:
    record = _score(real_data, tmp_path, "bbbc016-transfluor", {"tile_size_px": 128}, label="label")
    values = record.score.values
    assert {"linear_probe", "logistic_regression", "knn", "map", "retrieved_fraction"} <= set(values)
    assert record.score.counts == {"rows": 48, "labels": 3, "groups": 24, "labels_of_one_group": 0}
    assert max(values["linear_probe"], values["knn"]) > 0.4  # chance is a third
    assert record.score.details["knn"]["accuracy_per_label"].keys() == {"internalised", "diffuse", "borderline"}
    assert "Well" in record.score.rules["split"]


def test_blood_cells_are_grouped_by_the_image_that_they_are_in(real_data: Path, tmp_path: Path) -> None:
    recipe = {"unit": "cell", "tile_size_px": None, "crop_size_px": 64, "aggregate": None}
    record = _score(real_data, tmp_path, "bccd-blood", recipe, label="label", pair_limit=10**8)
    values = record.score.values
    assert record.score.rules["split"].startswith("5 folds over groups (Study and Key)")
    assert record.score.counts["groups"] <= 182
    assert values["linear_probe"] > 0.6  # red cells, white cells, platelets: chance is a third
    assert values["knn"] > 0.4
    assert np.isfinite(values["map"])


def test_slides_are_told_by_regions_of_other_wells(real_data: Path, tmp_path: Path) -> None:
    record = _score(
        real_data,
        tmp_path,
        "imc-mock",
        {"unit": "image", "tile_size_px": None},
        label="label",
        group=["Well"],
        within=[],
    )
    assert set(record.score.values) == {"linear_probe", "logistic_regression", "knn", "map", "retrieved_fraction"}
    assert any("plate alone tells the label" in text for text in record.warnings)  # the slide is the label here


def test_a_genotype_of_one_well_cannot_be_scored(real_data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no linear_probe: fewer than two labels have rows in two groups"):
        _score(real_data, tmp_path, "nf1-schwann", {"tile_size_px": 256}, label="label")

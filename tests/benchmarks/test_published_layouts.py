"""From images in the published layouts to scores: ingest, embed, score; by the command, in Python and in training."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from morphem import features
from morphem.backbones.vit import VisionTransformer
from morphem.benchmarks.base import FeatureRecipe, with_values
from morphem.benchmarks.extract import cached_features
from morphem.benchmarks.preparations import feature_differences
from morphem.benchmarks.runner import (
    build,
    of_study,
    part_places,
    score_features,
    score_model,
    score_tables,
    side_frames,
)
from morphem.callbacks.benchmarks import Benchmarks
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.cli import main
from morphem.encoder import Encoder
from morphem.errors import DataError
from morphem.pixel_steps import Chain, ZScore
from morphem.zoo import load
from tests.benchmarks.published_layouts import SIDES, WRITERS
from tests.tiny_fit import fit, tiny_dino

SETTINGS: dict[str, dict[str, Any]] = {"hpav23": {"seeds": (0,), "max_epochs": 30, "batch_size": 8}}
# score, the least that planted patterns give to an untrained encoder, the most that they give when rows are shuffled
BARS = {
    "chammi": ("chammi", 0.8, 0.55),  # three labels
    "hpav23": ("macro_ap", 0.5, 0.5),  # three places
    "idr0017": ("auroc", 0.9, 0.8),  # recall among 50 of 60 compounds says little
    "cellphie": ("auc", 0.9, 0.7),
    "rbc_mc": ("overall", 0.45, 0.3),  # seven shapes
}
NAMES = list(WRITERS)
TILES = {"tile": 100}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    torch.manual_seed(0)
    tiny_dino().exported_encoder().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sets as they are published, each in a folder of its name."""
    root = tmp_path_factory.mktemp("images")
    for name, write in WRITERS.items():
        (root / name).mkdir()
        write(root / name)
    return root


@pytest.fixture(scope="module")
def shards(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their shards, made by the documented command."""
    root = tmp_path_factory.mktemp("shards")
    for name in NAMES:
        words = ["ingest", str(images / name), "--clip", "none", "--workers", "1", "--no-report"]
        assert main([*words, "--output", str(root / name)]) == 0
        if name in SIDES:
            SIDES[name](root / name)
    return root


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def _words(name: str) -> list[str]:
    return [word for key, value in SETTINGS.get(name, {}).items() for word in ("--set", f"{key}={json.dumps(value)}")]


@pytest.mark.parametrize("name", NAMES)
def test_the_planted_effect_is_found_from_images_by_the_command_and_in_python(
    name: str, encoder: str, shards: Path, cache: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.json"
    words = ["benchmark", name, "--model", encoder, "--data", str(shards / name), "--cache", str(cache), *_words(name)]
    assert main([*words, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    score, found, null = BARS[name]
    assert record["scores"][score] >= found
    assert record["differs_from_published"] == [
        text for part in build(name).parts for text in part.recipe.differs
    ]  # nothing else than what no run can do
    shown = capsys.readouterr().out
    assert all(row["model"] in shown for row in record["published"] if set(row["scores"]) & set(record["scores"]))
    again = score_model(name, encoder, shards / name, SETTINGS.get(name), cache=cache)
    assert again.score.values == pytest.approx(record["scores"], abs=1e-9)
    assert _of_shuffled_rows(name, encoder, shards, cache)[score] < null


def _of_shuffled_rows(name: str, encoder: str, shards: Path, cache: Path) -> Mapping[str, float]:
    """Scores when features belong to other rows: the mean over three shuffles."""
    benchmark = build(name, SETTINGS.get(name), for_model=True)
    places = part_places(benchmark, shards / name)
    side = side_frames(benchmark, [shards / name])
    found = []
    for seed in range(3):
        tables = {}
        for part in benchmark.parts_in_use():
            recipe = of_study(part, places[part.name], shards / name, part.recipe)
            table = cached_features(load(encoder), places[part.name], recipe, cache=cache)
            tables[part.name] = with_values(table, np.random.default_rng(seed).permutation(table.values))
        found.append(score_tables(name, benchmark, tables, side, leaks=False).score.values)
    return {key: float(np.mean([values[key] for values in found])) for key in found[0]}


def test_all_five_run_together_while_training_goes_on(shards: Path, tmp_path: Path, cache: Path) -> None:
    places = {name: str(shards / name) for name in NAMES}
    callback = Benchmarks(places, settings={name: dict(value) for name, value in SETTINGS.items()})
    method = tiny_dino()
    fit(method, callback, folder=tmp_path)
    for name in NAMES:
        alone = score_model(name, method.exported_encoder(), shards / name, SETTINGS.get(name), cache=cache)
        for score, value in alone.score.values.items():
            assert callback.latest[f"benchmark/{name}/{score}"] == pytest.approx(value, abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_what_the_protocol_counts(name: str, encoder: str, shards: Path, cache: Path) -> None:
    record = score_model(name, encoder, shards / name, SETTINGS.get(name), cache=cache, leaks=False)
    counts = dict(record.score.counts)
    expected = {
        "chammi": {"WTC1_queries": 9, "WTC2_queries": 9, "HPA3_queries": 9, "CP4_queries": 9},
        "hpav23": {"train_cells": 72, "valid_cells": 24, "test_cells": 24, "cells_of_no_split": 0},
        "idr0017": {"lines": 2, "images": 140},
        "cellphie": {"genes": 2, "genes_skipped": 0, "cells": 65},
        "rbc_mc": {"cells": 112, "undecidable_left_out": 16},
    }[name]
    assert {key: counts[key] for key in expected} == expected
    if name == "hpav23":  # a cell without any place is negative
        assert counts["challenge_cells_without_category"] == 0
    if name == "idr0017":  # an image without boxes gives no row
        assert all(line["compounds"] == 60 for line in record.score.details["lines"].values())


def test_variants_of_preparation_give_other_features(encoder: str, shards: Path, cache: Path) -> None:
    for name, variants in (("idr0017", ("standardised", "unstandardised")), ("rbc_mc", ("published", "resized"))):
        hashes = set()
        for variant in variants:
            record = score_model(name, encoder, shards / name, {"variant": variant}, cache=cache, leaks=False)
            hashes.add(record.features["parts"]["table"]["sha256"])
            assert record.differs == ()
        assert len(hashes) == 2


@pytest.mark.slow
def test_shards_that_were_stretched_put_a_mark_on_the_score(
    encoder: str, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["ingest", str(images / "rbc_mc"), "--output", str(tmp_path / "shards"), "--workers", "1", "--no-report"]
    assert main(words) == 0
    record = score_model("rbc_mc", encoder, tmp_path / "shards", cache=tmp_path / "cache", leaks=False)
    (said,) = record.differs
    assert "128 planes were stretched when they were ingested" in said
    assert "--clip none" in said


@pytest.mark.parametrize(("name", "unit"), [("rbc_mc", "image"), ("chammi", "image"), ("idr0017", "tile")])
def test_a_table_that_embed_made_says_what_is_not_as_the_protocol_has_it(
    name: str, unit: str, encoder: str, shards: Path, cache: Path, tmp_path: Path
) -> None:
    """`morphem embed` prepares pixels as the encoder does; a score of its table must not pass for a published one."""
    part = build(name).parts[-1]
    table = cached_features(load(encoder), str(shards / name), FeatureRecipe(unit=unit, tile_size_px=TILES.get(unit),
        query="geometry.channels == 5" if name == "chammi" else None), cache=cache)  # fmt: skip
    said = feature_differences(build(name), {part.name: table})
    assert any("pixels were prepared as the encoder does it" in text for text in said) == (name != "idr0017")
    assert any("features have unit='tile' instead of the protocol's 'cell'" in text for text in said) == (
        unit == "tile"
    )
    right = cached_features(
        load(encoder),
        str(shards / name),
        replace(part.recipe, query=None if name != "chammi" else "geometry.channels == 5"),
        cache=cache,
    )
    assert feature_differences(build(name), {part.name: right}) == ()
    if name == "rbc_mc":
        table.write(tmp_path / "t.parquet")
        record = score_features(name, tmp_path / "t.parquet", leaks=False)
        assert "not as the protocol (unresized" in record.differs[0]


def test_what_surrounds_a_neuron_has_no_influence(encoder: str, images: Path, tmp_path: Path, cache: Path) -> None:
    frame = pd.read_pickle(images / "cellphie" / "CELLPHIE.pkl")
    tables = []
    for number in range(2):
        folder = tmp_path / str(number)
        folder.mkdir()
        chosen = frame.iloc[:3].copy()
        if number:
            chosen["image"] = [
                np.where(mask > 0, image, 9).astype(np.uint8)
                for image, mask in zip(chosen["image"], chosen["soma_mask"], strict=True)
            ]
        chosen.to_pickle(folder / "CELLPHIE.pkl")
        words = ["ingest", str(folder), "--clip", "none", "--workers", "1", "--no-report"]
        assert main([*words, "--output", str(folder / "shards")]) == 0
        part = build("cellphie").parts[0]
        tables.append(cached_features(load(encoder), str(folder / "shards"), part.recipe, cache=tmp_path / "cache"))
    assert isinstance(tables[0], features.FeatureTable)
    assert len(tables[0].columns) == 14 * 16
    assert np.array_equal(tables[0].values, tables[1].values)


@pytest.mark.slow
def test_one_data_set_of_chammi_is_scored_alone_and_the_rest_said_to_be_missing(
    encoder: str, images: Path, cache: Path, tmp_path: Path
) -> None:
    words = ["ingest", str(images / "chammi"), "--set", "dataset=CP", "--clip", "none", "--workers", "1"]
    assert main([*words, "--no-report", "--output", str(tmp_path / "CP")]) == 0
    score = score_model("chammi", encoder, tmp_path, cache=cache, leaks=False).score
    assert {"CP1", "CP2", "CP3", "CP4"} == set(score.values)
    assert score.missing["chammi"].startswith("it needs WTC2")
    assert score.missing["HPA3"] == "there is no table of HPA"


def test_an_encoder_of_16_bit_sees_8_bit_cells_when_told_how(shards: Path, cache: Path) -> None:
    encoder = Encoder(BagOfChannels(VisionTransformer.tiny()), Chain([ZScore(1e-5)], "uint16"), 16)
    with pytest.raises(DataError, match="8-bit levels, and the encoder was made for 16-bit intensities"):
        score_model("rbc_mc", encoder, shards / "rbc_mc", cache=cache)
    record = score_model("rbc_mc", encoder, shards / "rbc_mc", cache=cache, recipe={"pixels": "stretched"}, leaks=False)
    assert "pixels='stretched' instead of the protocol's None" in record.differs
    assert any("keeps its own normaliser (Chain)" in text for text in record.differs)
    assert 0 <= record.score.values["swiss"] <= 1


def test_missing_shards_are_told_with_the_command_that_makes_them(encoder: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"morphem ingest IMAGES --source rbc_mc --clip none --output "):
        score_model("rbc_mc", encoder, tmp_path)

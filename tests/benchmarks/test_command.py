"""`morphem benchmark`: every benchmark on its test layout, from tables and from an encoder; screens; wrong options."""

import json
from pathlib import Path

import numpy as np
import pytest

from morphem import registry
from morphem.benchmarks import extract
from morphem.benchmarks.base import Benchmark
from morphem.benchmarks.runner import score_features, score_model
from morphem.cli import main
from morphem.testing.benchmark_data import tiny_recipe, tiny_settings, write_tiny_shards, write_tiny_tables
from tests.benchmarks.names import NAMES
from tests.benchmarks.tables import plates
from tests.tiny_fit import tiny_dino


def _options(settings: dict[str, object], option: str) -> list[str]:
    return [word for key, value in settings.items() for word in (option, f"{key}={json.dumps(value)}")]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("encoder")
    tiny_dino().exported_encoder().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("table") / "wells.parquet"
    plates().write(path)
    return path


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_scores_its_layout_from_a_table_as_python_does(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls: type[Benchmark] = registry.get("benchmarks", name)
    path = write_tiny_tables(cls, cls.tiny(0, 1.0), tmp_path / "tables")
    output = tmp_path / "out.json"
    words = ["benchmark", name, "--features", str(path), "--output", str(output)]
    assert main([*words, *_options(tiny_settings(cls), "--set")]) == 0
    record = json.loads(output.read_text())
    headline = record["scores"][record["headline"]]
    assert headline == pytest.approx(score_features(name, path, tiny_settings(cls)).score.values[record["headline"]])
    assert headline <= cls.tiny_finds if record["headline"] in cls.lower_is_better else headline >= cls.tiny_finds
    assert record["settings"]["seed"] == 0
    assert record["protocol_version"] >= 1
    assert record["rules"]
    assert all(len(part["sha256"]) == 64 for part in record["features"]["parts"].values())
    assert len(record["code"]["protocol"]) == 64
    assert record["code"]["morphem"]
    assert "leaks" in record
    shown = capsys.readouterr().out
    assert all(row.model in shown for row in cls.published if set(row.scores) & set(record["scores"]))
    assert max(map(len, shown.splitlines())) <= 130


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_scores_an_encoder_on_shards_of_its_layout(
    name: str, encoder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls: type[Benchmark] = registry.get("benchmarks", name)
    shards = write_tiny_shards(cls, cls.tiny(0, 1.0), tmp_path / "shards")
    output = tmp_path / "out.json"
    words = ["benchmark", name, "--model", encoder, "--data", str(shards), "--cache", str(tmp_path / "cache")]
    words += _options(tiny_settings(cls), "--set") + _options(tiny_recipe(cls), "--recipe")
    assert main([*words, "--output", str(output)]) == 0
    record = json.loads(output.read_text())
    assert np.isfinite(record["scores"][record["headline"]])
    assert record["features"]["model"] == encoder
    part = next(iter(record["features"]["parts"].values()))
    assert part["provenance"]["weights_fingerprint"]
    assert part["provenance"]["data"]["content_hash"]
    assert bool(record["differs_from_published"]) >= bool(tiny_recipe(cls))
    assert bool(cls.model_variant is None) or record["variant"] == cls.model_variant


def test_features_are_made_once(encoder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cls = registry.get("benchmarks", "generic")
    shards = write_tiny_shards(cls, cls.tiny(0, 1.0), tmp_path / "shards")
    recipe = tiny_recipe(cls)
    first = score_model("generic", encoder, shards, cache=tmp_path / "cache", recipe=recipe)
    calls: list[str] = []
    monkeypatch.setattr(extract, "_embed", lambda *args: calls.append("embedded"))
    again = score_model("generic", encoder, shards, {"k": 3}, cache=tmp_path / "cache", recipe=recipe)
    assert not calls
    assert again.score.values["linear_probe"] == first.score.values["linear_probe"]
    with pytest.raises(Exception, match=r"damaged|readable"):  # other weights are embedded anew, here by nobody
        score_model(
            "generic", tiny_dino(drop_path_rate=0.0).exported_encoder(), shards, cache=tmp_path / "cache", recipe=recipe
        )
    assert calls == ["embedded"]


def test_all_runs_what_has_data_and_says_what_has_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("jumpcp1", "generic"):
        cls = registry.get("benchmarks", name)
        write_tiny_tables(cls, cls.tiny(0, 1.0), tmp_path / "features" / name)
    output = tmp_path / "all.json"
    assert main(["benchmark", "all", "--features", str(tmp_path / "features"), "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert set(result["benchmarks"]) == {"jumpcp1", "generic"}
    assert "rbc_mc" in result["skipped"]
    assert "2 benchmarks scored, 0 failed" in capsys.readouterr().out


def test_all_goes_on_after_a_failure_and_exits_with_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cls = registry.get("benchmarks", "generic")
    write_tiny_tables(cls, cls.tiny(0, 1.0), tmp_path / "generic")
    write_tiny_tables(cls, cls.tiny(0, 1.0), tmp_path / "jumpcp1")
    assert main(["benchmark", "all", "--features", str(tmp_path)]) == 1
    shown = capsys.readouterr()
    assert "jumpcp1: FAILED: the table lacks" in shown.err
    assert "1 benchmarks scored, 1 failed" in shown.out


def test_the_list_names_every_benchmark(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", "--list"]) == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in registry.names("benchmarks"))


@pytest.mark.parametrize("name", registry.names("benchmarks"))
def test_a_name_alone_is_described(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["benchmark", name]) == 0
    shown = capsys.readouterr().out
    for heading in ("What it measures", "How to read it", "Scores", "Data", "Settings"):
        assert heading in shown


WRONG = {
    "both": (["generic", "--features", "{table}", "--model", "x"], "give one of the two"),
    "half": (["generic", "--model", "x"], "--model MODEL together with --data SHARDS"),
    "unknown": (["generc", "--features", "{table}"], "did you mean 'generic'"),
    "no label": (["generic", "--features", "{table}"], "lacks the label 'label'.*--column label=NAME"),
    "bad set": (["generic", "--features", "{table}", "--set", "label"], "--set takes KEY=VALUE, not 'label'"),
    "twice": (["generic", "--features", "{table}", "--set", "k=1", "--set", "k=2"], "--set k is given twice"),
    "seed twice": (["generic", "--features", "{table}", "--seed", "1", "--set", "seed=2"], "seed is given twice"),
    "no effect": (["generic", "--features", "{table}", "--query", "x"], "--query has no effect with --features"),
    "type": (["generic", "--features", "{table}", "--set", "k=many"], "k='many'|k: .*many|wrong type"),
    "nothing": (["all", "--features", "{folder}/none"], "no benchmark has data in"),
    "missing": (["generic", "--features", "{folder}/none.parquet"], "there is no table or folder"),
    "no shards": (["rbc_mc", "--model", "{folder}", "--data", "{folder}"], "holds no config.json"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_options_are_one_sentence(
    name: str, table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words, message = WRONG[name]
    filled = [word.format(table=table, folder=tmp_path) for word in words]
    assert main(["benchmark", *filled]) == 1
    shown = capsys.readouterr().err
    assert shown.startswith("morphem: error:")
    assert shown.count("\n") == 1
    import re

    assert re.search(message, shown), shown


def test_a_table_with_other_names_is_scored_when_they_are_given(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["benchmark", "generic", "--features", str(table), "--column", "label=treatment", "--set", "null_size=500"]
    assert main(words) == 0
    assert "linear_probe" in capsys.readouterr().out


def test_metadata_can_be_joined(table: Path, tmp_path: Path) -> None:
    frame = plates().metadata[["Metadata_Plate", "Metadata_Well", "Metadata_treatment"]]
    frame.rename(columns={"Metadata_treatment": "drug"}).to_csv(tmp_path / "map.csv", index=False)
    words = ["benchmark", "generic", "--features", str(table), "--metadata", str(tmp_path / "map.csv")]
    assert main([*words, "--set", "label=drug", "--set", "null_size=500"]) == 0

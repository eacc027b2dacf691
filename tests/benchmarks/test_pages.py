"""Docs and expected numbers say what the code does."""

import json
import shlex
from pathlib import Path

import pytest

import morphem
from morphem import registry
from morphem.benchmarks.pages import MARK, page
from morphem.cli import main

ROOT = Path(morphem.__file__).parents[1]
SHARED = ROOT.parent / "shared"
EXPECTED = sorted((ROOT / "benchmarks").glob("*/expected.json"))


@pytest.mark.parametrize("name", registry.names("benchmarks"))
def test_every_benchmark_has_a_page_that_says_what_its_class_says(name: str) -> None:
    path = ROOT / "docs" / "benchmarks" / f"{name}.md"
    assert path.is_file(), "write it: python -m morphem.benchmarks.pages docs/benchmarks"
    text = path.read_text()
    if MARK in text:
        assert text == page(name), "write it again: python -m morphem.benchmarks.pages docs/benchmarks"
    else:
        assert registry.get("benchmarks", name).title in text


@pytest.mark.parametrize("path", EXPECTED, ids=lambda path: path.parent.name)
def test_expected_numbers_belong_to_a_benchmark_and_lie_in_their_range(path: Path) -> None:
    expected = json.loads(path.read_text())
    scores = expected.get("scores", {})
    name = expected.get("benchmark", path.parent.name)
    assert name in registry.names("benchmarks")
    known = registry.get("benchmarks", name).score_names
    for score, bounds in scores.items():
        assert score in known
        if isinstance(bounds, dict):
            assert bounds["low"] <= bounds["value"] <= bounds["high"]


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason=f"the data of {SHARED} are not here")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["generic", "jumpcp1"])
def test_the_command_beside_the_expected_numbers_gives_them(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = json.loads((ROOT / "benchmarks" / name / "expected.json").read_text())
    monkeypatch.chdir(ROOT)
    words = shlex.split(expected["command"])
    words[words.index("--output") + 1] = str(tmp_path / "out.json")
    assert main(words[1:]) == 0
    found = json.loads((tmp_path / "out.json").read_text())["scores"]
    for score, bounds in expected["scores"].items():
        assert bounds["low"] <= found[score] <= bounds["high"]

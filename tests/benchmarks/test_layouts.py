"""The scores in `benchmarks/*/expected.json` of benchmarks whose data cannot be here come out of their command."""

import importlib.util
import json
from pathlib import Path

import pytest

import morphem
from morphem import registry
from tests.benchmarks.names import NAMES

ROOT = Path(morphem.__file__).parents[1]
_SPEC = importlib.util.spec_from_file_location("layouts", ROOT / "benchmarks" / "layouts.py")
assert _SPEC is not None
assert _SPEC.loader is not None
layouts = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(layouts)
OURS = {
    path.parent.name
    for path in (ROOT / "benchmarks").glob("*/expected.json")
    if json.loads(path.read_text())["command"].startswith("python benchmarks/layouts.py")
}


def test_every_protocol_without_data_here_has_its_numbers() -> None:
    wanted = {"batch_biology", "bioactivity", "campfire", "cell_health", "data_similarity", "kim", "unidino", "z_prime"}
    assert wanted <= OURS


@pytest.mark.parametrize("name", NAMES)
def test_the_layout_gives_the_expected_numbers(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if name not in OURS:
        pytest.skip("its numbers are those of another command")
    assert layouts.differences(name, layouts.scores_of(name, tmp_path)) == []
    assert registry.get("benchmarks", name).title in capsys.readouterr().out


def test_a_number_out_of_its_range_is_told() -> None:
    scores = {key: bounds["value"] for key, bounds in layouts.expected("kim")["scores"].items()}
    assert layouts.differences("kim", scores) == []
    assert layouts.differences("kim", {**scores, "nsb": 0.0})[0].startswith("kim: nsb = 0.0000, expected")
    del scores["nss"]
    assert layouts.differences("kim", scores) == ["kim: nss is not given"]

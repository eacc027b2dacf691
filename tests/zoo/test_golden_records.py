"""Every record of ../shared/golden: its file is recognised, and every case gives what the authors' own code gave."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from morphem.zoo import catalogue, verify
from morphem.zoo.base import Checkpoint
from morphem.zoo.golden import read_golden
from tests.conftest import SHARED

SIDE_FILES = (".keys.json", ".config.json", ".channel_map.json")
FOLDER = SHARED / "golden"
NAMES = sorted(path.stem for path in FOLDER.glob("*.json") if not path.name.endswith(SIDE_FILES)) or ["none"]


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_record_is_reproduced(name: str, golden: Path) -> None:
    report = verify.verify(golden / f"{name}.json")
    wrong = [line for line in verify.lines(report, name) if line.endswith("WRONG")]
    assert report.ok, "\n".join(wrong)
    unexplained = [f"{left.case}.{left.output}" for left in report.omissions if left.reason == verify.NO_REASON]
    assert not unexplained, f"{name}: neither compared nor explained by the family: {', '.join(unexplained)}"


@pytest.mark.parametrize("name", NAMES)
def test_the_files_of_a_golden_record_are_recognised_by_their_family_alone(name: str, golden: Path) -> None:
    record = read_golden(golden / f"{name}.json")
    family, _ = verify.family_of(record)
    heads = [path for path in record.checkpoints() if "classifier" in path.name]  # of SubCell; no encoders
    for path in record.checkpoints():
        if path not in heads:
            assert catalogue.recognise(Checkpoint.read(path))[0] == family


def test_every_record_of_the_folder_is_tested(golden: Path) -> None:
    with_cases = {
        path.stem for path in golden.glob("*.json") if "cases" in (json.loads(path.read_text()) or {}) and path.stem
    }
    assert with_cases == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_golden_record_under_another_name_is_told_by_its_checkpoint(name: str, golden: Path) -> None:
    record = read_golden(golden / f"{name}.json")
    renamed = replace(record, record={**record.record, "fixture": "another"})
    (first, known), (second, told) = verify.family_of(record), verify.family_of(renamed)
    assert (first, vars(known)) == (second, vars(told))

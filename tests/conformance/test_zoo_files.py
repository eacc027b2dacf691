"""Every family keeps the contract of pretrained encoders on the golden files of its authors' code."""

from pathlib import Path

import pytest

from morphem.testing.files import check_file
from morphem.zoo import catalogue, verify
from morphem.zoo.base import Checkpoint, Computed, Pretrained
from morphem.zoo.golden import read_golden
from tests.zoo.test_golden_records import NAMES

# Families without a file of their authors' code: what is checked in its place.
WITHOUT_GOLDEN = {
    "controls": "computed, not loaded: tests/zoo/test_controls.py",
    "public_code": "checkpoints in each library's layout: tests/zoo/test_public_code.py",
}


def golden_family(folder: Path, name: str) -> tuple[str, Pretrained, list[Path]]:
    record = read_golden(folder / f"{name}.json")
    family_name, family = verify.family_of(record)
    files = [path for path in record.checkpoints() if family.recognises(Checkpoint.read(path))]
    return family_name, family, files


@pytest.mark.parametrize("name", NAMES)
def test_a_family_keeps_the_contract_on_its_golden_files(name: str, golden: Path) -> None:
    _, family, files = golden_family(golden, name)
    for path in files:
        check_file(family, Checkpoint.read(path))


def test_every_family_has_a_golden_file_or_says_what_stands_in_for_it(golden: Path) -> None:
    proven = {golden_family(golden, name)[0] for name in NAMES}
    assert set(catalogue.families()) - proven == set(WITHOUT_GOLDEN)


@pytest.mark.parametrize("name", ["chadavit_hub", "chadavit_lightning"])
def test_slots_that_are_filled_by_name_keep_the_contract_too(name: str, golden: Path) -> None:
    _, family, files = golden_family(golden, name)
    by_name = type(family)(n_heads=family.n_heads)
    encoder = check_file(by_name, Checkpoint.read(files[0]))
    assert encoder.channels.fill == "by_name"


def test_the_names_of_all_records_are_unique_and_found() -> None:
    entries = catalogue.entries()  # refuses a name that two families use
    assert len(entries) > 30
    assert all(catalogue.find(name) is entry or catalogue.find(name) == entry for name, entry in entries.items())


@pytest.mark.parametrize("name", list(catalogue.families()))
def test_the_facts_of_every_record_build_its_family(name: str) -> None:
    for entry in catalogue.entries().values():
        if entry.family == name:
            family = catalogue.build(name, entry.cls, entry.record.facts)
            assert isinstance(family, entry.cls)
            if not isinstance(entry.record.location, Computed):
                assert entry.record.source.startswith("https://"), entry.record.name

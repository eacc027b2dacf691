import errno
import re
from pathlib import Path

import pytest

from morphem.data import layout
from morphem.errors import DataError

HOSTILE = [
    "0.75NA_A01",
    "0.75NA_A02",
    "A01",
    "a01",
    "a 01",
    "α",
    "β",
    "µ-tube",
    "..",
    "x" * 300,
    "x" * 301,
    "a/b",
    "c\nd",
    "-",
    "\udc80",
]


def test_keys_of_hostile_names_are_distinct_and_keep_the_grammar() -> None:
    taken: set[str] = set()
    for name in HOSTILE:
        taken.add(layout.sample_key("study", name, taken))
    assert len(taken) == len(HOSTILE)
    for key in taken:
        assert re.fullmatch(r"study--[a-z0-9_]+(-[a-z0-9_]+)*", key), key
        assert len(key) + len(".cells.npy") <= 100


def test_a_plain_name_keeps_its_spelling() -> None:
    assert layout.sample_key("study", "plate1_A01-f2", set()) == "study--plate1_a01-f2"


def test_a_name_that_looks_like_anothers_replacement_still_gets_its_own_key() -> None:
    first = layout.sample_key("s", "α", set())
    second = layout.sample_key("s", first.removeprefix("s--"), {first})
    third = layout.sample_key("s", "α", {first, second})
    assert len({first, second, third}) == 3


def test_keys_of_two_studies_never_meet() -> None:
    assert layout.sample_key(layout.file_prefix("a"), "b-c", set()) != layout.sample_key(
        layout.file_prefix("a-b"), "c", set()
    )
    assert layout.sample_key(layout.file_prefix("a"), "-b--c", set()) != layout.sample_key(
        layout.file_prefix("a--b"), "c", set()
    )


def test_a_study_without_letters_is_refused() -> None:
    with pytest.raises(DataError, match="no letter"):
        layout.file_prefix("???")


def test_shard_files_are_numbered_with_six_digits() -> None:
    assert layout.shard_name("s", 12) == "s-000012.tar"


@pytest.mark.parametrize(("code", "why"), [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "Permission denied")])
def test_a_file_that_cannot_be_written_is_named_with_the_reason(code: int, why: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"x.tar' could not be written: .*{why}"), layout.writing(tmp_path / "x.tar"):
        raise OSError(code, "Permission denied")


def test_an_atomic_write_that_fails_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "manifest.json"
    layout.write_atomically(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout.os, "fsync", full)
    with pytest.raises(DataError, match="disk is full"):
        layout.write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]

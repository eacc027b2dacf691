from pathlib import Path

import pytest

from morphem.errors import DataError
from morphem.ingest.parts import REPORT, make_part, read_report, split
from morphem.ingest.prepare import Preparation
from tests.ingest.studies import LOG, NamedStudy, files_of


def test_parts_hold_all_images_in_order_with_keys_of_their_own() -> None:
    parts = split(["A b", "a-b", "c", "d", "e"], "study", 2)
    assert [part.image_ids for part in parts] == [("A b", "a-b"), ("c", "d"), ("e",)]
    keys = [key for part in parts for key in part.keys]
    assert keys[0] == "study--a-b"
    assert len(set(keys)) == 5


def test_two_images_of_one_name_are_refused() -> None:
    with pytest.raises(DataError, match="2 images named 'b'"):
        split(["a", "b", "b"], "study", 2)


def test_a_part_made_again_is_the_same_and_a_finished_one_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, (part, *_) = NamedStudy(bad=(1,)), split(NamedStudy().image_ids(), "study", 4)
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        make_part(tmp_path / name, part, source, Preparation())
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    make_part(tmp_path / "one", part, source, Preparation())
    assert not (tmp_path / "log").exists()


def test_the_same_part_made_by_two_processes_at_a_time_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, (part, *_) = NamedStudy(), split(NamedStudy().image_ids(), "study", 4)
    load = NamedStudy.load

    def overtaken(self: NamedStudy, image_id: str) -> object:
        monkeypatch.setattr(NamedStudy, "load", load)
        make_part(tmp_path, part, source, Preparation())  # the other process is faster
        return load(self, image_id)

    monkeypatch.setattr(NamedStudy, "load", overtaken)
    make_part(tmp_path, part, source, Preparation())
    assert [path.name for path in tmp_path.iterdir()] == ["000000"]


def test_a_part_without_a_good_image_has_a_report_and_no_samples(tmp_path: Path) -> None:
    (part,) = split(["image 0", "image 1"], "study", 2)
    make_part(tmp_path, part, NamedStudy(bad=(0, 1)), Preparation())
    report = read_report(tmp_path, part)
    assert [name for name, _ in report.failures] == ["image 0", "image 1"]
    assert report.n_bytes == 0
    assert list(files_of(tmp_path)) == [f"000000/{REPORT}"]


def test_a_damaged_report_says_what_to_delete(tmp_path: Path) -> None:
    (part,) = split(["image 0"], "study", 1)
    make_part(tmp_path, part, NamedStudy(), Preparation())
    (tmp_path / "000000" / REPORT).write_text("{")
    with pytest.raises(DataError, match=r"delete the folder '.*000000' and run the same command again"):
        read_report(tmp_path, part)

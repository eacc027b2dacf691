import json
from pathlib import Path

import pytest

from morphem.data.shards import ShardSet, ShardWriter, finish_set
from morphem.errors import DataError
from tests.data.records import make_image, write_set


def test_the_manifest_counts_and_hashes_everything(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image(str(i), seed=i, labels={"dose": "1"}) for i in range(3)], max_images=2)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["format_version"] == 1
    assert manifest["software"]["morphem"]
    assert manifest["studies"] == {
        "study": {"images": 3, "planes": 6, "cells": 6, "labels": ["dose"], "cell_labels": []}
    }
    assert [(shard["name"], shard["images"], shard["planes"], shard["cells"]) for shard in manifest["shards"]] == [
        ("study-000000.tar", 2, 4, 4),
        ("study-000001.tar", 1, 2, 2),
    ]
    assert set(manifest["tables"]) == {"metadata.parquet", "cells.parquet"}
    for entry in [*manifest["shards"], *manifest["tables"].values()]:
        assert len(entry["sha256"]) == 64


def test_a_study_added_later_joins_the_table_after_the_others(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image("z", study="b", labels={"dose": "1"})], "b")
    write_set(tmp_path, [make_image("y", study="a", cells=None, labels={"line": "L"})], "a")
    shards = ShardSet(tmp_path)
    shards.verify()
    table = shards.table(["experiment.study", "dose", "line"]).to_pylist()
    assert table[::2] == [
        {"experiment.study": "b", "dose": "1", "line": None},
        {"experiment.study": "a", "dose": None, "line": "L"},
    ]
    assert shards.labels == ("dose", "line")
    cells = shards.cells()
    assert cells is not None
    assert cells.num_rows == 2


def test_replacing_a_study_takes_its_rows_and_cells_out_of_the_tables(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image("x", study="a")], "a")
    write_set(tmp_path, [make_image("x", study="b")], "b")
    write_set(tmp_path, [make_image("y", study="a", cells=None, seed=3)], "a", overwrite=True)
    shards = ShardSet(tmp_path)
    shards.verify()
    assert shards.table(["experiment.study"]).column(0).to_pylist() == ["b", "b", "a", "a"]
    cells = shards.cells()
    assert cells is not None
    assert cells["key"].to_pylist() == ["b--x", "b--x"]


def test_several_studies_are_finished_together(tmp_path: Path) -> None:
    for study in ("one", "two"):
        with ShardWriter(tmp_path, study) as writer:
            writer.add(make_image(study=study))
    finish_set(tmp_path)
    assert ShardSet(tmp_path).studies == ("one", "two")


def test_a_study_that_was_not_written_to_its_end_stays_out(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image(study="one")], "one")
    unfinished = ShardWriter(tmp_path, "two")
    unfinished.__enter__()
    unfinished.add(make_image(study="two"))
    finish_set(tmp_path)
    assert ShardSet(tmp_path).studies == ("one",)


def test_finishing_an_empty_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no written study"):
        finish_set(tmp_path)


def test_finishing_twice_changes_nothing(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image()])
    before = (tmp_path / "manifest.json").read_bytes()
    finish_set(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before

import errno
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import webdataset

from morphem.data import layout, png, writer
from morphem.data.shards import ShardSet, ShardWriter, finish_set
from morphem.errors import DataError
from tests.data.records import make_image, write_set

HOSTILE = ["0.75NA_A01", "0.75NA_A02", "A01.png", "a01.PNG", "β cell", "γ cell", "well/field", "x" * 200]


def read_with_webdataset(path: Path) -> dict[str, dict[str, bytes]]:
    samples = webdataset.WebDataset(str(path), shardshuffle=False)
    return {s["__key__"]: {name: data for name, data in s.items() if not name.startswith("__")} for s in samples}


def read_with_tarfile(path: Path) -> dict[str, dict[str, bytes]]:
    samples: dict[str, dict[str, bytes]] = {}
    with tarfile.open(path) as tar:
        for member in tar:
            key, _, name = member.name.partition(".")
            file = tar.extractfile(member)
            assert file is not None
            samples.setdefault(key, {})[name] = file.read()
    return samples


def test_hostile_names_read_back_alike_with_webdataset_tarfile_and_morphem(tmp_path: Path) -> None:
    images = [make_image(name, seed=i) for i, name in enumerate(HOSTILE)]
    keys = write_set(tmp_path, images)
    path = tmp_path / "study-000000.tar"
    samples = read_with_tarfile(path)
    assert list(samples) == keys
    assert read_with_webdataset(path) == samples
    for key, image in zip(keys, images, strict=True):
        assert list(samples[key]) == ["c00.png", "c01.png", "json", "cells.npy"]
        assert json.loads(samples[key]["json"])["image_id"] == image.image_id
        for i, plane in enumerate(image.planes):
            np.testing.assert_array_equal(png.decode(samples[key][f"c{i:02d}.png"]), plane)
    shards = ShardSet(tmp_path)
    reader = shards.reader()
    for row in shards.table().to_pylist():
        data = reader.read(row["shard"], row["plane_offset"], row["plane_nbytes"])
        assert data == samples[row["key"]][f"c{row['imaging.channel'] - 1:02d}.png"]


def test_the_json_of_a_sample_tells_what_a_reader_needs(tmp_path: Path) -> None:
    image = make_image("A.1", types=("DNA", "mito"), labels={"dose": "3", "score": float("nan")})
    (key,) = write_set(tmp_path, [image])
    described = json.loads(read_with_tarfile(tmp_path / "study-000000.tar")[key]["json"])
    assert described == {
        "key": key,
        "study": "study",
        "image_id": "A.1",
        "width": 30,
        "height": 20,
        "channels": [
            {"file": f"{key}.c00.png", "type": "nucleus", "name": "stain 0", "clip": [1.5, 200.0]},
            {"file": f"{key}.c01.png", "type": "mitochondria", "name": "stain 1", "clip": [1.5, 201.0]},
        ],
        "labels": {"dose": "3", "score": None},
        "n_cells": 2,
        "remarks": [],
    }


def test_the_table_says_where_every_byte_lies(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image(str(i), seed=i) for i in range(3)])
    data = (tmp_path / "study-000000.tar").read_bytes()
    rows = ShardSet(tmp_path).table().to_pylist()
    assert len(rows) == 6
    for row in rows:
        sample = data[row["sample_offset"] : row["sample_offset"] + row["sample_nbytes"]]
        assert sample[: len(row["key"])].decode() == row["key"]
        assert data[row["plane_offset"] :].startswith(b"\x89PNG")
        assert data[row["cells_offset"] :].startswith(b"\x93NUMPY")
    assert rows[2]["sample_offset"] == rows[0]["sample_nbytes"]


def test_zero_cells_and_unknown_cells_are_told_apart(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image("none", cells=[]), make_image("unknown", cells=None, seed=1)])
    rows = ShardSet(tmp_path).table(["key", "n_cells", "cells_offset"]).to_pylist()
    assert [(row["n_cells"], row["cells_offset"] >= 0) for row in rows[::2]] == [(0, True), (0, False)]
    assert ShardSet(tmp_path).cells() is None


def test_missing_labels_are_null_and_the_others_texts(tmp_path: Path) -> None:
    images = [
        make_image("a", labels={"dose": 3}, cell_labels={"kind": ["x", None]}),
        make_image("b", labels={"dose": float("nan"), "line": "L"}, cell_labels={"kind": ["nan", ""]}, seed=1),
    ]
    write_set(tmp_path, images)
    shards = ShardSet(tmp_path)
    assert (shards.labels, shards.cell_labels) == (("dose", "line"), ("kind",))
    assert shards.table(["dose", "line"]).to_pylist()[::2] == [{"dose": "3", "line": None}, {"dose": None, "line": "L"}]
    cells = shards.cells()
    assert cells is not None
    assert cells["kind"].to_pylist() == ["x", None, None, None]


@pytest.mark.parametrize("limit", [{"max_images": 2}, {"max_bytes": 1}])
def test_a_full_shard_is_followed_by_another(tmp_path: Path, limit: dict[str, int]) -> None:
    write_set(tmp_path, [make_image(str(i), seed=i) for i in range(4)], **limit)
    shards = sorted(path.name for path in tmp_path.glob("*.tar"))
    assert shards == [f"study-{i:06d}.tar" for i in range(2 if "max_images" in limit else 4)]
    assert ShardSet(tmp_path).table(["imaging.multi_channel_id"]).column(0).to_pylist()[::2] == list("0123")


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_set(tmp_path / name, [make_image(str(i), seed=i) for i in range(2)])
    assert (tmp_path / "one/study-000000.tar").read_bytes() == (tmp_path / "two/study-000000.tar").read_bytes()
    assert ShardSet(tmp_path / "one").content_hash == ShardSet(tmp_path / "two").content_hash


def test_an_image_name_that_comes_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="two images named 'a'"):
        write_set(tmp_path, [make_image("a"), make_image("a", seed=1)])


def test_nothing_is_visible_until_the_set_is_finished(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, "study", max_images=1) as study:
        study.add(make_image("a"))
        study.add(make_image("b", seed=1))
        assert not list(tmp_path.glob("*"))[1:]
    assert not list(tmp_path.glob("*.tar"))
    finish_set(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "cells.parquet", "manifest.json", "metadata.parquet", "study-000000.tar", "study-000001.tar",
    ]  # fmt: skip


def test_a_failure_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    def stop() -> None:
        with ShardWriter(tmp_path, "study", max_images=1) as study:
            study.add(make_image("a"))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop()
    assert not list(tmp_path.rglob("*study*"))


@pytest.mark.parametrize("call", range(1, 8))
def test_a_full_disk_leaves_the_old_set_as_it_was(tmp_path: Path, call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_set(tmp_path, [make_image("a", study="old")], "old")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    count = 0
    fsync = layout.os.fsync

    def full(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == call:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(layout.os, "fsync", full)
    images = [make_image(str(i), seed=i) for i in range(3)]
    # three shards, the study's own manifest, both tables, the manifest of the set
    with pytest.raises(DataError, match="disk is full; make room"):
        write_set(tmp_path, images, max_images=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
    ShardSet(tmp_path).verify()
    write_set(tmp_path, images, max_images=1)
    assert ShardSet(tmp_path).studies == ("old", "study")


def test_a_disk_that_fills_while_a_tar_is_written_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: object, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(writer.OpenShard, "_write", full)
    with pytest.raises(DataError, match=r"study-000000\.tar' could not be written: the disk is full"):
        write_set(tmp_path, [make_image()])
    assert not list(tmp_path.rglob("*.tar*"))


def test_an_existing_study_is_refused_unless_it_is_to_be_replaced(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image(str(i), seed=i) for i in range(3)], max_images=1)
    with pytest.raises(DataError, match="has the study 'study' already; pass --overwrite"):
        write_set(tmp_path, [make_image("new")])
    write_set(tmp_path, [make_image("new", seed=9)], overwrite=True)
    shards = ShardSet(tmp_path)
    shards.verify()
    assert shards.table(["imaging.multi_channel_id"]).column(0).to_pylist() == ["new", "new"]
    assert len(list(tmp_path.glob("*.tar"))) == 1


def test_a_replacement_that_fails_keeps_the_old_study(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image("old")])
    with pytest.raises(DataError, match="two images"):
        write_set(tmp_path, [make_image("a"), make_image("a")], overwrite=True)
    ShardSet(tmp_path).verify()
    assert ShardSet(tmp_path).table(["imaging.multi_channel_id"]).column(0).to_pylist() == ["old", "old"]


def test_two_studies_whose_files_would_have_one_name_are_refused(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image(study="A b")], "A b")
    with pytest.raises(DataError, match="whose files are named as those of 'a-b'"):
        write_set(tmp_path, [make_image(study="a-b")], "a-b")


def test_a_study_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no image"):
        write_set(tmp_path, [])


def test_shards_are_not_written_to_an_object_store() -> None:
    with pytest.raises(DataError, match="local folder, not to 's3://bucket/set'"):
        ShardWriter("s3://bucket/set", "study")

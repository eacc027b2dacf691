import json
import os
import pickle
from pathlib import Path

import fsspec
import pytest

from morphem.data import png
from morphem.data.shards import RangeReader, ShardSet, cell_xy, resolve_root
from morphem.errors import ChannelError, ConfigError, DataError
from tests.data.records import make_image, write_set


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_set(tmp_path / "set", [make_image(str(i), seed=i) for i in range(4)], max_images=2)
    return tmp_path / "set"


def test_planes_read_through_the_table_are_those_written(root: Path) -> None:
    shards = ShardSet(root)
    reader = shards.reader()
    for i, row in enumerate(shards.table().to_pylist()):
        plane = png.decode(reader.read(row["shard"], row["plane_offset"], row["plane_nbytes"]))
        assert (plane == make_image(seed=i // 2).planes[i % 2]).all()


def test_a_query_selects_planes_and_columns_limit_the_table(root: Path) -> None:
    table = ShardSet(root).table(["key"], "imaging.channel_type == 'actin' and imaging.multi_channel_id in ['1', '3']")
    assert table.to_pydict() == {"key": ["study--1", "study--3"]}


def test_an_empty_query_result_names_the_query_and_the_values(root: Path) -> None:
    with pytest.raises(DataError, match=r"query 'imaging\.channel_type == 'rna'' selects no .*has actin, nucleus"):
        ShardSet(root).table(query="imaging.channel_type == 'rna'")


def test_an_unknown_column_is_refused_with_the_nearest(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"nearest: imaging\.channel_type"):
        ShardSet(root).table(query="imaging.chanel_type == 'rna'")
    with pytest.raises(DataError, match=r"no column 'imaging\.chanel'; nearest: imaging\.channel"):
        ShardSet(root).table(["imaging.chanel"])


def test_one_cell_is_read_without_the_others(root: Path) -> None:
    shards = ShardSet(root)
    row = shards.table().to_pylist()[5]
    place = (row["shard"], row["cells_offset"], row["cells_nbytes"])
    assert [cell_xy(shards.reader(), *place, index) for index in range(2)] == [(3, 4), (29, 19)]
    for index in (-1, 2):
        with pytest.raises(DataError, match=f"no cell {index}"):
            cell_xy(shards.reader(), *place, index)


def test_the_cell_table_has_one_row_per_cell(root: Path) -> None:
    cells = ShardSet(root).cells()
    assert cells is not None
    assert cells.slice(2, 2).to_pylist() == [
        {"key": "study--1", "shard": "study-000000.tar", "cell": 0, "x": 3, "y": 4},
        {"key": "study--1", "shard": "study-000000.tar", "cell": 1, "x": 29, "y": 19},
    ]


def test_a_missing_shard_is_named_when_the_set_is_opened(root: Path) -> None:
    (root / "study-000001.tar").unlink()
    with pytest.raises(DataError, match=r"is damaged: 'study-000001\.tar' is missing\. Restore"):
        ShardSet(root)


def test_truncated_files_are_all_named_when_the_set_is_opened(root: Path) -> None:
    for name in ("study-000000.tar", "metadata.parquet"):
        os.truncate(root / name, 1000)
    with pytest.raises(
        DataError, match=r"'study-000000\.tar' has 1000 bytes instead of .*'metadata\.parquet' has 1000"
    ):
        ShardSet(root)


def test_a_changed_byte_is_found_by_verify(root: Path) -> None:
    path = root / "study-000001.tar"
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"'study-000001\.tar' has another SHA-256"):
        ShardSet(root).verify()


def test_a_whole_set_verifies(root: Path) -> None:
    ShardSet(root).verify()


def test_reading_a_shard_that_vanished_names_it(root: Path) -> None:
    reader = ShardSet(root).reader()
    (root / "study-000001.tar").unlink()
    with pytest.raises(DataError, match=r"shard 'study-000001\.tar' is missing from .*restore it"):
        reader.read("study-000001.tar", 0, 10)


def test_reading_past_the_end_names_file_and_offset(root: Path) -> None:
    size = (root / "study-000000.tar").stat().st_size
    with pytest.raises(DataError, match=f"cut off: 100 bytes from byte {size - 7} on were asked for, 7 are there"):
        ShardSet(root).reader().read("study-000000.tar", size - 7, 100)


def test_few_files_are_open_at_a_time(root: Path) -> None:
    reader = RangeReader(str(root), max_open=1)
    for _ in range(3):
        for shard in ("study-000000.tar", "study-000001.tar"):
            assert reader.read(shard, 0, 5) == b"study"
            assert len(reader._files) == 1


def test_a_reader_pickles_without_its_open_files(root: Path) -> None:
    reader = ShardSet(root).reader()
    reader.read("study-000000.tar", 0, 1)
    copy = pickle.loads(pickle.dumps(reader))
    assert copy._files == {}
    assert copy.read("study-000000.tar", 0, 5) == b"study"


def test_an_object_store_reads_like_a_folder(root: Path) -> None:
    store = fsspec.filesystem("memory")
    for path in root.iterdir():
        store.pipe_file(f"/bucket/set/{path.name}", path.read_bytes())
    local, remote = ShardSet(root), ShardSet("memory://bucket/set")
    assert remote.table().equals(local.table())
    assert remote.content_hash == local.content_hash
    row = remote.table(query="imaging.multi_channel_id == '2'").to_pylist()[1]
    place = (row["shard"], row["plane_offset"], row["plane_nbytes"])
    reader = pickle.loads(pickle.dumps(remote.reader()))
    assert reader.read(*place) == local.reader().read(*place)
    with pytest.raises(DataError, match="is missing"):
        reader.read("other.tar", 0, 1)
    with pytest.raises(DataError, match="is not a finished shard set"):
        ShardSet("memory://bucket/nothing")


@pytest.mark.parametrize(
    "root", ["pipe:cat /etc/passwd", "ftp://host/set", "simplecache::s3://bucket/set", "file2://x"]
)
def test_an_address_that_could_run_or_hide_something_is_refused(root: str) -> None:
    with pytest.raises(DataError, match=r"refused|is not an address of shards"):
        resolve_root(root)


def test_local_roots_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "/home/somebody")
    assert resolve_root("set") == str(tmp_path / "set")
    assert resolve_root(f"file://{tmp_path}/set/") == str(tmp_path / "set")
    assert resolve_root("~/set") == "/home/somebody/set"
    assert resolve_root("s3://bucket/set/") == "s3://bucket/set"


def test_a_root_that_is_no_set_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"There is no folder '.*/nothing'; make shards with `morphem ingest"):
        ShardSet(tmp_path / "nothing")
    with pytest.raises(DataError, match="not a finished shard set"):
        ShardSet(tmp_path)
    (tmp_path / "metadata.csv").touch()
    with pytest.raises(DataError, match="holds images, not shards; run `morphem ingest"):
        ShardSet(tmp_path)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 99}'])
def test_a_manifest_that_cannot_be_understood_is_refused(root: Path, text: str) -> None:
    (root / "manifest.json").write_text(text)
    with pytest.raises(DataError, match="manifest"):
        ShardSet(root)


def test_the_content_hash_does_not_depend_on_place_or_software(root: Path, tmp_path: Path) -> None:
    before = ShardSet(root).content_hash
    moved = root.rename(tmp_path / "moved")
    manifest = json.loads((moved / "manifest.json").read_text())
    manifest["software"] = {"morphem": "99"}
    (moved / "manifest.json").write_text(json.dumps(manifest))
    assert ShardSet(moved).content_hash == before


def test_verify_checks_the_vocabulary_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = ShardSet(root)
    table = shards.table()
    column = table.schema.names.index("imaging.channel_type")
    wrong = table.set_column(column, table.schema.field(column), [["nuclues"] * table.num_rows])
    monkeypatch.setattr(shards, "table", lambda names: wrong.select(names))
    with pytest.raises(ChannelError, match="No channel type 'nuclues'; nearest: 'nucleus'"):
        shards.verify()

import os
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from morphem.data.index import Index, build_index, cache_folder, open_index
from morphem.data.png import decode
from morphem.data.shards import ShardSet, cell_xy
from morphem.errors import ConfigError, DataError
from tests.data.records import make_image, write_set
from tests.data.streams import IMAGES, N_IMAGES, N_PLANES, TYPES, write_studies


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet(write_studies(tmp_path_factory.mktemp("set")))


@pytest.fixture(scope="module")
def index(shards: ShardSet) -> Index:
    return open_index(shards, folder=Path(shards.root, "index"))


def test_studies_follow_one_another_by_name(index: Index) -> None:
    assert (index.n_images, index.n_planes) == (N_IMAGES, N_PLANES)
    assert index.sizes("image") == IMAGES
    assert index.sizes("plane") == {study: IMAGES[study] * len(TYPES[study]) for study in sorted(IMAGES)}
    studies = [index.studies[index.image(i).study] for i in range(N_IMAGES)]
    assert studies == sorted(studies)


def test_every_image_and_plane_leads_to_its_own_bytes(shards: ShardSet, index: Index) -> None:
    reader = shards.reader()
    rows = {(row["key"], row["imaging.channel_type"]): row for row in shards.table().to_pylist()}
    for number in range(index.n_images):
        image = index.image(number)
        for plane in index.planes(image.first_plane, image.n_planes):
            row = rows.pop((image.key, index.channel_types[plane.channel_type]))
            assert plane.image == number
            assert index.shards[image.shard] == row["shard"]
            assert (plane.offset, plane.nbytes) == (row["plane_offset"], row["plane_nbytes"])
            pixels = decode(reader.read(row["shard"], plane.offset, plane.nbytes))
            assert pixels.shape == (image.height, image.width)
    assert not rows


def test_cells_are_found_and_their_absence_is_known(shards: ShardSet, index: Index) -> None:
    for number in range(index.n_images):
        image = index.image(number)
        study = index.studies[image.study]
        assert image.n_cells == (2 if study == "alpha" else 0)
        if image.n_cells:
            xy = cell_xy(shards.reader(), index.shards[image.shard], image.cells_offset, image.cells_nbytes, 1)
            assert xy == (29, 19)


def test_a_query_keeps_the_planes_that_match_and_drops_images_without_any(shards: ShardSet, tmp_path: Path) -> None:
    index = open_index(shards, "imaging.channel_type == 'nucleus'", folder=tmp_path)
    assert index.sizes("image") == index.sizes("plane") == {"alpha": 7, "gamma": 2}
    assert index.channel_types == ("nucleus",)


def test_a_query_without_a_match_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="bright-field"):
        open_index(shards, "imaging.channel_type == 'dna'", folder=tmp_path)
    with pytest.raises(ConfigError, match=r"imaging\.channel_typ"):
        open_index(shards, "imaging.channel_typ == 'dna'", folder=tmp_path)


def test_an_index_is_built_once_and_never_mixed_up_with_another(shards: ShardSet, tmp_path: Path) -> None:
    first = open_index(shards, folder=tmp_path)
    written = os.stat(first.path).st_mtime_ns
    assert open_index(shards, folder=tmp_path).path == first.path
    assert os.stat(first.path).st_mtime_ns == written
    assert open_index(shards, "n_cells > 0", folder=tmp_path).path != first.path
    write_set(tmp_path / "other", [make_image(study="alpha", seed=5)], study="alpha")
    assert open_index(ShardSet(tmp_path / "other"), folder=tmp_path).path != first.path
    assert len(list(tmp_path.glob("*.index"))) == 3
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("keep", [0, 10, 200, -1])
def test_a_damaged_index_is_built_again(shards: ShardSet, tmp_path: Path, keep: int) -> None:
    path = Path(open_index(shards, folder=tmp_path).path)
    whole = path.read_bytes()
    path.write_bytes(whole[:keep])
    with pytest.raises(DataError, match="delete it to rebuild it"):
        Index(str(path))
    open_index(shards, folder=tmp_path)
    assert path.read_bytes() == whole


def test_an_index_pickles_as_its_path_alone(index: Index) -> None:
    index.image(0)
    data = pickle.dumps(index)
    assert len(data) < len(index.path) + 100
    copy = pickle.loads(data)
    assert [copy.image(i) for i in range(N_IMAGES)] == [index.image(i) for i in range(N_IMAGES)]


def test_a_worker_holds_the_same_few_bytes_for_any_number_of_samples(tmp_path: Path) -> None:
    def held(n: int) -> int:
        build_index(_table(n), tmp_path / f"{n}.index")
        index = Index(str(tmp_path / f"{n}.index"))
        assert index.image(n - 1).key == f"key-{n - 1:08d}"
        return len(pickle.dumps(index.__dict__ | {"_image": None, "_plane": None}))

    assert held(50_000) <= held(500) + 20  # the numbers in the header are longer


def _table(n: int) -> pa.Table:
    numbers = np.arange(n)
    texts = {"experiment.study": "study", "imaging.channel_type": "nucleus", "shard": "study-000000.tar"}
    columns = {name: pa.array([text]).take(pa.array(np.zeros(n, np.int64))) for name, text in texts.items()}
    for name in (
        "geometry.height",
        "geometry.width",
        "plane_offset",
        "plane_nbytes",
        "cells_offset",
        "cells_nbytes",
        "n_cells",
    ):
        columns[name] = pa.array(numbers)
    return pa.table(columns | {"key": pa.array([f"key-{i:08d}" for i in numbers])})


def test_a_folder_that_cannot_be_written_is_named_with_the_remedy(shards: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"cannot be written .* set MORPHEM_CACHE"):
        open_index(shards, folder=tmp_path / "file" / "index")


def test_a_full_disk_leaves_no_index(shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device"):
        open_index(shards, folder=tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_cache_folder_follows_the_users_wish(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.delenv("MORPHEM_CACHE", raising=False)
    assert cache_folder() == Path("/somewhere/morphem")
    monkeypatch.setenv("MORPHEM_CACHE", "/elsewhere")
    assert cache_folder() == Path("/elsewhere")

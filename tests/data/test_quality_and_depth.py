"""Quality columns and 16-bit planes on their way through writer, set, index, plan and stream."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from morphem.data import layout
from morphem.data.commit import finish_set
from morphem.data.crops import CropRule
from morphem.data.index import open_index
from morphem.data.order import StudyBalance
from morphem.data.plan import CropPlan, spans
from morphem.data.png import decode
from morphem.data.reading import CropReader
from morphem.data.record import ImageRecord, checked_rows
from morphem.data.sampling import Scales
from morphem.data.shards import ShardSet, ShardWriter
from morphem.data.stream import CropStream
from morphem.errors import DataError
from morphem.ingest.prepare import Preparation, prepare
from tests import small_shards

LIMITS = (12.0, 45678.5)


def camera_image(name: str, seed: int) -> ImageRecord:
    """An image of 16-bit counts."""
    image = small_shards.image(name, ("nucleus", "actin"), seed=seed)
    rng = np.random.default_rng(seed)
    return replace(image, planes=[rng.integers(0, 60000, (40, 48), dtype=np.uint16) for _ in image.planes])


@pytest.fixture(scope="module")
def raw() -> list[ImageRecord]:
    return [camera_image(str(i), i) for i in range(3)]


@pytest.fixture(scope="module")
def roots(raw: list[ImageRecord], tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The same images as sets of 8 and of 16 bit."""
    folder = tmp_path_factory.mktemp("sets")
    return {
        depth: small_shards.write(
            folder / f"set{depth}", [prepare(image, Preparation(bit_depth=depth)) for image in raw]
        )  # type: ignore[arg-type]
        for depth in (8, 16)
    }


def test_16_bit_shards_hold_the_intensities_exactly(roots: dict[int, str], raw: list[ImageRecord]) -> None:
    shards = ShardSet(roots[16])
    shards.verify()
    reader = shards.reader()
    for i, row in enumerate(shards.table().to_pylist()):
        data = reader.read(row["shard"], row["plane_offset"], row["plane_nbytes"])
        np.testing.assert_array_equal(decode(data, exact=True), raw[i // 2].planes[i % 2])


def test_embedding_reads_the_same_levels_from_16_bit_as_from_8_bit(roots: dict[int, str]) -> None:
    planes = []
    for root in roots.values():
        plan = CropPlan(ShardSet(root), CropRule("tile", tile_size_px=32))
        (read,) = CropReader([plan], list(spans([plan], range(plan.n_images), 1000, 1000)))
        planes.append(read.batches[0].planes)
    assert torch.equal(*planes)
    assert planes[0].unique().numel() > 200


def test_training_reads_the_same_levels_from_16_bit_as_from_8_bit(roots: dict[int, str], tmp_path: Path) -> None:
    batches = []
    for depth, root in roots.items():
        shards = ShardSet(root)
        index = open_index(shards, folder=tmp_path / str(depth))
        balance = StudyBalance([index.n_planes], [index.n_planes], seed=0)
        stream = CropStream(index, shards.reader(), balance, Scales(default=20), batch_size=6)
        batch = stream[0, 0].batch
        assert batch is not None
        batches.append(batch)
    for name in ("planes", "boxes"):
        assert torch.equal(getattr(batches[0], name), getattr(batches[1], name))


def test_quality_stands_in_the_table_and_what_was_not_measured_is_null(tmp_path: Path) -> None:
    image = small_shards.image("a")
    measured = replace(image, quality=[{"quality.focus": 0.25, "quality.flat": 0.0}, {}, {"quality.mean": 7.5}])
    table = ShardSet(small_shards.write(tmp_path, [measured])).table()
    assert table["quality.focus"].to_pylist() == [0.25, None, None]
    assert table["quality.mean"].to_pylist() == [None, None, 7.5]
    assert table.schema.names[34:41] == list(layout.QUALITY_COLUMNS)


def test_a_query_selects_by_quality(tmp_path: Path) -> None:
    image = replace(small_shards.image("a"), quality=[{"quality.focus": focus} for focus in (0.1, 0.2, 0.3)])
    table = ShardSet(small_shards.write(tmp_path, [image])).table(["channel_name"], "quality.focus > 0.15")
    assert table["channel_name"].to_pylist() == ["actin", "mitochondria"]


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set as it was written before there were quality columns."""
    with monkeypatch.context() as before:
        before.setattr(layout, "QUALITY_COLUMNS", ())
        small_shards.write(tmp_path, [small_shards.image("a")])
    assert "quality.focus" not in pq.read_schema(tmp_path / layout.METADATA).names
    return tmp_path


def test_a_set_without_quality_columns_reads_as_if_they_were_null(older: Path) -> None:
    shards = ShardSet(older)
    shards.verify()
    assert shards.table()["quality.focus"].null_count == 3
    assert shards.table(["quality.mean", "key"]).to_pylist() == [{"quality.mean": None, "key": "study--a"}] * 3
    assert shards.table(["key"]).schema.names == ["key"]


def test_a_study_with_quality_can_be_added_to_a_set_without(older: Path) -> None:
    image = small_shards.image("b")
    rows = [dict(row) | {"experiment.study": "later"} for row in image.rows]
    with ShardWriter(older, "later") as writer:
        writer.add(replace(image, rows=rows, quality=[{"quality.focus": 0.5}] * 3))
    finish_set(older)
    shards = ShardSet(older)
    shards.verify()
    assert shards.table()["quality.focus"].to_pylist() == [None] * 3 + [0.5] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"clip_limits": None}, "plane 0 is uint16 without clip limits"),
        ({"clip_limits": [LIMITS, (0.0, float("nan"))]}, "plane 1 is uint16 without clip limits"),
        ({"quality": [{}]}, "2 planes but 1 sets of quality values"),
        (
            {"quality": [{}, {"quality.beauty": 1.0}]},
            r"'quality\.beauty' is no quality column; allowed: quality\.focus",
        ),
    ],
)
def test_what_readers_could_not_use_is_refused(raw: list[ImageRecord], change: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        checked_rows(replace(raw[0], **({"clip_limits": [LIMITS] * 2} | change)), "study")  # type: ignore[arg-type]


def test_a_label_cannot_take_the_name_of_a_quality_column() -> None:
    image = small_shards.image("a", **{"quality.focus": "3"})
    with pytest.raises(DataError, match=r"'quality\.focus' is a column of the shard set itself"):
        checked_rows(image, "study")

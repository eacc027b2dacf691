from pathlib import Path

import numpy as np
import pytest

from morphem.data.crops import CropRule
from morphem.data.plan import CropPlan, Span, spans
from morphem.data.reading import CropReader
from morphem.data.shards import ShardSet
from morphem.errors import ConfigError, DataError
from morphem.types import ChannelBatch
from tests import small_shards

NO_CELLS = np.zeros((0, 2), np.int64)


def _plan(root: str, rule: CropRule, query: str | None = None) -> CropPlan:
    return CropPlan(ShardSet(root), rule, query)


def _read(plan: CropPlan, image: int, first: int, last: int) -> ChannelBatch:
    batch = CropReader([plan], [[Span(image, ((first, last),))]])[0].batches[0]
    assert batch is not None
    return batch


@pytest.mark.parametrize("size", [(40, 48), (16, 16), (33, 17), (100, 16)])
def test_tiles_cover_every_pixel_and_stay_inside(size: tuple[int, int]) -> None:
    seen = np.zeros(size, int)
    boxes = CropRule("tile", tile_size_px=16).boxes(*size, NO_CELLS)
    for y, x, h, w in boxes:
        assert (h, w) == (16, 16)
        seen[y : y + h, x : x + w] += 1
        assert y >= 0 and x >= 0 and y + h <= size[0] and x + w <= size[1]  # noqa: PT018
    assert seen.min() >= 1
    count = CropRule("tile", tile_size_px=16).count(np.array([size[0]]), np.array([size[1]]), np.array([0]))
    assert count.tolist() == [len(boxes)]


def test_only_the_last_tiles_of_a_row_are_shifted() -> None:
    boxes = CropRule("tile", tile_size_px=16).boxes(16, 40, NO_CELLS)
    assert [x for _, x, _, _ in boxes] == [0, 16, 24]


def test_an_image_smaller_than_a_tile_is_taken_whole() -> None:
    assert CropRule("tile", tile_size_px=64).boxes(10, 20, NO_CELLS) == [(0, 0, 10, 20)]


def test_an_image_that_is_short_along_one_axis_is_taken_whole_along_it() -> None:
    assert CropRule("tile", tile_size_px=16).boxes(10, 32, NO_CELLS) == [(0, 0, 10, 16), (0, 16, 10, 16)]


def test_the_crop_of_a_cell_is_centred_and_shifted_inside() -> None:
    cells = np.array([[20, 30], [0, 0], [47, 39]])  # x, y
    boxes = CropRule("cell", crop_size_px=10).boxes(40, 48, cells)
    assert boxes == [(25, 15, 10, 10), (0, 0, 10, 10), (30, 38, 10, 10)]


def test_the_crop_of_a_cell_is_clamped_to_a_small_image() -> None:
    assert CropRule("cell", crop_size_px=64).boxes(40, 48, np.array([[3, 3]])) == [(0, 0, 40, 48)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"unit": "pixel"}, "unit='pixel' must be one of tile, cell, image"),
        ({"unit": "cell"}, "needs crop_size_px"),
        ({"unit": "image", "tile_size_px": 3}, "tile_size_px=3 has no effect"),
        ({"unit": "tile", "tile_size_px": 3, "crop_size_px": 3}, "crop_size_px=3 has no effect"),
        ({"unit": "tile", "tile_size_px": 0}, "must be at least 1 pixel"),
    ],
)
def test_sizes_that_do_not_belong_to_the_unit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CropRule(**settings)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    sizes = [(40, 48), (16, 20), (70, 33), (40, 48), (12, 12)]
    images = [
        small_shards.image(f"i{k}", size=size, well=f"A0{k % 2 + 1}", cells=k, treatment=f"t{k}")
        for k, size in enumerate(sizes)
    ]
    return small_shards.write(tmp_path_factory.mktemp("shards"), images)


def test_the_pixels_of_a_crop_are_those_of_the_image(root: str) -> None:
    plan = _plan(root, CropRule("tile", tile_size_px=16))
    record = small_shards.image("i2", size=(70, 33))
    batch = _read(plan, 2, 3, 5)
    starts, expected = batch.starts().tolist(), []
    for y, x, h, w in plan.boxes(2)[3:5]:
        expected += [plane[y : y + h, x : x + w] for plane in record.planes]
    for start, plane in zip(starts, expected, strict=True):
        assert np.array_equal(batch.planes[start : start + plane.size].numpy().reshape(plane.shape), plane)


def test_rows_are_numbered_over_all_images_in_shard_order(root: str) -> None:
    plan = _plan(root, CropRule("tile", tile_size_px=16))
    reader = CropReader([plan], list(spans([plan], range(plan.n_images), 12, 60)))
    rows = [row for i in range(len(reader)) for row in reader[i].batches[0].rows.tolist()]
    assert rows == list(range(plan.n_crops))
    assert plan.keys == [f"study--i{k}" for k in range(5)]


@pytest.mark.parametrize("limit", [1, 3, 12, 1000])
def test_reads_are_bounded_and_lose_no_crop(root: str, limit: int) -> None:
    plan = _plan(root, CropRule("tile", tile_size_px=16))
    sizes = [
        sum((span.crops[0][1] - span.crops[0][0]) * plan.n_planes(span.image) for span in group)
        for group in spans([plan], range(plan.n_images), limit, 2 * limit)
    ]
    assert max(sizes) <= max(2 * limit, 3)
    assert sum(sizes) == 3 * plan.n_crops


def test_seeds_depend_on_key_and_place_alone(root: str) -> None:
    coarse, fine = _plan(root, CropRule("image")), _plan(root, CropRule("image"), "experiment.well == 'A02'")
    whole = dict(zip(coarse.keys, (_read(coarse, i, 0, 1).seeds.item() for i in range(5)), strict=True))
    assert _read(fine, 0, 0, 1).seeds.item() == whole[fine.keys[0]]
    assert len(set(whole.values())) == 5


def test_cells_come_in_their_own_order_with_their_labels(root: str) -> None:
    plan = _plan(root, CropRule("cell", crop_size_px=8))
    assert plan.crop_starts.tolist() == [0, 0, 1, 3, 6, 10]
    assert plan.empty_images == 1
    frame = plan.metadata(np.arange(plan.n_crops))
    assert frame["Metadata_Cell"].tolist() == [0, 0, 1, 0, 1, 2, 0, 1, 2, 3]
    assert frame["Metadata_kind"].tolist() == ["k0", "k0", "k1", "k0", "k1", "k0", "k0", "k1", "k0", "k1"]
    assert frame["Metadata_Key"].tolist() == [f"study--i{k}" for k in (1, 2, 2, 3, 3, 3, 4, 4, 4, 4)]


def test_metadata_follow_jump_and_keep_labels(root: str) -> None:
    frame = _plan(root, CropRule("image")).metadata(np.array([1, 4]))
    assert frame["Metadata_Well"].tolist() == ["A02", "A01"]
    assert frame["Metadata_Plate"].tolist() == ["P1", "P1"]
    assert frame["Metadata_treatment"].tolist() == ["t1", "t4"]
    assert set(frame["Metadata_Unit"]) == {"image"}


def test_with_a_row_per_plane_each_says_its_channel(root: str) -> None:
    frame = _plan(root, CropRule("image")).metadata(np.array([1]), per_plane=True)
    assert frame["Metadata_Channel"].tolist() == ["actin", "mitochondria", "nucleus"]
    assert frame["Metadata_Channel_Number"].tolist() == [2, 3, 1]


def test_a_query_keeps_the_planes_that_match(root: str) -> None:
    plan = _plan(root, CropRule("image"), "imaging.channel_type == 'actin'")
    assert plan.n_images == 5
    assert plan.panel(0) == ["actin"]


def test_no_cells_anywhere_is_refused_with_the_remedy(tmp_path: Path) -> None:
    root = small_shards.write(tmp_path, [small_shards.image("a"), small_shards.image("b", cells=0)])
    with pytest.raises(DataError, match=r"no cells in its 2 image\(s\).*use unit='tile' or 'image'"):
        _plan(root, CropRule("cell", crop_size_px=8))


def test_an_empty_query_result_is_refused(root: str) -> None:
    with pytest.raises(DataError, match="golgi"):
        _plan(root, CropRule("image"), "imaging.channel_type == 'golgi'")

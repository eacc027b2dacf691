from dataclasses import replace

import numpy as np
import pytest

from morphem.cells.base import CellFinder, Cells
from morphem.data.layout import QUALITY_COLUMNS
from morphem.data.record import ImageRecord, checked_rows
from morphem.errors import ConfigError, DataError
from morphem.ingest.prepare import Preparation, count_flat, prepare
from morphem.ingest.scaling import Percentiles, Range, to_uint8
from tests import small_shards


def raw_image(seed: int = 0) -> ImageRecord:
    image = small_shards.image("i", ("nucleus", "actin"), cells=3)
    rng = np.random.default_rng(seed)
    return replace(image, planes=[rng.integers(0, 5000, (40, 48), dtype=np.uint16) for _ in image.planes])


class TwoCells(CellFinder):
    """Finds two cells whatever it sees."""

    def find(self, image: ImageRecord) -> Cells | None:
        assert image.planes[0].dtype == np.uint16  # as the source gave it
        return Cells(np.array([[1, 2], [3, 4]], np.int32), {"kind": ["a", None]}, "one cell was left out")


class Blind(CellFinder):
    """Cannot look for cells."""

    def find(self, image: ImageRecord) -> Cells | None:
        return None


def test_an_image_is_scaled_measured_and_ready_to_be_written() -> None:
    raw = raw_image()
    image = prepare(raw, Preparation())
    checked_rows(image, "study")
    for plane, stored, limits in zip(raw.planes, image.planes, image.clip_limits or (), strict=True):
        scaled = to_uint8(plane, Percentiles(0.1, 99.9))
        np.testing.assert_array_equal(stored, scaled.plane)
        assert limits == (scaled.low, scaled.high)
    assert image.quality is not None
    assert set(image.quality[0]) <= set(QUALITY_COLUMNS)
    assert image.quality[1]["quality.mean"] == pytest.approx(raw.planes[1].mean())


def test_the_source_keeps_its_pixels() -> None:
    raw = raw_image()
    kept = [plane.copy() for plane in raw.planes]
    prepare(raw, Preparation(bit_depth=16))
    for plane, before in zip(raw.planes, kept, strict=True):
        np.testing.assert_array_equal(plane, before)


def test_16_bit_planes_are_those_of_the_source() -> None:
    raw = raw_image()
    image = prepare(raw, Preparation(clip=Range(100, 4000), bit_depth=16))
    checked_rows(image, "study")
    assert image.clip_limits == [(100.0, 4000.0)] * 2
    for plane, stored in zip(raw.planes, image.planes, strict=True):
        np.testing.assert_array_equal(stored, plane)


@pytest.mark.parametrize("depth", [8, 16])
def test_two_channels_with_the_same_pixels_are_refused_by_name(depth: int) -> None:
    raw = raw_image()
    copied = replace(raw, planes=[raw.planes[0], raw.planes[0].copy()])
    with pytest.raises(DataError, match="image 'i': channels 'nucleus' and 'actin' have the same pixels; correct"):
        prepare(copied, Preparation(bit_depth=depth))  # type: ignore[arg-type]


def test_channels_that_differ_in_one_pixel_are_not_copies() -> None:
    raw = raw_image()
    other = raw.planes[0].copy()
    other[1, 1] += 1
    prepared = prepare(replace(raw, planes=[raw.planes[0], other]), Preparation(bit_depth=16))
    assert np.argwhere(prepared.planes[0] != prepared.planes[1]).tolist() == [[1, 1]]


def test_two_empty_channels_are_no_copies_and_count_as_flat() -> None:
    raw = raw_image()
    empty = [np.zeros((40, 48), np.uint16) for _ in range(2)]
    for quality in (True, False):
        image = prepare(replace(raw, planes=empty), Preparation(quality=quality))
        assert count_flat(image) == 2
        checked_rows(image, "study")


def test_without_quality_only_flat_is_told() -> None:
    image = prepare(raw_image(), Preparation(quality=False))
    assert image.quality == [{"quality.flat": 0.0}] * 2
    assert count_flat(image) == 0


def test_a_plane_that_cannot_be_used_is_named_with_image_and_channel() -> None:
    raw = raw_image()
    bad = np.full((40, 48), np.nan)
    with pytest.raises(DataError, match="image 'i', channel 'actin' has 1920 pixels that are NaN"):
        prepare(replace(raw, planes=[raw.planes[0], bad]), Preparation())


def test_cells_come_from_the_finder_or_else_from_the_source() -> None:
    raw = raw_image()
    kept = prepare(raw, Preparation())
    assert kept.cells is raw.cells
    found = prepare(raw, Preparation(), TwoCells())
    checked_rows(found, "study")
    assert found.cells is not None
    assert found.cells.tolist() == [[1, 2], [3, 4]]
    assert found.cell_labels == {"kind": ["a", None]}
    assert found.remarks == ["one cell was left out"]
    assert prepare(raw, Preparation(), Blind()).cells is None


def test_another_bit_depth_is_refused() -> None:
    with pytest.raises(ConfigError, match="bit_depth is 12; allowed are 8 and 16"):
        Preparation(bit_depth=12)  # type: ignore[arg-type]

import numpy as np
import pytest

from morphem.data.crops import TILINGS, CropRule, masked
from morphem.data.emptiness import EmptyRule
from morphem.errors import ConfigError
from tests.references import tiles

NO_CELLS = np.zeros((0, 2), np.int64)


@pytest.mark.parametrize("size", [(40, 48), (33, 70), (16, 16), (450, 226)])
@pytest.mark.parametrize(("tiling", "reference"), [("grid", tiles.grid_starts), ("overlap", tiles.overlap_starts)])
def test_tiles_lie_as_the_authors_lay_them(size: tuple[int, int], tiling: str, reference: object) -> None:
    rule = CropRule("tile", tile_size_px=16, tiling=tiling)
    expected = [(y, x, 16, 16) for y in reference(size[0], 16) for x in reference(size[1], 16)]
    assert rule.boxes(*size, NO_CELLS) == expected
    counts = rule.count(np.array([size[0]]), np.array([size[1]]), np.array([0]))
    assert counts.tolist() == [len(expected)]


def test_an_image_smaller_than_a_tile_is_one_tile_whatever_the_tiling() -> None:
    for tiling in TILINGS:
        assert CropRule("tile", tile_size_px=64, tiling=tiling).boxes(10, 20, NO_CELLS) == [(0, 0, 10, 20)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"unit": "tile", "tile_size_px": 8, "tiling": "rows"},
            "tiling='rows' must be one of cover, grid, square_grid, overlap",
        ),
        ({"unit": "cell", "crop_size_px": 8, "mask": "black"}, "mask='black' must be one of none, zero, background"),
        ({"unit": "tile", "tile_size_px": 8, "mask": "zero"}, "mask='zero' has no effect with unit='tile'"),
        ({"unit": "image", "tiling": "grid"}, "tiling='grid' has no effect with unit='image'"),
        ({"unit": "cell", "crop_size_px": 8, "skip_empty": EmptyRule()}, "skip_empty has no effect with unit='cell'"),
    ],
)
def test_what_has_no_effect_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CropRule(**settings)


def test_a_masked_crop_keeps_one_cell_alone() -> None:
    crop = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    objects = np.array([[1, 1, 0], [2, 0, 0]], np.uint16)
    assert masked(crop, objects, 0, "zero").tolist() == [[10, 20, 0], [0, 0, 0]]
    assert masked(crop, objects, 1, "zero").tolist() == [[0, 0, 0], [40, 0, 0]]
    assert masked(crop, objects, 0, "background").tolist() == [[10, 20, 50], [50, 50, 50]]  # median of 30, 50, 60


def test_a_crop_without_background_is_masked_with_zero() -> None:
    crop, objects = np.array([[7, 8]], np.uint8), np.array([[1, 2]], np.uint16)
    assert masked(crop, objects, 0, "background").tolist() == [[7, 0]]

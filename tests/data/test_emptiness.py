import numpy as np
import pytest

from morphem.data.crops import CropRule
from morphem.data.emptiness import EmptyRule
from morphem.errors import ConfigError
from tests.references import tiles

NO_CELLS = np.zeros((0, 2), np.int64)


def _plane(seed: int, kind: str) -> np.ndarray:
    generator = np.random.default_rng(seed)
    plane = generator.integers(0, 40, (48, 64))
    if kind == "blobs":
        for y, x in generator.integers(0, 40, (3, 2)):
            plane[y : y + 6, x : x + 6] += 800
    return plane.astype(np.uint16) if kind != "black" else np.zeros((48, 64), np.uint16)


@pytest.mark.parametrize("kind", ["blobs", "noise", "black"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("rule", [EmptyRule(stride=3), EmptyRule(threshold="zero"), EmptyRule(factor=1.5, stride=1)])
def test_the_tiles_that_are_kept_are_those_of_a_plain_loop(kind: str, seed: int, rule: EmptyRule) -> None:
    plane = _plane(seed, kind)
    boxes = CropRule("tile", tile_size_px=16, tiling="grid").boxes(48, 64, NO_CELLS)
    factor = rule.factor if rule.threshold == "otsu" else None
    expected = tiles.kept(plane.tolist(), boxes, factor, rule.stride)
    assert rule.kept(plane, boxes).tolist() == expected


def test_without_keep_middle_an_empty_image_loses_all_tiles() -> None:
    boxes = [(0, 0, 8, 8), (0, 8, 8, 8), (8, 0, 8, 8)]
    black = np.zeros((16, 16), np.uint8)
    assert EmptyRule(threshold="zero").kept(black, boxes).tolist() == [False, True, False]
    assert not EmptyRule(threshold="zero", keep_middle=False).kept(black, boxes).any()


def test_the_nucleus_decides_where_no_channel_is_named() -> None:
    assert EmptyRule().nth_channel(["actin", "nucleus"]) == 1
    assert EmptyRule().nth_channel(["actin", "golgi body"]) == 0
    assert EmptyRule("golgi body").nth_channel(["actin", "golgi body"]) == 1
    assert EmptyRule("rna").nth_channel(["actin", "golgi body"]) is None


@pytest.mark.parametrize("settings", [{"least_share": 0}, {"least_share": 1.5}, {"stride": 0}, {"threshold": "mean"}])
def test_numbers_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=f"skip_empty.{next(iter(settings))}"):
        EmptyRule(**settings)

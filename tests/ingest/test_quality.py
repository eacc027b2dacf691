import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from morphem.data.layout import QUALITY_COLUMNS
from morphem.ingest.quality import covariances, cut_tiles, foreground, measure
from morphem.ingest.scaling import DEFAULT_CLIP, Range, scale, to_uint8
from tests.references import otsu

NOISE = np.random.default_rng(7).normal(0, 8, (256, 320))


def cells(blur: float = 1.0, noise: float = 1.0) -> np.ndarray:
    """Sharp discs on a dark ground, blurred, then seen by a camera with noise; uint16."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:256, :320]
    plane = np.full((256, 320), 200.0)
    for _ in range(40):
        cy, cx, radius = rng.uniform(0, 256), rng.uniform(0, 320), rng.uniform(4, 10)
        plane[(y - cy) ** 2 + (x - cx) ** 2 < radius**2] = rng.uniform(600, 1000)
    return np.rint(gaussian_filter(plane, blur) + noise * NOISE).astype(np.uint16)


def quality(plane: np.ndarray) -> dict[str, float]:
    return measure(to_uint8(plane, DEFAULT_CLIP))


def test_every_column_is_measured_and_in_its_range() -> None:
    measured = quality(cells())
    assert set(measured) == set(QUALITY_COLUMNS)
    assert measured.pop("quality.mean") == pytest.approx(cells().mean())
    assert all(0 <= value <= 1 for value in measured.values())


def test_focus_falls_with_every_bit_of_blur() -> None:
    focus = [quality(cells(blur))["quality.focus"] for blur in (0.5, 1, 1.5, 2, 3, 4, 6)]
    assert focus == sorted(focus, reverse=True)
    assert focus[0] > 3 * focus[-1]


def test_focus_hardly_depends_on_noise_contrast_and_brightness() -> None:
    sharp = quality(cells())["quality.focus"]
    noisy = np.rint(cells() + 4 * np.roll(NOISE, 9)).clip(0).astype(np.uint16)
    assert quality(noisy)["quality.focus"] == pytest.approx(sharp, rel=0.1)
    assert quality(cells() * 7 + 300)["quality.focus"] == pytest.approx(sharp, rel=0.01)


def test_a_plane_of_noise_is_empty_and_has_no_focus() -> None:
    measured = quality(np.rint(NOISE + 500).astype(np.uint16))
    assert measured["quality.empty"] == 1
    assert "quality.focus" not in measured


def test_empty_is_the_share_of_the_area_without_cells() -> None:
    plane = cells()
    plane[:, 128:] = np.rint(200 + NOISE)[:, 128:]
    assert quality(cells())["quality.empty"] <= 0.05
    assert quality(plane)["quality.empty"] == pytest.approx(3 / 5, abs=0.06)


def test_saturated_counts_the_pixels_at_the_top_before_clipping() -> None:
    plane = cells().clip(0, 700)
    expected = (plane == 700).mean()
    assert expected > 0.05
    assert quality(plane)["quality.saturated"] == expected


def test_illumination_finds_a_gradient_and_not_the_cells() -> None:
    even = quality(cells())["quality.illumination"]
    shade = np.linspace(0, 400, 320)
    measured = measure(to_uint8((cells() + shade).astype(np.uint16), Range(200, 1400)))["quality.illumination"]
    assert even < 0.05
    assert measured == pytest.approx(
        400 * 0.8 / 1200, abs=0.05
    )  # from the middle of the first tile to that of the last


def test_flat_planes_are_flat_and_empty() -> None:
    measured = quality(np.full((70, 70), 12, np.uint16))
    assert measured["quality.flat"] == measured["quality.empty"] == measured["quality.saturated"] == 1
    assert measured["quality.illumination"] == measured["quality.foreground"] == 0
    assert "quality.focus" not in measured
    assert quality(cells())["quality.flat"] == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (2, 2), (3, 3), (40, 300), (64, 64), (65, 127)])
def test_planes_of_any_size_are_measured(shape: tuple[int, int]) -> None:
    plane = np.random.default_rng(1).integers(0, 4000, shape, dtype=np.uint16)
    assert all(np.isfinite(value) for value in quality(plane).values())


def test_16_bit_planes_have_the_quality_of_their_levels() -> None:
    assert measure(scale(cells(), DEFAULT_CLIP, 16)) == quality(cells())


@pytest.mark.parametrize("seed", range(3))
def test_foreground_follows_otsus_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    levels = np.concatenate([rng.normal(60, 20, 200), rng.normal(150, 30, 60)]).clip(0, 255).astype(int)
    assert foreground(np.bincount(levels, minlength=256)) == pytest.approx(otsu.foreground(levels.tolist()))


def test_covariances_follow_their_definition() -> None:
    tile = np.random.default_rng(0).integers(0, 256, (7, 9), dtype=np.uint8)
    values = tile.astype(float) - tile.mean()
    expected = []
    for lag in range(3):
        along = [values[y, x] * values[y, x + lag] for y in range(7) for x in range(9 - lag)]
        down = [values[y, x] * values[y + lag, x] for y in range(7 - lag) for x in range(9)]
        expected.append(sum(along) / len(along) + sum(down) / len(down))
    np.testing.assert_allclose([c[0] for c in covariances(tile[None, None])], expected)


def test_tiles_are_spread_evenly_up_to_both_edges() -> None:
    plane = np.add.outer(np.arange(2000) // 10, np.zeros(130)).astype(np.uint8)
    tiles = cut_tiles(to_uint8(plane, None))
    assert tiles.shape == (16, 2, 64, 64)
    np.testing.assert_array_equal(tiles[0, 0], plane[:64, :64])
    np.testing.assert_array_equal(tiles[-1, -1], plane[-64:, -64:])

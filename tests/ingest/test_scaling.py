import numpy as np
import pytest

from morphem.errors import ConfigError, DataError
from morphem.ingest.scaling import DEFAULT_CLIP, Clip, Percentiles, Range, parse_clip, scale, to_uint8
from tests.references import clip as reference

TYPES = [np.uint8, np.uint16, np.int16, np.uint32, np.int32, np.int64, np.float32, np.float64]
CLIPS = [Percentiles(0.1, 99.9), Percentiles(5, 80), Percentiles(0, 100), Percentiles(37.5, 62.31)]


def camera(height: int, width: int, seed: int = 0, top: int = 250) -> np.ndarray:
    """Counts with a few bright pixels, as int64."""
    rng = np.random.default_rng(seed)
    plane = rng.poisson(rng.uniform(2, 40, (height, width)))
    plane[rng.integers(height), rng.integers(width)] = top
    return plane


def numpy_way(plane: np.ndarray, clip: Percentiles) -> tuple[np.ndarray, float, float]:
    """The whole computation in float64 by numpy's own functions."""
    values = plane.astype(np.float64)
    low, high = np.percentile(values, (clip.low, clip.high))
    return (
        np.rint((np.clip(values, low, high) - low) * (255.0 / (high - low))).astype(np.uint8),
        float(low),
        float(high),
    )


@pytest.mark.parametrize("clip", CLIPS, ids=str)
@pytest.mark.parametrize("dtype", TYPES)
def test_counting_and_looking_up_give_bit_for_bit_what_numpy_gives(clip: Percentiles, dtype: type) -> None:
    for seed, shape in enumerate([(9, 11), (1, 2), (64, 3), (65, 130), (200, 70)]):
        plane = camera(*shape, seed).astype(dtype)
        expected, low, high = numpy_way(plane, clip)
        scaled = to_uint8(plane, clip)
        assert (scaled.low, scaled.high) == (low, high)
        np.testing.assert_array_equal(scaled.plane, expected)


@pytest.mark.parametrize("first", [-40000, -7, 0, 65000, 2**31, 2**50])
@pytest.mark.parametrize("top", [250, 70000])
def test_whole_numbers_of_any_size_are_scaled_as_numpy_scales_them(first: int, top: int) -> None:
    plane = camera(30, 40, 3, top) + first
    expected, low, high = numpy_way(plane, DEFAULT_CLIP)
    scaled = to_uint8(plane, DEFAULT_CLIP)
    assert (scaled.low, scaled.high) == (low, high)
    np.testing.assert_array_equal(scaled.plane, expected)


def test_percentiles_between_far_apart_numbers_have_numpys_last_digit() -> None:
    rng = np.random.default_rng(0)
    for n in range(2, 60):
        plane = rng.integers(0, 65536, (1, n), dtype=np.uint16)
        for low, high in rng.uniform([0, 50], [50, 100], (3, 2)):
            scaled = to_uint8(plane, Percentiles(low, high))
            assert (scaled.low, scaled.high) == tuple(np.percentile(plane.astype(np.float64), (low, high)))


@pytest.mark.parametrize("clip", CLIPS[:3], ids=str)
def test_scaling_follows_the_definition(clip: Percentiles) -> None:
    plane = camera(9, 11, 5)
    scaled = to_uint8(plane, clip)
    pixels = plane.ravel().tolist()
    expected = np.reshape(reference.scaled(pixels, clip.low, clip.high), plane.shape)
    assert np.abs(scaled.plane - expected).max() <= 0.5 + 1e-9
    assert scaled.low == pytest.approx(reference.percentile(pixels, clip.low))
    assert scaled.high == pytest.approx(reference.percentile(pixels, clip.high))


def test_a_plane_of_any_memory_layout_is_scaled_alike() -> None:
    plane = camera(70, 30).astype(np.uint16)
    expected = to_uint8(plane, DEFAULT_CLIP).plane
    np.testing.assert_array_equal(to_uint8(np.asfortranarray(plane), DEFAULT_CLIP).plane, expected)
    np.testing.assert_array_equal(to_uint8(plane.astype(">u2"), DEFAULT_CLIP).plane, expected)
    np.testing.assert_array_equal(to_uint8(np.repeat(plane, 2, axis=1)[:, ::2], DEFAULT_CLIP).plane, expected)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_a_fixed_range_scales_all_planes_alike(dtype: type) -> None:
    plane = np.array([[0, 20, 71], [122, 123, 200]], dtype)
    scaled = to_uint8(plane, Range(20, 122))
    np.testing.assert_array_equal(scaled.plane, [[0, 0, 128], [255, 255, 255]])
    assert (scaled.low, scaled.high, scaled.flat) == (20.0, 122.0, False)


@pytest.mark.parametrize(("value", "level"), [(5, 0), (200, 255), (71, 128)])
def test_a_plane_of_one_level_in_a_fixed_range_is_flat(value: int, level: int) -> None:
    scaled = to_uint8(np.array([[value, value]], np.uint16), Range(20, 122))
    assert scaled.flat
    assert (scaled.plane == level).all()


def test_without_clipping_8_bit_planes_stay_as_they_are_and_others_are_refused() -> None:
    plane = np.array([[3, 9], [200, 9]], np.uint8)
    scaled = to_uint8(plane, None)
    np.testing.assert_array_equal(scaled.plane, plane)
    assert (scaled.low, scaled.high, scaled.flat) == (0.0, 255.0, False)
    with pytest.raises(DataError, match=r"is uint16; without clipping .* pass --clip 0,100 .* or --bit-depth 16"):
        to_uint8(plane.astype(np.uint16), None)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_a_plane_without_signal_becomes_zeros(dtype: type) -> None:
    plane = np.full((40, 40), 7, dtype)
    plane[0, 0] = 9  # a hot pixel, beyond the upper percentile
    scaled = to_uint8(plane, DEFAULT_CLIP)
    assert not scaled.plane.any()
    assert (scaled.low, scaled.high, scaled.flat) == (7.0, 7.0, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused_and_counted(value: float) -> None:
    plane = np.ones((4, 4), np.float32)
    plane[1, :2] = value
    with pytest.raises(DataError, match="'i', channel 'x' has 2 pixels that are NaN or infinite"):
        to_uint8(plane, DEFAULT_CLIP, "image 'i', channel 'x'")


@pytest.mark.parametrize("plane", [np.zeros((2, 2, 3), np.uint8), np.zeros((0, 4)), np.zeros((2, 2), complex)])
def test_what_is_no_grey_plane_is_refused(plane: np.ndarray) -> None:
    with pytest.raises(DataError, match="a plane must be numbers of shape"):
        to_uint8(plane, DEFAULT_CLIP)


@pytest.mark.parametrize("dtype", [bool, *TYPES])
@pytest.mark.parametrize("clip", [DEFAULT_CLIP, Range(3, 30), None], ids=str)
def test_16_bit_keeps_the_intensities_and_the_limits(dtype: type, clip: Clip) -> None:
    plane = camera(30, 20).astype(dtype)
    scaled = scale(plane, clip, 16)
    assert scaled.plane.dtype == np.uint16
    np.testing.assert_array_equal(scaled.plane, plane)
    if clip is not None:
        eight = scale(plane, clip)
        assert scaled[1:4] == eight[1:4]
        np.testing.assert_array_equal(scaled.levels, eight.levels)


@pytest.mark.parametrize("value", [-1, 65536, 0.5])
def test_16_bit_refuses_numbers_that_it_cannot_keep(value: float) -> None:
    plane = np.array([[1, 2], [3, value]])
    with pytest.raises(
        DataError, match=r"p is (int64|float64) from .* to .*, which 16 bit cannot keep exactly; .*depth 8"
    ):
        scale(plane, DEFAULT_CLIP, 16, "p")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float64])
@pytest.mark.parametrize("depth", [8, 16])
def test_what_is_counted_agrees_with_the_pixels(dtype: type, depth: int) -> None:
    plane = camera(80, 33, 2).astype(dtype)
    plane[:2, :3] = 250
    scaled = scale(plane, DEFAULT_CLIP, depth)  # type: ignore[arg-type]
    assert scaled.mean == pytest.approx(plane.mean())
    assert scaled.at_maximum == (plane == 250).sum() / plane.size
    levels = to_uint8(plane, DEFAULT_CLIP).plane
    np.testing.assert_array_equal(scaled.levels, [(levels == level).sum() for level in range(256)])


@pytest.mark.parametrize(
    ("text", "clip"),
    [
        ("0.1,99.9", Percentiles(0.1, 99.9)),
        (" 0,100 ", Percentiles(0, 100)),
        ("range:200,4095", Range(200, 4095)),
        ("range:-1.5,2", Range(-1.5, 2)),
        ("none", None),
        ("None", None),
    ],
)
def test_the_command_line_tells_percentiles_intensities_or_none(text: str, clip: Clip) -> None:
    assert parse_clip(text) == clip
    if clip is not None:
        assert parse_clip(str(clip)) == clip


@pytest.mark.parametrize("text", ["1,1", "-1,99", "0,101", "99,1", "nan,50"])
def test_wrong_percentiles_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="two rising percentiles from 0 to 100"):
        parse_clip(text)


@pytest.mark.parametrize("text", ["range:5,5", "range:7,3", "range:nan,3", "range:0,inf"])
def test_wrong_intensities_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="two rising intensities"):
        parse_clip(text)


@pytest.mark.parametrize("text", ["", "auto", "1", "1,2,3", "range:", "a,b"])
def test_any_other_word_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(ConfigError, match=r"allowed are two percentiles such as 0\.1,99\.9"):
        parse_clip(text)

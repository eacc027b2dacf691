import io

import numpy as np
import pytest
from PIL import Image

from morphem.data import png
from morphem.errors import DataError


def camera(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Counts of a camera, with the smallest and the largest number in it."""
    rng = np.random.default_rng(seed)
    plane = rng.poisson(np.add.outer(np.arange(height), np.arange(width)) * 40 + 300).clip(0, 65535).astype(np.uint16)
    plane.flat[0], plane.flat[-1] = 65535, 0
    return plane


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 7), (64, 5), (65, 5), (200, 1), (129, 64)])
def test_intensities_survive_exactly_with_us_and_with_pillow(height: int, width: int) -> None:
    plane = camera(height, width)
    data = png.encode(plane, limits=(310.5, 4000.0))
    ours = png.decode(data, exact=True)
    assert ours.dtype == np.uint16
    np.testing.assert_array_equal(ours, plane)
    with Image.open(io.BytesIO(data)) as image:
        np.testing.assert_array_equal(np.array(image), plane)


def test_random_boxes_equal_slices_of_the_whole_plane() -> None:
    plane = camera(300, 170)
    data = png.encode(plane, rows_per_strip=50, limits=(400.0, 9000.0))
    whole = png.decode(data)
    rng = np.random.default_rng(1)
    for _ in range(50):
        h, w = rng.integers(1, 301), rng.integers(1, 171)
        y, x = rng.integers(0, 301 - h), rng.integers(0, 171 - w)
        np.testing.assert_array_equal(png.decode(data, (y, x, h, w), exact=True), plane[y : y + h, x : x + w])
        np.testing.assert_array_equal(png.decode(data, (y, x, h, w)), whole[y : y + h, x : x + w])


def test_levels_are_scaled_between_the_limits_in_the_file() -> None:
    plane = np.array([[0, 99, 100, 102], [355, 607, 610, 65535]], np.uint16)
    levels = png.decode(png.encode(plane, limits=(100.0, 610.0)))
    assert levels.dtype == np.uint8
    np.testing.assert_array_equal(levels, [[0, 0, 0, 1], [128, 254, 255, 255]])  # 127.5 goes to the even level


def test_limits_with_nothing_between_give_zeros() -> None:
    assert not png.decode(png.encode(camera(9, 9), limits=(7.0, 7.0))).any()


def test_limits_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="must be finite"):
        png.encode(camera(4, 4), limits=(0.0, float("nan")))


def test_the_header_says_16_bit() -> None:
    assert png.read_header(png.encode(camera(20, 30))) == (20, 30, 16, "grey")


def test_a_16_bit_file_of_another_writer_is_read_exactly_and_refused_as_levels() -> None:
    plane, buffer = camera(20, 30), io.BytesIO()
    Image.fromarray(plane).save(buffer, "PNG")
    np.testing.assert_array_equal(png.decode(buffer.getvalue(), exact=True), plane)
    with pytest.raises(DataError, match="'p' is a 16-bit grey PNG"):
        png.decode(buffer.getvalue(), name="p")


def test_what_is_stored_in_8_bit_is_the_same_with_exact() -> None:
    plane = (camera(70, 30) % 256).astype(np.uint8)
    stored = png.decode(png.encode(plane), exact=True)
    assert stored.dtype == np.uint8
    np.testing.assert_array_equal(stored, plane)


def test_a_flipped_byte_anywhere_is_never_read_as_other_pixels() -> None:
    data = png.encode(camera(70, 30), limits=(300.0, 3000.0))
    rng = np.random.default_rng(0)
    for position in [*range(8, 80), *rng.integers(80, len(data) - 12, 60).tolist()]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(DataError):
            png.decode(bytes(damaged))

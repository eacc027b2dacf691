import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from morphem.data import png
from morphem.errors import DataError

SIZES = [(1, 1), (1, 7), (63, 5), (64, 5), (65, 5), (128, 33), (200, 1), (129, 64)]


def noisy(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A smooth gradient with camera noise, and a saturated and an empty corner."""
    rng = np.random.default_rng(seed)
    plane = np.add.outer(np.arange(height), np.arange(width)) / 8 + rng.normal(60, 3, (height, width))
    plane[: height // 4, : width // 4] = 0
    plane[-(height // 4) :, -(width // 4) :] = 300
    return plane.clip(0, 255).astype(np.uint8)


def pillow_bytes(image: Image.Image, **settings: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", **settings)
    return buffer.getvalue()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_pillow_reads_our_png_bit_for_bit(height: int, width: int) -> None:
    plane = noisy(height, width)
    with Image.open(io.BytesIO(png.encode(plane))) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.array(image), plane)


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_we_read_our_png_bit_for_bit(height: int, width: int) -> None:
    plane = noisy(height, width)
    np.testing.assert_array_equal(png.decode(png.encode(plane)), plane)


@pytest.mark.parametrize("rows_per_strip", [1, 7, 64, 1000])
def test_any_height_of_strips_reads_back(rows_per_strip: int) -> None:
    plane = noisy(150, 40)
    np.testing.assert_array_equal(png.decode(png.encode(plane, rows_per_strip), (3, 4, 140, 20)), plane[3:143, 4:24])


def test_random_boxes_equal_slices_of_the_whole_plane() -> None:
    plane = noisy(300, 170)
    data = png.encode(plane)
    rng = np.random.default_rng(1)
    for _ in range(100):
        h, w = rng.integers(1, 301), rng.integers(1, 171)
        y, x = rng.integers(0, 301 - h), rng.integers(0, 171 - w)
        np.testing.assert_array_equal(png.decode(data, (y, x, h, w)), plane[y : y + h, x : x + w])


def test_boxes_read_together_equal_boxes_read_alone() -> None:
    plane = noisy(400, 100)
    data = png.encode(plane)
    boxes = [(390, 0, 10, 5), (0, 90, 3, 10), (63, 20, 2, 50), (200, 1, 64, 64)]
    for box, crop in zip(boxes, png.decode_many(data, boxes), strict=True):
        np.testing.assert_array_equal(crop, png.decode(data, box))


def test_crops_own_their_pixels() -> None:
    first, second = png.decode_many(png.encode(noisy(20, 20)), [(0, 0, 10, 10), (0, 0, 10, 10)])
    before = second.copy()
    first[:] = 7
    np.testing.assert_array_equal(second, before)


def test_a_memoryview_reads_like_bytes() -> None:
    plane = noisy(70, 20)
    np.testing.assert_array_equal(png.decode(memoryview(b"x" + png.encode(plane))[1:]), plane)


def test_strips_that_no_box_touches_are_not_looked_at() -> None:
    plane = noisy(200, 50)
    data = bytearray(png.encode(plane))
    data[-40] ^= 255  # in the last strip
    np.testing.assert_array_equal(png.decode(bytes(data), (0, 0, 128, 50)), plane[:128])
    with pytest.raises(DataError, match="does not match its checksum"):
        png.decode(bytes(data), (150, 0, 50, 50))


@pytest.mark.parametrize("seed", range(3))
def test_a_file_is_hardly_larger_than_pillows_run_length_file(seed: int) -> None:
    plane = noisy(512, 512, seed)
    reference = pillow_bytes(Image.fromarray(plane), compress_level=1, compress_type=zlib.Z_RLE)
    assert len(png.encode(plane)) <= 1.05 * len(reference)


@pytest.mark.parametrize("settings", [{}, {"compress_level": 0}, {"optimize": True}])
def test_png_files_of_other_writers_read_too(settings: dict[str, object]) -> None:
    plane = noisy(90, 60)
    data = pillow_bytes(Image.fromarray(plane), **settings)
    np.testing.assert_array_equal(png.decode(data, (5, 6, 70, 40)), plane[5:75, 6:46])


def test_a_palette_that_is_a_ramp_of_greys_reads_as_its_index() -> None:
    plane = noisy(20, 20)
    image = Image.fromarray(plane, mode="L").convert("P")
    image.putdata(plane.ravel().tolist())
    image.putpalette([level for level in range(256) for _ in range(3)])
    np.testing.assert_array_equal(png.decode(pillow_bytes(image)), plane)


def colour_palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


@pytest.mark.parametrize(
    ("image", "what"),
    [
        (Image.fromarray(np.full((4, 4), 300, np.uint16)), "16-bit grey"),
        (Image.new("RGB", (4, 4)), "8-bit RGB"),
        (Image.new("RGBA", (4, 4)), "RGB with alpha"),
        (Image.new("LA", (4, 4)), "grey with alpha"),
        (Image.new("1", (4, 4)), "1-bit grey"),
        (colour_palette(), "palette"),
    ],
)
def test_another_kind_of_png_is_refused_by_name_and_kind(image: Image.Image, what: str) -> None:
    with pytest.raises(DataError, match=f"'plane 7' is a .*{what}"):
        png.decode(pillow_bytes(image), name="plane 7")


@pytest.mark.parametrize("ours", [True, False])
def test_a_flipped_byte_anywhere_is_never_read_as_other_pixels(ours: bool) -> None:
    plane = noisy(70, 30)
    data = png.encode(plane) if ours else pillow_bytes(Image.fromarray(plane))
    rng = np.random.default_rng(0)
    for position in [*range(8, 60), *rng.integers(60, len(data) - 12, 60).tolist()]:
        damaged = bytearray(data)
        damaged[position] ^= 1 << int(rng.integers(8))
        with pytest.raises(DataError):
            png.decode(bytes(damaged))


@pytest.mark.parametrize("ours", [True, False])
@pytest.mark.parametrize("kept", [0, 7, 20, 33, 40, 200, -13])
def test_a_png_that_is_cut_off_is_refused(ours: bool, kept: int) -> None:
    plane = noisy(70, 30)
    data = png.encode(plane) if ours else pillow_bytes(Image.fromarray(plane))
    with pytest.raises(DataError, match="'p'"):
        png.decode(data[:kept] if kept >= 0 else data[: kept - 4], name="p")


def test_something_else_than_a_png_is_refused_with_its_first_bytes() -> None:
    with pytest.raises(DataError, match=r"'p' is not a PNG .*<html"):
        png.decode(b"<html>not found</html>" * 5, name="p")


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def test_a_header_that_claims_more_pixels_than_there_can_be_costs_no_memory() -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 64, 8, 0, 0, 0, 0))
    body = zlib.compress(b"\0" * 10)
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"stRP", struct.pack(">II", 64, len(body))) + chunk(b"IDAT", body)
    with pytest.raises(DataError, match="too short for its size"):
        png.decode(data + chunk(b"IEND", b""), name="bomb")


@pytest.mark.parametrize(
    "box", [(-1, 0, 2, 2), (0, -1, 2, 2), (0, 0, 0, 2), (0, 0, 21, 2), (19, 0, 2, 2), (0, 29, 1, 2)]
)
def test_a_box_outside_of_the_plane_is_refused(box: tuple[int, int, int, int]) -> None:
    with pytest.raises(DataError, match="not inside"):
        png.decode(png.encode(noisy(20, 30)), box)


@pytest.mark.parametrize(
    "plane",
    [np.zeros((2, 3), np.int16), np.zeros((2, 3, 3), np.uint8), np.zeros((0, 3), np.uint8), np.zeros(3, np.uint16)],
)
def test_only_grey_planes_of_8_or_16_bit_are_written(plane: np.ndarray) -> None:
    with pytest.raises(DataError, match="must be uint8 or uint16"):
        png.encode(plane)


def test_the_header_tells_size_and_kind() -> None:
    assert png.read_header(png.encode(noisy(20, 30))) == (20, 30, 8, "grey")
    assert png.read_header(pillow_bytes(Image.new("RGB", (3, 2)))) == (2, 3, 8, "RGB")


def test_without_isal_the_same_pixels_come_out(monkeypatch: pytest.MonkeyPatch) -> None:
    plane = noisy(200, 90)
    data = png.encode(plane)
    monkeypatch.setattr(png, "_inflater", zlib)
    np.testing.assert_array_equal(png.decode(data, (70, 3, 100, 80)), plane[70:170, 3:83])

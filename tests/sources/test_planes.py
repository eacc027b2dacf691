from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from morphem.errors import DataError
from morphem.sources.planes import Place, read_plane
from tests.sources.sheets import counts

RAMP = np.repeat(np.linspace(0, 65535, 256, dtype=np.uint16)[None], 3, axis=0)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_a_tiff_of_one_plane_reads_as_stored(tmp_path: Path, compression: str | None) -> None:
    plane = counts(0)
    tifffile.imwrite(tmp_path / "p.tif", plane, compression=compression)
    read, remark = read_plane(tmp_path / "p.tif", Place())
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, plane)
    assert remark is None


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_an_8_bit_file_of_any_kind_reads_as_stored(tmp_path: Path, suffix: str) -> None:
    plane = (counts(0) // 16).astype(np.uint8)
    Image.fromarray(plane).save(tmp_path / f"p.{suffix}")
    np.testing.assert_array_equal(read_plane(tmp_path / f"p.{suffix}", Place())[0], plane)


def test_a_16_bit_png_keeps_its_values(tmp_path: Path) -> None:
    Image.fromarray(counts(0)).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_plane(tmp_path / "p.png", Place())[0], counts(0))


def test_pages_are_read_by_number(tmp_path: Path) -> None:
    pages = np.stack([counts(i) for i in range(3)]).astype(np.float32)
    tifffile.imwrite(tmp_path / "p.ome.tiff", pages, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_plane(tmp_path / "p.ome.tiff", Place("page", 2))[0], pages[2])
    with pytest.raises(DataError, match="has 3 pages; plane_index 3"):
        read_plane(tmp_path / "p.ome.tiff", Place("page", 3))


@pytest.fixture
def hyperstack(tmp_path: Path) -> tuple[Path, np.ndarray]:
    stack = np.stack([counts(i) for i in range(6)]).reshape(3, 2, 12, 16)
    tifffile.imwrite(tmp_path / "zc.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    return tmp_path / "zc.tif", stack


def test_slices_of_a_stack_are_projected_and_that_is_told(hyperstack: tuple[Path, np.ndarray]) -> None:
    path, stack = hyperstack
    read, remark = read_plane(path, Place("C", 1))
    np.testing.assert_array_equal(read, stack[:, 1].max(axis=0))
    assert remark == "maximum projection over 3 slices"


def test_one_slice_of_a_stack_is_taken_where_the_sheet_names_it(hyperstack: tuple[Path, np.ndarray]) -> None:
    path, stack = hyperstack
    read, remark = read_plane(path, Place("C", 0, z_slice="2"))
    np.testing.assert_array_equal(read, stack[2, 0])
    assert remark is None
    with pytest.raises(DataError, match="axis Z has 3 entries; there is no 3"):
        read_plane(path, Place("C", 0, z_slice="3"))


def test_a_stack_where_one_plane_was_promised_is_refused_with_its_axes(hyperstack: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"is no single plane \(C 2 x Y 12 x X 16\)"):
        read_plane(hyperstack[0], Place())
    with pytest.raises(DataError, match="has no axis S"):
        read_plane(hyperstack[0], Place("sample", 0))
    with pytest.raises(DataError, match="axis C has 2 entries; there is no 2"):
        read_plane(hyperstack[0], Place("C", 2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_are_split_where_asked_and_refused_where_not(tmp_path: Path, suffix: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(colours).save(path)
    np.testing.assert_array_equal(read_plane(path, Place("sample", 2))[0], colours[..., 2])
    with pytest.raises(DataError, match=r"is a colour image .* where one grey plane was promised"):
        read_plane(path, Place())


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_palette_of_greys_is_not_applied(tmp_path: Path, suffix: str) -> None:
    plane = (counts(0) // 16).astype(np.uint8)
    image = Image.fromarray(plane)
    image.putpalette([level // 2 for level in range(256) for _ in range(3)])
    image.save(tmp_path / f"p.{suffix}")
    np.testing.assert_array_equal(read_plane(tmp_path / f"p.{suffix}", Place())[0], plane)


@pytest.mark.parametrize("change", [0, 1])
def test_a_palette_of_colours_or_falling_greys_is_refused(tmp_path: Path, change: int) -> None:
    palette = RAMP.copy()
    if change:
        palette[0, 100] = 7
    else:
        palette = palette[:, ::-1]
    tifffile.imwrite(tmp_path / "p.tif", (counts(0) // 16).astype(np.uint8), photometric="palette", colormap=palette)
    with pytest.raises(DataError, match="colour image with a palette"):
        read_plane(tmp_path / "p.tif", Place())


def test_where_white_is_zero_the_values_are_turned_round(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", counts(0), photometric="miniswhite")
    np.testing.assert_array_equal(read_plane(tmp_path / "p.tif", Place())[0], 65535 - counts(0))


@pytest.mark.parametrize("kept", [0, 4, 100, -40])
@pytest.mark.parametrize("name", ["p.tif", "z.tif", "p.png"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, kept: int) -> None:
    path = tmp_path / name
    if name == "p.png":
        Image.fromarray(counts(0)).save(path)
    else:
        tifffile.imwrite(path, counts(0), compression="zlib" if name == "z.tif" else None)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"{name}' cannot be read: "):
        read_plane(path, Place())


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.tif' is missing; restore it or take its rows out"):
        read_plane(tmp_path / "p.tif", Place())


def test_an_unknown_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plane_axis is 'c'; allowed: none, page, C, sample"):
        read_plane(tmp_path / "p.tif", Place("c"))

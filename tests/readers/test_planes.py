import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from morphem.errors import DataError
from morphem.readers.files import FolderFiles, open_files
from morphem.readers.planes import Place, PlaneReader, read_header, read_plane
from tests.sources.sheets import counts

RAMP = np.repeat(np.linspace(0, 65535, 256, dtype=np.uint16)[None], 3, axis=0)


@pytest.mark.parametrize("compression", [None, "lzw", "zlib", "packbits"])
def test_a_tiff_of_one_plane_reads_as_stored(tmp_path: Path, compression: str | None) -> None:
    plane = counts(0)
    tifffile.imwrite(tmp_path / "p.tif", plane, compression=compression)
    read, remark = read_plane(FolderFiles(tmp_path), "p.tif", Place())
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, plane)
    assert remark is None


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif"])
def test_an_8_bit_file_of_any_kind_reads_as_stored(tmp_path: Path, suffix: str) -> None:
    plane = (counts(0) // 16).astype(np.uint8)
    Image.fromarray(plane).save(tmp_path / f"p.{suffix}")
    np.testing.assert_array_equal(read_plane(FolderFiles(tmp_path), f"p.{suffix}", Place())[0], plane)


def test_a_16_bit_png_keeps_its_values(tmp_path: Path) -> None:
    Image.fromarray(counts(0)).save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_plane(FolderFiles(tmp_path), "p.png", Place())[0], counts(0))


def test_pages_are_read_by_number(tmp_path: Path) -> None:
    pages = np.stack([counts(i) for i in range(3)]).astype(np.float32)
    tifffile.imwrite(tmp_path / "p.ome.tiff", pages, metadata={"axes": "CYX"})
    np.testing.assert_array_equal(read_plane(FolderFiles(tmp_path), "p.ome.tiff", Place("page", 2))[0], pages[2])
    with pytest.raises(DataError, match="has 3 pages; plane_index 3"):
        read_plane(FolderFiles(tmp_path), "p.ome.tiff", Place("page", 3))


@pytest.fixture
def hyperstack(tmp_path: Path) -> tuple[Path, np.ndarray]:
    stack = np.stack([counts(i) for i in range(6)]).reshape(3, 2, 12, 16)
    tifffile.imwrite(tmp_path / "zc.tif", stack, imagej=True, metadata={"axes": "ZCYX"})
    return tmp_path / "zc.tif", stack


def test_slices_of_a_stack_are_projected_and_that_is_told(hyperstack: tuple[Path, np.ndarray]) -> None:
    path, stack = hyperstack
    read, remark = read_plane(FolderFiles(path.parent), path.name, Place("C", 1))
    np.testing.assert_array_equal(read, stack[:, 1].max(axis=0))
    assert remark == "maximum projection over 3 slices"


def test_one_slice_of_a_stack_is_taken_where_the_sheet_names_it(hyperstack: tuple[Path, np.ndarray]) -> None:
    path, stack = hyperstack
    read, remark = read_plane(FolderFiles(path.parent), path.name, Place("C", 0, z_slice="2"))
    np.testing.assert_array_equal(read, stack[2, 0])
    assert remark is None
    with pytest.raises(DataError, match="axis Z has 3 entries; there is no 3"):
        read_plane(FolderFiles(path.parent), path.name, Place("C", 0, z_slice="3"))


def test_a_stack_where_one_plane_was_promised_is_refused_with_its_axes(hyperstack: tuple[Path, np.ndarray]) -> None:
    with pytest.raises(DataError, match=r"is no single plane \(C 2 x Y 12 x X 16\)"):
        read_plane(FolderFiles(hyperstack[0].parent), hyperstack[0].name, Place())
    with pytest.raises(DataError, match="has no axis S"):
        read_plane(FolderFiles(hyperstack[0].parent), hyperstack[0].name, Place("sample", 0))
    with pytest.raises(DataError, match="axis C has 2 entries; there is no 2"):
        read_plane(FolderFiles(hyperstack[0].parent), hyperstack[0].name, Place("C", 2))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_colours_are_split_where_asked_and_refused_where_not(tmp_path: Path, suffix: str) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    path = tmp_path / f"p.{suffix}"
    Image.fromarray(colours).save(path)
    np.testing.assert_array_equal(
        read_plane(FolderFiles(path.parent), path.name, Place("sample", 2))[0], colours[..., 2]
    )
    with pytest.raises(DataError, match=r"is a colour image .* where one grey plane was promised"):
        read_plane(FolderFiles(path.parent), path.name, Place())


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_palette_of_greys_is_not_applied(tmp_path: Path, suffix: str) -> None:
    plane = (counts(0) // 16).astype(np.uint8)
    image = Image.fromarray(plane)
    image.putpalette([level // 2 for level in range(256) for _ in range(3)])
    image.save(tmp_path / f"p.{suffix}")
    np.testing.assert_array_equal(read_plane(FolderFiles(tmp_path), f"p.{suffix}", Place())[0], plane)


@pytest.mark.parametrize("change", [0, 1])
def test_a_palette_of_colours_or_falling_greys_is_refused(tmp_path: Path, change: int) -> None:
    palette = RAMP.copy()
    if change:
        palette[0, 100] = 7
    else:
        palette = palette[:, ::-1]
    tifffile.imwrite(tmp_path / "p.tif", (counts(0) // 16).astype(np.uint8), photometric="palette", colormap=palette)
    with pytest.raises(DataError, match="colour image with a palette"):
        read_plane(FolderFiles(tmp_path), "p.tif", Place())


def test_where_white_is_zero_the_values_are_turned_round(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", counts(0), photometric="miniswhite")
    np.testing.assert_array_equal(read_plane(FolderFiles(tmp_path), "p.tif", Place())[0], 65535 - counts(0))


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
        read_plane(FolderFiles(path.parent), path.name, Place())


def test_a_missing_file_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"p\.tif' is missing; restore it or take its rows out"):
        read_plane(FolderFiles(tmp_path), "p.tif", Place())


def test_an_unknown_axis_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="plane_axis is 'c'; allowed: none, page, C, sample, tape"):
        read_plane(FolderFiles(tmp_path), "p.tif", Place("c"))


def test_one_plane_of_a_large_stack_costs_one_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stack = np.stack([counts(i) for i in range(6)]).reshape(3, 2, 12, 16)
    tifffile.imwrite(tmp_path / "zc.ome.tif", stack, ome=True, metadata={"axes": "ZCYX"})
    decoded = []
    asarray = tifffile.TiffPage.asarray
    monkeypatch.setattr(tifffile.TiffPage, "asarray", lambda page, **_: decoded.append(page.index) or asarray(page))
    read_plane(FolderFiles(tmp_path), "zc.ome.tif", Place("C", 1, z_slice="0"))
    assert decoded == [1]


@pytest.mark.parametrize(
    ("kind", "axes"),
    [
        ("ome", "TZCYX"),
        ("ome", "CZTYX"),
        ("ome", "ZTCYX"),
        ("imagej", "TZCYX"),
        ("shaped", "TZCYX"),
        ("one page", "TZCYX"),
    ],
)
def test_slices_frames_and_channels_are_found_in_any_order_of_axes(tmp_path: Path, kind: str, axes: str) -> None:
    how = {
        "ome": {"ome": True},
        "imagej": {"imagej": True},
        "shaped": {},
        "one page": {"imagej": True, "truncate": True},
    }
    lengths = {"T": 2, "Z": 3, "C": 4}
    stack = np.random.default_rng(0).integers(0, 999, [lengths[axis] for axis in axes[:3]] + [5, 7], dtype=np.uint16)
    tifffile.imwrite(tmp_path / "s.tif", stack, **how[kind], photometric="minisblack", metadata={"axes": axes})
    read, _ = read_plane(FolderFiles(tmp_path), "s.tif", Place("C", 3, z_slice="2", timepoint="1"))
    np.testing.assert_array_equal(read, stack[tuple({"T": 1, "Z": 2, "C": 3}[axis] for axis in axes[:3])])


def test_a_time_series_where_no_frame_is_named_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "t.tif", np.stack([counts(0), counts(1)]), imagej=True, metadata={"axes": "TYX"})
    with pytest.raises(DataError, match=r"is no single plane \(T 2 x Y 12 x X 16\)"):
        read_plane(FolderFiles(tmp_path), "t.tif")


def test_images_of_a_file_with_several_are_told_apart_by_series(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "two.ome.tif", ome=True) as writer:
        writer.write(counts(0))
        writer.write(counts(1, 20, 24))
    files = FolderFiles(tmp_path)
    np.testing.assert_array_equal(read_plane(files, "two.ome.tif", Place(series=1))[0], counts(1, 20, 24))
    np.testing.assert_array_equal(read_plane(files, "two.ome.tif", Place("page", 0, series=1))[0], counts(1, 20, 24))
    with pytest.raises(DataError, match="holds 2 series of images; say which"):
        read_plane(files, "two.ome.tif")
    with pytest.raises(DataError, match="has 2 series of images; there is no 2"):
        read_plane(files, "two.ome.tif", Place(series=2))


@pytest.mark.parametrize("tiled", [True, False])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "float32"])
def test_every_pixel_type_tiled_and_compressed_reads_as_stored(tmp_path: Path, dtype: str, tiled: bool) -> None:
    plane = counts(0, 40, 50).astype(dtype)
    tifffile.imwrite(tmp_path / "p.tif", plane, compression="zlib", tile=(16, 16) if tiled else None)
    read, _ = read_plane(FolderFiles(tmp_path), "p.tif")
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, plane)


def write_12_bit(path: Path, plane: np.ndarray, photometric: int) -> None:
    """Two pixels in three bytes, most significant bits first, behind the smallest directory that TIFF allows."""
    pairs = plane.reshape(-1, 2).astype(np.uint32)
    packed = (pairs[:, 0] << 12) | pairs[:, 1]
    data = np.stack([packed >> 16, packed >> 8, packed], axis=1).astype(np.uint8).tobytes()
    height, width = plane.shape
    tags = [(256, width), (257, height), (258, 12), (259, 1), (262, photometric), (273, 8), (277, 1), (278, height)]
    tags.append((279, len(data)))
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8 + len(data)) + data + directory)


@pytest.mark.parametrize("photometric", [0, 1])
def test_12_bit_pixels_are_unpacked_and_turned_round_within_12_bits(tmp_path: Path, photometric: int) -> None:
    plane = counts(0)  # below 4096
    write_12_bit(tmp_path / "p.tif", plane, photometric)
    expected = plane if photometric else 4095 - plane
    np.testing.assert_array_equal(read_plane(FolderFiles(tmp_path), "p.tif")[0], expected)


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("n_samples", [2, 3, 4])
def test_grey_stored_as_equal_colours_is_one_plane_and_that_is_told(
    tmp_path: Path, suffix: str, n_samples: int
) -> None:
    plane = (counts(0) // 16).astype(np.uint8)
    opacity = np.full_like(plane, 255)
    samples = {2: [plane, opacity], 3: [plane] * 3, 4: [plane, plane, plane, opacity]}[n_samples]
    Image.fromarray(np.dstack(samples)).save(tmp_path / f"p.{suffix}")
    read, remark = read_plane(FolderFiles(tmp_path), f"p.{suffix}")
    np.testing.assert_array_equal(read, plane)
    assert remark == "grey stored as equal colours, taken as one plane"


def test_grey_with_an_opacity_that_varies_is_refused(tmp_path: Path) -> None:
    plane = (counts(0) // 16).astype(np.uint8)
    Image.fromarray(np.dstack([plane, plane, plane, plane])).save(tmp_path / "p.png")
    with pytest.raises(DataError, match="is a colour image"):
        read_plane(FolderFiles(tmp_path), "p.png")


def test_a_16_bit_colour_png_keeps_its_values(tmp_path: Path) -> None:
    import imagecodecs

    colours = np.stack([counts(i) for i in range(3)], axis=-1)
    (tmp_path / "p.png").write_bytes(imagecodecs.png_encode(colours))
    np.testing.assert_array_equal(read_plane(FolderFiles(tmp_path), "p.png", Place("sample", 1))[0], counts(1))
    assert read_header(FolderFiles(tmp_path), "p.png").dtype == "uint16"


def test_planes_side_by_side_are_cut(tmp_path: Path) -> None:
    planes = [(counts(i) // 16).astype(np.uint8) for i in range(3)]
    Image.fromarray(np.hstack(planes)).save(tmp_path / "p.png")
    files = FolderFiles(tmp_path)
    for i, plane in enumerate(planes):
        np.testing.assert_array_equal(read_plane(files, "p.png", Place("tape", i, n_beside=3))[0], plane)
    with pytest.raises(DataError, match="48 pixels wide, which cannot be 5 planes"):
        read_plane(files, "p.png", Place("tape", 0, n_beside=5))
    with pytest.raises(DataError, match="has 3 planes side by side; there is no 3"):
        read_plane(files, "p.png", Place("tape", 3, n_beside=3))


def test_the_content_decides_what_kind_of_file_it_is(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "p.tif", counts(0))
    (tmp_path / "p.tif").rename(tmp_path / "p.png")
    np.testing.assert_array_equal(read_plane(FolderFiles(tmp_path), "p.png")[0], counts(0))


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.csv"])
def test_a_file_that_is_no_image_is_named_with_its_first_bytes(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"<html>sorry</html>")
    with pytest.raises(DataError, match=rf"{name}' cannot be read: it is no TIFF.*b'<html>so'"):
        read_plane(FolderFiles(tmp_path), name)


@pytest.mark.parametrize("suffix", ["tif", "png"])
def test_a_picture_of_too_many_pixels_is_refused_before_it_is_decoded(tmp_path: Path, suffix: str) -> None:
    Image.new("L", (3000, 3000)).save(tmp_path / f"p.{suffix}")
    files = FolderFiles(tmp_path)
    with pytest.raises(DataError, match=r"claims 9000000 pixels, more than the 1000000 allowed.*--max-pixels"):
        read_plane(files, f"p.{suffix}", max_pixels=1_000_000)
    assert read_plane(files, f"p.{suffix}", max_pixels=9_000_000)[0].shape == (3000, 3000)


def test_a_picture_beyond_the_limit_of_pillow_is_read_where_ours_allows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    Image.new("L", (30, 30)).save(tmp_path / "p.png")
    assert read_plane(FolderFiles(tmp_path), "p.png")[0].shape == (30, 30)


def test_a_zip_member_that_unpacks_to_too_much_is_refused_unread(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "z.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("bomb.tif", bytes(2_000_000))
    with pytest.raises(DataError, match="unpacks to 2000000 bytes, more than allowed"):
        read_plane(open_files(str(tmp_path / "z.zip")), "bomb.tif", max_pixels=100_000)


def write_ome(path: Path, n_channels: int, tiff_data: str) -> None:
    """One plane, and a description that says what it likes of its channels."""
    channels = "".join(f'<Channel ID="Channel:0:{c}"/>' for c in range(n_channels))
    sizes = f'SizeX="16" SizeY="12" SizeC="{n_channels}" SizeZ="1" SizeT="1"'
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="urn:uuid:0">'
        f'<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint16" {sizes}>'
        f"{channels}{tiff_data}</Pixels></Image></OME>"
    )
    tifffile.imwrite(path, counts(0), description=xml.encode(), metadata=None)


def test_an_ome_tiff_does_not_pull_in_the_files_that_it_names(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    tifffile.imwrite(tmp_path / "secret.tif", counts(1))
    names = ("a.ome.tif", "../secret.tif")
    tiff_data = "".join(
        f'<TiffData FirstC="{c}" IFD="0" PlaneCount="1"><UUID FileName="{name}">urn:uuid:{c}</UUID></TiffData>'
        for c, name in enumerate(names)
    )
    write_ome(tmp_path / "inside" / "a.ome.tif", 2, tiff_data)
    files = FolderFiles(tmp_path / "inside")
    np.testing.assert_array_equal(read_plane(files, "a.ome.tif", Place("page", 0))[0], counts(0))
    for number in (0, 1):
        with pytest.raises(DataError, match="has no axis C"):
            read_plane(files, "a.ome.tif", Place("C", number))


def test_a_plane_that_a_series_promises_and_the_file_lacks_is_refused(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.ome.tif", 2, '<TiffData FirstC="0" IFD="0" PlaneCount="1"/>')
    files = FolderFiles(tmp_path)
    np.testing.assert_array_equal(read_plane(files, "a.ome.tif", Place("C", 0))[0], counts(0))
    with pytest.raises(DataError, match="does not hold all planes of its series"):
        read_plane(files, "a.ome.tif", Place("C", 1))


def test_a_header_tells_axes_names_and_pixel_size_without_pixels(tmp_path: Path) -> None:
    stack = np.stack([counts(0), counts(1)])
    facts = {"axes": "CYX", "Channel": {"Name": ["DNA", "ER"]}, "PhysicalSizeX": 650, "PhysicalSizeXUnit": "nm"}
    tifffile.imwrite(tmp_path / "o.ome.tif", stack, ome=True, metadata=facts)
    tifffile.imwrite(
        tmp_path / "i.tif",
        stack,
        imagej=True,
        resolution=(2, 2),
        metadata={"axes": "CYX", "Labels": ["DNA", "ER"], "unit": "um"},
    )
    files = FolderFiles(tmp_path)
    assert read_header(files, "o.ome.tif") == ("CYX", (2, 12, 16), "uint16", 1, 2, ("DNA", "ER"), pytest.approx(0.65))
    assert read_header(files, "i.tif") == ("CYX", (2, 12, 16), "uint16", 1, 2, ("DNA", "ER"), 0.5)


def test_a_file_of_several_planes_is_opened_once(hyperstack: tuple[Path, np.ndarray]) -> None:
    class Counted(FolderFiles):
        opened = 0

        def open(self, name):
            self.opened += 1
            return super().open(name)

    files = Counted(hyperstack[0].parent)
    with PlaneReader(files) as reader:
        reader.read("zc.tif", Place("C", 0))
        first = files.opened
        reader.read("zc.tif", Place("C", 1))
    assert files.opened == first

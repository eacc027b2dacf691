import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError
from morphem.readers.files import open_files
from morphem.sources.tiff import TiffSource
from tests.sources.planes_of import SHAPE, assert_image, plane

H, W = SHAPE


def _stack(*lengths: int, dtype: str = "uint16") -> NDArray[Any]:
    """A stack whose planes all differ."""
    planes = [plane(*at, dtype=dtype) for at in product(*map(range, lengths))]
    return np.stack(planes).reshape(*lengths, H, W)


def _ome(path: Path, pixels: NDArray[Any], axes: str, channels: list[str], **settings: Any) -> None:
    metadata = {"axes": axes, "Channel": {"Name": channels}, **settings.pop("metadata", {})}
    tifffile.imwrite(path, pixels, ome=True, metadata=metadata, **settings)


@pytest.mark.parametrize("axes", ["TZC", "TCZ", "CZT"])
def test_a_stack_over_time_becomes_an_image_per_slice_and_frame(tmp_path: Path, axes: str) -> None:
    length = {"T": 2, "Z": 3, "C": 2}
    pixels = _stack(*(length[axis] for axis in axes))
    physical = {"PhysicalSizeX": 325.0, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 325.0, "PhysicalSizeYUnit": "nm"}
    _ome(tmp_path / "a b+c.1.ome.tif", pixels, f"{axes}YX", ["DAPI", "MitoTracker"], metadata=physical)

    source = TiffSource(str(tmp_path), study="s")

    assert source.image_ids() == [f"a b+c.1-z{z}-t{t}" for t in range(2) for z in range(3)]
    for t, z in product(range(2), range(3)):
        index = [tuple({"T": t, "Z": z, "C": c}[axis] for axis in axes) for c in range(2)]
        expected = {
            "experiment.study": "s",
            "imaging.panel": "DAPI,MitoTracker",
            "imaging.channel": ["1", "2"],
            "imaging.channel_type": ["nucleus", "mitochondria"],
            "geometry.width": W,
            "geometry.height": H,
            "geometry.depth": "3",
            "geometry.channels": 2,
            "geometry.z_slice": str(z),
            "geometry.timepoint": str(t),
            "storage.path": "a b+c.1.ome.tif",
            "pixel_um": "0.325",
        }
        assert_image(source, f"a b+c.1-z{z}-t{t}", [pixels[at] for at in index], expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "int16", "float32"])
@pytest.mark.parametrize("settings", [{}, {"compression": "zlib", "tile": (16, 16)}, {"compression": "lzw"}])
def test_every_pixel_type_tiling_and_compression_comes_back(
    tmp_path: Path, dtype: str, settings: dict[str, Any]
) -> None:
    pixels = _stack(2, dtype=dtype)
    _ome(tmp_path / "a.ome.tif", pixels, "CYX", ["DAPI", "ER"], **settings)
    assert_image(TiffSource(str(tmp_path)), "a", list(pixels), {})


def test_the_maximum_over_the_slices_is_recorded(tmp_path: Path) -> None:
    pixels = _stack(3, 2)
    _ome(tmp_path / "a.ome.tif", pixels, "ZCYX", ["DAPI", "ER"])
    source = TiffSource(str(tmp_path), project="max")
    assert_image(source, "a", list(pixels.max(axis=0)), {"geometry.z_slice": "max", "geometry.depth": "3"})
    assert source.load("a").remarks == ["maximum projection over 3 slices"]


def test_several_images_of_one_file_stay_apart(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.ome.tif", ome=True) as writer:
        for number in range(2):
            writer.write(plane(number), metadata={"axes": "YX", "Channel": {"Name": "DAPI"}})
    source = TiffSource(str(tmp_path))
    assert source.image_ids() == ["a-i0", "a-i1"]
    assert_image(source, "a-i1", [plane(1)], {"imaging.channel_type": "nucleus"})


_PIXELS = f'DimensionOrder="XYCZT" ID="Pixels:0" SizeC="2" SizeT="1" SizeX="{W}" SizeY="{H}" SizeZ="2" Type="uint16"'


def _companion(folder: Path) -> str:
    """OME-XML of an image whose two channels lie in two files of two slices each."""
    entries = "".join(
        f'<TiffData FirstC="{c}" FirstZ="{z}" FirstT="0" IFD="{z}" PlaneCount="1">'
        f'<UUID FileName="c{c}.ome.tif">urn:uuid:0000000{c}-0000-4000-8000-000000000000</UUID></TiffData>'
        for c, z in product(range(2), range(2))
    )
    xml = (
        '<?xml version="1.0" encoding="UTF-8"?>'
        '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Plate ID="Plate:0" Name="P7"><Well ID="Well:0" Row="1" Column="11"><WellSample ID="WellSample:0" Index="4">'
        '<ImageRef ID="Image:0"/></WellSample></Well></Plate>'
        '<Instrument ID="Instrument:0"><Objective ID="Objective:0" NominalMagnification="60.0"/></Instrument>'
        '<Image ID="Image:0" Name="x"><ObjectiveSettings ID="Objective:0"/>'
        f'<Pixels {_PIXELS} PhysicalSizeX="0.1083"><Channel ID="Channel:0:0" Name="DAPI" SamplesPerPixel="1" '
        'AcquisitionMode="SpinningDiskConfocal" EmissionWavelength="460"/>'
        f'<Channel ID="Channel:0:1" Name="TL" SamplesPerPixel="1" ContrastMethod="Phase"/>'
        f"{entries}</Pixels></Image></OME>"
    )
    for c in range(2):
        pixels = np.stack([plane(c, z) for z in range(2)])
        tifffile.imwrite(folder / f"c{c}.ome.tif", pixels, photometric="minisblack", metadata=None)
    return xml


def test_a_companion_file_tells_the_channel_of_each_file(tmp_path: Path) -> None:
    (tmp_path / "set.companion.ome").write_text(_companion(tmp_path), encoding="utf-8")

    source = TiffSource(str(tmp_path), channel_aliases={"TL": "phase contrast"})

    assert source.image_ids() == ["set-z0", "set-z1"]
    expected = {
        "experiment.plate": "P7",
        "experiment.well": "B12",
        "microscopy.fov": "4",
        "microscopy.magnification": "60",
        "microscopy.type": ["confocal", "phase contrast"],
        "imaging.channel_type": ["nucleus", "phase contrast"],
        "geometry.z_slice": "1",
        "storage.path": ["c0.ome.tif", "c1.ome.tif"],
        "pixel_um": "0.1083",
        "emission_nm": ["460", ""],
    }
    assert_image(source, "set-z1", [plane(0, 1), plane(1, 1)], expected)


def test_a_set_of_files_that_all_hold_its_description_is_read_once(tmp_path: Path) -> None:
    xml = _companion(tmp_path)
    for c in range(2):
        pixels = np.stack([plane(c, z) for z in range(2)])
        tifffile.imwrite(
            tmp_path / f"c{c}.ome.tif", pixels, photometric="minisblack", description=xml.encode(), metadata=None
        )
    source = TiffSource(str(tmp_path))
    assert source.image_ids() == ["c0-z0", "c0-z1"]
    assert_image(source, "c0-z0", [plane(0, 0), plane(1, 0)], {})


def test_a_file_of_a_set_that_is_missing_fails_its_images(tmp_path: Path) -> None:
    (tmp_path / "set.companion.ome").write_text(_companion(tmp_path), encoding="utf-8")
    (tmp_path / "c1.ome.tif").unlink()
    with pytest.raises(DataError, match=r"c1\.ome\.tif' is missing"):
        TiffSource(str(tmp_path)).load("set-z0")


def test_a_set_whose_files_lie_elsewhere_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    xml = _companion(tmp_path).replace('FileName="', 'FileName="../')
    (tmp_path / "in" / "set.companion.ome").write_text(xml, encoding="utf-8")
    with pytest.raises(DataError, match="leads out of"):
        TiffSource(str(tmp_path / "in")).load("set-z0")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('SizeZ="2"', 'SizeZ="2000000000"', "at most 10000000 together"),
        ('SizeZ="2"', 'SizeZ="0"', "must be 1 or more"),
        ('SizeZ="2"', 'SizeZ="two"', "no number"),
        ('PhysicalSizeX="0.1083"', 'PhysicalSizeX="small"', "a number that is none"),
        ("</OME>", "", "OME-XML is damaged"),
    ],
)
def test_damaged_ome_xml_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    xml = _companion(tmp_path)
    assert old in xml
    (tmp_path / "set.companion.ome").write_text(xml.replace(old, new), encoding="utf-8")
    for path in tmp_path.glob("*.tif"):
        path.rename(path.with_suffix(".bin"))
    with pytest.raises(DataError, match=rf"set\.companion\.ome.*{message}"):
        TiffSource(str(tmp_path))


def test_metadata_that_swell_when_they_are_read_are_refused(tmp_path: Path) -> None:
    entities = '<!ENTITY a0 "aaaaaaaaaa">' + "".join(f'<!ENTITY a{i} "{f"&a{i - 1};" * 10}">' for i in range(1, 12))
    xml = f"<!DOCTYPE OME [{entities}]><OME><Image><Pixels>&a11;</Pixels></Image></OME>"
    (tmp_path / "set.companion.ome").write_text(xml, encoding="utf-8")
    with pytest.raises(DataError, match="OME-XML is damaged"):
        TiffSource(str(tmp_path))


def test_a_renamed_file_still_finds_its_own_planes(tmp_path: Path) -> None:
    _ome(tmp_path / "a.ome.tif", _stack(2), "CYX", ["DAPI", "ER"])
    (tmp_path / "a.ome.tif").rename(tmp_path / "other.tif")
    assert_image(TiffSource(str(tmp_path)), "other", list(_stack(2)), {})


def test_an_imagej_hyperstack_is_split_by_its_axes(tmp_path: Path) -> None:
    pixels = _stack(2, 3, 2)
    labels = [f"c:{c + 1}/2 z:{z + 1}/3 t:{t + 1}/2 - {name}" for t in range(2) for z in range(3) for c, name in _NAMED]
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        imagej=True,
        resolution=(1 / 0.65, 1 / 0.65),
        metadata={"axes": "TZCYX", "unit": "um", "Labels": labels},
    )

    source = TiffSource(str(tmp_path))

    assert source.count == 6
    expected = {"imaging.channel_type": ["nucleus", "actin"], "geometry.z_slice": "2", "geometry.timepoint": "1"}
    assert_image(source, "a-z2-t1", list(pixels[1, 2]), expected)
    assert float(source.table()["pixel_um"].iloc[0]) == pytest.approx(0.65, rel=1e-6)


_NAMED = list(enumerate(["Hoechst", "Phalloidin"]))


def test_a_hyperstack_of_one_page_entry_is_read_by_its_axes(tmp_path: Path) -> None:
    # ImageJ writes stacks of more than 4 GiB so
    pixels = _stack(2, 3, 2)
    tifffile.imwrite(tmp_path / "a.tif", pixels, imagej=True, truncate=True, metadata={"axes": "TZCYX"})
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert len(file.pages) == 1
    assert_image(TiffSource(str(tmp_path)), "a-z2-t1", list(pixels[1, 2]), {"geometry.depth": "3"})
    assert_image(TiffSource(str(tmp_path), project="max"), "a-t0", list(pixels[0].max(axis=0)), {})


def test_axes_that_tifffile_wrote_are_followed(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _stack(2, 3), metadata={"axes": "ZCYX"}, photometric="minisblack")
    source = TiffSource(str(tmp_path), channels="DAPI, ER,AGP")
    types = ["nucleus", "endoplasmic reticulum", "actin golgi plasma membrane"]
    assert_image(source, "a-z1", list(_stack(2, 3)[1]), {"imaging.channel_type": types})


def _plain(folder: Path) -> NDArray[Any]:
    """A file of three pages that tells nothing of them, written page by page."""
    with tifffile.TiffWriter(folder / "a.tif") as writer:
        for page in _stack(3):
            writer.write(page, metadata=None, contiguous=False)
    return _stack(3)


def test_pages_of_no_known_kind_are_asked_for(tmp_path: Path) -> None:
    _plain(tmp_path)
    with pytest.raises(DataError, match=r"does not tell what its 3 pages are .*--set pages=C, Z or T"):
        TiffSource(str(tmp_path))


@pytest.mark.parametrize(
    ("pages", "image", "chosen", "column"),
    [("C", "a", [0, 1, 2], {}), ("Z", "a-z2", [2], {"geometry.z_slice": "2"}), ("T", "a-t1", [1], {})],
)
def test_pages_are_what_the_user_says(
    tmp_path: Path, pages: Any, image: str, chosen: list[int], column: dict[str, str]
) -> None:
    written = _plain(tmp_path)
    assert_image(TiffSource(str(tmp_path), pages=pages), image, [written[i] for i in chosen], column)


def test_pages_that_are_slices_can_be_projected(tmp_path: Path) -> None:
    written = _plain(tmp_path)
    assert_image(TiffSource(str(tmp_path), pages="Z", project="max"), "a", [written.max(axis=0)], {})


def test_a_colour_image_becomes_three_channels(tmp_path: Path) -> None:
    pixels = np.stack([plane(i, dtype="uint8") for i in range(3)], axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    types = {"imaging.channel_type": ["r", "g", "b"], "imaging.panel": "r,g,b"}
    assert_image(TiffSource(str(tmp_path)), "a", [pixels[..., i] for i in range(3)], types)


@pytest.mark.parametrize("colour", [None, "grey"])
@pytest.mark.parametrize("samples", [3, 4])
def test_grey_that_was_stored_as_colour_is_one_plane(tmp_path: Path, colour: Any, samples: int) -> None:
    pixels = np.repeat(plane(1, dtype="uint8")[..., None], samples, axis=-1)
    pixels[..., 3:] = 255
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb")
    assert_image(TiffSource(str(tmp_path), colour=colour), "a", [pixels[..., 0]], {"geometry.channels": 1})


def test_one_colour_image_among_grey_ones_fails_alone(tmp_path: Path) -> None:
    grey = np.repeat(plane(1, dtype="uint8")[..., None], 3, axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="rgb")
    tifffile.imwrite(tmp_path / "b.tif", grey + np.arange(3, dtype=np.uint8), photometric="rgb")
    source = TiffSource(str(tmp_path))
    assert_image(source, "a", [grey[..., 0]], {})
    with pytest.raises(DataError, match=r"b\.tif' is a colour image"):
        source.load("b")


def test_channels_of_one_name_are_told_apart(tmp_path: Path) -> None:
    _ome(tmp_path / "a.ome.tif", _stack(2), "CYX", ["GFP", "GFP"])
    assert TiffSource(str(tmp_path)).load("a").channel_names == ["GFP (1)", "GFP (2)"]


def test_a_single_file_can_be_given(tmp_path: Path) -> None:
    for name in ("a", "b"):
        _ome(tmp_path / f"{name}.ome.tif", _stack(2), "CYX", ["DAPI", "ER"])
    source = TiffSource(str(tmp_path / "b.ome.tif"))
    assert (source.study, source.image_ids()) == ("b", ["b"])


def test_files_in_a_zip_are_read_in_place(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    _ome(tmp_path / "in" / "a.ome.tif", _stack(2), "CYX", ["DAPI", "ER"])
    source = TiffSource(shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "in"))
    assert_image(source, "a", list(_stack(2)), {"experiment.study": "packed"})


def test_files_of_one_name_in_two_folders_stay_apart(tmp_path: Path) -> None:
    for folder in ("x", "y"):
        (tmp_path / folder).mkdir()
        _ome(tmp_path / folder / "a.ome.tif", _stack(2), "CYX", ["DAPI", "ER"])
    assert TiffSource(str(tmp_path)).image_ids() == ["x-a", "y-a"]


def test_damaged_files_are_problems_and_the_others_go_on(tmp_path: Path) -> None:
    for name in ("cut", "good"):
        _ome(tmp_path / f"{name}.ome.tif", _stack(2), "CYX", ["DAPI", "ER"])
    (tmp_path / "cut.ome.tif").write_bytes((tmp_path / "good.ome.tif").read_bytes()[:6])
    (tmp_path / "empty.tif").write_bytes(b"")
    (tmp_path / "page.tif").write_bytes(b"<html>not found</html>")
    source = TiffSource(str(tmp_path))
    assert source.image_ids() == ["good"]
    assert [name for name, _ in source.problems] == ["cut.ome.tif", "empty.tif", "page.tif"]


def test_the_wrong_number_of_channel_names_is_a_problem(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _stack(3), metadata={"axes": "CYX"}, photometric="minisblack")
    with pytest.raises(DataError, match=r"has 3 channels but 'channels' names 2 \(DAPI, ER\)"):
        TiffSource(str(tmp_path), channels=["DAPI", "ER"])


@pytest.mark.parametrize("settings", [{"project": "mean"}, {"pages": "Q"}, {"colour": "blue"}])
def test_an_unknown_setting_is_refused(tmp_path: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="allowed"):
        TiffSource(str(tmp_path), **settings)


def test_files_that_tell_their_axes_are_recognised(tmp_path: Path) -> None:
    _ome(tmp_path / "b.ome.tif", _stack(2), "CYX", ["DAPI", "ER"])
    assert TiffSource.recognises(open_files(str(tmp_path)))
    tifffile.imwrite(tmp_path / "a.tif", plane(1), metadata=None)
    assert not TiffSource.recognises(open_files(str(tmp_path)))


def test_a_real_hyperstack_is_read_as_the_sheet_says(real_data: Path) -> None:
    from morphem.sources.sheet import SheetSource

    sheet = SheetSource(str(real_data / "hippocampal-neuron"))
    source = TiffSource(str(real_data / "hippocampal-neuron" / "images"))
    assert_image(source, "16b_4c_neuron-composite", list(sheet.load("neuron_16b_4c").planes), {})


def test_a_real_stack_is_projected_as_the_sheet_says(real_data: Path) -> None:
    from morphem.sources.sheet import SheetSource

    sheet = SheetSource(str(real_data / "neubias-formats"))
    source = TiffSource(str(real_data / "neubias-formats" / "images"), project="max")
    for image_id in source.image_ids():
        depth = "17" if image_id == "xyzc_16bit__spots" else "1"
        assert_image(source, image_id, list(sheet.load(image_id).planes), {"geometry.depth": depth})


def test_real_ome_tiffs_tell_their_metals(real_data: Path) -> None:
    from morphem.sources.sheet import SheetSource

    sheet = SheetSource(str(real_data / "imc-mock"))
    source = TiffSource(str(real_data / "imc-mock" / "images"))
    image = sheet.load("imc_mockData1_001")
    assert_image(source, "20210305_NE_mockData1_001", list(image.planes), {"geometry.width": 60})

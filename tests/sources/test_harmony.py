import shutil
from pathlib import Path

import pytest

from morphem.errors import DataError
from morphem.readers.files import open_files
from morphem.sources.harmony import HarmonySource
from tests.sources.phenix import CHANNELS, number_of, position, write_plate
from tests.sources.planes_of import SHAPE, assert_image, plane


@pytest.mark.parametrize("version", [5, 6])
def test_every_plane_and_field_of_a_phenix_plate_comes_back(tmp_path: Path, version: int) -> None:
    keys = write_plate(tmp_path / "screen", version=version)

    source = HarmonySource(str(tmp_path / "screen"), channel_aliases={"Alexa 488 & co": "ER"})

    images = {tuple(number_of(key)[:5]): key for key in keys}
    assert source.count == len(images) == 2 * 2 * 2
    for key in images.values():
        well = {2: "B03", 16: "P24"}[key["Row"]]
        expected = {
            "experiment.study": "screen",
            "experiment.plate": "BR00117010",
            "experiment.well": well,
            "imaging.panel": "HOECHST 33342,Alexa 488 & co,Brightfield",
            "imaging.channel": ["1", "2", "3"],
            "imaging.channel_type": ["nucleus", "endoplasmic reticulum", "bright-field"],
            "microscopy.type": ["confocal", "confocal", "bright-field"],
            "microscopy.magnification": "20",
            "microscopy.fov": str(key["FieldID"]),
            "geometry.width": SHAPE[1],
            "geometry.height": SHAPE[0],
            "geometry.depth": "2",
            "geometry.channels": 3,
            "geometry.z_slice": str(key["PlaneID"]),
            "geometry.timepoint": "0",
            "pixel_um": "0.598376682",
            "position_x_um": f"{position(key) * 1e6:g}",
            "position_y_um": f"{-position(key) * 1e6:g}",
            "excitation_nm": ["375", "488", "740"],
            "emission_nm": ["456", "522", "0"],
            "exposure_s": ["0.04", "0.08", "0.12"],
        }
        pixels = [plane(*number_of({**key, "ChannelID": channel})) for channel in CHANNELS]
        assert_image(source, f"BR00117010-{well}-s{key['FieldID']}-z{key['PlaneID']}-t0", pixels, expected)
    assert not source.unrecognised
    assert not source.problems


def test_wide_field_is_no_confocal(tmp_path: Path) -> None:
    write_plate(tmp_path)
    source = HarmonySource(_edited(tmp_path, ">Confocal<", ">NonConfocal<", -1))
    types = [row["microscopy.type"] for row in source.load(source.image_ids()[0]).rows]
    assert types == ["fluorescence", "fluorescence", "bright-field"]


def test_channels_are_named_as_harmony_names_them(tmp_path: Path) -> None:
    write_plate(tmp_path / "p")
    source = HarmonySource(str(tmp_path / "p"))
    assert source.load(source.image_ids()[0]).channel_names == [facts["ChannelName"] for facts in CHANNELS.values()]
    assert source.unrecognised == {"Alexa 488 & co": 8}


def test_several_plates_in_one_folder_are_one_study(tmp_path: Path) -> None:
    for name in ("P1", "P2"):
        write_plate(tmp_path / f"{name}__2020-11-08T14_59_54-Measurement 1", plate=name, fields=1, slices=1)
    source = HarmonySource(str(tmp_path), study="both")
    assert source.study == "both"
    assert sorted(set(source.table()["experiment.plate"])) == ["P1", "P2"]
    assert source.count == 4


def test_two_measurements_of_one_plate_stay_apart(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write_plate(tmp_path / name, plate="P1", wells=[(1, 1)], fields=1, slices=1)
    source = HarmonySource(str(tmp_path))
    assert source.image_ids() == ["first-Images-A01-s1-z1-t0", "second-Images-A01-s1-z1-t0"]
    assert set(source.table()["experiment.plate"]) == {"P1"}


def test_the_index_may_lie_above_the_images(tmp_path: Path) -> None:
    write_plate(tmp_path / "p", index="Index.xml", wells=[(1, 1)], fields=1, slices=1)
    shutil.move(tmp_path / "p" / "Images" / "Index.xml", tmp_path / "p" / "Index.xml")
    source = HarmonySource(str(tmp_path / "p"))
    assert source.load(source.image_ids()[0]).planes[0].shape == SHAPE


def test_a_plate_in_a_zip_is_read_in_place(tmp_path: Path) -> None:
    write_plate(tmp_path / "p", wells=[(1, 1)], fields=1, slices=1)
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "p")
    source = HarmonySource(archive)
    assert source.study == "packed"
    assert_image(source, source.image_ids()[0], [plane(1, 1, 1, 1, 0, channel) for channel in CHANNELS], {})


def _edited(folder: Path, old: str, new: str, count: int = 1) -> str:
    index = folder / "Images" / "Index.idx.xml"
    text = index.read_text(encoding="utf-8")
    assert old in text
    index.write_text(text.replace(old, new, count), encoding="utf-8")
    return str(folder)


def test_an_image_with_a_plane_that_was_not_acquired_is_a_problem(tmp_path: Path) -> None:
    write_plate(tmp_path, fields=1, slices=1, wells=[(1, 1), (1, 2), (1, 3)])
    source = HarmonySource(_edited(tmp_path, "<State>Ok</State>", "<State>Missing</State>"))
    assert source.remarks == {"planes of the index that were not acquired": 1}
    assert [name for name, _ in source.problems] == ["BR00117010-A01-s1-z1-t0"]
    assert source.count == 2


def test_an_image_whose_file_is_missing_fails_alone(tmp_path: Path) -> None:
    write_plate(tmp_path, fields=1, slices=1)
    (tmp_path / "Images" / "r02c03f01p01-ch2sk1fk1fl1.tiff").unlink()
    source = HarmonySource(str(tmp_path))
    with pytest.raises(DataError, match=r"r02c03f01p01-ch2sk1fk1fl1\.tiff' is missing"):
        source.load(source.image_ids()[0])
    assert len(source.load(source.image_ids()[1]).planes) == 3


def test_an_image_of_another_size_than_the_index_says_is_refused(tmp_path: Path) -> None:
    write_plate(tmp_path, fields=1, slices=1)
    source = HarmonySource(_edited(tmp_path, "<ImageSizeX>7<", "<ImageSizeX>8<"))
    with pytest.raises(DataError, match=r"geometry\.width .* is 8, but it is 7"):
        source.load(source.image_ids()[0])


def test_an_image_path_out_of_the_plate_is_refused(tmp_path: Path) -> None:
    write_plate(tmp_path / "p", fields=1, slices=1)
    path = _edited(tmp_path / "p", "<URL>r02", "<URL>../../../r02")
    source = HarmonySource(path)
    with pytest.raises(DataError, match="leads out of"):
        source.load(source.image_ids()[0])


def test_a_path_of_the_exporting_computer_is_looked_up_beside_the_index(tmp_path: Path) -> None:
    write_plate(tmp_path, fields=1, slices=1, wells=[(1, 1)])
    path = _edited(tmp_path, "<URL>r01", "<URL>C:\\Export\\Images\\r01", 3)
    assert HarmonySource(path).load("BR00117010-A01-s1-z1-t0").planes[0].shape == SHAPE


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("</EvaluationInputData>", "", "is damaged"),
        ("<Row>16</Row>", "<Row>P</Row>", "no number"),
        ("EvaluationInputData", "Results", "no index of Harmony"),
        ("Images>", "Pictures>", "lists no images"),
    ],
)
def test_a_damaged_index_is_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    write_plate(tmp_path)
    path = _edited(tmp_path, old, new, -1)
    with pytest.raises(DataError, match=rf"Index\.idx\.xml.*{message}"):
        HarmonySource(path)


def test_a_folder_without_an_index_is_not_recognised(tmp_path: Path) -> None:
    write_plate(tmp_path)
    assert HarmonySource.recognises(open_files(str(tmp_path)))
    (tmp_path / "Images" / "Index.idx.xml").write_text("<html></html>")
    assert not HarmonySource.recognises(open_files(str(tmp_path)))
    (tmp_path / "Images" / "Index.idx.xml").unlink()
    assert not HarmonySource.recognises(open_files(str(tmp_path)))

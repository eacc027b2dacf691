from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from morphem.errors import DataError
from morphem.sources.loaddata import LoadDataSource
from tests.sources.sheets import counts


def write(folder: Path, rows: list[dict[str, str]], name: str = "load_data.csv") -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    pd.DataFrame(rows).to_csv(folder / name, index=False)
    return folder


def plate(folder: Path) -> list[dict[str, str]]:
    """Two fields of two Cell Painting stains, with the columns of a published plate."""
    rows = []
    for site in (1, 2):
        row = {"Metadata_Plate": "BR1", "Metadata_Row": "2", "Metadata_Col": "3", "Metadata_FieldID": str(site)}
        row |= {"Metadata_PlaneID": "1", "Metadata_pert_iname": "DMSO"}
        for number, stain in enumerate(("OrigDNA", "OrigBrightfield")):
            (folder / "Images").mkdir(parents=True, exist_ok=True)
            tifffile.imwrite(folder / "Images" / f"f{site}-ch{number}.tiff", counts(10 * site + number))
            row |= {f"FileName_{stain}": f"f{site}-ch{number}.tiff", f"PathName_{stain}": "/home/ubuntu/BR1/Images/"}
        row |= {"FileName_IllumDNA": "illum.npy", "PathName_IllumDNA": "/home/ubuntu"}
        rows.append(row)
    return rows


def test_an_image_is_read_with_plate_well_field_and_labels(tmp_path: Path) -> None:
    source = LoadDataSource(str(write(tmp_path, plate(tmp_path))), study="pilot")
    assert source.image_ids() == ["BR1-B03-s1", "BR1-B03-s2"]
    image = source.load("BR1-B03-s2")
    np.testing.assert_array_equal(image.planes, [counts(20), counts(21)])
    assert image.channel_names == ["OrigDNA", "OrigBrightfield"]
    row = image.rows[1]
    assert {key: value for key, value in row.items() if value is not None} == {
        "experiment.study": "pilot",
        "experiment.plate": "BR1",
        "experiment.well": "B03",
        "microscopy.fov": "2",
        "geometry.z_slice": "1",
        "imaging.multi_channel_id": "BR1-B03-s2",
        "imaging.panel": "OrigDNA,OrigBrightfield",
        "imaging.channel": "2",
        "imaging.channel_type": "bright-field",
        "geometry.width": 16,
        "geometry.height": 12,
        "geometry.channels": 2,
        "storage.path": "/home/ubuntu/BR1/Images/f2-ch1.tiff",
        "Row": "2",
        "Col": "3",
        "pert_iname": "DMSO",
    }
    assert source.remarks == {"illumination functions of the sheet are not applied": 2}


def test_of_files_of_one_name_the_path_with_most_folders_in_common_is_taken(tmp_path: Path) -> None:
    rows = []
    for index, name in enumerate(("P1", "P2")):
        (tmp_path / "plates" / name).mkdir(parents=True)
        tifffile.imwrite(tmp_path / "plates" / name / "a.tif", counts(index))
        rows.append({"Metadata_Plate": name, "FileName_DNA": "a.tif", "PathName_DNA": f"D:\\data\\{name}"})
    source = LoadDataSource(str(write(tmp_path, rows)))
    np.testing.assert_array_equal(source.load("P2").planes[0], counts(1))


def test_a_file_that_cannot_be_told_or_found_costs_its_image_alone(tmp_path: Path) -> None:
    rows = plate(tmp_path)
    for name in ("x", "y"):
        (tmp_path / name).mkdir()
        tifffile.imwrite(tmp_path / name / "twin.tif", counts(0))
    rows.append({**rows[0], "Metadata_FieldID": "3", "FileName_OrigDNA": "twin.tif"})
    rows.append({**rows[0], "Metadata_FieldID": "4", "FileName_OrigDNA": "gone.tif"})
    source = LoadDataSource(str(write(tmp_path, rows)))
    assert source.count == 2
    problems = dict(source.problems)
    assert "can be 'x/twin.tif' or 'y/twin.tif'" in problems["BR1-B03-s3"]
    assert "has no file '/home/ubuntu/BR1/Images/gone.tif'" in problems["BR1-B03-s4"]


def test_two_rows_for_one_image_are_refused_with_their_files(tmp_path: Path) -> None:
    rows = plate(tmp_path)
    rows.append({**rows[0], "FileName_OrigDNA": "f2-ch0.tiff"})
    source = LoadDataSource(str(write(tmp_path, rows)))
    assert source.image_ids() == ["BR1-B03-s2"]
    assert source.problems[0][0] == "BR1-B03-s1"
    assert "channel numbers 1, 2, 1, 2" in source.problems[0][1]
    assert "f2-ch0.tiff" in source.problems[0][1]


def test_an_image_without_a_file_for_a_channel_is_left_out_and_named(tmp_path: Path) -> None:
    rows = [*plate(tmp_path), {**plate(tmp_path)[0], "Metadata_FieldID": "3", "FileName_OrigDNA": ""}]
    rows[2]["PathName_OrigDNA"] = ""
    source = LoadDataSource(str(write(tmp_path, rows)))
    assert source.count == 2
    assert "lacks the channel OrigDNA" in dict(source.problems)["BR1-B03-s3"]


def test_frames_are_pages_and_series_are_images_of_a_file(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "s.ome.tif", ome=True) as writer:
        writer.write(np.stack([counts(0), counts(1)]), metadata={"axes": "CYX"})
        writer.write(np.stack([counts(2), counts(3)]), metadata={"axes": "CYX"})
    rows = [
        {"FileName_DNA": "s.ome.tif", "Frame_DNA": "1", "Series_DNA": "1", "FileName_ER": "s.ome.tif",
         "Frame_ER": "0", "Series_ER": "1"}
    ]  # fmt: skip
    image = next(iter(LoadDataSource(str(write(tmp_path, rows))).images()))
    np.testing.assert_array_equal(image.planes, [counts(3), counts(2)])
    assert image.image_id == "image2"  # the line of the sheet


def test_files_named_by_url_are_found(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a b.tif", counts(0))
    rows = [{"ImageNumber": "7", "URL_DNA": "https://host/data/a%20b.tif"}]
    source = LoadDataSource(str(write(tmp_path, rows)))
    np.testing.assert_array_equal(source.load("image7").planes[0], counts(0))


def test_images_may_lie_in_another_place_than_the_sheet(tmp_path: Path) -> None:
    sheet = write(tmp_path / "sheets", plate(tmp_path / "plate"), "plate.csv")
    source = LoadDataSource(str(sheet / "plate.csv"), images=str(tmp_path / "plate"))
    assert source.count == 2
    assert source.study == "plate"


def test_stains_that_tell_nothing_are_unknown_and_counted_until_the_user_names_them(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", counts(0))
    write(tmp_path, [{"Metadata_Well": "B7", "FileName_w1": "a.tif"}])
    source = LoadDataSource(str(tmp_path))
    assert source.unrecognised == {"w1": 1}
    assert source.load("B07").rows[0]["imaging.channel_type"] == "unknown"
    named = LoadDataSource(str(tmp_path), channel_aliases={"w1": "DAPI"})
    assert not named.unrecognised
    assert named.load("B07").rows[0]["imaging.channel_type"] == "nucleus"


def test_a_sheet_without_channels_or_usable_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no column FileName_X or URL_X"):
        LoadDataSource(str(write(tmp_path / "a", [{"Metadata_Well": "A1"}])))
    with pytest.raises(DataError, match=r"has no image that can be used; the first one: image 'A01': .*has no file"):
        LoadDataSource(str(write(tmp_path / "b", [{"Metadata_Well": "A1", "FileName_DNA": "gone.tif"}])))

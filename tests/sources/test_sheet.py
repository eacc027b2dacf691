import re
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import PIL.Image
import pytest
import tifffile

from morphem.data.schema import COLUMNS
from morphem.errors import ChannelError, DataError
from morphem.sources.sheet import SheetSource
from tests.sources.sheets import counts, write_sheet, write_study

STUDIES = {  # images, planes, cells
    "bbbc014-nfkb": (2, 4, 0),
    "bbbc016-transfluor": (48, 48, 0),
    "bccd-blood": (182, 546, 2412),
    "hippocampal-neuron": (1, 4, 0),
    "imc-mock": (15, 75, 0),
    "moffat-human": (1, 3, 0),
    "neubias-formats": (4, 9, 0),
    "nf1-schwann": (5, 15, 132),
    "pca-br00143976": (1, 6, 0),
}


def edited(folder: Path, **columns: object) -> Path:
    """Change columns of a written study; a value is for the first row, a list for all of them."""
    table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    for column, value in columns.items():
        values = value if isinstance(value, list) else [value, *table.get(column, pd.Series([""] * len(table)))[1:]]
        table[column] = values
    table.to_csv(folder / "metadata.csv", index=False)
    return folder


def test_an_image_is_read_with_its_rows_names_and_labels(tmp_path: Path) -> None:
    source = SheetSource(str(write_study(tmp_path)))
    assert (source.study, source.image_ids(), source.count, source.labels) == (
        "study",
        ["i0", "i1", "i2"],
        3,
        ("label",),
    )
    image = source.load("i1")
    np.testing.assert_array_equal(image.planes, [counts(10), counts(11)])
    assert image.channel_names == ["DNA", "actin"]
    assert image.rows[0] == {
        **dict.fromkeys(image.rows[0], None),
        "experiment.study": "study",
        "imaging.multi_channel_id": "i1",
        "imaging.channel": "1",
        "imaging.channel_type": "nucleus",
        "geometry.width": 16,
        "geometry.height": 12,
        "geometry.channels": 2,
        "storage.path": "i1c0.tif",
        "label": "y",
    }
    assert image.cells is None


def test_planes_follow_their_channel_numbers(tmp_path: Path) -> None:
    folder = edited(write_study(tmp_path, 1), **{"imaging.channel": ["2", "1"]})
    assert [row["imaging.channel_type"] for row in SheetSource(str(folder)).load("i0").rows] == ["actin", "nucleus"]


def test_without_a_study_column_the_folder_names_the_study(tmp_path: Path) -> None:
    folder = edited(write_study(tmp_path / "my study", 1), **{"experiment.study": ["unknown", ""]})
    assert SheetSource(str(folder)).study == "my study"


def test_aliases_of_the_user_are_resolved(tmp_path: Path) -> None:
    folder = edited(write_study(tmp_path, 1), **{"imaging.channel_type": ["w1", "w2"]})
    rows = SheetSource(str(folder), {"w1": "DNA", "w2": "rna"}).load("i0").rows
    assert [row["imaging.channel_type"] for row in rows] == ["nucleus", "rna"]


def test_a_projection_is_recorded_in_the_row_and_as_a_remark(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "z.tif", np.stack([counts(0), counts(1)]), imagej=True, metadata={"axes": "ZYX"})
    row = {"file": "z.tif", "imaging.multi_channel_id": "z", "imaging.channel_type": "DNA", "geometry.z_slice": "all"}
    image = SheetSource(str(write_sheet(tmp_path, [row]))).load("z")
    np.testing.assert_array_equal(image.planes[0], np.maximum(counts(0), counts(1)))
    assert image.rows[0]["geometry.z_slice"] == "max"
    assert image.remarks == ["maximum projection over 2 slices"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"imaging.channel_type": "mitocondria"}, r"metadata\.csv': No channel type 'mitocondria'; nearest: 'mito"),
        ({"microscopy.type": "flourescence"}, "No microscopy type 'flourescence'"),
        ({"experiment.study": "other"}, r"holds 2 studies \(other, study\)"),
    ],
)
def test_a_wrong_sheet_is_refused_before_an_image_is_read(
    tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    with pytest.raises((DataError, ChannelError), match=message):
        SheetSource(str(edited(write_study(tmp_path, 1), **columns)))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"dtype": "uint8"}, r"i0c0\.tif' holds uint16 pixels where the table promises uint8"),
        ({"geometry.width": "17"}, r"geometry\.width of 'i0c0\.tif' is 17, but it is 16"),
        ({"geometry.channels": "3"}, r"geometry\.channels of 'i0c0\.tif' is 3, but it is 2"),
        ({"plane_index": "x"}, r"plane_index of 'i0c0\.tif' is 'x'"),
        ({"plane_axis": "z"}, "plane_axis is 'z'"),
        ({"file": "gone.tif"}, r"gone\.tif' is missing"),
    ],
)
def test_an_image_that_is_not_what_the_sheet_says_is_refused(
    tmp_path: Path, columns: dict[str, object], message: str
) -> None:
    source = SheetSource(str(edited(write_study(tmp_path, 1), **columns)))
    with pytest.raises(DataError, match=message):
        source.load("i0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read as a table"),
        ("file\na.tif\n", "no column 'imaging.multi_channel_id'"),
        ("file,imaging.multi_channel_id,imaging.channel_type\n", "has no row"),
        ('file,imaging.multi_channel_id,imaging.channel_type\n"x', "cannot be read as a table"),
        ("file,imaging.multi_channel_id,imaging.channel_type\n,i,er\n", "line 2: 'file' is empty"),
    ],
)
def test_a_file_that_is_no_sheet_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        SheetSource(str(tmp_path))


@pytest.mark.parametrize(
    ("columns", "name", "message"),
    [
        ({"file": ""}, "i0", "line 2: 'file' is empty"),
        ({"imaging.channel_type": ""}, "i0", r"line 2: 'imaging\.channel_type' is empty"),
        ({"imaging.multi_channel_id": ""}, "row 2", r"line 2: 'imaging\.multi_channel_id' is empty"),
        ({"imaging.channel": list("112121")}, "i0", "image 'i0' has the channel numbers 1, 1"),
        ({"imaging.channel": list("1?1212")}, "i0", r"image 'i0' has the channel numbers 1, \?"),
        ({"file": "i0c1.tif"}, "i0", r"image 'i0' takes one plane of 'i0c1\.tif' twice"),
        ({"imaging.channel_type": ["DNA", "actin", "DNA", "actin", "er", "er"]}, None, ""),
    ],
)
def test_a_wrong_row_costs_its_image_alone(
    tmp_path: Path, columns: dict[str, object], name: str | None, message: str
) -> None:
    source = SheetSource(str(edited(write_study(tmp_path), **columns)))
    if name is None:
        assert source.problems == []  # two planes of one type are no fault
        return
    assert [problem[0] for problem in source.problems][:1] == [name]
    assert re.search(message, source.problems[0][1])
    assert source.image_ids() == ["i1", "i2"]
    assert [image.image_id for image in source.images()] == ["i1", "i2"]


def test_a_row_with_too_many_fields_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    lines = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join([*lines[:3], "x.tif,a,b,c,d,e,f,g,h", *lines[3:]]))
    source = SheetSource(str(folder))
    assert source.problems[0][0] == "row 4"
    assert "line 4: 9 fields where the first line has 6" in source.problems[0][1]
    assert source.count == 3


def test_a_quote_that_never_ends_swallows_no_rows(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    lines = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join([*lines[:3], "x.tif,a,b,c,d,e,f,g,h", '"' + lines[3], *lines[4:]]))
    with pytest.raises(DataError, match="cannot be read as a table: unexpected end of data"):
        SheetSource(str(folder))


def test_an_image_that_lacks_a_channel_of_the_others_is_left_out_and_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    lines = (folder / "metadata.csv").read_text().splitlines()
    (folder / "metadata.csv").write_text("\n".join(lines[:-1]))
    source = SheetSource(str(folder))
    assert source.image_ids() == ["i0", "i1"]
    assert source.problems == [
        (
            "i2",
            "image 'i2' lacks the channel actin that other images have; add the file, or give such images an "
            "'imaging.panel' of their own.",
        )
    ]


def test_wells_are_written_in_one_form_and_those_that_are_none_are_counted(tmp_path: Path) -> None:
    wells = ["b7", "b7", "R01C02", "R01C02", "left", "left"]
    source = SheetSource(str(edited(write_study(tmp_path), **{"experiment.well": wells})))
    assert source.table()["experiment.well"].tolist() == ["B07", "B07", "A02", "A02", "left", "left"]
    assert source.unrecognised == {"well 'left'": 2}


@pytest.mark.parametrize("name", ["planes.csv", "my planes.parquet"])
def test_one_sheet_of_any_name_is_found_and_can_be_named(tmp_path: Path, name: str) -> None:
    folder = write_study(tmp_path)
    table = pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)
    (folder / "metadata.csv").unlink()
    if name.endswith("csv"):
        table.to_csv(folder / name, index=False)
    else:
        table.assign(dose=[1.5, None] * 3, **{"imaging.channel": [1, 2] * 3}).to_parquet(folder / name)
    for location in (folder, folder / name):
        source = SheetSource(str(location))
        np.testing.assert_array_equal(source.load("i2").planes[1], counts(21))
        assert source.load("i2").rows[1]["imaging.channel"] == "2" if name.endswith("t") else True


def test_the_column_of_paths_may_be_that_of_the_schema(tmp_path: Path) -> None:
    folder = write_study(tmp_path)
    sheet = folder / "metadata.csv"
    sheet.write_text(sheet.read_text().replace("file,", "storage.path,", 1))
    assert SheetSource(str(folder)).load("i0").rows[0]["storage.path"] == "i0c0.tif"


def test_a_sheet_of_several_studies_opens_as_one_source_each(tmp_path: Path) -> None:
    folder = edited(write_study(tmp_path), **{"experiment.study": ["a", "a", "b", "b", "b", "b"]})
    sources = SheetSource.open(str(folder))
    assert [(source.study, source.image_ids()) for source in sources] == [("a", ["i0"]), ("b", ["i1", "i2"])]
    with pytest.raises(DataError, match=r"holds 2 studies \(a, b\); say which"):
        SheetSource(str(folder))
    with pytest.raises(DataError, match="has no study 'c'; it holds a, b"):
        SheetSource(str(folder), study="c")


def test_images_may_lie_elsewhere_and_in_a_zip(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "study")
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for path in folder.glob("*.tif"):
            archive.write(path, path.name)
            path.unlink()
    source = SheetSource(str(folder), images=str(tmp_path / "images.zip"))
    np.testing.assert_array_equal(source.load("i1").planes, [counts(10), counts(11)])


def test_a_zipped_study_reads_like_its_folder(tmp_path: Path, real_data: Path) -> None:
    study = real_data / "nf1-schwann"
    with zipfile.ZipFile(tmp_path / "study.zip", "w") as archive:
        for path in study.rglob("*"):
            archive.write(path, path.relative_to(study))
    folder, zipped = SheetSource(str(study)), SheetSource(str(tmp_path / "study.zip"))
    image, again = folder.load(folder.image_ids()[0]), zipped.load(zipped.image_ids()[0])
    np.testing.assert_array_equal(image.planes, again.planes)
    np.testing.assert_array_equal(image.cells, again.cells)
    assert image.rows == again.rows


@pytest.mark.parametrize("file", ["../secret.tif", "/etc/hosts", "link.tif"])
def test_a_sheet_that_names_a_file_elsewhere_loses_that_image_alone(tmp_path: Path, file: str) -> None:
    folder = write_study(tmp_path / "study")
    (tmp_path / "secret.tif").write_bytes((folder / "i0c0.tif").read_bytes())
    (folder / "link.tif").symlink_to("../secret.tif")
    source = SheetSource(str(edited(folder, file=file)))
    with pytest.raises(DataError, match=f"'{file}' leads out of"):
        source.load("i0")
    assert source.load("i1").image_id == "i1"


def test_names_with_spaces_dots_signs_and_letters_of_all_kinds_are_read(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "étude + 1.0 (α)")
    (folder / "i0c0.tif").rename(folder / "Kanal 1+α..b#%20.tif")
    source = SheetSource(str(edited(folder, file="Kanal 1+α..b#%20.tif")))
    np.testing.assert_array_equal(source.load("i0").planes[0], counts(0))


def test_a_missing_folder_or_sheet_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="There is no folder"):
        SheetSource(str(tmp_path / "nothing"))
    with pytest.raises(DataError, match=r"has no metadata\.csv; write one with a row per channel plane"):
        SheetSource(str(tmp_path))


def test_a_sheet_saved_by_a_spreadsheet_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    folder = write_study(tmp_path, 1)
    text = (folder / "metadata.csv").read_text()
    (folder / "metadata.csv").write_text(text, encoding="utf-8-sig")
    assert SheetSource(str(folder)).count == 1


def test_the_tiny_study_reads(tmp_path: Path) -> None:
    assert [image.image_id for image in SheetSource.tiny(tmp_path).images()] == ["image0", "image1"]


@pytest.mark.parametrize("study", STUDIES)
def test_every_real_study_reads_completely(real_data: Path, study: str) -> None:
    source = SheetSource(str(real_data / study))
    images = [source.load(image_id) for image_id in source.image_ids()[:20]]
    assert source.study == study
    assert source.count == STUDIES[study][0]
    assert len(source.table()) == STUDIES[study][1]
    assert source.problems == []
    if source.count <= 20:
        assert sum(0 if image.cells is None else len(image.cells) for image in images) == STUDIES[study][2]


def plane_of(path: Path, row: dict[str, str]) -> np.ndarray:
    """One plane, read by the formats' own libraries, written for these nine studies alone."""
    index = int(row["plane_index"])
    if path.suffix == ".jpg":
        return np.asarray(PIL.Image.open(path))[..., index]
    if row["plane_axis"] in ("none", "page"):
        return tifffile.imread(path, key=index)
    series = tifffile.TiffFile(path).series[0]
    stack = np.moveaxis(series.asarray(), series.axes.index("C"), 0)[index]
    return stack.max(axis=0) if stack.ndim == 3 else stack  # a z-stack is projected


@pytest.mark.parametrize("study", STUDIES)
def test_planes_and_metadata_of_every_real_study_are_those_of_its_files(real_data: Path, study: str) -> None:
    sheet = pd.read_csv(real_data / study / "metadata.csv", dtype=str, keep_default_na=False)
    source = SheetSource(str(real_data / study))
    for image_id in source.image_ids()[:3]:
        image = source.load(image_id)
        given = sheet[sheet["imaging.multi_channel_id"] == image_id].to_dict("records")
        for plane, row, said in zip(image.planes, image.rows, given, strict=True):
            expected = plane_of(real_data / study / said["file"], said)
            assert plane.dtype == said["dtype"]
            np.testing.assert_array_equal(plane, expected)
            changed = {name for name in COLUMNS if str(row[name]) != said[name]}
            assert changed <= {"experiment.well", "geometry.z_slice", "imaging.channel_type"}
            assert row["imaging.channel_type"] == said["imaging.channel_type"].lower().replace(",", "")
            assert row["experiment.well"] == re.sub(r"^([A-P])(\d)$", r"\g<1>0\2", said["experiment.well"])
            assert row["geometry.z_slice"] == {"all": "max"}.get(said["geometry.z_slice"], said["geometry.z_slice"])
            assert [row.get(name, "") for name in ("label", "dose")] == [said["label"], said["dose"]]

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

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
        ({"file": ""}, "line 2: 'file' is empty"),
        ({"imaging.multi_channel_id": ""}, "line 2: 'imaging.multi_channel_id' is empty"),
        ({"imaging.channel": ["1", "1"]}, "image 'i0' has the channel numbers 1, 1"),
        ({"imaging.channel": ["1", "?"]}, r"image 'i0' has the channel numbers 1, \?"),
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
        ({"dtype": "uint8"}, r"i0c0\.tif' holds uint16 pixels where .* promises uint8"),
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
        ('a,b\n"x', "cannot be read as a table"),
    ],
)
def test_a_file_that_is_no_sheet_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "metadata.csv").write_text(text)
    with pytest.raises(DataError, match=message):
        SheetSource(str(tmp_path))


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
    assert sum(len(rows) for rows in source._images.values()) == STUDIES[study][1]
    if source.count <= 20:
        assert sum(0 if image.cells is None else len(image.cells) for image in images) == STUDIES[study][2]

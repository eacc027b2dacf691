import pickle
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from morphem.cells.base import Cells
from morphem.errors import ChannelError, DataError
from morphem.readers.files import FolderFiles
from morphem.sources.table import TableSource
from tests.sources.sheets import counts

IMAGE, TYPE, NUMBER, PANEL = (
    "imaging.multi_channel_id",
    "imaging.channel_type",
    "imaging.channel",
    "imaging.panel",
)


class InMemory(TableSource):
    """Pixels that are in no file."""

    def __init__(self, table: pd.DataFrame, **settings: object) -> None:
        super().__init__(None, table, **settings)  # type: ignore[arg-type]

    def read_row(self, row: Mapping[str, str]) -> tuple[np.ndarray, str | None]:
        return counts(int(row["seed"]), int(row.get("rows", "12"))), row.get("remark") or None

    @classmethod
    def tiny(cls, folder: Path) -> "InMemory":
        raise NotImplementedError


class Numbered(InMemory):
    """As many images as asked for."""

    def __init__(self, n_images: int) -> None:
        super().__init__(planes(n_images))


class Plain(TableSource):
    """Pixels in files."""

    tiny = InMemory.tiny


def planes(n_images: int = 3, **columns: object) -> pd.DataFrame:
    """Two stains per image; a value is for all rows, a list for each."""
    rows = [
        {"experiment.study": "s", IMAGE: f"i{image}", "channel_name": name, "seed": str(10 * image + number)}
        for image in range(n_images)
        for number, name in enumerate(("DNA", "Alexa 488"))
    ]
    return pd.DataFrame(rows).assign(**columns)


def test_missing_types_are_guessed_from_the_stain_and_what_tells_nothing_is_counted() -> None:
    source = InMemory(planes())
    assert source.table()[TYPE].tolist() == ["nucleus", "unknown"] * 3
    assert source.unrecognised == {"Alexa 488": 3}
    image = source.load("i1")
    assert image.channel_names == ["DNA", "Alexa 488"]
    assert [row[TYPE] for row in image.rows] == ["nucleus", "unknown"]
    assert [row[NUMBER] for row in image.rows] == ["1", "2"]


def test_types_that_are_stated_are_resolved_or_refused_and_aliases_help_both() -> None:
    assert InMemory(planes(**{TYPE: ["DAPI", "er"] * 3})).table()[TYPE].tolist()[:2] == [
        "nucleus",
        "endoplasmic reticulum",
    ]
    with pytest.raises(ChannelError, match="No channel type 'w2'"):
        InMemory(planes(**{TYPE: ["DAPI", "w2"] * 3}))
    named = InMemory(planes(**{TYPE: ["", "w2"] * 3}), channel_aliases={"w2": "er", "DNA": "rna"})
    assert named.table()[TYPE].tolist()[:2] == ["rna", "endoplasmic reticulum"]
    said_unknown = InMemory(planes(**{TYPE: "unknown"}), channel_aliases={"Alexa 488": "er"})
    assert said_unknown.table()[TYPE].tolist()[:2] == ["unknown", "endoplasmic reticulum"]


def test_rows_of_an_image_come_in_panel_order_and_images_in_order_of_appearance() -> None:
    table = planes(**{NUMBER: ["2", "10", "10", "2", "2", "10"]}).iloc[[2, 0, 3, 5, 1, 4]]
    source = InMemory(table)
    assert source.image_ids() == ["i1", "i0", "i2"]
    assert source.table()[IMAGE].tolist() == ["i1", "i1", "i0", "i0", "i2", "i2"]
    assert source.table()[NUMBER].tolist() == ["2", "10"] * 3
    assert source.load("i1").channel_names == ["Alexa 488", "DNA"]


def test_a_part_of_a_source_reads_the_same_and_is_small_to_send() -> None:
    source = Numbered(5000)
    part = pickle.loads(pickle.dumps(source.only(["i7", "i2"])))
    assert part.image_ids() == ["i7", "i2"]
    assert len(pickle.dumps(part)) < 5000
    mine, theirs = source.load("i2"), part.load("i2")
    assert mine.rows == theirs.rows
    np.testing.assert_array_equal(mine.planes, theirs.planes)
    assert source.count == 5000


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({NUMBER: ["1", "1"] + ["1", "2"] * 2}, "image 'i0' has the channel numbers 1, 1"),
        ({NUMBER: ["1", ""] + ["1", "2"] * 2}, "image 'i0' has the channel numbers 1, "),
        ({NUMBER: ["0", "1"] + ["1", "2"] * 2}, "image 'i0' has the channel numbers 0, 1"),
        (
            {"channel_name": ["DNA", "DNA"] + ["DNA", "ER"] * 2, "file": list("abcdef")},
            r"image 'i0' has two planes for the channel 'DNA' \(in a, b\); keep one",
        ),
        ({"file": list("aacdef")}, "image 'i0' takes one plane of 'a' twice"),
    ],
)
def test_an_image_with_two_planes_for_one_channel_is_left_out_and_named(
    changes: dict[str, object], message: str
) -> None:
    source = InMemory(planes(**changes))
    assert source.image_ids() == ["i1", "i2"]
    with pytest.raises(DataError, match=message):
        raise DataError(dict(source.problems)["i0"])


def test_one_stain_twice_is_no_fault_where_numbers_tell_the_planes_apart() -> None:
    table = planes(**{"channel_name": "antibody", NUMBER: ["1", "2"] * 3})
    assert not InMemory(table).problems


def test_an_image_that_lacks_a_channel_is_left_out_but_not_the_rarer_panel() -> None:
    table = planes(6).drop(index=1)  # i0 lacks the second stain
    source = InMemory(table)
    assert source.count == 5
    assert "image 'i0' lacks the channel Alexa 488" in dict(source.problems)["i0"]
    own_panel = planes(6, **{PANEL: ["DNA"] * 2 + ["DNA,488"] * 10}).drop(index=1)
    assert InMemory(own_panel).count == 6


def test_images_with_another_set_of_channels_are_not_said_to_lack_any() -> None:
    names = ["DNA", "ER"] * 4 + ["DNA", "actin"]
    source = InMemory(planes(5, channel_name=names))
    assert source.count == 5


def test_where_most_images_have_few_channels_those_with_more_are_not_faulty() -> None:
    table = planes(4).drop(index=[3, 5, 7])  # only i0 has the second stain
    assert InMemory(table).count == 4


def test_a_study_without_a_usable_image_stops() -> None:
    with pytest.raises(DataError, match="has no image that can be used; the first one: image 'i0' has the channel"):
        InMemory(planes(2, **{NUMBER: "1"}))
    with pytest.raises(DataError, match="has no plane"):
        InMemory(planes(0))


def test_planes_of_different_sizes_are_refused_with_both() -> None:
    source = InMemory(planes(file=list("abcdef"), rows=["12", "13"] + ["12"] * 4))
    with pytest.raises(DataError, match=r"image 'i0': 'b' has 16 x 13 pixels where 'a' has 16 x 12 \(width x height\)"):
        source.load("i0")
    assert source.load("i1").image_id == "i1"


def test_what_the_table_says_must_agree_with_the_pixels() -> None:
    source = InMemory(planes(**{"geometry.width": ["17", "16"] + ["16", "unknown"] * 2}))
    with pytest.raises(DataError, match=r"geometry\.width of 'i0' is 17, but it is 16"):
        source.load("i0")
    assert source.load("i1").rows[0]["geometry.width"] == 16


def test_a_projection_is_told_in_row_and_remarks_and_other_remarks_leave_the_slice_alone() -> None:
    said = ["maximum projection over 3 slices", ""] * 2 + ["grey stored as equal colours"] * 2
    source = InMemory(planes(remark=said, **{"geometry.z_slice": "all"}))
    assert [row["geometry.z_slice"] for row in source.load("i0").rows] == ["max", "all"]
    assert source.load("i0").remarks == ["maximum projection over 3 slices"]
    assert [row["geometry.z_slice"] for row in source.load("i2").rows] == ["all", "all"]


def test_further_columns_are_labels_unless_they_are_empty_or_not_chosen() -> None:
    table = planes(dose=["1", ""] * 3, empty="", note="x")
    assert InMemory(table).labels == ("seed", "dose")
    image = InMemory(table, labels=["dose"]).load("i0")
    assert [row["dose"] for row in image.rows] == ["1", ""]
    assert "seed" not in image.rows[0]


def test_cells_come_from_the_reader_with_its_remark() -> None:
    def read(rows: object, height: int, width: int) -> Cells:
        return Cells(np.array([[width - 1, height - 1]], np.int32), {"kind": ["x"]}, "one left out")

    image = InMemory(planes(), cells=read).load("i0")
    assert image.cells is not None
    assert image.cells.tolist() == [[15, 11]]
    assert image.cell_labels == {"kind": ["x"]}
    assert image.remarks == ["one left out"]


def test_a_file_of_several_planes_is_opened_once_per_image_and_closed(tmp_path: Path) -> None:
    class Counted(FolderFiles):
        handles: list = []  # noqa: RUF012

        def open(self, name):
            self.handles.append(super().open(name))
            return self.handles[-1]

    tifffile.imwrite(tmp_path / "c.tif", np.stack([counts(i) for i in range(4)]), imagej=True, metadata={"axes": "CYX"})
    rows = [
        {IMAGE: "i", "channel_name": f"c{i}", "file": "c.tif", "plane_axis": "C", "plane_index": str(i)}
        for i in range(4)
    ]

    source = Plain(Counted(tmp_path), pd.DataFrame(rows), study="s")
    np.testing.assert_array_equal(source.load("i").planes, [counts(i) for i in range(4)])
    assert len(Counted.handles) == 1
    assert all(handle.closed for handle in Counted.handles)
    source = Plain(FolderFiles(tmp_path), pd.DataFrame(rows), study="s")
    source.load("i")
    assert pickle.loads(pickle.dumps(source)).load("i").image_id == "i"


def test_an_image_that_does_not_exist_is_named() -> None:
    with pytest.raises(DataError, match="study 's' has no image 'x'"):
        InMemory(planes()).load("x")


@pytest.mark.parametrize("studies", [["a", "b"] * 3, "unknown"])
def test_a_table_must_be_of_one_study(studies: object) -> None:
    with pytest.raises(DataError, match=r"holds 2 studies \(a, b\)|does not tell the study's name"):
        InMemory(planes(**{"experiment.study": studies}))
    assert InMemory(planes(**{"experiment.study": "unknown"}), study="named").study == "named"

from dataclasses import replace

import numpy as np
import pytest

from morphem.data.record import ImageRecord, checked_rows
from morphem.data.schema import COLUMNS
from morphem.errors import ChannelError, DataError
from tests.data.records import make_image, make_plane

GOOD = make_image(labels={"dose": "3"}, cell_labels={"kind": ["a", "b"]})


def changed(**columns: object) -> ImageRecord:
    return replace(GOOD, rows=[dict(GOOD.rows[0]) | columns, GOOD.rows[1]])


def test_a_good_image_gives_completed_rows_with_its_labels() -> None:
    rows = checked_rows(GOOD, "study")
    assert [list(row) for row in rows] == [[*COLUMNS, "dose"]] * 2


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (replace(GOOD, planes=[]), "0 planes, 2 rows"),
        (replace(GOOD, rows=GOOD.rows[:1]), "2 planes, 1 rows"),
        (replace(GOOD, channel_names=["a"]), "1 channel names"),
        (replace(GOOD, clip_limits=[(0, 1)]), "2 planes but 1 clip limits"),
        (replace(GOOD, planes=[GOOD.planes[0], GOOD.planes[1].astype(np.uint16)]), "plane 1 is uint16"),
        (replace(GOOD, planes=[GOOD.planes[0], make_plane(1, 21, 30)]), r"plane 1 is uint8 of shape \(21, 30\)"),
        (replace(GOOD, planes=[np.zeros((20, 30, 3), np.uint8)] * 2), r"plane 0 is uint8 of shape \(20, 30, 3\)"),
        (changed(**{"geometry.width": 31}), "geometry.width is 31, but it is 30"),
        (changed(**{"geometry.channels": 3}), "geometry.channels is 3, but it is 2"),
        (changed(**{"experiment.study": "other"}), "experiment.study is 'other'"),
        (changed(**{"imaging.multi_channel_id": "x"}), "imaging.multi_channel_id is 'x'"),
        (changed(shard="x"), "'shard' is a column of the shard set itself"),
        (replace(GOOD, cells=np.array([[30, 0], [1, 1]])), "cell at x=30, y=0 is outside"),
        (replace(GOOD, cells=np.array([[1, 1], [0, -1]])), "cell at x=0, y=-1 is outside"),
        (replace(GOOD, cells=np.array([[0.5, 1.0], [1, 1]])), "whole numbers of shape"),
        (replace(GOOD, cells=np.array([1, 2])), "whole numbers of shape"),
        (replace(GOOD, cells=np.zeros((3, 2), int)), "3 cells but 2 values of the cell label 'kind'"),
        (replace(GOOD, cells=None), "labels of cells but no cells"),
        (replace(GOOD, cell_labels={"x": ["a", "b"]}), "'x' is a column of the cell table"),
    ],
)
def test_a_malformed_image_is_refused_with_its_name_and_the_reason(image: ImageRecord, message: str) -> None:
    with pytest.raises(DataError, match=f"image 'image' of study 'study'.*{message}"):
        checked_rows(image, "study")


def test_an_unknown_channel_type_is_refused() -> None:
    with pytest.raises(ChannelError, match="No channel type 'nucleolos'"):
        checked_rows(changed(**{"imaging.channel_type": "nucleolos"}), "study")

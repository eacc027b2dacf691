from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from morphem.errors import DataError
from morphem.sources.cells import cells_from_boxes, cells_from_mask, find_mask, read_boxes

BOXES = "file,label,xmin,ymin,xmax,ymax\n"


def boxes(tmp_path: Path, text: str) -> pd.DataFrame:
    (tmp_path / "boxes.csv").write_text(BOXES + text)
    return read_boxes(tmp_path / "boxes.csv")


def test_boxes_become_centres_with_labels_and_those_without_area_are_left_out(tmp_path: Path) -> None:
    table = boxes(tmp_path, "a,RBC,0,0,4,9\na,WBC,5,5,5,5\na,,10,2,13,3\n")
    cells = cells_from_boxes(table, 20, 30)
    assert cells.centres.tolist() == [[2, 4], [11, 2]]
    assert cells.centres.dtype == np.int32
    assert cells.labels == {"label": ["RBC", None]}
    assert cells.remark == "1 box without area left out"


def test_a_centre_beyond_the_edge_is_moved_onto_it(tmp_path: Path) -> None:
    assert cells_from_boxes(boxes(tmp_path, "a,x,25,18,60,30\n"), 20, 30).centres.tolist() == [[29, 19]]


def test_an_image_without_boxes_has_no_cells(tmp_path: Path) -> None:
    cells = cells_from_boxes(boxes(tmp_path, ""), 20, 30)
    assert cells.centres.shape == (0, 2)
    assert cells.labels == {"label": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [("file,xmin\n", "no column 'ymin'"), (BOXES + "a,x,1,2,3,?\n", "not a number"), ("", "cannot be read as a table")],
)
def test_a_malformed_table_of_boxes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=rf"boxes\.csv'.*{message}"):
        read_boxes(tmp_path / "boxes.csv")


def mask(tmp_path: Path, values: np.ndarray, name: str = "a_MaskNuclei.png") -> Path:
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / name)
    return tmp_path / name


def test_regions_of_a_two_valued_mask_are_cells(tmp_path: Path) -> None:
    values = np.zeros((10, 12))
    values[1:4, 1:4] = 255
    values[4, 4] = 255  # touches the corner of the first
    values[7, 5:11] = 255
    cells = cells_from_mask(mask(tmp_path, values), 10, 12)
    assert cells.centres.tolist() == [[2, 2], [8, 7]]


def test_values_of_a_mask_of_more_values_are_cells_even_where_they_touch(tmp_path: Path) -> None:
    values = np.zeros((10, 12))
    values[0:4, 0:3] = 7
    values[0:4, 3:6] = 9
    cells = cells_from_mask(mask(tmp_path, values), 10, 12)
    assert cells.centres.tolist() == [[1, 2], [4, 2]]


def test_an_empty_mask_has_no_cells(tmp_path: Path) -> None:
    assert cells_from_mask(mask(tmp_path, np.zeros((3, 4))), 3, 4).centres.shape == (0, 2)


def test_a_mask_of_another_size_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"its image needs whole numbers \(3, 4\)"):
        cells_from_mask(mask(tmp_path, np.zeros((4, 3))), 3, 4)


def test_the_mask_of_nuclei_goes_before_that_of_cells(tmp_path: Path) -> None:
    for name in ("a1_MaskCells.png", "a1_MaskNuclei.png", "a1_MaskCytoplasm.png", "a2_MaskCells.png", "b.png"):
        mask(tmp_path, np.zeros((2, 2)), name)
    assert find_mask(tmp_path, ["a1"]) == tmp_path / "a1_MaskNuclei.png"
    assert find_mask(tmp_path, ["a2"]) == tmp_path / "a2_MaskCells.png"
    assert find_mask(tmp_path, ["b"]) == tmp_path / "b.png"
    assert find_mask(tmp_path, ["c"]) is None


def test_masks_that_could_mean_anything_are_refused(tmp_path: Path) -> None:
    for name in ("a_one.png", "a_two.png"):
        mask(tmp_path, np.zeros((2, 2)), name)
    with pytest.raises(DataError, match=r"several masks for one image \(a_one\.png, a_two\.png\)"):
        find_mask(tmp_path, ["a"])

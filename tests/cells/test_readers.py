from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save

from morphem.cells.readers import (
    BACKGROUND_REMARK,
    BoxReader,
    GuidanceReader,
    MaskReader,
    cells_from_boxes,
    cells_from_guidance,
    cells_from_mask,
    find_mask,
    guidance_name,
    read_boxes,
)
from morphem.errors import DataError
from morphem.readers.files import open_files

BOXES = "file,label,xmin,ymin,xmax,ymax\n"


def boxes(tmp_path: Path, text: str) -> pd.DataFrame:
    (tmp_path / "boxes.csv").write_text(BOXES + text)
    return read_boxes(open_files(str(tmp_path)), "boxes.csv")


def test_boxes_become_centres_with_labels_and_those_without_area_are_left_out(tmp_path: Path) -> None:
    table = boxes(tmp_path, "a,RBC,0,0,4,9\na,WBC,5,5,5,5\na,,10,2,13,3\n")
    cells = cells_from_boxes(table, 20, 30)
    assert cells.centres.tolist() == [[2, 4], [11, 2]]
    assert cells.centres.dtype == np.int32
    assert cells.labels == {"label": ["RBC", None]}
    assert cells.remark == "1 box without area left out"


def test_a_centre_beyond_the_edge_is_moved_onto_it(tmp_path: Path) -> None:
    assert cells_from_boxes(boxes(tmp_path, "a,x,25,18,60,30\n"), 20, 30).centres.tolist() == [[29, 19]]


def test_boxes_belong_to_the_image_of_their_file_with_or_without_its_folder(tmp_path: Path) -> None:
    boxes(tmp_path, "b.png,y,0,0,2,2\nf/a.png,x,2,2,4,4\na.png,z,6,6,8,8\n")
    reader = BoxReader(open_files(str(tmp_path)), "boxes.csv")
    assert reader([{"file": "f/a.png"}], 20, 30).centres.tolist() == [[3, 3], [7, 7]]
    assert reader([{"file": "g/b.png"}], 20, 30).labels == {"label": ["y"]}


def test_an_image_without_boxes_has_no_cells(tmp_path: Path) -> None:
    boxes(tmp_path, "b.png,y,0,0,2,2\n")
    cells = BoxReader(open_files(str(tmp_path)), "boxes.csv")([{"file": "a.png"}], 20, 30)
    assert cells.centres.shape == (0, 2)
    assert cells.labels == {"label": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [("file,xmin\n", "no column 'ymin'"), (BOXES + "a,x,1,2,3,?\n", "not a number"), ("", "cannot be read as a table")],
)
def test_a_malformed_table_of_boxes_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "boxes.csv").write_text(text)
    with pytest.raises(DataError, match=rf"boxes\.csv'.*{message}"):
        read_boxes(open_files(str(tmp_path)), "boxes.csv")


def test_regions_of_a_two_valued_mask_are_cells() -> None:
    values = np.zeros((10, 12), np.uint8)
    values[1:4, 1:4] = 255
    values[4, 4] = 255  # touches the corner of the first
    values[7, 5:11] = 255
    assert cells_from_mask(values, 10, 12, "m").centres.tolist() == [[2, 2], [8, 7]]


def test_values_of_a_mask_of_more_values_are_cells_even_where_they_touch() -> None:
    values = np.zeros((10, 12), np.uint8)
    values[0:4, 0:3] = 7
    values[0:4, 3:6] = 9
    assert cells_from_mask(values, 10, 12, "m").centres.tolist() == [[1, 2], [4, 2]]


def test_an_empty_mask_has_no_cells() -> None:
    assert cells_from_mask(np.zeros((3, 4), np.uint8), 3, 4, "m").centres.shape == (0, 2)


@pytest.mark.parametrize("values", [np.zeros((4, 3), np.uint8), np.zeros((3, 4))])
def test_a_mask_of_another_size_or_of_fractions_is_refused(values: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"mask 'm'.*its image needs whole numbers \(3, 4\)"):
        cells_from_mask(values, 3, 4, "m")


def test_the_mask_of_nuclei_goes_before_that_of_cells() -> None:
    names = ["m/a1_MaskCells.png", "m/a1_MaskNuclei.png", "m/a1_MaskCytoplasm.png", "m/a2_MaskCells.png", "m/b.png"]
    assert find_mask(names, ["a1"]) == "m/a1_MaskNuclei.png"
    assert find_mask(names, ["a2"]) == "m/a2_MaskCells.png"
    assert find_mask(names, ["b"]) == "m/b.png"
    assert find_mask(names, ["c"]) is None


def test_masks_that_could_mean_anything_are_refused() -> None:
    with pytest.raises(DataError, match=r"several masks for one image \(a_one\.png, a_two\.png\)"):
        find_mask(["m/a_one.png", "m/a_two.png"], ["a"])


def test_masks_are_read_from_a_folder_of_the_location(tmp_path: Path) -> None:
    (tmp_path / "masks").mkdir()
    values = np.zeros((10, 12), np.uint8)
    values[2:5, 6:9] = 255
    Image.fromarray(values).save(tmp_path / "masks" / "a nuclei.png")
    reader = MaskReader(open_files(str(tmp_path)), "masks")
    cells = reader([{"file": "images/a.tif"}], 10, 12)
    assert cells is not None
    assert cells.centres.tolist() == [[7, 3]]
    assert reader([{"file": "images/b.tif"}], 10, 12) is None


def guidance(points: list[list[int]], sizes: list[int] | None = None) -> bytes:
    tensors = {"data": np.array(points, np.int64).reshape(-1, 2)}
    if sizes is not None:
        tensors["sizes"] = np.array(sizes, np.int64)
    return save(tensors)


def test_points_of_guidance_are_x_then_y() -> None:
    cells = cells_from_guidance(guidance([[30, 4], [1, 2]], [100, 90]), 20, 40, "g")
    assert cells.centres.tolist() == [[30, 4], [1, 2]]
    assert cells.remark is None


@pytest.mark.parametrize(
    ("points", "sizes", "kept"),
    [
        ([[20, 10], [5, 5]], [780, 20], [[5, 5]]),  # a first area of nearly the whole image
        ([[20, 10]], [790], []),  # one cell only: the file has nothing but the background
        (
            [[20, 10], [5, 5], [9, 9], [30, 3]],
            [390, 35, 30, 30],
            [[20, 10], [5, 5], [9, 9], [30, 3]],
        ),  # not all is told
        ([[20, 10], *[[5, 5]] * 12], [390, *[33] * 12], [[5, 5]] * 12),  # crowded: all areas fill the image
        ([[20, 10], [5, 5]], None, [[20, 10], [5, 5]]),  # no areas, nothing to go by
        ([[20, 10], [5, 5]], [60, 50], [[20, 10], [5, 5]]),
    ],
)
def test_a_background_point_in_the_first_row_is_dropped(
    points: list[list[int]], sizes: list[int] | None, kept: list[list[int]]
) -> None:
    cells = cells_from_guidance(guidance(points, sizes), 20, 40, "g")
    assert cells.centres.tolist() == kept
    assert cells.remark == (BACKGROUND_REMARK if len(kept) < len(points) else None)


def test_a_point_outside_of_the_image_is_left_out_and_said() -> None:
    cells = cells_from_guidance(guidance([[39, 19], [40, 3], [-1, 0]]), 20, 40, "g")
    assert cells.centres.tolist() == [[39, 19]]
    assert cells.remark == "centroids outside of the image left out"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"not safetensors", "is no safetensors file"),
        (save({"data": np.array([32, 32, 1, 5])}), r"'data' of shape \(4,\)"),  # tiles of an older format
        (save({"sizes": np.array([1])}), "no 'data'"),
    ],
)
def test_guidance_of_another_format_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(DataError, match=f"guidance 'g'.*{message}"):
        cells_from_guidance(data, 20, 40, "g")


def test_a_guidance_file_has_the_path_of_its_png_without_the_first_folder() -> None:
    assert guidance_name("CHAMMI-75_train/hpa0018/a+b/x.y-ch0.png") == "hpa0018/a+b/x.y-ch0.safetensors"


def test_the_first_plane_with_guidance_gives_the_cells(tmp_path: Path) -> None:
    (tmp_path / "G" / "s").mkdir(parents=True)
    (tmp_path / "G" / "s" / "b.safetensors").write_bytes(guidance([[3, 4]]))
    reader = GuidanceReader(open_files(str(tmp_path)), "G/")
    rows = [{"storage.path": "T/s/a.png"}, {"storage.path": "T/s/b.png"}]
    cells = reader(rows, 20, 40)
    assert cells is not None
    assert cells.centres.tolist() == [[3, 4]]
    assert reader(rows[:1], 20, 40) is None
    assert [reader.knows(row["storage.path"]) for row in rows] == [False, True]

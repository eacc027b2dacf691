from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphem.cells.tables import CellsFromLabelImages, CellsFromTable
from morphem.data.record import ImageRecord
from morphem.errors import DataError
from tests.cells.images import record

PLANE = np.zeros((20, 30), np.uint16)
NUCLEI = "Nuclei_Location_Center_X,Nuclei_Location_Center_Y"


def image(image_id: str = "i1", **columns: str) -> ImageRecord:
    return record([PLANE], ["nucleus"], image_id, **columns)


def table(tmp_path: Path, text: str, name: str = "cells.csv") -> CellsFromTable:
    (tmp_path / name).write_text(text)
    return CellsFromTable(str(tmp_path / name))


def centres(finder: CellsFromTable, of: ImageRecord) -> list[list[int]]:
    cells = finder.find(of)
    assert cells is not None
    return cells.centres.tolist()


def test_a_table_of_image_x_y_gives_each_image_its_cells_in_order(tmp_path: Path) -> None:
    finder = table(tmp_path, "image,x,y\ni2,1,2\ni1,5.4,6.6\ni1,3,4\n")
    assert centres(finder, image("i1")) == [[5, 7], [3, 4]]
    assert centres(finder, image("i2")) == [[1, 2]]


def test_an_image_may_be_named_by_its_file(tmp_path: Path) -> None:
    assert centres(table(tmp_path, "image,x,y\ni1/nucleus.png,1,2\n"), image("i1")) == [[1, 2]]


def test_an_image_that_the_table_does_not_name_has_no_cells_and_a_remark(tmp_path: Path) -> None:
    cells = table(tmp_path, "image,x,y\ni2,1,2\n").find(image("i1"))
    assert cells is not None
    assert cells.centres.shape == (0, 2)
    assert cells.remark == "not in the table of cells"


def test_cellprofiler_rows_belong_to_plate_well_and_site(tmp_path: Path) -> None:
    text = f"Metadata_Plate,Metadata_Well,Metadata_Site,{NUCLEI}\nP1,a1,02,1,2\nP2,A01,2,3,4\nP1,A01,3,5,6\n"
    finder = table(tmp_path, text)
    where = {"experiment__well": "A01", "microscopy__fov": "2"}
    assert centres(finder, image(experiment__plate="P1", **where)) == [[1, 2]]
    assert centres(finder, image(experiment__plate="P2", **where)) == [[3, 4]]


def test_wells_without_plates_serve_only_a_study_without_plates(tmp_path: Path) -> None:
    finder = table(tmp_path, f"Metadata_Well,Metadata_Site,{NUCLEI}\nA01,2,1,2\n")
    where = {"experiment__well": "A01", "microscopy__fov": "2"}
    assert centres(finder, image(**where)) == [[1, 2]]
    with pytest.raises(DataError, match="has wells but no plates, and image 'i1' is of plate 'P1'"):
        finder.find(image(experiment__plate="P1", **where))


def test_cellprofiler_rows_belong_to_the_image_of_a_file_name(tmp_path: Path) -> None:
    finder = table(tmp_path, f"ImageNumber,FileName_DNA,{NUCLEI}\n1,nucleus.png,1,2\n2,other.png,3,4\n")
    assert centres(finder, image()) == [[1, 2]]


def test_one_file_name_for_several_images_is_refused(tmp_path: Path) -> None:
    finder = table(tmp_path, f"ImageNumber,FileName_DNA,{NUCLEI}\n1,nucleus.png,1,2\n2,nucleus.png,3,4\n")
    with pytest.raises(DataError, match="files of one name belong to several images"):
        finder.find(image())


def test_image_numbers_are_looked_up_in_the_image_table_beside(tmp_path: Path) -> None:
    finder = table(tmp_path, f"ImageNumber,ObjectNumber,{NUCLEI}\n2,1,1,2\n1,1,3,4\n2,2,5,6\n", "Nuclei.csv")
    with pytest.raises(DataError, match=r"does not tell which image a cell is in.*Image\.csv"):
        finder.find(image())
    (tmp_path / "Image.csv").write_text("ImageNumber,FileName_DNA\n1,other.png\n2,nucleus.png\n")
    (tmp_path / "Nuclei.csv").write_text((tmp_path / "Nuclei.csv").read_text() + "2,3,7,8\n")
    assert centres(finder, image()) == [[1, 2], [5, 6], [7, 8]]


def test_cells_outside_of_the_image_are_left_out_and_said(tmp_path: Path) -> None:
    cells = table(tmp_path, "image,x,y\ni1,30,2\ni1,nan,4\ni1,29,19\n").find(image())
    assert cells is not None
    assert cells.centres.tolist() == [[29, 19]]
    assert cells.remark == "cells outside of the image left out"


def test_a_table_without_coordinates_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cells\.csv' has no coordinates of cells.*x, y;"):
        table(tmp_path, "image,a,b\ni1,1,2\n").find(image())


def test_a_missing_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read as a table of cells"):
        CellsFromTable(str(tmp_path / "none.csv")).find(image())


def test_label_images_are_found_by_the_name_of_the_image_or_its_file(tmp_path: Path) -> None:
    labels = np.zeros((20, 30), np.uint16)
    labels[2:5, 4:7], labels[2:5, 7:10] = 1, 300
    (tmp_path / "sub").mkdir()
    Image.fromarray(labels).save(tmp_path / "sub" / "i1.png")
    cells = CellsFromLabelImages(str(tmp_path)).find(image("i1"))
    assert cells is not None
    assert cells.centres.tolist() == [[5, 3], [8, 3]]
    assert CellsFromLabelImages(str(tmp_path)).find(image("j")) is None

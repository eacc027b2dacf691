import numpy as np
import pytest

from morphem.data.crops import CropRule

NONE = np.zeros((0, 2), np.int64)


@pytest.mark.parametrize(("height", "width", "columns"), [(226, 450, 1), (450, 457, 2), (450, 230, 1)])
def test_a_square_grid_has_no_more_columns_than_rows(height: int, width: int, columns: int) -> None:
    rule = CropRule("tile", 224, tiling="square_grid")
    boxes = rule.boxes(height, width, NONE)
    assert boxes == [(y, x, 224, 224) for y in range(0, height - 223, 224) for x in range(0, columns * 224, 224)]
    assert rule.count(np.array([height]), np.array([width]), np.zeros(1, np.int64)).tolist() == [len(boxes)]

"""Pixels that tell where they belong, and a comparison of what a source gives with what was written."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.sources.base import Source

SHAPE = (6, 7)


def plane(*number: int, dtype: str = "uint16") -> NDArray[Any]:
    """A plane of its own for every number: no two are equal, and none is flat."""
    seed = sum(part * 31**i for i, part in enumerate(number))
    return (np.arange(SHAPE[0] * SHAPE[1]).reshape(SHAPE) * 3 + seed % 97 * 17).astype(dtype)


def assert_image(source: Source, image_id: str, planes: list[NDArray[Any]], rows: Mapping[str, Any]) -> None:
    """Compare all planes of an image pixel for pixel, and the given columns of all its rows."""
    image = source.load(image_id)
    assert len(image.planes) == len(planes)
    for read, written in zip(image.planes, planes, strict=True):
        assert read.dtype == written.dtype
        np.testing.assert_array_equal(read, written)
    for column, value in rows.items():
        values = value if isinstance(value, list) else [value] * len(planes)
        assert [row.get(column) for row in image.rows] == values, column

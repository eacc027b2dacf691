"""Plane tables of made-up studies, as sources give them: every value a text."""

from collections.abc import Sequence
from typing import Any

import pandas as pd

PANEL = ("nucleus", "actin")


def image(name: str, channels: Sequence[str] = PANEL, **columns: Any) -> list[dict[str, Any]]:
    """The rows of one image; columns are given with `_` for `.`, numbers stay numbers for `quality_...` alone."""
    rows = []
    for number, channel in enumerate(channels):
        row: dict[str, Any] = {
            "experiment.study": "s",
            "imaging.multi_channel_id": name,
            "imaging.channel": str(number + 1),
            "imaging.channel_type": channel,
            "imaging.panel": ",".join(channels),
            "file": f"{name}-ch{number}.tif",
        }
        for key, value in columns.items():
            column = key.replace("__", ".")
            row[column] = (
                value[number] if isinstance(value, list) else value if column.startswith("quality") else str(value)
            )
        rows.append(row)
    return rows


def table(*images: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame([row for rows in images for row in rows])


def stack(name: str, slices: Sequence[Any], **columns: Any) -> list[list[dict[str, Any]]]:
    """One image per slice."""
    return [image(f"{name}-z{z}", geometry__z_slice=z, **columns) for z in slices]


def movie(name: str, frames: Sequence[Any], **columns: Any) -> list[list[dict[str, Any]]]:
    """One image per frame."""
    return [image(f"{name}-t{t}", geometry__timepoint=t, **columns) for t in frames]


def names(planes: pd.DataFrame) -> list[str]:
    return planes["imaging.multi_channel_id"].drop_duplicates().tolist()


def kept(step: Any, planes: pd.DataFrame, features: Any = None, seed: int = 0) -> list[str]:
    """Names of the images that a step keeps."""
    mask = step.keep(planes, features, seed)
    return [name for name, stays in zip(names(planes), mask, strict=True) if stays]

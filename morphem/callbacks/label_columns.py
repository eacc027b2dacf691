"""Columns of a feature table by the names that users give them: those of the schema and of labels."""

from typing import Any

import pandas as pd

from morphem.data.plan_table import IMAGE_COLUMNS
from morphem.errors import DataError, unknown_name
from morphem.features import METADATA


def find_column(name: str, metadata: pd.DataFrame, where: str) -> str:
    """Return the column of a feature table that holds a label or a column of the schema.

    A label of cells comes before a label of images of the same name.

    Args:
        name: `treatment`, `experiment.well`, or `Metadata_Well`.
        metadata: Of the table.
        where: The data, for the message.

    Raises:
        DataError: If there is none, with the nearest.
    """
    candidates = [
        f"{METADATA}Cell_{name}",
        f"{METADATA}Label_{name}",
        IMAGE_COLUMNS.get(name, name),
        f"{METADATA}{name}",
    ]
    for candidate in candidates:
        if candidate in metadata and candidate.startswith(METADATA):
            return candidate
    known = [column.removeprefix(METADATA) for column in metadata.columns]
    known += [column for column, renamed in IMAGE_COLUMNS.items() if renamed in metadata]
    raise DataError(f"{where}: {unknown_name('column', name, known)}")


def is_missing(labels: "pd.Series[Any]") -> "pd.Series[bool]":
    """Say which labels are missing: null, NaN (also as text), empty, or the schema's `unknown`."""
    text = labels.astype("string").str.strip().str.lower()
    return (labels.isna() | text.isin(["", "unknown", "nan"])).astype(bool)

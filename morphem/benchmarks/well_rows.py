"""Checks of tables whose rows are wells and that are not averaged: every well once, features that differ at all."""

import numpy as np

from morphem.benchmarks import checks
from morphem.errors import DataError
from morphem.features import FeatureTable

_PLACE = ("Metadata_Plate", "Metadata_Well")
_OUTER = ("Metadata_Study", "Metadata_Source", "Metadata_Batch")


def check_wells(table: FeatureTable, where: str, *, directions: bool = True) -> None:
    """Refuse a well that is there twice, where the table names plates and wells, and features that are all constant.

    Args:
        table: One row per well.
        where: Who asks, for the message.
        directions: Refuse rows of zeros too, which have no cosine.

    Raises:
        DataError: With the number of rows and the first.
    """
    if set(_PLACE) <= set(table.metadata.columns):
        outer = tuple(name for name in _OUTER if name in table.metadata)
        checks.unique(table, (*outer, *_PLACE), f"{where}: the table")
    if directions:
        checks.not_flat(table.values, f"{where}: the table")
    elif len(table) > 1 and not np.ptp(table.values, axis=0).any():
        raise DataError(f"{where}: all {table.values.shape[1]} features are constant; all rows look the same.")

"""Tables whose rows are wells: which plate each is on, every well once, features that differ at all."""

import numpy as np

from morphem.benchmarks import checks
from morphem.benchmarks.retrieval import PAIR_LIMIT
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

_PLACE = ("Metadata_Plate", "Metadata_Well")
_OUTER = ("Metadata_Study", "Metadata_Source", "Metadata_Batch")


def plate_columns(table: FeatureTable) -> tuple[str, ...]:
    """Return the columns that together name a plate: plates of two laboratories or batches may share a name.

    Args:
        table: With `Metadata_Plate`, or with `Metadata_Batch` alone, which then stands for it.
    """
    outer = tuple(name for name in _OUTER if name in table.metadata)
    return (*outer, _PLACE[0]) if _PLACE[0] in table.metadata else outer


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


def check_pairs(n_rows: int, where: str) -> None:
    """Refuse a table that would be compared row by row past the limit of retrieval, before it starts.

    Args:
        n_rows: Rows that are compared with all others.
        where: Who asks, for the message.

    Raises:
        ConfigError: With the number of pairs and the limit.
    """
    if n_rows**2 > PAIR_LIMIT:
        raise ConfigError(
            f"{where}: {n_rows} rows make {float(n_rows) ** 2:.3g} pairs, more than the limit of {PAIR_LIMIT:.3g}; "
            "average rows, or score fewer batches or perturbations at once."
        )

"""Mean profiles of rows that agree in some columns: treatments in a batch, compounds, targets."""

import numpy as np

from morphem.benchmarks.base import column, with_values
from morphem.features import FeatureTable


def averaged(table: FeatureTable, level: tuple[str, ...]) -> FeatureTable:
    """Return the mean of the rows that agree in some columns; of the other metadata, what the rows agree in.

    Rows come sorted by these columns, whatever order they had, and every row weighs alike.

    Args:
        table: Has the columns.
        level: Canonical columns.
    """
    keys = [tuple(str(value) for value in row) for row in zip(*(column(table, name) for name in level), strict=True)]
    order = sorted(set(keys))
    place = {key: i for i, key in enumerate(order)}
    number = np.asarray([place[key] for key in keys], np.int64)
    sums = np.zeros((len(order), table.values.shape[1]))
    np.add.at(sums, number, table.values.astype(np.float64))
    counts = np.bincount(number, minlength=len(order))
    first = np.unique(number, return_index=True)[1]
    shared = [
        name
        for name in table.metadata.columns
        if name in level or table.metadata.groupby(number)[name].nunique(dropna=False).max() == 1
    ]
    metadata = table.metadata.iloc[first][shared].reset_index(drop=True)
    return with_values(table, sums / counts[:, None], metadata=metadata)

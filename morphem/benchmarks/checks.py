"""What every table must be before it is scored; each fault is one sentence with the thing, the place and the remedy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import DataError, unknown_name
from morphem.features import FeatureTable

_MISSING = ("", "unknown", "nan", "<na>", "none")


def is_missing(values: "pd.Series[Any]") -> NDArray[np.bool_]:
    """Return which values are missing: null, NaN (also as text), empty, or the schema's `unknown`."""
    text = values.astype("string").str.strip().str.lower()
    return np.asarray(values.isna() | text.isin(_MISSING).fillna(True), bool)


def finite(table: FeatureTable, where: str) -> None:
    """Refuse an empty table and features that are NaN or infinite.

    Raises:
        DataError: With the number of rows, the first row and the first feature.
    """
    if not len(table) or not table.columns:
        raise DataError(f"{where} has {len(table)} rows and {len(table.columns)} features; there is nothing to score.")
    bad = ~np.isfinite(table.values)
    if bad.any():
        row, feature = (int(place[0]) for place in np.nonzero(bad))
        value = table.values[row, feature]
        raise DataError(
            f"{where} has {int(bad.any(1).sum())} rows with NaN or infinite features (first: row {row}, "
            f"{table.columns[feature]} = {value}); drop these rows or features, for example with `morphem profile`."
        )


def not_flat(values: NDArray[Any], where: str) -> None:
    """Refuse rows without direction (all zeros), whose cosine is undefined, and features that all are constant.

    Args:
        values: (R, F), finite.
        where: For the message.

    Raises:
        DataError: With the number of rows and the first one.
    """
    zero = ~np.any(values, axis=1)
    if zero.any():
        raise DataError(
            f"{where} has {int(zero.sum())} rows of zeros only (first: row {int(np.argmax(zero))}), which have no "
            "cosine; an empty image or a failed well would give them: drop them."
        )
    if len(values) > 1 and not np.ptp(values, axis=0).any():
        raise DataError(f"{where}: all {values.shape[1]} features are constant; all rows look the same to the encoder.")


def unique(table: FeatureTable, key: Sequence[str], where: str) -> None:
    """Refuse two rows of one name, for example a well that is there twice.

    Args:
        table: With canonical columns.
        key: Columns that together name a row; none: nothing is checked.
        where: For the message.

    Raises:
        DataError: With the number of repeated names and the first.
    """
    if not key:
        return
    doubled = table.metadata.duplicated(list(key), keep=False)
    if doubled.any():
        first = table.metadata.loc[doubled, list(key)].iloc[0]
        name = ", ".join(f"{column.removeprefix('Metadata_')} {first[column]}" for column in key)
        raise DataError(
            f"{where} has {int(doubled.sum())} rows whose {' and '.join(key)} another row has too (first: {name}); "
            "aggregate them (`morphem profile`), or drop the repeated ones."
        )


def complete(table: FeatureTable, name: str, what: str, where: str) -> None:
    """Refuse missing values in a column.

    Raises:
        DataError: With the number of rows and the first.
    """
    lost = is_missing(table.metadata[name])
    if lost.any():
        raise DataError(
            f"{where}: {int(lost.sum())} of {len(table)} rows have no {name} ({what}), first row "
            f"{int(np.argmax(lost))}; complete the metadata or leave these rows out."
        )


def controls_on_every(
    table: FeatureTable, group: str, controls: NDArray[np.bool_], where: str, minimum: int = 1
) -> None:
    """Refuse groups (plates) without control rows.

    Args:
        table: With the column `group`.
        group: Canonical column.
        controls: Which rows are controls, (R,).
        where: For the message.
        minimum: Controls that every group needs.

    Raises:
        DataError: With the groups.
    """
    if group not in table.metadata:
        raise DataError(f"{where}: {unknown_name('column', group, map(str, table.metadata.columns))}")
    names = table.metadata[group].astype(str)
    counts = pd.Series(controls, index=names.index).groupby(names).sum()
    poor = sorted(str(name) for name in counts.index[counts < minimum])
    if poor:
        thing = group.removeprefix("Metadata_").lower()
        shown = ", ".join(poor[:5]) + (f" and {len(poor) - 5} more" if len(poor) > 5 else "")
        raise DataError(
            f"{where}: {len(poor)} of {len(counts)} {thing}s have fewer than {minimum} "
            f"control rows ({shown}); name the controls in the metadata or leave these out."
        )

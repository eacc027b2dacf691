"""Data frames to feature tables: which columns are features, what they hold, what float32 cannot hold of it."""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import DataError
from morphem.features import FeatureTable
from morphem.profiles.conventions import COMPARTMENTS, infer_features, is_metadata, listed, match_features

MISSING = ["", "NA", "NaN", "nan", "<NA>"]
"""Texts that stand for a missing value in tables of others."""

_INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})")
_NUMBER = re.compile(r"-?(0|[1-9]\d*)\.\d+([eE][+-]\d+)?|-?[1-9]\d*[eE][+-]\d+|-?(0|[1-9]\d*)")


def check_same_columns(tables: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Check that all tables have the same features in the same order.

    Args:
        tables: What to call each, and its features.

    Raises:
        DataError: If they differ, with both widths and the first feature that only one has.
    """
    name, columns = tables[0]
    for other_name, other in tables[1:]:
        if list(other) != list(columns):
            only = [f"'{c}' is only in {name}" for c in columns if c not in set(other)][:1]
            only += [f"'{c}' is only in {other_name}" for c in other if c not in set(columns)][:1]
            raise DataError(
                f"{name} has {len(columns)} features and {other_name} has {len(other)}, and they are not the same "
                f"({'; '.join(only) or 'their order differs'}); tables of different models or selections cannot be "
                "joined."
            )


def from_frame(
    frame: pd.DataFrame, features: str | Sequence[str] = "infer", where: str = "the table", known: Any = None
) -> FeatureTable:
    """Turn a data frame into a feature table.

    Args:
        frame: Metadata and features side by side.
        features: `infer`, or names and patterns of the feature columns.
        where: What to call the table in an error.
        known: Header that morphem wrote, with `dictionary` and `provenance`; features are then those of it.

    Raises:
        ConfigError: If a pattern matches nothing.
        DataError: If there are no features, two columns have one name, or a feature holds a text.
    """
    doubled = frame.columns[frame.columns.duplicated()].tolist()
    if doubled:
        raise DataError(f"{where}: {listed(doubled)} is the name of two columns; rename one.")
    others = [str(name) for name in frame.columns if not is_metadata(str(name))]
    names = _choose(others, features, where)
    values, notes = float32_values(frame, names, where)
    metadata = frame[[name for name in frame.columns if is_metadata(str(name))]].reset_index(drop=True)
    entries = {entry["column"]: entry for entry in known["dictionary"]} if known else {}
    plain = [
        entries.get(n, {"column": n, "channel": "", "index": i, "kind": "measurement"}) for i, n in enumerate(names)
    ]
    left_out = [name for name in others if name not in set(names)]
    provenance = dict(known["provenance"]) if known else {}
    if left_out:
        provenance["columns_left_out"] = left_out
    if notes:
        provenance["notes"] = [*provenance.get("notes", []), *notes]
    return FeatureTable(values, metadata, tuple(names), tuple(plain), provenance)


def _choose(others: list[str], features: str | Sequence[str], where: str) -> list[str]:
    if isinstance(features, str) and features != "infer":
        features = [features]
    names = infer_features(others) if features == "infer" else match_features(others, features, where)
    if not names:
        shown = f" (it has {listed(others)})" if others else ""
        raise DataError(
            f"{where} has no column that begins with {', '.join(COMPARTMENTS)}{shown}; say which columns are features, "
            "for example features: ['emb_*']."
        )
    return names


def float32_values(frame: pd.DataFrame, names: list[str], where: str) -> tuple[NDArray[np.float32], list[str]]:
    """Return features as float32, and notes on what float32 cannot hold."""
    values = np.empty((len(frame), len(names)), np.float32)
    coarse = []
    for i, name in enumerate(names):
        column = frame[name]
        if column.dtype.kind not in "iufb":
            column = _as_number(column, name, where)
        exact = column.to_numpy(np.float64, na_value=np.nan)
        with np.errstate(over="ignore"):
            values[:, i] = exact
        finite = exact[np.isfinite(exact)]
        overflow = np.isfinite(exact) & ~np.isfinite(values[:, i])
        if overflow.any():
            raise DataError(
                f"{where}: feature '{name}' has values beyond 3.4e38, which float32 cannot hold; leave it out."
            )
        if len(finite) > 1 and 0 < np.std(finite) < 100 * np.finfo(np.float32).eps * np.abs(finite).max():
            coarse.append(name)
    notes = (
        [f"{where}: float32 holds the differences between rows to less than 1 % in {listed(coarse)}"] if coarse else []
    )
    return values, notes


def _as_number(column: "pd.Series[Any]", name: str, where: str) -> "pd.Series[Any]":
    numbers = pd.to_numeric(column, errors="coerce")
    bad = np.flatnonzero((numbers.isna() & column.notna() & ~column.isin(MISSING)).to_numpy())
    if len(bad):
        raise DataError(
            f"{where}: feature '{name}' mixes numbers and texts: row {bad[0] + 1} says {str(column.iloc[bad[0]])!r} "
            f"({len(bad)} rows in all); correct the rows, or leave the column out."
        )
    return numbers


def typed(column: "pd.Series[Any]") -> "pd.Series[Any]":
    """Return a column of texts as numbers where every value is one, and no zero in front would be lost.

    Args:
        column: Texts; missing values stay missing.
    """
    present = column.dropna().astype(str)
    if not len(present):
        return column
    if present.map(_INTEGER.fullmatch).notna().all():
        return column.astype("int64") if len(present) == len(column) else column.astype("float64")
    if present.map(_NUMBER.fullmatch).notna().all():
        return column.astype("float64")
    return column

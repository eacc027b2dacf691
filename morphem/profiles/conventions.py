"""What columns of a profile table mean: features as pycytominer infers them, rows by level, samples by query."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from morphem.data.query import columns_of, compile_query
from morphem.errors import ConfigError, DataError, nearest, unknown_name
from morphem.features import METADATA

COMPARTMENTS = ("Cells", "Cytoplasm", "Nuclei")
"""Beginnings of feature columns, as `pycytominer.cyto_utils.infer_cp_features` takes them by default."""

PLATE, WELL, CHANNEL = "Metadata_Plate", "Metadata_Well", "Metadata_Channel"
OUTER = ("Metadata_Study", "Metadata_Source", "Metadata_Batch")
"""Columns inside which plates have names of their own."""

FINER_THAN_WELL = (
    "Metadata_Site",
    "Metadata_Key",
    "Metadata_Cell",
    "Metadata_Channel",
    "Metadata_Tile_Y",
    "Metadata_Field",
    "Metadata_FOV",
    "Metadata_Object_Number",
    "Metadata_ObjectNumber",
    "Metadata_ImageNumber",
    "Metadata_TableNumber",
)
"""Columns that say that a row is less than a well."""

Mask = NDArray[np.bool_]


def infer_features(columns: Sequence[str]) -> list[str]:
    """Return the columns that are features by CellProfiler's convention, in their order.

    Args:
        columns: All columns of a table.

    Source: pycytominer 1.7.1, `cyto_utils/features.py: infer_cp_features`; a column is a feature if its name begins
        with a compartment, Cells, Cytoplasm or Nuclei.
    """
    return [name for name in columns if name.startswith(COMPARTMENTS)]


def match_features(columns: Sequence[str], patterns: Sequence[str], what: str) -> list[str]:
    """Return the columns that match any pattern, in their order.

    Args:
        columns: Names to choose from.
        patterns: Names, or patterns with `*` and `?`; capital letters count.
        what: What to call the patterns in an error.

    Raises:
        ConfigError: If a pattern matches nothing.
    """
    present = set(columns)
    exact, wild = {p for p in patterns if p in present}, [p for p in patterns if p not in present]
    for pattern in wild:
        if not any(fnmatchcase(name, pattern) for name in columns):
            close = nearest(pattern, columns, count=1)
            hint = f"the nearest column is '{close[0]}'" if close else "look at the names of the columns"
            raise ConfigError(f"{what}: no feature matches '{pattern}'; {hint}.")
    return [name for name in columns if name in exact or any(fnmatchcase(name, pattern) for pattern in wild)]


def check_columns(metadata: pd.DataFrame, columns: Sequence[str], step: str) -> None:
    """Check that metadata columns are there.

    Args:
        metadata: Rows of a table.
        columns: Names that a step needs.
        step: Who asks.

    Raises:
        ConfigError: If one is not, with the nearest.
    """
    for name in columns:
        if name not in metadata:
            raise ConfigError(f"{step}: {unknown_name('metadata column', name, map(str, metadata.columns))}")


def select_rows(metadata: pd.DataFrame, query: str, step: str) -> Mask:
    """Return which rows a query selects, (R,). A missing value matches no comparison but `== None`.

    Args:
        metadata: Rows of a table.
        query: For example `Metadata_control_type == 'negcon'`; `all` selects every row.
        step: Who asks.

    Raises:
        ConfigError: If the query is malformed, or names a column that is not there.
    """
    if query == "all":
        return np.ones(len(metadata), np.bool_)
    table, expression = _compiled(metadata, query, step)
    found = table.append_column("__row", pa.array(np.arange(len(metadata)))).filter(expression)
    mask = np.zeros(len(metadata), np.bool_)
    mask[found.column("__row").to_numpy()] = True
    return mask


def _compiled(metadata: pd.DataFrame, query: str, step: str) -> tuple[pa.Table, pc.Expression]:
    """Return the columns that a query may use, and the query as an expression on them."""
    used = [str(name) for name in metadata.columns if str(name) in query]
    table = pa.table({name: _arrow(metadata[name]) for name in used})
    # a column of nothing but missing values is a text here; compared with a number, it is a number
    empty = [name for name in used if table.column(name).null_count == len(table)]
    numbers = table
    for name in empty:
        numbers = numbers.set_column(used.index(name), name, pa.nulls(len(table), pa.float64()))
    for candidate in (table, numbers):
        try:
            return candidate, compile_query(query, candidate.schema)
        except ConfigError:
            continue
    try:
        whole = pa.table({str(name): _arrow(metadata[name]) for name in metadata.columns})
        return whole, compile_query(query, whole.schema)  # says what is wrong, with the nearest of all columns
    except ConfigError as fault:
        raise ConfigError(f"{step}: {fault}") from fault


def values_asked(metadata: pd.DataFrame, query: str) -> str:
    """Return what the columns of a query hold, for an error about a query that matches nothing.

    Args:
        metadata: Rows of a table.
        query: As for `select_rows`, and valid.
    """
    table, _ = _compiled(metadata, query, "query")
    parts = []
    for name in columns_of(query, table.schema):
        values = sorted(map(str, pc.unique(table.column(name).drop_null()).to_pylist()))
        parts.append(f"{name} holds {listed(values, 8) if values else 'nothing'}")
    return "; ".join(parts)


def count_unanswered(metadata: pd.DataFrame, query: str) -> int:
    """Return how many rows have no value in a column that a query uses.

    Args:
        metadata: Rows of a table.
        query: As for `select_rows`, and valid.
    """
    if query == "all":
        return 0
    table, _ = _compiled(metadata, query, "samples")
    lost = [pc.is_null(table.column(name)).to_numpy() for name in columns_of(query, table.schema)]
    return int(np.any(lost, axis=0).sum())


def group_codes(metadata: pd.DataFrame, per: Sequence[str], step: str) -> tuple[NDArray[np.int64], list[str]]:
    """Number the rows by group, in order of first appearance.

    Args:
        metadata: Rows of a table.
        per: Columns that name a group; with none, all rows are one group.
        step: Who asks.

    Returns:
        Number of the group of every row, (R,); what to call the groups.

    Raises:
        ConfigError: If a column is not there.
        DataError: If a row does not say its group, or one plate name stands for plates of several studies.
    """
    if not per:
        return np.zeros(len(metadata), np.int64), ["all rows"]
    check_columns(metadata, per, step)
    for name in per:
        missing = int((metadata[name].isna() | metadata[name].astype(str).isin(["", "unknown"])).sum())
        if missing:
            raise DataError(
                f"{step}: {missing} rows have no {name}, so they belong to no group; fill the column in "
                "(step annotate), or leave the rows out (step filter)."
            )
    if PLATE in per:
        check_plate_names(metadata, per, step)
    keys = pd.MultiIndex.from_frame(metadata[list(per)].astype(str))
    codes, names = pd.factorize(keys)
    return np.asarray(codes, np.int64), ["/".join(map(str, name)) for name in names]


def check_plate_names(metadata: pd.DataFrame, per: Sequence[str], step: str) -> None:
    """Refuse to take two plates of one name for one plate.

    Args:
        metadata: Rows of a table.
        per: The columns that name a group, with the plate among them.
        step: Who asks.

    Raises:
        DataError: If a group holds plates of several studies, sources or batches.
    """
    for outer in OUTER:
        if outer in metadata and outer not in per:
            counts = metadata.groupby(list(per), dropna=False)[outer].nunique(dropna=False)
            if (counts > 1).any():
                plate = counts.index[int(np.argmax(counts.to_numpy() > 1))]
                name = "/".join(map(str, plate)) if isinstance(plate, tuple) else str(plate)
                raise DataError(
                    f"{step}: plate '{name}' stands for plates of {int(counts.max())} values of {outer}, which would "
                    f"be mixed; add {outer} to 'per' or 'by'."
                )


def check_channels(metadata: pd.DataFrame, codes: NDArray[np.int64], names: Sequence[str], step: str) -> None:
    """Refuse to treat embeddings of different channels together, where a row is one channel plane.

    Args:
        metadata: Rows of a table.
        codes: Group of every row, (R,).
        names: Of the groups.
        step: Who asks.

    Raises:
        DataError: If a group holds several channels.
    """
    if CHANNEL not in metadata:
        return
    counts = metadata[CHANNEL].groupby(codes).nunique(dropna=False).to_numpy()
    if (counts > 1).any():
        group = int(np.argmax(counts > 1))
        raise DataError(
            f"{step}: a row is one channel plane here, and {names[group]} holds {counts[group]} channels, whose "
            f"features differ in meaning; name {CHANNEL} in by, per or batch, or embed with combine='concat' or 'mean'."
        )


def describe_row(metadata: pd.DataFrame, row: int) -> str:
    """Return where a row comes from, for an error.

    Args:
        metadata: Rows of a table.
        row: Position, from 0.
    """
    parts = [
        str(metadata[name].iloc[row]) for name in (PLATE, WELL, "Metadata_Site", "Metadata_Key") if name in metadata
    ]
    return f"row {row + 1}" + (f" ({' '.join(parts)})" if parts else "")


def listed(names: Sequence[Any], count: int = 5) -> str:
    """Return the first names and how many more there are.

    Args:
        names: All of them.
        count: How many to show.
    """
    shown = ", ".join(map(str, list(names)[:count]))
    return shown + (f" and {len(names) - count} more" if len(names) > count else "")


def _arrow(column: "pd.Series[Any]") -> pa.Array:
    if column.dtype.kind in "iufb":
        return pa.array(column.to_numpy(), from_pandas=True)
    try:
        return pa.array(column, pa.string(), from_pandas=True)
    except (pa.ArrowInvalid, pa.ArrowTypeError):  # numbers among texts
        values = [None if value is None or value != value or value is pd.NA else str(value) for value in column]
        return pa.array(values, pa.string())


def is_metadata(name: str) -> bool:
    """Whether a column holds metadata.

    Args:
        name: Of the column.
    """
    return name.startswith(METADATA)

"""Tables of text in a location: finding one, its columns, its rows."""

import csv
import io
from collections.abc import Sequence
from typing import BinaryIO

import pandas as pd

from morphem.errors import DataError
from morphem.readers.files import Files

SUFFIXES = (".csv", ".parquet")
_HEAD_BYTES = 2**16


def sheets_in(files: Files) -> list[str]:
    """Return the CSV and Parquet files that lie directly in a location.

    Args:
        files: Of the location.
    """
    return [name for name in files.names() if "/" not in name and name.lower().endswith(SUFFIXES)]


def columns_of(files: Files, name: str) -> list[str]:
    """Return the column names of a sheet; none where it cannot be read.

    Args:
        files: Of the location.
        name: Of the sheet.
    """
    import pyarrow.parquet
    from pyarrow import ArrowException

    if name.lower().endswith(".parquet"):
        try:
            with files.open(name) as file:
                return list(pyarrow.parquet.read_schema(file).names)
        except (ArrowException, OSError):  # asked of files that may be anything
            return []
    start = files.read(name, 0, _HEAD_BYTES).decode("utf-8-sig", errors="replace")
    return next(csv.reader(io.StringIO(start)), [])


def read_sheet(files: Files, name: str, needed: Sequence[str]) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Read a sheet, every value as text, missing ones empty.

    Args:
        files: Of the location.
        name: Of the sheet.
        needed: Columns that it must have.

    Returns:
        The rows, indexed by their line in the file (from 2 in a CSV), and the rows that are not of the sheet's shape,
        each with the reason.

    Raises:
        DataError: If it is missing or no such table, or has no row.
    """
    where = files.describe(name)
    problems: list[tuple[str, str]] = []
    table = _parquet(files, name) if name.lower().endswith(".parquet") else _csv(files, name, problems)
    for column in needed:
        if column not in table.columns:
            raise DataError(f"'{where}' has no column '{column}'; needed: {', '.join(needed)}.")
    if table.empty:
        raise DataError(f"'{where}' has no row; give one per channel plane.")
    return table, problems


def _csv(files: Files, name: str, problems: list[tuple[str, str]]) -> pd.DataFrame:
    with files.open(name) as file:
        try:
            table = pd.read_csv(file, dtype=str, keep_default_na=False, encoding="utf-8-sig", index_col=False)
            return table.set_axis(pd.RangeIndex(2, len(table) + 2)).fillna("")
        except pd.errors.ParserError:
            file.seek(0)  # the quick reader stops at a row of too many fields; the slow one leaves it out
            return _row_by_row(file, files.describe(name), problems)
        except (OSError, UnicodeDecodeError, pd.errors.EmptyDataError) as fault:
            raise DataError(f"'{files.describe(name)}' cannot be read as a table: {str(fault).strip()}.") from fault


def _row_by_row(file: BinaryIO, where: str, problems: list[tuple[str, str]]) -> pd.DataFrame:
    """Read a CSV of which some rows have too many fields."""
    rows: dict[int, list[str]] = {}
    try:
        reader = csv.reader(io.TextIOWrapper(file, "utf-8-sig", newline=""), strict=True)
        header = next(reader)
        for row in reader:
            if len(row) <= len(header):
                rows[reader.line_num] = [*row, *[""] * (len(header) - len(row))]
                continue
            problems.append(
                (
                    f"row {reader.line_num}",
                    f"'{where}', line {reader.line_num}: {len(row)} fields where the first line has {len(header)}; put "
                    "quotes round texts with commas.",
                )
            )
    except (UnicodeDecodeError, csv.Error) as fault:
        raise DataError(f"'{where}' cannot be read as a table: {fault}.") from fault
    return pd.DataFrame(list(rows.values()), columns=header, index=list(rows), dtype=str)


def _parquet(files: Files, name: str) -> pd.DataFrame:
    import pyarrow.parquet
    from pyarrow import ArrowException

    try:
        with files.open(name) as file:
            columns = pyarrow.parquet.read_table(file).to_pydict()
    except (ArrowException, OSError) as fault:
        reason = str(fault).splitlines()[0]
        raise DataError(f"'{files.describe(name)}' cannot be read as a table: {reason}.") from fault
    table = pd.DataFrame(
        {key: ["" if value is None else str(value) for value in values] for key, values in columns.items()}, dtype=str
    )
    return table.set_axis(pd.RangeIndex(1, len(table) + 1))

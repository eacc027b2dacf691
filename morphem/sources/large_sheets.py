"""CSVs of millions of rows: the rows of one study, without the others ever being in memory."""

from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from morphem.errors import DataError
from morphem.readers.files import Files
from morphem.sources.sheets import columns_of

_STUDY = "experiment.study"
_BLOCK_BYTES = 2**24


def studies_of(files: Files, name: str) -> list[str]:
    """Return the studies of a CSV in order of appearance.

    Args:
        files: Of the location.
        name: Of the CSV; it has the column `experiment.study`.

    Raises:
        DataError: If it is no such table.
    """
    _check_columns(files, name, (_STUDY,))
    found: dict[str, None] = {}
    for batch in _batches(files, name, [_STUDY], []):
        found.update(dict.fromkeys(batch.column(0).unique().to_pylist()))
    return [study for study in found if study]


def rows_of_study(
    files: Files, name: str, study: str, needed: Sequence[str]
) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    """Return the rows of one study, all values as text, and the rows of the whole CSV that are not of its shape.

    Args:
        files: Of the location.
        name: Of the CSV.
        study: Value of `experiment.study`.
        needed: Columns that it must have.

    Raises:
        DataError: If it is no such table or has no row of the study.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    _check_columns(files, name, needed)
    bad: list[tuple[str, str]] = []
    parts = []
    for batch in _batches(files, name, None, bad):
        own = batch.filter(pc.equal(batch.column(_STUDY), study))
        if own.num_rows:
            parts.append(own)
    if not parts:
        raise DataError(f"'{files.describe(name)}' has no row of study '{study}'; see its column '{_STUDY}'.")
    columns = pa.Table.from_batches(parts).to_pydict()
    return pd.DataFrame(columns, dtype=str), bad


def _check_columns(files: Files, name: str, needed: Sequence[str]) -> None:
    columns = columns_of(files, name)
    for column in needed:
        if column not in columns:
            raise DataError(f"'{files.describe(name)}' has no column '{column}'; needed: {', '.join(needed)}.")


def _batches(files: Files, name: str, columns: list[str] | None, bad: list[tuple[str, str]]) -> Iterator[Any]:
    """Read a CSV block by block; rows with too many or too few fields are put into `bad`."""
    import pyarrow as pa
    from pyarrow import csv

    def leave_out(row: Any) -> str:
        start = str(row.text)[:60]
        bad.append((f"row '{start}'", f"'{files.describe(name)}': row '{start}' has {row.actual_columns} fields where "
                    f"{row.expected_columns} are needed."))  # fmt: skip
        return "skip"

    header = columns_of(files, name)
    convert = csv.ConvertOptions(
        column_types=dict.fromkeys(header, pa.string()), strings_can_be_null=False, include_columns=columns
    )
    parse = csv.ParseOptions(invalid_row_handler=leave_out)
    try:
        with (
            files.open(name) as stream,
            csv.open_csv(stream, csv.ReadOptions(block_size=_BLOCK_BYTES), parse, convert) as reader,
        ):
            yield from reader
    except (pa.ArrowException, OSError, UnicodeDecodeError) as fault:
        raise DataError(f"'{files.describe(name)}' cannot be read as a table: {str(fault).splitlines()[0]}.") from fault

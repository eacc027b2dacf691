"""From files or tables to the inputs of a protocol: canonical columns, side tables, and every check before a score."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from morphem.benchmarks import checks
from morphem.benchmarks.base import Benchmark, Column, Inputs, Part, SideTable
from morphem.errors import ConfigError, DataError, unknown_name
from morphem.features import METADATA, FeatureTable


def read_features(
    benchmark: Benchmark, path: str | Path, features: str | Sequence[str] = "infer"
) -> dict[str, FeatureTable]:
    """Read the tables of a protocol.

    A protocol of one table takes a file, or a folder whose tables are joined. One of several parts takes a folder with
    a file or a folder of the name of each part.

    Args:
        benchmark: Says which parts there are.
        path: File or folder.
        features: Which columns are features; see `morphem.profiles.tables.read_table`.

    Raises:
        DataError: If nothing is there, or a part is missing.
    """
    from morphem.profiles.tables import READABLE, read_table

    path = Path(path)
    parts = benchmark.parts_in_use()
    if len(parts) == 1:
        return {parts[0].name: read_table(path, features)}
    if not path.is_dir():
        names = ", ".join(f"{part.name}.parquet" for part in parts)
        raise DataError(f"this benchmark takes several tables; give a folder with {names} instead of '{path}'.")
    found = {}
    for part in parts:
        places = [path / part.name, *(path / f"{part.name}{ending}" for ending in READABLE)]
        there = [place for place in places if place.exists()]
        if there:
            found[part.name] = read_table(there[0], features)
        elif part.required:
            raise DataError(
                f"'{path}' holds no table of the part '{part.name}' ({part.what}); add {part.name}.parquet."
            )
    return found


def find_side_tables(
    benchmark: Benchmark, places: Sequence[Path], given: Mapping[str, Path] | None = None
) -> dict[str, Path]:
    """Find the files besides the features, in folders and one folder below.

    Args:
        benchmark: Says which files it reads.
        places: Folders or files; of a file its folder.
        given: Paths by name of side table, which are taken as they are.

    Raises:
        ConfigError: If a given name is unknown, or a file is not there.
        DataError: If two files fit one name.
    """
    known = {side.name for side in benchmark.side_tables}
    given = given or {}
    for name, path in given.items():
        if name not in known:
            raise ConfigError(unknown_name(f"side table of {type(benchmark).__name__}", name, known))
        if not Path(path).is_file():
            raise ConfigError(f"the side table '{name}' is not at '{path}'.")
    found = {name: Path(path) for name, path in given.items()}
    for side in benchmark.side_tables:
        folders = [place if place.is_dir() else place.parent for place in places if place.exists()]
        for folder in folders if side.name not in found else []:
            hits = sorted(
                {file for pattern in side.patterns for up in ("", "*/") for file in folder.glob(up + pattern)}
            )
            if len(hits) > 1:
                raise DataError(
                    f"{len(hits)} files in '{folder}' could be the side table '{side.name}' ({hits[0].name}, "
                    f"{hits[1].name}); say which with --side {side.name}=PATH."
                )
            if hits:
                found[side.name] = hits[0]
                break
    return found


def read_side_table(path: Path) -> pd.DataFrame:
    """Read a side table: `.txt` gives one column `value`, other endings a frame as they stand."""
    from morphem.profiles.metadata_files import read_metadata

    if path.suffix == ".txt":
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        return pd.DataFrame({"value": [line for line in lines if line]})
    return read_metadata(path, f"side table {path.name}")


def prepare(
    benchmark: Benchmark,
    tables: Mapping[str, FeatureTable],
    side: Mapping[str, pd.DataFrame] | None = None,
    columns: Mapping[str, str] | None = None,
) -> Inputs:
    """Check tables and side tables and bring them under the names that the protocol uses.

    Args:
        benchmark: The protocol.
        tables: By name of part.
        side: By name of side table.
        columns: Column of the tables by canonical name, with or without `Metadata_`, where it has another name.

    Raises:
        ConfigError: If a name is unknown.
        DataError: If something that the protocol needs is missing, or a table is not fit to be scored.
    """
    parts = {part.name: part for part in benchmark.parts_in_use()}
    for name in tables:
        if name not in parts:
            raise ConfigError(unknown_name(f"part of {type(benchmark).__name__}", name, parts))
    lost = [part for part in parts.values() if part.required and part.name not in tables]
    if lost:
        raise DataError(
            f"the part '{lost[0].name}' ({lost[0].what}) is missing; there are: {', '.join(tables) or 'none'}."
        )
    _check_renamed(benchmark, columns or {})
    found = {name: canonical(table, parts[name], columns, _where(benchmark, name)) for name, table in tables.items()}
    inputs = benchmark.adapt(Inputs(found, _checked_side(benchmark, side or {})))
    for name, table in inputs.tables.items():
        where = _where(benchmark, name)
        checks.finite(table, where)
        checks.unique(table, parts[name].key, where)
    return inputs


def _where(benchmark: Benchmark, part: str) -> str:
    return "the table" if len(benchmark.parts_in_use()) == 1 else f"the table of '{part}'"


def _long(name: str) -> str:
    return name if name.startswith(METADATA) else METADATA + name


def _check_renamed(benchmark: Benchmark, renamed: Mapping[str, str]) -> None:
    known = {column.name for part in benchmark.parts_in_use() for column in part.columns}
    for name in map(_long, renamed):
        if name not in known:
            raise ConfigError(unknown_name("column of the protocol", name, known))


def canonical(table: FeatureTable, part: Part, columns: Mapping[str, str] | None, where: str) -> FeatureTable:
    """Copy the columns that a protocol reads to their canonical names.

    Args:
        table: Features.
        part: Says which columns.
        columns: Column of the table by canonical name, where it has another name.
        where: What to call the table in errors.

    Raises:
        DataError: If a required column is missing, or a row lacks a value that it must have.
    """
    renamed = {_long(name): _long(column) for name, column in (columns or {}).items()}
    metadata = table.metadata.reset_index(drop=True)
    added: dict[str, pd.Series[Any]] = {}
    for column in part.columns:
        source = _source_of(column, metadata, renamed.get(column.name), where)
        if source is None:
            continue
        added[column.name] = metadata[source]
        if not column.missing_allowed:
            checks.complete(replace(table, metadata=metadata), source, column.what, where)
    return replace(table, metadata=metadata.assign(**added))


def _source_of(column: Column, metadata: pd.DataFrame, chosen: str | None, where: str) -> str | None:
    short = column.name.removeprefix(METADATA)
    named = list(map(_long, column.aliases))
    if not column.aliases_only:
        named = [column.name, *named, f"{METADATA}Cell_{short}", f"{METADATA}Label_{short}"]
    tried = [chosen] if chosen else named
    found = next((name for name in tried if name in metadata), None)
    if found is None and (column.required or chosen):
        close = unknown_name("column", tried[0], map(str, metadata.columns))
        raise DataError(
            f"{where} lacks the {column.what}: {close} Name it with --column {short}=NAME, or join it from a table of "
            "metadata (--metadata)."
        )
    return found


def _checked_side(benchmark: Benchmark, side: Mapping[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    known = {table.name: table for table in benchmark.side_tables}
    for name in side:
        if name not in known:
            raise ConfigError(unknown_name(f"side table of {type(benchmark).__name__}", name, known))
    for table in known.values():
        if table.name in side:
            _check_side(table, side[table.name])
        elif table.required:
            raise DataError(
                f"the side table '{table.name}' ({table.what}) was not found; put a file {' or '.join(table.patterns)} "
                f"beside the features or the data, or name it with --side {table.name}=PATH."
            )
    return dict(side)


def _check_side(table: SideTable, frame: pd.DataFrame) -> None:
    lost = [name for name in table.columns if name not in frame]
    if lost:
        raise DataError(f"side table '{table.name}': {unknown_name('column', lost[0], map(str, frame.columns))}")


def join_metadata(table: FeatureTable, metadata: pd.DataFrame, on: Sequence[str]) -> FeatureTable:
    """Add columns of a table of metadata (plate map, compounds) to the rows of features.

    Args:
        table: Features.
        metadata: One row per key; columns get `Metadata_` in front where they lack it.
        on: Columns that both have and that name a row of `metadata`.

    Returns:
        The table, row by row as it was, with the columns that it did not have.

    Raises:
        DataError: If a key column is missing, a key is there twice, a row of features has no metadata, or plates of the
            metadata have no features.
    """
    other = metadata.rename(columns={name: _long(str(name)) for name in metadata.columns})
    keys = [_long(name) for name in on]
    for frame, what in ((table.metadata, "the features"), (other, "the metadata")):
        for key in keys:
            if key not in frame:
                raise DataError(
                    f"joining metadata: {what} have no such key. {unknown_name('column', key, frame.columns)}"
                )
    texts = [pd.MultiIndex.from_frame(frame[keys].astype(str)) for frame in (table.metadata, other)]
    if texts[1].has_duplicates:
        first = texts[1][texts[1].duplicated()][0]
        raise DataError(f"joining metadata: {_shown(first)} is there twice in the metadata; one row per key is needed.")
    place = texts[1].get_indexer(texts[0])
    if (place < 0).any():
        first = texts[0][int(np.argmax(place < 0))]
        raise DataError(
            f"joining metadata: {int((place < 0).sum())} rows of features have no row in the metadata (first: "
            f"{_shown(first)}); complete it, or check the spelling of the keys."
        )
    _check_plates(table.metadata, other)
    added = other.iloc[place].reset_index(drop=True)
    new = [name for name in added.columns if name not in table.metadata]
    return replace(table, metadata=pd.concat([table.metadata.reset_index(drop=True), added[new]], axis=1))


def _shown(key: Any) -> str:
    return ", ".join(map(str, key))


def _check_plates(mine: pd.DataFrame, theirs: pd.DataFrame) -> None:
    plate = f"{METADATA}Plate"
    if plate not in mine or plate not in theirs:
        return
    lost = sorted(set(theirs[plate].astype(str)) - set(mine[plate].astype(str)))
    if lost:
        shown = ", ".join(lost[:5]) + (f" and {len(lost) - 5} more" if len(lost) > 5 else "")
        raise DataError(
            f"the metadata has {theirs[plate].nunique()} plates and the features {mine[plate].nunique()}: nothing was "
            f"embedded of {shown}; embed them, or take these plates out of the metadata if that is meant."
        )

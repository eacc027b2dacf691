"""Run a recipe on a table in memory, or on files plate by plate as long as its steps allow."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from morphem import features as feature_tables
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from morphem.profiles.conventions import PLATE
from morphem.profiles.frames import check_same_columns, from_frame
from morphem.profiles.recipe import Recipe
from morphem.profiles.record import merge_records
from morphem.profiles.step import RECORD
from morphem.profiles.tables import list_tables, read_by_plate, read_table, sha256, suffix

Chunks = Iterable[tuple[Path, FeatureTable]]
Progress = Callable[[Chunks], Chunks]


def apply(
    table: FeatureTable | pd.DataFrame | str | Path | Sequence[str | Path],
    recipe: Recipe | Mapping[str, Any] | str | Path,
) -> FeatureTable:
    """Turn features into profiles.

    Args:
        table: A feature table, a data frame of metadata and features, or files or folders of tables.
        recipe: A recipe, its content, or a YAML file.

    Returns:
        The profiles; `provenance` holds the recipe, and under `profile` one record per step: rows and features in and
        out, what it was fitted on, and what it learned from that a fair test would hide.

    Raises:
        ConfigError: If the recipe is wrong, or does not fit the table.
        DataError: If the rows are not what a step needs.
    """
    if not isinstance(recipe, Recipe):
        recipe = Recipe.from_dict(recipe) if isinstance(recipe, Mapping) else Recipe.read(recipe)
    recipe.prepare()
    if isinstance(table, pd.DataFrame):
        table = from_frame(table, recipe.features)
    if isinstance(table, FeatureTable):
        recipe.check(table)
        return recipe.sign(recipe.run(table))
    return apply_to_files([table] if isinstance(table, str | Path) else list(table), recipe)


def apply_to_files(paths: Sequence[str | Path], recipe: Recipe, progress: Progress = iter) -> FeatureTable:
    """Run a recipe on files, one plate at a time for the steps at its beginning that allow it.

    A step allows it if a plate's rows do not depend on other plates: joins, averages to wells or finer, and scaling or
    sphering per plate. From the first other step on, all rows are in memory.

    Args:
        paths: Files or folders of tables.
        recipe: What to do.
        progress: Wraps the plates, to show a bar.

    Raises:
        ConfigError: If the recipe does not fit the tables.
        DataError: If a file is damaged, files differ in their features, or rows are not what a step needs.
    """
    recipe.prepare()
    files = [file for path in paths for file in list_tables(path, recipe.features)]
    doubled = {file for file in files if files.count(file) > 1}
    if doubled:
        raise ConfigError(f"'{sorted(doubled)[0]}' is given twice, and its rows would be there twice.")
    leading = next((i for i, step in enumerate(recipe.steps) if not step.chunks_by(PLATE)), len(recipe.steps))
    if leading and _plates_are_whole(files):
        table = _by_plate(files, recipe, leading, progress)
    else:
        leading = 0
        table = _read_all(files, recipe)
        recipe.check(table)
    return recipe.sign(recipe.run(table, leading))


def _read_all(files: Sequence[Path], recipe: Recipe) -> FeatureTable:
    tables = [read_table(file, recipe.features) for file in files]
    check_same_columns([(str(file), table.columns) for file, table in zip(files, tables, strict=True)])
    sources = [source for table in tables for source in table.provenance["tables"]]
    joined = tables[0] if len(tables) == 1 else feature_tables.concat(tables)
    return replace(joined, provenance={**joined.provenance, "tables": sources})


def _plates_are_whole(files: Sequence[Path]) -> bool:
    """Whether every row says its plate, no plate is in two files, and there is anything to gain."""
    seen: set[str] = set()
    for file in files:
        plates = _plates_of(file)
        if plates is None or plates & seen:
            return False
        seen |= plates
    return len(seen) > 1


def _plates_of(file: Path) -> set[str] | None:
    if suffix(file) == ".h5ad":
        return None
    try:
        if suffix(file) == ".parquet":
            column = pq.read_table(file, columns=[PLATE]).column(0).to_pandas()
        else:
            separator = "\t" if suffix(file).startswith(".tsv") else ","
            column = pd.read_csv(file, sep=separator, usecols=[PLATE], dtype=str)[PLATE]
    except (ValueError, KeyError, OSError):
        return None  # no such column, or damaged: reading the whole says which
    return None if column.isna().any() else set(column.astype(str))


def _by_plate(files: Sequence[Path], recipe: Recipe, leading: int, progress: Progress) -> FeatureTable:
    """Run the leading steps chunk by chunk, and join what they give."""
    done: list[FeatureTable] = []
    records: list[list[Mapping[str, Any]]] = []
    first: tuple[str, Sequence[str]] | None = None
    for file, chunk in progress(_chunks(files, recipe)):
        first = first or (str(file), chunk.columns)
        check_same_columns([first, (str(file), chunk.columns)])
        recipe.check(chunk)
        result = recipe.run(chunk, 0, leading)
        earlier = len(chunk.provenance.get(RECORD, []))
        records.append(list(result.provenance[RECORD])[earlier:])
        done.append(result)
    common = [name for name in done[0].metadata.columns if all(name in part.metadata for part in done)]
    lost = sorted({str(name) for part in done for name in part.metadata.columns} - set(map(str, common)))
    metadata = _below_each_other([part.metadata[common] for part in done])
    values = np.concatenate([part.values for part in done])
    merged = [merge_records(parts) for parts in zip(*records, strict=True)]
    if lost:
        merged[-1]["remarks"].append(f"columns that are not in the rows of every plate are left out: {', '.join(lost)}")
    base = dict(done[0].provenance)
    before = list(base[RECORD])[: -len(merged)]
    sources = [{"file": file.name, "sha256": sha256(file)} for file in files]
    return replace(
        done[0], values=values, metadata=metadata, provenance={**base, RECORD: [*before, *merged], "tables": sources}
    )


def _below_each_other(parts: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Join rows; a column that has another type in some plate, say because all is missing, gets the type that fits."""
    mixed = [name for name in parts[0].columns if len({part[name].dtype for part in parts}) > 1]
    plain = [part.astype(dict.fromkeys(mixed, object)) for part in parts]
    return pd.concat(plain, ignore_index=True).infer_objects()


def _chunks(files: Sequence[Path], recipe: Recipe) -> Iterator[tuple[Path, FeatureTable]]:
    for file in files:
        if suffix(file) == ".parquet":
            for table in read_by_plate(file, PLATE, recipe.features):
                yield file, table
        else:
            yield file, read_table(file, recipe.features)


def check_rows_are_kept(table: FeatureTable) -> None:
    """Check that the records of a table follow from each other: what one step gave, the next one took.

    Args:
        table: With records.

    Raises:
        DataError: If rows were lost or doubled between two steps.
    """
    steps = list(table.provenance.get(RECORD, []))
    for before, after in pairwise(steps):
        if before["rows_out"] != after["rows_in"]:
            raise DataError(
                f"{before['step']} gave {before['rows_out']} rows and {after['step']} took {after['rows_in']}; rows "
                "were "
                "lost or doubled between them."
            )
    if steps and steps[-1]["rows_out"] != len(table):
        raise DataError(f"{steps[-1]['step']} gave {steps[-1]['rows_out']} rows, but the table has {len(table)}.")

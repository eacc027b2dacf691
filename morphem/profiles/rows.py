"""Steps on rows and their metadata: join a plate map, fill in a column, leave rows out, fill in missing values."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from morphem.data.wells import normalise_well
from morphem.errors import ConfigError, DataError, unknown_name
from morphem.features import FeatureTable
from morphem.profiles.conventions import PLATE, check_columns, is_metadata, listed, select_rows, values_asked
from morphem.profiles.metadata_files import read_metadata
from morphem.profiles.settings import as_names, check_choice
from morphem.profiles.step import Note, Step, check_finite, fit_groups, in_order


@dataclass(frozen=True)
class Annotate(Step):
    """Join columns of a plate map or another metadata table, row by row, by named keys.

    Keys are compared as texts; wells in any spelling (`A1`, `a01`, `R01C01`) are the same. The other columns get the
    prefix `Metadata_` where they have none.

    Attributes:
        table: CSV, TSV (also gzipped) or Parquet file; a relative path counts from the working directory, then from the
            recipe's folder.
        by: Columns that both have, or a mapping from a column of the features to one of the table.
        columns: Columns to join; all where not given.
        where: Query of the entries to look at, for example `Batch == '2020_11_04_CPJUMP1'`; all where not given.
        unmatched: What happens to rows of features without an entry: `error`, or `keep` (with missing values).
        unused: What happens to entries without a row of features, such as plates that were not imaged: `error` or
            `ignore`.
        replace: Whether a column that is there already is replaced; without it a different value is an error.
    """

    table: str
    by: Sequence[str] | Mapping[str, str]
    columns: Sequence[str] = ()
    where: str = "all"
    unmatched: Literal["error", "keep"] = "error"
    unused: Literal["error", "ignore"] = "error"
    replace: bool = False

    name: ClassVar[str] = "annotate"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isinstance(self.by, Mapping):
            object.__setattr__(self, "by", {name: name for name in as_names(self.name, "by", self.by)})
        if not self.by:
            raise ConfigError("annotate: by is empty; name the columns that say which rows belong together.")
        object.__setattr__(self, "columns", as_names(self.name, "columns", self.columns))
        check_choice(self.name, "unmatched", self.unmatched, ("error", "keep"))
        check_choice(self.name, "unused", self.unused, ("error", "ignore"))

    def prepare(self) -> None:
        """Look for the table."""
        if not Path(self.table).is_file():
            raise ConfigError(f"annotate: there is no table '{self.table}' (looked in {Path.cwd()}).")

    def chunks_by(self, plate: str) -> bool:
        """A join looks at one row at a time, but unused entries are known only at the end."""
        return self.unused == "ignore"

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Join."""
        entries = read_metadata(Path(self.table), self.name)
        chosen = select_rows(entries, self.where, f"{self.name}: {self.table}")
        entries = entries[chosen].reset_index(drop=True)
        pairs = self._pairs(table.metadata, entries)
        ours = _keys(table.metadata, [left for left, _ in pairs], [left for left, _ in pairs])
        theirs = _keys(entries, [right for _, right in pairs], [left for left, _ in pairs])
        doubled = theirs[theirs.duplicated()].unique().tolist()
        if doubled:
            raise DataError(
                f"annotate: {len(doubled)} keys are in {self.table} twice, first {doubled[0]}; name more columns in "
                "'by', or choose entries with 'where'."
            )
        position = pd.Index(theirs).get_indexer(pd.Index(ours))
        self._check_matches(ours, theirs, position, pairs, note)
        metadata = table.metadata.copy()
        taken = {right for _, right in pairs}
        for name in self.columns or [str(name) for name in entries.columns if name not in taken]:
            values = entries[name].astype(object).to_numpy()[position]
            values[position < 0] = None
            self._add(metadata, name, pd.Series(values, index=metadata.index).infer_objects())
        used = position[position >= 0]
        note.details["joined"] = {"rows_matched": len(used), "entries_used": len(np.unique(used))}
        return replace(table, metadata=metadata)

    def _pairs(self, metadata: pd.DataFrame, entries: pd.DataFrame) -> list[tuple[str, str]]:
        """Return the key columns of both sides; the prefix may be missing in the table."""
        assert isinstance(self.by, Mapping)
        check_columns(metadata, list(self.by), self.name)
        for name in self.columns:
            if name not in entries:
                raise ConfigError(f"annotate: {self.table}: {unknown_name('column', name, map(str, entries.columns))}")
        pairs = []
        for left, right in self.by.items():
            found = next((name for name in (right, right.removeprefix("Metadata_")) if name in entries), None)
            if found is None:
                raise ConfigError(f"annotate: {self.table}: {unknown_name('column', right, map(str, entries.columns))}")
            pairs.append((left, found))
        return pairs

    def _check_matches(
        self, ours: "pd.Series[str]", theirs: "pd.Series[str]", position: Any, pairs: list[tuple[str, str]], note: Note
    ) -> None:
        lost = ours[position < 0].unique().tolist()
        rows = int((position < 0).sum())
        if lost and self.unmatched == "error":
            raise DataError(
                f"annotate: {rows} rows have no entry in {self.table}, first {lost[0]} ({len(lost)} keys by "
                f"{' and '.join(left for left, _ in pairs)}); complete the table, or set unmatched: keep."
            )
        if lost:
            note.remarks.append(f"{rows} rows have no entry in {self.table} ({listed(lost)})")
        spare = theirs[~theirs.isin(set(ours))].tolist()
        if spare and self.unused == "error":
            raise DataError(
                f"annotate: {len(spare)} of {len(theirs)} entries of {self.table} have no row of features "
                f"({listed(spare, 3)}); if these plates or wells were not imaged set unused: ignore, else the "
                "features are "
                "not complete."
            )

    def _add(self, metadata: pd.DataFrame, name: str, values: "pd.Series[Any]") -> None:
        column = name if is_metadata(name) else f"Metadata_{name}"
        if column in metadata and not self.replace:
            old, new = metadata[column], values
            differ = old.map(_key_text) != new.map(_key_text)
            if differ.any():
                raise DataError(
                    f"annotate: {column} is there already and says otherwise in {int(differ.sum())} rows "
                    f"('{old[differ].iloc[0]}' and '{new[differ].iloc[0]}'); leave it out of 'columns', or set "
                    "replace: true."
                )
            return
        metadata[column] = values


def _keys(frame: pd.DataFrame, columns: Sequence[str], meaning: Sequence[str]) -> "pd.Series[str]":
    """Return one text per row: the keys as texts, wells in one spelling."""
    parts = []
    for name, means in zip(columns, meaning, strict=True):
        texts = frame[name].map(_key_text)
        parts.append(texts.map(normalise_well) if means.endswith("Well") else texts)
    joined = parts[0]
    for part in parts[1:]:
        joined = joined + " " + part
    return joined.reset_index(drop=True)


def _key_text(value: Any) -> str:
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return "(nothing)" if pd.isna(value) else str(value).strip()


@dataclass(frozen=True)
class FillMetadata(Step):
    """Give rows of a query a value where they have none, for example the name of the untreated wells.

    Attributes:
        column: Where to write.
        value: What to write.
        where: Query of the rows; `controls` for those that the recipe names.
    """

    column: str
    value: str
    where: str = "all"

    name: ClassVar[str] = "fill_metadata"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not is_metadata(self.column):
            raise ConfigError(f"fill_metadata: column is '{self.column}'; it must start with 'Metadata_'.")

    def chunks_by(self, plate: str) -> bool:
        """It looks at one row at a time."""
        return True

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Fill in."""
        query = note.controls if self.where == "controls" else self.where
        if not query:
            raise ConfigError("fill_metadata: where is 'controls', but the recipe names no controls.")
        metadata = table.metadata.copy()
        present = metadata[self.column] if self.column in metadata else pd.Series([None] * len(metadata), dtype=object)
        empty = (present.isna() | (present.astype(str) == "")).to_numpy()
        rows = select_rows(metadata, query, self.name) & empty
        filled = present.astype(object).to_numpy(copy=True)
        filled[rows] = self.value
        metadata[self.column] = filled
        note.details["filled"] = int(rows.sum())
        return replace(table, metadata=metadata)


@dataclass(frozen=True)
class Filter(Step):
    """Leave rows out.

    Attributes:
        keep: Query of the rows that stay. A missing value matches no comparison but `== None`.
    """

    keep: str

    name: ClassVar[str] = "filter"
    keeps_rows: ClassVar[bool] = False

    def chunks_by(self, plate: str) -> bool:
        """It looks at one row at a time, but must see all to know whether any is left."""
        return False

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Leave them out."""
        query = note.controls if self.keep == "controls" else self.keep
        stays = select_rows(table.metadata, query, self.name)
        if not stays.any():
            raise DataError(
                f'filter: no row matches "{query}", so nothing would be left ({values_asked(table.metadata, query)}); '
                "correct the query."
            )
        note.details["left_out"] = int((~stays).sum())
        return replace(table, values=table.values[stays], metadata=in_order(table.metadata, stays))


@dataclass(frozen=True)
class Impute(Step):
    """Fill in missing and infinite feature values with the median of the fitted rows of the same group.

    Attributes:
        samples: The rows to learn from: `all`, `controls`, or a query on metadata.
        per: Columns whose values have medians of their own; `[]` pools all rows.
    """

    samples: str = "all"
    per: Sequence[str] = (PLATE,)

    name: ClassVar[str] = "impute"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "per", as_names(self.name, "per", self.per))

    def chunks_by(self, plate: str) -> bool:
        """Groups inside a plate have medians of their own."""
        return plate in self.per

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Fill in."""
        values = table.values.copy()
        bad = ~np.isfinite(values)
        for group in fit_groups(table, self.samples, self.per, self.name, note):
            needed = np.flatnonzero(bad[group.rows].any(0))
            known = np.where(bad[group.fit][:, needed], np.nan, values[group.fit][:, needed]).astype(np.float64)
            without = needed[~np.isfinite(known).any(0)]
            if len(without):
                raise DataError(
                    f"impute: '{table.columns[without[0]]}' has no value at all among the rows that {group.name} is "
                    "fitted "
                    f"on ({len(without)} features); remove it first (step select_features, operations: [nan])."
                )
            block = values[np.ix_(group.rows, needed)]
            values[np.ix_(group.rows, needed)] = (
                np.where(bad[np.ix_(group.rows, needed)], np.nanmedian(known, axis=0), block) if len(needed) else block
            )
        note.details["filled"] = int(bad.sum())
        result = replace(table, values=values)
        check_finite(result, self.name)
        return result

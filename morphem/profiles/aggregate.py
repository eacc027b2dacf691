"""Rows to fewer rows: cells to images, wells and perturbations by mean or median; consensus over replicates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.aggregation import COUNT
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from morphem.profiles.conventions import CHANNEL, OUTER, PLATE, WELL, check_channels, check_columns, group_codes, listed
from morphem.profiles.settings import as_names, check_choice, check_number
from morphem.profiles.step import Doubles, Note, Step, check_finite

Operation = Literal["mean", "median"]
ConsensusOperation = Literal["median", "mean", "modz"]
LEVELS: dict[str, tuple[str, ...]] = {
    "cell": ("Metadata_Study", "Metadata_Key", "Metadata_Cell"),
    "image": ("Metadata_Study", "Metadata_Key"),
    "well": (PLATE, WELL),
}
"""Columns that name a row of each level; for wells, study, source and batch come in front where the table has them."""

UNIT = "Metadata_Unit"


def level_columns(metadata: pd.DataFrame, by: str | Sequence[str], step: str) -> tuple[str, ...]:
    """Return the columns that name the rows of a level.

    Args:
        metadata: Rows of a table.
        by: `cell`, `image`, `well`, or columns.
        step: Who asks.

    Raises:
        ConfigError: If the level is unknown, or the table lacks a column.
    """
    if not isinstance(by, str):
        return as_names(step, "by", by)
    if by.startswith("Metadata_"):
        return (by,)
    if by not in LEVELS:
        raise ConfigError(
            f"{step}: by is '{by}'; it must be one of {', '.join(LEVELS)}, or a list of metadata columns."
        )
    outer = tuple(name for name in OUTER if name in metadata) if by == "well" else ()
    channel = (CHANNEL,) if CHANNEL in metadata else ()
    if by == "image" and "Metadata_Key" not in metadata and "Metadata_Site" in metadata:
        outer = tuple(name for name in OUTER if name in metadata)
        return (*outer, PLATE, WELL, "Metadata_Site", *channel)  # images of other software
    return (*outer, *LEVELS[by], *channel)


@dataclass(frozen=True)
class Aggregate(Step):
    """Average rows.

    A metadata column stays where all rows of every group agree. `Metadata_Object_Count` says how many objects went into
    a row: the sum of the counts that the rows already have, else the number of rows.

    Attributes:
        by: `cell`, `image`, `well`, or metadata columns, for example `[Metadata_Plate, Metadata_broad_sample]`.
        operation: `mean` or `median`.
        weight: `equal`: every row counts the same; `count`: a row counts as often as its `Metadata_Object_Count`
            says (with `mean` only).
        nan: `error`, or `skip`: a feature is averaged over the rows that have it.
    """

    by: str | Sequence[str] = "well"
    operation: Operation = "mean"
    weight: Literal["equal", "count"] = "equal"
    nan: Literal["error", "skip"] = "error"

    name: ClassVar[str] = "aggregate"
    keeps_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings."""
        if not isinstance(self.by, str):
            object.__setattr__(self, "by", as_names(self.name, "by", self.by))
        if not self.by:
            raise ConfigError("aggregate: by is empty; name a level or the columns that name a row.")
        check_choice(self.name, "operation", self.operation, get_args(Operation))
        check_choice(self.name, "weight", self.weight, ("equal", "count"))
        check_choice(self.name, "nan", self.nan, ("error", "skip"))
        if self.operation == "median" and self.weight == "count":
            raise ConfigError("aggregate: weight 'count' needs operation 'mean'; a median is not weighted.")

    def chunks_by(self, plate: str) -> bool:
        """A row made of one plate's rows alone needs no other plate."""
        return self.by == "well" or (not isinstance(self.by, str) and plate in self.by)

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Average the rows of every group, in order of first appearance."""
        if self.nan == "error":
            check_finite(table, self.name)
        columns = level_columns(table.metadata, self.by, self.name)
        codes, names = group_codes(table.metadata, columns, self.name)
        check_channels(table.metadata, codes, names, self.name)
        weights = self._weights(table)
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
        values = np.empty((len(names), len(table.columns)), np.float32)
        for i in range(len(names)):
            rows = order[bounds[i] : bounds[i + 1]]
            values[i] = self._average(table.values[rows].astype(np.float64), weights[rows])
        metadata, varying = merge_metadata(table.metadata, codes, len(names))
        metadata[COUNT] = object_counts(table.metadata, codes, len(names))
        if isinstance(self.by, str):
            metadata[UNIT] = self.by
        note.details |= {"by": list(columns), "columns_that_vary_within_a_row": varying}
        result = replace(table, values=values, metadata=metadata)
        if self.nan == "skip":
            check_finite(result, self.name)
        return result

    def _weights(self, table: FeatureTable) -> Doubles:
        if self.weight == "equal":
            return np.ones(len(table))
        check_columns(table.metadata, [COUNT], self.name)
        weights = table.metadata[COUNT].to_numpy(np.float64)
        if not (weights > 0).all():
            raise DataError(f"aggregate: {COUNT} must be above 0 in every row to be a weight.")
        return weights

    def _average(self, rows: Doubles, weights: Doubles) -> Doubles:
        if self.nan == "error":
            return np.median(rows, axis=0) if self.operation == "median" else np.average(rows, axis=0, weights=weights)
        known = np.isfinite(rows)
        if self.operation == "median":
            filled = np.where(known, rows, np.nan)
            result = np.full(rows.shape[1], np.nan)
            some = known.any(0)
            result[some] = np.nanmedian(filled[:, some], axis=0)
            return result
        total = (known * weights[:, None]).sum(0)
        with np.errstate(invalid="ignore"):
            return np.asarray((np.where(known, rows, 0) * weights[:, None]).sum(0) / total)


def merge_metadata(metadata: pd.DataFrame, codes: NDArray[np.int64], n: int) -> tuple[pd.DataFrame, list[str]]:
    """Return one row per group with the columns that agree inside every group, and the names of the others.

    Args:
        metadata: Rows.
        codes: Group of every row, numbered in order of first appearance, (R,).
        n: Number of groups.
    """
    first = np.full(n, -1, np.int64)
    first[codes[::-1]] = np.arange(len(codes))[::-1]
    varying = []
    for name in metadata.columns:
        numbers = pd.factorize(metadata[name])[0]  # a missing value is a value: -1
        if (numbers != numbers[first][codes]).any():
            varying.append(str(name))
    kept = metadata.drop(columns=varying).iloc[first].reset_index(drop=True)
    return kept, sorted(name for name in varying if name != COUNT)


def object_counts(metadata: pd.DataFrame, codes: NDArray[np.int64], n: int) -> NDArray[np.int64]:
    """Return how many objects stand behind every group, (G,).

    Args:
        metadata: Rows; where they have a count, it is summed.
        codes: Group of every row, (R,).
        n: Number of groups.
    """
    if COUNT in metadata and metadata[COUNT].notna().all():
        return np.bincount(codes, metadata[COUNT].to_numpy(np.float64), n).round().astype(np.int64)
    return np.bincount(codes, minlength=n).astype(np.int64)


@dataclass(frozen=True)
class Consensus(Step):
    """One profile per perturbation from its replicates.

    Attributes:
        by: Columns that name a perturbation.
        operation: `median`, `mean`, or `modz` (mean weighted by the Spearman correlation with the other replicates).
        min_replicates: A perturbation needs so many rows; at least 1.
        too_few: What happens to one that has fewer: `error`, `drop` (named in the record) or `keep`.

    Source of modz: pycytominer 1.7.1, `cyto_utils/modz.py: modz_base`, which does the work.
    """

    by: str | Sequence[str]
    operation: ConsensusOperation = "median"
    min_replicates: int = 2
    too_few: Literal["error", "drop", "keep"] = "error"

    name: ClassVar[str] = "consensus"
    keeps_rows: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "by", as_names(self.name, "by", self.by))
        if not self.by:
            raise ConfigError("consensus: by is empty; name the columns of a perturbation.")
        check_choice(self.name, "operation", self.operation, get_args(ConsensusOperation))
        check_choice(self.name, "too_few", self.too_few, ("error", "drop", "keep"))
        check_number(self.name, "min_replicates", self.min_replicates, 1, whole=True)

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Join the replicates of every perturbation, in order of first appearance."""
        check_finite(table, self.name)
        codes, names = group_codes(table.metadata, self.by, self.name)
        check_channels(table.metadata, codes, names, self.name)
        table, codes, names = self._enough(table, codes, names, note)
        values = np.stack([self._join(table.values[codes == i].astype(np.float64)) for i in range(len(names))])
        metadata, varying = merge_metadata(table.metadata, codes, len(names))
        metadata["Metadata_Replicate_Count"] = np.bincount(codes, minlength=len(names))
        metadata[COUNT] = object_counts(table.metadata, codes, len(names))
        metadata[UNIT] = "perturbation"
        note.details |= {"by": list(self.by), "columns_that_vary_within_a_row": varying}
        return replace(table, values=values.astype(np.float32), metadata=metadata)

    def _enough(
        self, table: FeatureTable, codes: NDArray[np.int64], names: list[str], note: Note
    ) -> tuple[FeatureTable, NDArray[np.int64], list[str]]:
        counts = np.bincount(codes, minlength=len(names))
        few = [name for name, count in zip(names, counts, strict=True) if count < self.min_replicates]
        if few and self.too_few == "error":
            raise DataError(
                f"consensus: {len(few)} of {len(names)} perturbations have fewer than {self.min_replicates} replicates "
                f"({listed(few)}); drop them (too_few: drop), keep them (too_few: keep), or add plates."
            )
        if few:
            note.details["too_few_replicates"] = few
            done = "dropped" if self.too_few == "drop" else "kept"
            note.remarks.append(f"{len(few)} perturbations with fewer than {self.min_replicates} replicates {done}")
        if not few or self.too_few == "keep":
            return table, codes, names
        if len(few) == len(names):
            raise DataError(f"consensus: no perturbation has {self.min_replicates} replicates, so none would be left.")
        rows = np.flatnonzero((counts >= self.min_replicates)[codes])
        kept = replace(table, values=table.values[rows], metadata=table.metadata.iloc[rows].reset_index(drop=True))
        return kept, *group_codes(kept.metadata, self.by, self.name)

    def _join(self, rows: Doubles) -> Doubles:
        if self.operation == "modz" and len(rows) > 1:
            from pycytominer.cyto_utils.modz import modz_base

            return np.asarray(modz_base(pd.DataFrame(rows)), np.float64)
        joined: Any = np.median(rows, axis=0) if self.operation == "median" else rows.mean(0)
        return np.asarray(joined)

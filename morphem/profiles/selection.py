"""Fewer features: by name, missing values, variance, correlation, outliers. Every removed feature is in the record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError, unknown_name
from morphem.features import FeatureTable
from morphem.profiles.conventions import Mask, match_features
from morphem.profiles.settings import as_names, check_number
from morphem.profiles.step import Doubles, Group, Note, Step, check_finite, fit_groups

_FEATURES_AT_ONCE = 512
_BLOCKS_KEPT = 8  # up to 4,096 features, all correlations at once take 128 MiB


def keep_features(table: FeatureTable, keep: Mask, step: str) -> FeatureTable:
    """Return a table with some of the features.

    Args:
        table: Rows.
        keep: (F,).
        step: Who asks.

    Raises:
        DataError: If none would be left.
    """
    if not keep.any():
        raise DataError(f"{step}: none of the {len(keep)} features would be left; loosen the settings.")
    if keep.all():
        return table
    chosen = np.flatnonzero(keep)
    return replace(
        table,
        values=table.values[:, chosen],
        columns=tuple(table.columns[i] for i in chosen),
        dictionary=tuple(table.dictionary[i] for i in chosen),
    )


@dataclass(frozen=True)
class DropFeatures(Step):
    """Remove features by name.

    Attributes:
        patterns: Names, or patterns with `*` and `?`, for example `['*Brightfield*', '*ZBF*']`.
    """

    patterns: Sequence[str]

    name: ClassVar[str] = "drop_features"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "patterns", as_names(self.name, "patterns", self.patterns))

    def chunks_by(self, plate: str) -> bool:
        """Names do not depend on rows."""
        return True

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Remove them."""
        removed = set(match_features(table.columns, self.patterns, self.name))
        note.details["removed"] = {"patterns": sorted(removed)}
        return keep_features(table, np.asarray([name not in removed for name in table.columns]), self.name)


@dataclass(frozen=True)
class SelectFeatures(Step):
    """Remove features that carry no information, one operation after another; each sees what the one before left.

    Attributes:
        operations: In order, any of
            `nan`: missing or infinite in more than `nan_share` of the rows;
            `constant`: one single value in the fitted rows of any group;
            `variance`: population variance at most `min_variance` in the fitted rows of any group;
            `frequency`: the second most frequent value is less than `max_frequency_ratio` as frequent as the first, or
            there are fewer distinct values than `min_unique_share` of the rows;
            `correlation`: of two features with a Pearson correlation above `max_correlation`, the one that correlates
            more with all features is removed;
            `outliers`: an absolute value above `max_absolute`.
        samples: The rows to look at: `all`, `controls`, or a query on metadata.
        per: Columns whose values are looked at each on their own, for `constant` and `variance`; the other operations
            look at all rows together.
        nan_share: 0 to 1; 0 removes a feature for a single missing value. pycytominer's default is 0.05.
        min_variance: 1e-6 is pycytominer's default; Kim et al. use 1e-5.
        max_correlation: 0 to 1; 0.9 is pycytominer's default.
        absolute: Whether a correlation below minus `max_correlation` counts too; pycytominer's does not.
        max_frequency_ratio: 0.05 is pycytominer's default.
        min_unique_share: 0.01 is pycytominer's default.
        max_absolute: 500 is pycytominer's default.

    Source: pycytominer 1.7.1, `operations/` and `cyto_utils/features.py`, with which each operation agrees.
    """

    operations: Sequence[str] = ("nan", "constant", "variance", "correlation")
    samples: str = "all"
    per: Sequence[str] = ()
    nan_share: float = 0.05
    min_variance: float = 1e-6
    max_correlation: float = 0.9
    absolute: bool = False
    max_frequency_ratio: float = 0.05
    min_unique_share: float = 0.01
    max_absolute: float = 500.0

    name: ClassVar[str] = "select_features"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "operations", as_names(self.name, "operations", self.operations))
        object.__setattr__(self, "per", as_names(self.name, "per", self.per))
        for operation in self.operations:
            if operation not in OPERATIONS:
                raise ConfigError(f"select_features: {unknown_name('operation', operation, OPERATIONS)}")
        if not self.operations:
            raise ConfigError(f"select_features: operations is empty; choose from {', '.join(OPERATIONS)}.")
        if not isinstance(self.absolute, bool):
            raise ConfigError(f"select_features: absolute is {self.absolute!r}; it must be true or false.")
        for key in ("nan_share", "max_correlation", "max_frequency_ratio", "min_unique_share"):
            check_number(self.name, key, getattr(self, key), 0, 1)
        check_number(self.name, "min_variance", self.min_variance)
        check_number(self.name, "max_absolute", self.max_absolute, above=True)

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Remove features."""
        groups = fit_groups(table, self.samples, self.per, self.name, note)
        removed: dict[str, list[str]] = {}
        for operation in self.operations:
            if operation != "nan":
                fitted = np.sort(np.concatenate([group.fit for group in groups]))
                check_finite(table, f"{self.name} ({operation})", fitted)
            lost = OPERATIONS[operation](self, table, groups)
            removed[operation] = [name for name, out in zip(table.columns, lost, strict=True) if out]
            table = keep_features(table, ~lost, f"{self.name} ({operation})")
        note.details["removed"] = removed
        return table

    def without_values(self, table: FeatureTable, groups: Sequence[Group]) -> Mask:
        """Features that are missing or infinite too often."""
        lost = ~np.isfinite(table.values[_all_fitted(groups)])
        return np.asarray(lost.mean(0) > self.nan_share)

    def constant(self, table: FeatureTable, groups: Sequence[Group]) -> Mask:
        """Features with one value."""
        return np.asarray(np.any([np.ptp(table.values[group.fit], axis=0) == 0 for group in groups], axis=0))

    def without_variance(self, table: FeatureTable, groups: Sequence[Group]) -> Mask:
        """Features that hardly vary."""
        parts = [table.values[group.fit].var(0, dtype=np.float64) <= self.min_variance for group in groups]
        return np.asarray(np.any(parts, axis=0))

    def repetitive(self, table: FeatureTable, groups: Sequence[Group]) -> Mask:
        """Features that take few values, or nearly always one."""
        values = table.values[_all_fitted(groups)]
        lost = np.zeros(values.shape[1], np.bool_)
        for i in range(values.shape[1]):
            counts = np.sort(np.unique(values[:, i], return_counts=True)[1])[::-1]
            second = counts[1] / counts[0] if len(counts) > 1 else 0.0
            lost[i] = second < self.max_frequency_ratio or len(counts) / len(values) < self.min_unique_share
        return lost

    def redundant(self, table: FeatureTable, groups: Sequence[Group]) -> Mask:
        """Features that say what another says."""
        values = table.values[_all_fitted(groups)].astype(np.float64)
        if (np.ptp(values, axis=0) == 0).any():
            flat = table.columns[int(np.argmax(np.ptp(values, axis=0) == 0))]
            raise DataError(
                f"select_features (correlation): '{flat}' is constant, and a constant correlates with nothing; put "
                "'constant' or 'variance' before 'correlation'."
            )
        return redundant_features(values, self.max_correlation, absolute=self.absolute)

    def extreme(self, table: FeatureTable, groups: Sequence[Group]) -> Mask:
        """Features with values out of all proportion."""
        return np.asarray(np.abs(table.values[_all_fitted(groups)]).max(0) > self.max_absolute)


OPERATIONS: dict[str, Callable[[SelectFeatures, FeatureTable, Sequence[Group]], Mask]] = {
    "nan": SelectFeatures.without_values,
    "constant": SelectFeatures.constant,
    "variance": SelectFeatures.without_variance,
    "frequency": SelectFeatures.repetitive,
    "correlation": SelectFeatures.redundant,
    "outliers": SelectFeatures.extreme,
}
"""The operations of `select_features` by name."""


def redundant_features(values: Doubles, limit: float, *, absolute: bool = False) -> Mask:
    """Return which features correlate too much with another, (F,); memory for at most eight blocks of F x 512 numbers.

    Of a pair above the limit, the feature with the larger sum of absolute correlations with all features goes; of equal
    sums, the later one. Every pair decides for itself, whatever became of its members in other pairs.

    Args:
        values: (n, F), no feature constant.
        limit: 0 to 1.
        absolute: Whether strong negative correlations count.
    """
    unit = values - values.mean(0)
    unit /= np.linalg.norm(unit, axis=0)
    n = values.shape[1]
    parts = [slice(start, start + _FEATURES_AT_ONCE) for start in range(0, n, _FEATURES_AT_ONCE)]
    few = len(parts) <= _BLOCKS_KEPT
    blocks = {part.start: unit[:, part].T @ unit for part in parts} if few else {}
    total = np.zeros(n)
    for part in parts:
        total[part] = np.abs(blocks[part.start] if few else unit[:, part].T @ unit).sum(1)
    rank = np.empty(n, np.int64)
    rank[np.lexsort((np.arange(n), total.round(9)))] = np.arange(n)
    lost = np.zeros(n, np.bool_)
    for part in parts:
        block = blocks[part.start] if few else unit[:, part].T @ unit
        close = (np.abs(block) if absolute else block) > limit
        beaten = rank[part, None] > rank[None]  # a feature never beats itself
        lost[part] = (close & beaten).any(1)
    return lost


def _all_fitted(groups: Sequence[Group]) -> NDArray[np.int64]:
    return np.sort(np.concatenate([group.fit for group in groups]))

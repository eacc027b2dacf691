"""Averages of feature tables over cells, images and wells. No row is lost, no pair of wells is mixed up."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable, Floats

Level = Literal["cell", "image", "well"]
MeanOver = Literal["rows", "images"]
_NAMED_BY: dict[str, tuple[str, ...]] = {
    "cell": ("Metadata_Study", "Metadata_Key", "Metadata_Cell"),
    "image": ("Metadata_Study", "Metadata_Key"),
    "well": ("Metadata_Study", "Metadata_Plate", "Metadata_Well"),
}
_OF_A_CROP = ("Metadata_Tile_Y", "Metadata_Tile_X", "Metadata_Cell", "Metadata_Cell_Y", "Metadata_Cell_X")
_NOT_A_NAME = {"unknown", "", "nan", "None", "<NA>"}
COUNT = "Metadata_Object_Count"
IMAGES = "Metadata_Image_Count"


def check_level(level: str, unit: str, mean_over: str = "rows") -> None:
    """Check that rows of a unit can be averaged to a level.

    Args:
        level: `cell`, `image` or `well`.
        unit: `tile`, `cell` or `image`.
        mean_over: `rows` or `images`; see `average`.

    Raises:
        ConfigError: If a word is unknown, the level is finer than the unit, or `mean_over` has no effect.
    """
    if mean_over not in get_args(MeanOver):
        raise ConfigError(f"mean_over='{mean_over}' must be one of {', '.join(get_args(MeanOver))}.")
    if mean_over == "images" and (level != "well" or unit == "image"):
        raise ConfigError(
            f"mean_over='images' has no effect with aggregate='{level}' and unit='{unit}'; it says how the rows of "
            "several images become a well."
        )
    if level not in get_args(Level):
        raise ConfigError(f"aggregate='{level}' must be one of {', '.join(get_args(Level))}.")
    if level == "cell" and unit != "cell":
        raise ConfigError(f"aggregate='cell' needs unit='cell', but unit='{unit}'; choose 'image' or 'well'.")


def average(tables: Iterable[FeatureTable], level: Level, mean_over: MeanOver = "rows") -> FeatureTable:
    """Average rows, table after table, with memory for one table and the result.

    A mean over a well is taken over all its rows, so that an image with more tiles or cells weighs more (as in the code
    of uniDINO and of Kim et al.), or over the means of its images, so that every image weighs the same.

    A metadata column is kept where all rows of every group agree; what varies inside a group (and places of crops) is
    left out, and said in the provenance. `Metadata_Object_Count` says how many rows went into a row. Rows of one
    channel plane each are averaged channel by channel.

    Args:
        tables: At least one, all of the same columns.
        level: `cell`, `image` or `well`.
        mean_over: `rows` or `images`; the latter with `well` only.

    Returns:
        One row per group, in order of first appearance.

    Raises:
        DataError: If there is no table, a column that names the groups is missing, or a row does not say its well.
    """
    if mean_over == "images" and level == "well":
        return _over_images(average(tables, "image"))
    groups: _Groups | None = None
    first: FeatureTable | None = None
    for table in tables:
        if first is None:
            first, groups = table, _Groups(_group_columns(table, level), len(table.columns))
        elif table.columns != first.columns:
            raise DataError("the tables to be averaged differ in their feature columns.")
        assert groups is not None
        groups.add(table)
    if first is None or groups is None:
        raise DataError("there is no feature table to average.")
    metadata, varying = groups.metadata()
    metadata["Metadata_Unit"] = level
    provenance = {
        **first.provenance,
        "aggregate": level,
        "mean_over": mean_over,
        "columns_that_vary_within_a_row": varying,
    }
    return replace(first, values=groups.means(), metadata=metadata, provenance=provenance)


def _over_images(images: FeatureTable) -> FeatureTable:
    """Average a table of images to wells; each image weighs the same, and the rows behind them are counted."""
    bare = replace(images, metadata=images.metadata.drop(columns=COUNT))
    wells = average([bare], "well")
    names = _group_columns(images, "well")
    counts = images.metadata.groupby(names, sort=False)[COUNT].sum()
    keys = pd.MultiIndex.from_frame(wells.metadata[names])
    metadata = wells.metadata.rename(columns={COUNT: IMAGES})
    metadata[COUNT] = counts.reindex(keys).to_numpy()
    varying = set(wells.provenance["columns_that_vary_within_a_row"])
    varying |= set(images.provenance["columns_that_vary_within_a_row"])
    provenance = {**wells.provenance, "mean_over": "images", "columns_that_vary_within_a_row": sorted(varying)}
    return replace(wells, metadata=metadata, provenance=provenance)


def _group_columns(table: FeatureTable, level: Level) -> list[str]:
    """Return the columns that name a group, and check that they are there."""
    columns = list(_NAMED_BY[level]) + (["Metadata_Channel"] if "Metadata_Channel" in table.metadata else [])
    missing = [name for name in columns if name not in table.metadata]
    if missing:
        raise DataError(f"averaging to {level} needs {', '.join(missing)}, which the table does not have.")
    return columns


class _Groups:
    """Running sums per group."""

    def __init__(self, columns: Sequence[str], n_features: int) -> None:
        self.columns = list(columns)
        self._index: dict[Any, int] = {}
        self._sums: NDArray[np.float64] = np.zeros((0, n_features))
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)
        self._first: pd.DataFrame | None = None
        self._varying: set[str] = set()

    def add(self, table: FeatureTable) -> None:
        """Add the rows of one table."""
        _check_wells(table.metadata, self.columns)
        known = len(self._index)
        names = zip(*(table.metadata[name] for name in self.columns), strict=True)
        codes = np.asarray([self._index.setdefault(name, len(self._index)) for name in names], np.int64)
        groups, rows, counts = np.unique(codes, return_index=True, return_counts=True)
        new = len(self._index) - known
        self._sums = np.concatenate([self._sums, np.zeros((new, self._sums.shape[1]))])
        self._counts = np.concatenate([self._counts, np.zeros(new, np.int64)])
        begins = table.metadata.iloc[rows[groups >= known]]
        self._first = begins if self._first is None else pd.concat([self._first, begins], ignore_index=True)
        self._first = self._first.reset_index(drop=True)
        order = np.argsort(codes, kind="stable")
        if len(codes):
            self._sums[groups] += np.add.reduceat(table.values[order].astype(np.float64), np.cumsum(counts) - counts)
            self._counts[groups] += counts
        self._note_varying(table.metadata, self._first, codes)

    def _note_varying(self, metadata: pd.DataFrame, first: pd.DataFrame, codes: NDArray[np.int64]) -> None:
        for name in set(metadata.columns) - self._varying:
            here, there = metadata[name].to_numpy(object), first[name].to_numpy(object)[codes]
            missing = pd.isna(here) | pd.isna(there)
            if np.any(pd.isna(here) != pd.isna(there)) or np.any(here[~missing] != there[~missing]):
                self._varying.add(str(name))

    def metadata(self) -> tuple[pd.DataFrame, list[str]]:
        """Return one row per group, and the names of the columns that were left out because they vary."""
        assert self._first is not None
        places = set() if "Metadata_Cell" in self.columns else set(_OF_A_CROP) & set(self._first.columns)
        frame = self._first.drop(columns=sorted(self._varying | places))
        frame[COUNT] = self._counts
        return frame, sorted(self._varying - places)

    def means(self) -> Floats:
        """Return the mean of every group, (G, F)."""
        return (self._sums / self._counts[:, None]).astype(np.float32)


def _check_wells(metadata: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuse rows that do not say their plate and well, where these name the groups."""
    for name in set(columns) & {"Metadata_Plate", "Metadata_Well"}:
        lost = metadata[name].isna() | metadata[name].astype(str).isin(_NOT_A_NAME)
        if lost.any():
            raise DataError(
                f"{int(lost.sum())} rows have no {name} (they say 'unknown'), so averaging to wells would mix what "
                "does not belong together; ingest the plate layout, select with a query, or aggregate to 'image'."
            )

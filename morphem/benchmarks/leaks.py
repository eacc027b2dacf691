"""Leak probes: what else than biology the features tell, seen on control rows, where biology is the same everywhere.

If a linear probe can name the plate, the row or the batch of an untreated well, features carry it; if by design that
column also tells which compound a well got, a good score may be the column's. Both together give a warning.

Source: the idea is that of batch-effect probes in Arevalo et al. 2024, doi 10.1038/s41467-024-50613-5, and of position
effects in JUMP; thresholds are ours.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks import checks
from morphem.benchmarks.bootstrap import generator
from morphem.benchmarks.classifiers import linear_probe, standardise
from morphem.benchmarks.metrics import balanced_accuracy
from morphem.benchmarks.neighbours import Ints, codes
from morphem.benchmarks.splits import group_folds
from morphem.features import FeatureTable

NUISANCES = {
    "plate": ("Metadata_Plate",),
    "batch": ("Metadata_Batch",),
    "source": ("Metadata_Source",),
    "row": ("Metadata_Row", "Metadata_Well_Row"),
    "column": ("Metadata_Col", "Metadata_Column", "Metadata_Well_Col"),
    "cell_count": ("Metadata_Count_Cells", "Metadata_Cell_Count", "Metadata_Object_Count"),
}
"""What is probed, and the columns that may say it; row and column are read off the well where they have none."""

CONTROLS = (
    ("Metadata_control_type", ("negcon",)),
    ("Metadata_pert_type", ("negcon", "control")),
    ("Metadata_Control", ("negative control", "negative", "negcon")),
    ("Metadata_Control_Type", ("negcon", "negative control")),
)
"""Columns and values by which controls are found where a benchmark does not say."""

_READABLE = 0.15  # share of the way from chance to perfect
_HELD_BY_DESIGN = 0.1  # share of the information on the label that a nuisance holds beyond chance
_MAX_ROWS = 3000
_WELL = re.compile(r"^([A-Za-z]{1,2})[-_]?0*(\d{1,2})$")


@dataclass(frozen=True)
class Leak:
    """How well one nuisance can be read from the features of control rows.

    Attributes:
        nuisance: A key of `NUISANCES`.
        score: Balanced accuracy of a linear probe under cross-validation; for `cell_count` R squared.
        chance: 1 / values; 0 for `cell_count`.
        n_rows: Control rows that were used.
        n_values: Values of the nuisance.
        split: What is never on both sides of the cross-validation.
        readable: Whether the score is clearly above chance.
        held_by_design: Share, 0 to 1, of the information on the biology label that the nuisance holds in the layout,
            beyond what it holds of shuffled labels; None where there is no label.
    """

    nuisance: str
    score: float
    chance: float
    n_rows: int
    n_values: int
    split: str
    readable: bool
    held_by_design: float | None


@dataclass(frozen=True)
class LeakReport:
    """All probes of a table.

    Attributes:
        leaks: What was probed.
        missing: What was not, with the reason.
        warnings: Sentences for a reader of the score.
    """

    leaks: tuple[Leak, ...]
    missing: dict[str, str]
    warnings: tuple[str, ...]


def probe_leaks(
    table: FeatureTable,
    *,
    control: tuple[str, Sequence[str]] | None = None,
    biology: str | None = None,
    seed: int = 0,
) -> LeakReport:
    """Probe a table for what else than biology its features tell.

    Args:
        table: Finite features.
        control: Column and values that tell control rows; the usual ones are looked for where not given.
        biology: Column of the label that the benchmark is about.
        seed: Of folds and of the draw of rows.
    """
    columns = nuisance_columns(table.metadata)
    missing = {name: "the table has no such column" for name in NUISANCES if name not in columns}
    rows, reason = _control_rows(table, control, seed)
    label = table.metadata[biology] if biology is not None and biology in table.metadata else None
    treated = ~_mask(table.metadata, control)
    leaks = []
    warnings = []
    for name, values in columns.items():
        held = None if label is None or name == "cell_count" else held_by_design(label[treated], values[treated], seed)
        if held is not None and held > 0.9:
            warnings.append(
                f"the {name} alone tells the {_short(biology)} of nearly every row ({held:.0%} of its information), so "
                f"a difference between {name}s would be scored as biology."
            )
        leak = reason or _probe(name, table, values, rows, seed, held)
        if isinstance(leak, str):
            missing[name] = leak
            continue
        leaks.append(leak)
        if leak.readable and held is not None and held > _HELD_BY_DESIGN:
            warnings.append(_explained(leak, biology))
    return LeakReport(tuple(leaks), missing, tuple(warnings))


def _explained(leak: Leak, biology: str | None) -> str:
    return (
        f"features of control rows tell their {leak.nuisance} (balanced accuracy {leak.score:.2f}, chance "
        f"{leak.chance:.2f}), and by design the {leak.nuisance} holds {leak.held_by_design:.0%} of the information on "
        f"the {_short(biology)}: part of the score could be {leak.nuisance}, not biology."
    )


def _short(column: str | None) -> str:
    return (column or "label").removeprefix("Metadata_")


def nuisance_columns(metadata: pd.DataFrame) -> "dict[str, pd.Series[Any]]":
    """Return the nuisances that a table tells, by name; those of one value or without values are left out."""
    found: dict[str, pd.Series[Any]] = {}
    for name, candidates in NUISANCES.items():
        for candidate in candidates:
            if candidate in metadata and name not in found:
                found[name] = metadata[candidate]
    if "Metadata_Well" in metadata and not {"row", "column"} <= set(found):
        parts = [_WELL.match(str(well)) for well in metadata["Metadata_Well"]]
        if parts and all(parts):
            found.setdefault("row", pd.Series([part[1].upper() for part in parts if part], index=metadata.index))
            found.setdefault("column", pd.Series([part[2] for part in parts if part], index=metadata.index))
    if "cell_count" in found:
        found["cell_count"] = pd.to_numeric(found["cell_count"], errors="coerce").astype(float)
    return {name: values for name, values in found.items() if values.nunique() > 1}


def _mask(metadata: pd.DataFrame, control: tuple[str, Sequence[str]] | None) -> NDArray[np.bool_]:
    """Return which rows are controls; none where nothing says so."""
    for column, names in (control,) if control is not None else CONTROLS:
        if column in metadata:
            text = metadata[column].astype("string").str.strip().str.lower()
            mask = np.asarray(text.isin([name.lower() for name in names]).fillna(False), bool)
            if mask.any():
                return mask
    return np.zeros(len(metadata), bool)


def _control_rows(table: FeatureTable, control: tuple[str, Sequence[str]] | None, seed: int) -> tuple[Ints, str]:
    """Return control rows, at most `_MAX_ROWS`, in an order that the table's does not change; or why there are none."""
    rows = np.flatnonzero(_mask(table.metadata, control))
    if len(rows) < 20:
        return rows, f"the table has {len(rows)} control rows; 20 are needed" if len(
            rows
        ) else "no row says that it is a control"
    if len(rows) > _MAX_ROWS:
        keys = np.ascontiguousarray(table.values[rows]).view(np.uint8).reshape(len(rows), -1)
        order = np.lexsort(keys[:, :64].T)
        rows = rows[order][generator(seed, "leak rows").permutation(len(rows))[:_MAX_ROWS]]
    return np.sort(rows), ""


def _probe(
    name: str, table: FeatureTable, values: "pd.Series[Any]", rows: Ints, seed: int, held: float | None
) -> Leak | str:
    """Return how well a nuisance is predicted, or why that cannot be said."""
    rows = rows[~checks.is_missing(values.iloc[rows])]
    if len(rows) < 20:
        return f"only {len(rows)} control rows have it"
    features = table.values[rows]
    groups, split = _groups(name, table.metadata.iloc[rows])
    if name == "cell_count":
        return _probe_count(features, values.iloc[rows].to_numpy(np.float64), groups, split, seed)
    kinds = codes(values.iloc[rows].astype(str).to_numpy(object))
    enough = np.isin(kinds, np.flatnonzero(np.bincount(kinds) >= 4))
    kinds, features, groups = kinds[enough], features[enough], groups[enough]
    n_values = len(np.unique(kinds))
    if n_values < 2 or len(np.unique(groups)) < 2:
        return "fewer than two values have four control rows"
    predicted = np.full(len(kinds), -1, np.int64)
    for train, test in group_folds(kinds, groups, 5, seed=seed):
        if len(np.unique(kinds[train])) > 1:
            predicted[test] = linear_probe(features[train], kinds[train], features[test])
    score, chance = balanced_accuracy(kinds, predicted), 1 / n_values
    counts = np.bincount(kinds)
    spread = float(np.sqrt((chance * (1 - chance) / counts[counts > 0]).sum()) / n_values)
    readable = score > chance + 3 * spread and (score - chance) / (1 - chance) > _READABLE
    return Leak(name, score, chance, len(kinds), n_values, split, readable, held)


def _groups(name: str, metadata: pd.DataFrame) -> tuple[NDArray[Any], str]:
    """Return what must not be on both sides: plates for positions, positions for plates."""
    other = "Metadata_Plate" if name in ("row", "column", "cell_count") else "Metadata_Well"
    if other in metadata and metadata[other].nunique() > 1:
        return metadata[other].astype(str).to_numpy(object), other.removeprefix("Metadata_").lower()
    return np.arange(len(metadata)).astype(str).astype(object), "row of the table"


def _probe_count(
    features: NDArray[np.float32], counts: NDArray[np.float64], groups: NDArray[Any], split: str, seed: int
) -> Leak | str:
    """Return R squared of a ridge regression of the logarithm of cell counts."""
    if np.ptp(counts) == 0:
        return "all control rows have one cell count"
    target = np.log1p(np.maximum(counts, 0))
    predicted = np.empty(len(target))
    halves = (target > np.median(target)).astype(np.int64)
    for train, test in group_folds(halves, groups, 5, seed=seed):
        known, asked = standardise(features[train], features[test])
        mean = target[train].mean()
        gram = known @ known.T + len(train) * np.eye(len(train))
        predicted[test] = asked @ (known.T @ np.linalg.solve(gram, target[train] - mean)) + mean
    score = 1 - float(np.square(target - predicted).sum() / np.square(target - target.mean()).sum())
    return Leak("cell_count", score, 0.0, len(target), len(np.unique(counts)), split, score > _READABLE, None)


def held_by_design(label: "pd.Series[Any]", nuisance: "pd.Series[Any]", seed: int) -> float:
    """Return the share of the information on a label that a nuisance holds, beyond what it holds of shuffled labels.

    Mutual information over the label's entropy, minus its mean over five shuffles, divided by one minus that mean: 0
    where the layout is balanced or random, 1 where the nuisance tells the label.

    Args:
        label: Of the rows that are no controls; missing ones are left out.
        nuisance: Of the same rows.
        seed: Of the shuffles.
    """
    known = ~(checks.is_missing(label) | checks.is_missing(nuisance))
    first, second = codes(label[known].to_numpy(object)), codes(nuisance[known].to_numpy(object))
    if not len(first) or first.max() == 0:
        return 0.0
    pairs = np.lexsort((second, first))  # shuffles then do not depend on the order of rows
    first, second = first[pairs], second[pairs]
    random = generator(seed, "shuffled labels")
    chance = float(np.mean([_shared(random.permutation(first), second) for _ in range(5)]))
    return max(0.0, (_shared(first, second) - chance) / max(1 - chance, 1e-9))


def _shared(first: Ints, second: Ints) -> float:
    """Mutual information of two codes over the entropy of the first."""
    joint = first * (second.max() + 1) + second
    entropies = [_entropy(code) for code in (first, second, joint)]
    return (entropies[0] + entropies[1] - entropies[2]) / entropies[0]


def _entropy(code: Ints) -> float:
    share = np.unique(code, return_counts=True)[1] / len(code)
    return float(-(share * np.log(share)).sum())

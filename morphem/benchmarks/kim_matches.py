"""Accuracies of nearest neighbours of Kim et al.: not the same batch, not the same laboratory, other perturbation too.

Source: Kim et al.; Bayer-Group/CellPaintSSL at a2625b0, which scales features over all wells first; the paper does not
say so.
"""

from collections.abc import Callable
from typing import Any

from morphem.benchmarks.base import column, take
from morphem.benchmarks.checks import is_missing
from morphem.benchmarks.classifiers import standardise
from morphem.benchmarks.knn import nearest_by_rule
from morphem.benchmarks.neighbours import exclusion
from morphem.errors import DataError
from morphem.features import FeatureTable

_COMPOUND, _TARGET = "Metadata_Compound", "Metadata_Target"
_ROLES = {"compound": _COMPOUND, "batch": "Metadata_Batch", "source": "Metadata_Source", "well": "Metadata_Well"}
MATCHES = (("nsb", _COMPOUND), ("nss", _COMPOUND), ("nsbp", _TARGET))
"""Score (and rule), and the column that has to match."""


def add_matches(
    wells: FeatureTable,
    rule_name: Callable[[str], str],
    values: dict[str, float],
    missing: dict[str, str],
    counts: dict[str, int],
) -> None:
    """Add the shares of wells whose nearest allowed well matches, or why they cannot be given.

    Args:
        wells: Without controls.
        rule_name: Gives the exclusion rule of a score, as the code or as the words have it.
        values: Where shares are added.
        missing: Where reasons are added.
        counts: Where the wells without an allowed neighbour are added, which are left out.

    Raises:
        DataError: If a well has no direction after scaling.
    """
    for name, label in MATCHES:
        rule = exclusion(rule_name(name))
        needed = {_ROLES[role] for role in rule.roles if role != "label"} | {label}
        absent = sorted(needed - set(wells.metadata.columns))
        if absent:
            missing[name] = f"it needs {', '.join(absent)}"
            continue
        table = take(wells, ~is_missing(wells.metadata[label]))
        if not len(table):
            missing[name] = f"no well has {label}"
            continue
        labels = column(table, label).astype(str)
        columns: dict[str, Any] = {"label": labels}
        columns |= {role: column(table, at).astype(str) for role, at in _ROLES.items() if at in table.metadata}
        scaled = standardise(table.values, table.values)[1]
        lone = ~scaled.any(1)
        if lone.any():
            raise DataError(f"kim: {int(lone.sum())} wells equal the mean of all; they have no direction; drop them.")
        row = nearest_by_rule(scaled, rule, columns, metric="cosine").row
        legal = row >= 0
        counts[f"{name}_without_candidate"] = int((~legal).sum())
        if legal.any():
            values[name] = float((labels[legal] == labels[row[legal]]).mean())
        else:
            missing[name] = f"no well has a neighbour that the rule allows ({rule.words})"

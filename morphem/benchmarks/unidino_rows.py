"""Which wells uniDINO's accuracies are about: no controls, unknown mechanisms, inactive compounds or lone targets.

Source: uniDINO, Comput. Struct. Biotechnol. J. 2025; Bayer-Group/uniDINO at 03c5ee3.
"""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.active_compounds import active_by_profiles, compound_column
from morphem.benchmarks.base import column, take
from morphem.benchmarks.checks import is_missing
from morphem.benchmarks.negative_controls import without_controls
from morphem.benchmarks.unidino_accuracies import BATCH, COMPOUND, MOA, PLATE, WELL
from morphem.errors import DataError
from morphem.features import FeatureTable


def is_taxol_control(table: FeatureTable) -> NDArray[np.bool_]:
    """Return which rows of BBBC021 are taxol as a control, (R,): all but wells D03 to D05 of Week1, treatments."""
    taxol = pd.Series(column(table, COMPOUND).astype(str)).str.lower().eq("taxol")
    week = pd.Series(column(table, BATCH if BATCH in table.metadata else PLATE).astype(str))
    first = week.str.contains(r"^week[_ ]?0?1(?!\d)", case=False)
    place = pd.Series(column(table, WELL).astype(str)).str.fullmatch(r"D0?[345]", case=False)
    return (taxol & ~(first & place)).to_numpy(bool)


def rows_in_question(
    table: FeatureTable, dataset: str, side: Mapping[str, pd.DataFrame], merged: Mapping[str, str]
) -> tuple[FeatureTable, dict[str, int], tuple[str, ...]]:
    """Return the rows that a data set's accuracies are about, how many were left out and why, and remarks.

    Args:
        table: All wells, normalised.
        dataset: `bbbc021`, `jump_target2` or `insect`.
        side: May hold `active` (a list of active compounds, or of compounds and concentrations) and `cellprofiler`
            (profiles that tell which compounds are active).
        merged: Mechanisms by the name that takes their place.

    Raises:
        DataError: If no row is left, or a side table has no column of compounds.
    """
    counts: dict[str, int] = {}

    def keep(rows: FeatureTable, chosen: NDArray[np.bool_], why: str) -> FeatureTable:
        counts[f"left_out_{why}"] = int((~chosen).sum())
        if not chosen.any():
            raise DataError(f"unidino: no row of {dataset} is left after leaving out {why.replace('_', ' ')}.")
        return take(rows, chosen)

    kept = without_controls(table, COMPOUND, "unidino")
    counts["left_out_negative_controls"] = len(table) - len(kept)
    if dataset == "bbbc021":
        kept = keep(kept, ~is_taxol_control(kept), "taxol_controls")
    kept = keep(kept, ~is_missing(kept.metadata[MOA]), "unknown_mechanism")
    if merged:
        names = [merged.get(str(value), str(value)) for value in column(kept, MOA)]
        kept = FeatureTable(
            kept.values, kept.metadata.assign(**{MOA: names}), kept.columns, kept.dictionary, kept.provenance
        )
    notes: list[str] = []
    active = _active(kept, side)
    if active is not None:
        kept = keep(kept, active, "inactive_compounds")
    elif dataset == "jump_target2":
        notes.append(
            "No table tells which compounds are active, so all are scored; the published rows are of active ones (add "
            "a side table 'active' or 'cellprofiler')."
        )
    if dataset == "jump_target2":
        kept = keep(kept, has_partner(kept), "targets_of_one_compound")
    return kept, counts, tuple(notes)


def has_partner(table: FeatureTable) -> NDArray[np.bool_]:
    """Return which rows have a mechanism that another compound has too, (R,)."""
    pairs = pd.DataFrame({"label": column(table, MOA).astype(str), "compound": column(table, COMPOUND).astype(str)})
    compounds = pairs.groupby("label")["compound"].transform("nunique")
    return np.asarray(compounds > 1, bool)


def _active(table: FeatureTable, side: Mapping[str, pd.DataFrame]) -> NDArray[np.bool_] | None:
    compounds = column(table, COMPOUND).astype(str)
    if "active" in side:
        frame = side["active"]
        listed = frame[compound_column(frame, "active")].astype(str)
        dose = next((name for name in ("Metadata_Concentration", "Concentration") if name in frame), None)
        if dose is None:
            return np.isin(compounds, listed)
        if "Metadata_Concentration" not in table.metadata:
            raise DataError("unidino: side table 'active' names concentrations, but the profiles have none.")
        own = zip(compounds, map(_number, column(table, "Metadata_Concentration")), strict=True)
        known = set(zip(listed, map(_number, frame[dose]), strict=True))
        return np.asarray([pair in known for pair in own], bool)
    if "cellprofiler" in side:
        return np.isin(compounds, active_by_profiles(side["cellprofiler"]))
    return None


def _number(value: object) -> str:
    """Return a dose as one spelling: `1`, `1.0` and `1.00` are the same."""
    try:
        return f"{float(str(value)):.6g}"
    except ValueError:
        return str(value)

"""Which rows are negative controls: by what the control column says, or by the name of the solvent."""

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.base import column, take
from morphem.benchmarks.checks import is_missing
from morphem.errors import DataError
from morphem.features import FeatureTable

SOLVENT = ("dmso", "jcp2022_033924")
"""DMSO as it is called, and as JUMP numbers it."""
CONTROL = "Metadata_Control"


def is_negative_control(table: FeatureTable, compound: str) -> NDArray[np.bool_]:
    """Return which rows are negative controls, (R,).

    Args:
        table: May have `Metadata_Control`, whose words count that begin with `neg` (negcon, negative) or say DMSO.
        compound: Canonical column of compounds, whose names count that say DMSO.
    """
    found = np.asarray([_word(value) in SOLVENT for value in column(table, compound)], bool)
    if CONTROL in table.metadata:
        words = [_word(value) for value in column(table, CONTROL)]
        found |= np.asarray([word.startswith("neg") or word in SOLVENT for word in words], bool)
    return found


def without_controls(table: FeatureTable, compound: str, where: str) -> FeatureTable:
    """Return the rows that are no negative controls; all of them have a name in the column of compounds.

    Args:
        table: All rows; controls may lack a name.
        compound: Canonical column of compounds.
        where: Who asks, for the message.

    Raises:
        DataError: If no row is left, or one of them has no name.
    """
    treated = take(table, ~is_negative_control(table, compound))
    if not len(treated):
        raise DataError(f"{where}: all {len(table)} rows are controls; perturbations are scored.")
    lost = is_missing(treated.metadata[compound])
    if lost.any():
        raise DataError(
            f"{where}: {int(lost.sum())} rows have no {compound} and do not say that they are controls; complete or "
            "drop them, or mark negative controls in Metadata_Control (negcon)."
        )
    return treated


def _word(value: object) -> str:
    return str(value).strip().lower()

"""Which compounds do anything at all: uniDINO's filter of JUMP TARGET2, by CellProfiler's features.

Source: uniDINO, Comput. Struct. Biotechnol. J. 2025; Bayer-Group/uniDINO at 03c5ee3: a compound counts as active if
more than 5 % of the features of its mean profile (source 1, scaled by median and MAD) lie at 0.84 or beyond.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from morphem.errors import DataError

ACTIVE_SHARE = 0.05
ACTIVE_BAR = 0.84
_KEYS = ("Metadata_Compound", "Metadata_JCP2022", "Metadata_broad_sample", "Compound", "value")


def active_by_profiles(frame: pd.DataFrame, *, share: float = ACTIVE_SHARE, bar: float = ACTIVE_BAR) -> list[str]:
    """Return the active compounds, sorted.

    Args:
        frame: CellProfiler's profiles, scaled by median and MAD already: one row per well, a column of compounds, and
            numeric features, which do not start with `Metadata_`.
        share: Of features that have to be strong; the compound needs more.
        bar: Size of a strong feature, at least.

    Raises:
        DataError: If there is no column of compounds or no feature, or features are not finite.
    """
    key = compound_column(frame, "cellprofiler")
    features = [
        name
        for name in frame.columns
        if name != key and not str(name).startswith("Metadata_") and frame[name].dtype.kind in "fiu"
    ]
    if not features:
        raise DataError("unidino: the table of CellProfiler profiles has no numeric feature.")
    means = frame[features].astype(np.float64).groupby(frame[key].astype(str)).mean()
    if not np.isfinite(means.to_numpy()).all():
        raise DataError("unidino: CellProfiler profiles hold NaN or infinite features; drop these features.")
    strong = (means.abs() >= bar).mean(axis=1)
    return sorted(str(name) for name in strong.index[strong > share])


def compound_column(frame: pd.DataFrame, what: str) -> str:
    """Return the column that names compounds.

    Args:
        frame: A side table.
        what: Its name, for the message.

    Raises:
        DataError: If there is none.
    """
    found = next((name for name in _KEYS if name in frame), None)
    if found is None:
        raise DataError(f"unidino: side table '{what}' has no column of compounds; it is called {_listed(_KEYS[:3])}.")
    return found


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:-1]) + f" or {names[-1]}"

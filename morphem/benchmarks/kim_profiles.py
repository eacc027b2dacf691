"""From features as an encoder gives them to the profiles that Kim et al. score.

1. Features of variance 1e-5 or below among negative controls, or among all other wells, are dropped.
2. ZCA-cor sphering, learnt from all negative controls, eigenvalues below 1e-6 raised to it.
3. The first step again.
4. Every plate is scaled by the median and the deviation of all its wells.

Source: Kim et al.; Bayer-Group/CellPaintSSL at a2625b0, which used pycytominer 0.2.0.
"""

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.base import with_values
from morphem.benchmarks.negative_controls import is_negative_control
from morphem.benchmarks.well_rows import plate_columns
from morphem.errors import DataError
from morphem.features import FeatureTable

LEAST_VARIANCE = 1e-5
_MARK = "Metadata_Morphem_Control"


def published_profiles(table: FeatureTable, compound: str) -> FeatureTable:
    """Return the profiles of all wells, controls among them.

    Args:
        table: One row per well, with negative controls.
        compound: Canonical column of perturbations.

    Raises:
        DataError: If there are fewer than two controls or other wells, or no feature varies.
    """
    from morphem.profiles import MadRobustize, Sphere

    controls = is_negative_control(table, compound)
    if controls.sum() < 2 or (~controls).sum() < 2:
        raise DataError(
            f"kim: sphering learns from negative controls, but {int(controls.sum())} of {len(table)} wells are "
            "controls; mark them in Metadata_Control (negcon), or take a variant without sphering for profiles that "
            "are ready."
        )
    marked = with_values(
        table, table.values, table.columns, table.metadata.assign(**{_MARK: np.where(controls, "yes", "no")})
    )
    kept = _varying(marked, controls)
    sphered = Sphere(f"{_MARK} == 'yes'", epsilon=1e-6, epsilon_on="clip")(kept)
    scaled = MadRobustize(per=plate_columns(table))(_varying(sphered, controls))
    return with_values(scaled, scaled.values, scaled.columns, scaled.metadata.drop(columns=_MARK))


def _varying(table: FeatureTable, controls: NDArray[np.bool_]) -> FeatureTable:
    """Return the features whose variance is above the least among controls and among other wells."""
    values = table.values.astype(np.float64)
    keep = np.flatnonzero((values[controls].var(0) > LEAST_VARIANCE) & (values[~controls].var(0) > LEAST_VARIANCE))
    if not len(keep):
        raise DataError("kim: no feature varies among controls and among other wells; there is nothing to score.")
    return FeatureTable(
        np.ascontiguousarray(table.values[:, keep]),
        table.metadata,
        tuple(table.columns[i] for i in keep),
        tuple(table.dictionary[i] for i in keep),
        table.provenance,
    )

"""Small tables for tests of benchmarks."""

import numpy as np
import pandas as pd

from morphem.benchmarks.base import make_table
from morphem.benchmarks.tiny import planted
from morphem.features import FeatureTable


def plates(
    *,
    n_plates: int = 4,
    wells: int = 24,
    effect: float = 1.0,
    seed: int = 0,
    row_effect: float = 0.0,
    plate_effect: float = 0.0,
) -> FeatureTable:
    """Plates of `wells` wells in rows A to D, one third controls, four treatments in the others."""
    records = []
    for plate in range(n_plates):
        for i in range(wells):
            kind = None if i % 3 == 0 else f"drug{(i * 7 + plate) % 4}"
            records.append((f"P{plate}", f"{'ABCD'[i % 4]}{i // 4 + 1:02d}", kind, "negcon" if kind is None else None))
    metadata = pd.DataFrame(
        records, columns=["Metadata_Plate", "Metadata_Well", "Metadata_treatment", "Metadata_control_type"]
    )
    kinds = [None if pd.isna(kind) else kind for kind in metadata["Metadata_treatment"]]
    values = planted(
        kinds, seed=seed, effect=effect, batches=metadata["Metadata_Plate"].to_numpy(), batch_effect=plate_effect
    )
    rows = metadata["Metadata_Well"].str[0].to_numpy()
    values = (
        values
        + row_effect
        * np.random.default_rng(5).normal(size=(4, values.shape[1]))[np.unique(rows, return_inverse=True)[1]]
    )
    return make_table(values, metadata)

"""Small plates with known answers."""

import numpy as np
import pandas as pd

from morphem.features import FeatureTable
from morphem.profiles import from_frame

CONTROLS = "Metadata_control_type == 'negcon'"


def plates(
    n_plates: int = 3,
    n_wells: int = 24,
    n_features: int = 5,
    *,
    n_controls: int = 12,
    seed: int = 0,
    offset: float = 0.0,
    effect: float = 0.0,
) -> FeatureTable:
    """Wells with correlated features; the first wells of a plate are controls, the others four compounds in turn.

    Args:
        offset: Standard deviation of a shift per plate and feature.
        effect: Standard deviation of a shift per compound and feature.
    """
    generator = np.random.default_rng(seed)
    mix = generator.normal(size=(n_features, n_features)) / np.sqrt(n_features) + np.eye(n_features)
    shifts = generator.normal(size=(n_plates, n_features)) * offset
    effects = generator.normal(size=(4, n_features)) * effect
    rows, parts = [], []
    for plate in range(n_plates):
        values = generator.normal(size=(n_wells, n_features)) @ mix + 3 + shifts[plate]
        for well in range(n_wells):
            treated = well >= n_controls
            compound = (well - n_controls) % 4
            if treated:
                values[well] += effects[compound]
            rows.append(
                {
                    "Metadata_Plate": f"P{plate}",
                    "Metadata_Well": f"{'ABCDEFGHIJKLMNOP'[well // 24]}{well % 24 + 1:02d}",
                    "Metadata_control_type": None if treated else "negcon",
                    "Metadata_broad_sample": f"BRD-{compound}" if treated else None,
                }
            )
        parts.append(values)
    features = pd.DataFrame(np.concatenate(parts), columns=[f"Cells_Feature_{i}" for i in range(n_features)])
    return from_frame(pd.concat([pd.DataFrame(rows), features], axis=1))


def shuffled(table: FeatureTable, seed: int = 1) -> tuple[FeatureTable, np.ndarray]:
    """The rows in another order, and the positions that they came from."""
    order = np.random.default_rng(seed).permutation(len(table))
    metadata = table.metadata.iloc[order].reset_index(drop=True)
    return FeatureTable(table.values[order], metadata, table.columns, table.dictionary, table.provenance), order


def controls(table: FeatureTable) -> np.ndarray:
    return (table.metadata["Metadata_control_type"] == "negcon").to_numpy()

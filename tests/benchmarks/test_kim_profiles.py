"""Profiles of Kim et al. from features: controls come out white, plates come out scaled, dull features go."""

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks.base import Inputs, make_table
from morphem.benchmarks.kim import Kim
from morphem.benchmarks.kim_profiles import published_profiles
from morphem.errors import DataError
from morphem.features import FeatureTable


def _plates(n_controls: int = 30) -> FeatureTable:
    """Two plates of controls and four compounds; correlated features, one dull among all and one among controls."""
    random = np.random.default_rng(0)
    rows = []
    for plate in range(2):
        names = ["DMSO"] * n_controls + [f"c{i % 4}" for i in range(24)]
        rows += [(f"P{plate}", f"W{i:02d}", name, f"b{plate}") for i, name in enumerate(names)]
    metadata = pd.DataFrame(rows, columns=["Metadata_Plate", "Metadata_Well", "Metadata_Compound", "Metadata_Batch"])
    mixed = random.normal(size=(len(rows), 6)) @ random.normal(size=(6, 6))
    shift = {f"c{i}": 4 * random.normal(size=6) for i in range(4)}
    mixed += np.stack([shift.get(name, np.zeros(6)) for name in metadata["Metadata_Compound"]])
    dull = np.full((len(rows), 1), 3.0)
    dull_in_controls = np.where(metadata["Metadata_Compound"].eq("DMSO"), 1.0, random.normal(size=len(rows)))[:, None]
    return make_table(np.concatenate([mixed, dull, dull_in_controls], axis=1), metadata)


def _plainly(table: FeatureTable) -> np.ndarray:
    """By hand: standardise and whiten by the correlation of controls, then median and deviation by plate."""
    x = table.values[:, :6].astype(np.float64)
    controls = (table.metadata["Metadata_Compound"] == "DMSO").to_numpy()
    center, spread = x[controls].mean(0), x[controls].std(0)
    z = (x - center) / spread
    values, vectors = np.linalg.eigh(np.cov(z[controls], rowvar=False))
    white = z @ vectors @ np.diag(np.maximum(values, 1e-6) ** -0.5) @ vectors.T
    for plate in ("P0", "P1"):
        rows = (table.metadata["Metadata_Plate"] == plate).to_numpy()
        middle = np.median(white[rows], axis=0)
        white[rows] = (white[rows] - middle) / (1.4826 * np.median(np.abs(white[rows] - middle), axis=0))
    return white


def test_profiles_are_the_plain_ones() -> None:
    table = _plates()
    done = published_profiles(table, "Metadata_Compound")
    assert done.values.shape[1] == 6
    np.testing.assert_allclose(done.values, _plainly(table), rtol=1e-3, atol=1e-3)
    assert "Metadata_Morphem_Control" not in done.metadata


def test_the_encoders_variant_scores_these_profiles() -> None:
    table = _plates()
    alone = Kim("compounds", null_draws=50).score(Inputs({"table": published_profiles(table, "Metadata_Compound")}))
    benchmark = Kim("compounds_sphered", null_draws=50)
    whole = benchmark.score(benchmark.adapt(Inputs({"table": table})))
    assert whole.values == alone.values
    assert Kim.model_variant == "compounds_sphered"


def test_without_controls_or_without_features_that_vary_the_reason_is_told() -> None:
    table = _plates()
    none = make_table(table.values, table.metadata.assign(Metadata_Compound=["a", "b"] * 54))
    with pytest.raises(DataError, match="0 of 108 wells are controls; mark them in Metadata_Control"):
        published_profiles(none, "Metadata_Compound")
    with pytest.raises(DataError, match="no feature varies among controls and among other wells"):
        published_profiles(make_table(np.ones((108, 3)), table.metadata), "Metadata_Compound")

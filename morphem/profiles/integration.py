"""Batch correction by libraries that are installed on request: Harmony (harmonypy) and Scanorama.

Neither is a dependency of morphem: `pip install 'morphem[harmony]'` installs harmonypy, which is under the
GPL-3.0-or-later, and `pip install 'morphem[scanorama]'` installs scanorama (MIT). Both learn from all rows.
"""

import contextlib
import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.metadata import version
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from morphem.profiles.conventions import PLATE
from morphem.profiles.settings import as_names, check_number
from morphem.profiles.step import Doubles, Group, Note, Step, check_finite, fit_groups


def load_extra(module: str, step: str, licence: str) -> Any:
    """Import a library that morphem does not install by itself.

    Args:
        module: Its name; also the name of the extra.
        step: Who asks.
        licence: What the user takes on.

    Raises:
        ConfigError: If it is not there, with the command that installs it.
    """
    extra = {"harmonypy": "harmony"}.get(module, module)
    try:
        return import_module(module)
    except ImportError as fault:
        raise ConfigError(
            f"{step}: needs {module} ({licence}), which is not installed; run pip install 'morphem[{extra}]', or use "
            "the "
            "step combat, sphere or tvn."
        ) from fault


def _groups(step: str, table: FeatureTable, batch: Sequence[str], note: Note) -> list[Group]:
    """Return the batches, with what a method that learns from all rows must write down."""
    check_finite(table, step)
    groups = fit_groups(table, "all", batch, step, note)
    if len(groups) < 2:
        raise DataError(f"{step}: all rows are of one batch ({groups[0].name}); name other columns.")
    return groups


@dataclass(frozen=True)
class Harmony(Step):
    """Harmony: soft clusters that are mixed over batches, and a linear shift per cluster and batch.

    Attributes:
        batch: Columns that name a batch.
        theta: At least 0; larger mixes batches more. 2 is the library's default.
        sigma: Above 0; how soft the clusters are. At the library's 0.1 a batch effect that is larger than the
            differences between perturbations is hardly corrected, because every cluster holds one batch alone;
            standardise per plate first, or raise it.
        ridge: Penalty on the shifts; 0 lets the library estimate it.
        n_clusters: 0 lets the library choose (rows / 30, at most 100).
        max_iterations: Rounds at most; 10 is the library's default.
        seed: The only source of chance.

    Source: Korsunsky et al. 2019, Nature Methods 16:1289; harmonypy (GPL-3.0-or-later) does the work.
    """

    batch: Sequence[str] = (PLATE,)
    theta: float = 2.0
    sigma: float = 0.1
    ridge: float = 0.0
    n_clusters: int = 0
    max_iterations: int = 10
    seed: int = 0

    name: ClassVar[str] = "harmony"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "batch", as_names(self.name, "batch", self.batch))
        if not self.batch:
            raise ConfigError("harmony: batch is empty; name the columns of a batch.")
        check_number(self.name, "theta", self.theta)
        check_number(self.name, "sigma", self.sigma, above=True)
        check_number(self.name, "ridge", self.ridge)
        check_number(self.name, "max_iterations", self.max_iterations, 1, whole=True)
        check_number(self.name, "n_clusters", self.n_clusters, whole=True)
        check_number(self.name, "seed", self.seed, whole=True)

    def prepare(self) -> None:
        """Look for harmonypy."""
        load_extra("harmonypy", self.name, "GPL-3.0-or-later")

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Correct all rows at once."""
        harmonypy = load_extra("harmonypy", self.name, "GPL-3.0-or-later")
        groups = _groups(self.name, table, self.batch, note)
        if len(table) < 60:
            raise DataError(f"harmony: {len(table)} rows are too few to cluster; it needs at least 60.")
        names = pd.DataFrame({"batch": _batch_names(groups, len(table))})
        # features x rows: given a square table, the library would take rows for features
        data = np.ascontiguousarray(table.values.T.astype(np.float64))
        logging.getLogger("harmonypy").setLevel(logging.WARNING)
        found = harmonypy.run_harmony(
            data,
            names,
            ["batch"],
            theta=self.theta,
            sigma=self.sigma,
            lamb=self.ridge or None,
            nclust=self.n_clusters or None,
            max_iter_harmony=self.max_iterations,
            verbose=False,
            random_state=self.seed,
        )
        corrected = np.asarray(found.Z_corr, np.float64)
        corrected = corrected if corrected.shape == table.values.shape else corrected.T
        _check_result(self.name, corrected, table)
        note.details["engine"] = f"harmonypy {version('harmonypy')}"
        return replace(table, values=corrected.astype(np.float32))


@dataclass(frozen=True)
class Scanorama(Step):
    """Scanorama: batches are joined through rows that are each other's nearest neighbours.

    Every row is scaled to unit length by the library, so only directions are left.

    Attributes:
        batch: Columns that name a batch.
        neighbors: At least 1; 20 is the library's default.
        sigma: Above 0; the width over which a correction is smoothed; 15 is the library's default.
        alpha: 0 to 1; batches with a smaller share of matches are not joined; 0.1 is the library's default.
        seed: The only source of chance.

    Source: Hie et al. 2019, Nature Biotechnology 37:685; scanorama (MIT) does the work.
    """

    batch: Sequence[str] = (PLATE,)
    neighbors: int = 20
    sigma: float = 15.0
    alpha: float = 0.1
    seed: int = 0

    name: ClassVar[str] = "scanorama"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "batch", as_names(self.name, "batch", self.batch))
        if not self.batch:
            raise ConfigError("scanorama: batch is empty; name the columns of a batch.")
        check_number(self.name, "neighbors", self.neighbors, 1, whole=True)
        check_number(self.name, "seed", self.seed, whole=True)
        check_number(self.name, "sigma", self.sigma, above=True)
        check_number(self.name, "alpha", self.alpha, 0, 1)

    def prepare(self) -> None:
        """Look for scanorama."""
        load_extra("scanorama", self.name, "MIT")

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Correct all rows at once."""
        scanorama = load_extra("scanorama", self.name, "MIT")
        groups = _groups(self.name, table, self.batch, note)
        features = [str(name) for name in table.columns]
        parts = [table.values[group.rows].astype(np.float64) for group in groups]
        with contextlib.redirect_stdout(io.StringIO()):  # the library prints its progress whatever it is told
            corrected, genes = scanorama.correct(
                parts,
                [features] * len(parts),
                return_dense=True,
                knn=self.neighbors,
                sigma=self.sigma,
                alpha=self.alpha,
                seed=self.seed,
                verbose=False,
            )
        position = {name: i for i, name in enumerate(genes)}  # the library sorts the features
        order = [position[name] for name in features]
        values: Doubles = np.empty(table.values.shape)
        for group, part in zip(groups, corrected, strict=True):
            values[group.rows] = np.asarray(part)[:, order]
        _check_result(self.name, values, table)
        note.details["engine"] = f"scanorama {version('scanorama')}"
        note.remarks.append("every row was scaled to unit length; only directions are left")
        return replace(table, values=values.astype(np.float32))


def _batch_names(groups: Sequence[Group], n: int) -> list[str]:
    names = [""] * n
    for group in groups:
        for row in group.rows:
            names[row] = group.name
    return names


def _check_result(step: str, values: Doubles, table: FeatureTable) -> None:
    if values.shape != table.values.shape or not np.isfinite(values).all():
        raise DataError(
            f"{step}: the library returned {values.shape} values, {int((~np.isfinite(values)).sum())} of them not "
            "finite, "
            f"for {table.values.shape}; try fewer features (step select_features), or another correction."
        )

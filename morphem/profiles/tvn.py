"""Typical variation normalisation: whiten on controls, then align every batch's control covariance (CORAL).

1. Mean mu, and eigenvectors V and eigenvalues L of the covariance of all controls: Z = (X - mu) V (L + epsilon)^(-1/2).
2. For each batch b (`center: true`): Z_b = Z_b - mean of the batch's controls.
3. C_b = covariance of the batch's controls + coral_epsilon I, C = covariance of all controls + coral_epsilon I:
   Z_b = Z_b C_b^(-1/2) C^(1/2).

Source: Ando et al. 2017, bioRxiv 161422; CORAL: Sun et al. 2016, arXiv:1511.05547. The uniDINO supplement whitens with
lambda 1 on the eigenvalues.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from morphem.profiles.conventions import PLATE, listed
from morphem.profiles.settings import as_names, check_number
from morphem.profiles.sphering import Sphering, component_table
from morphem.profiles.step import Doubles, Note, Step, check_finite, fit_groups, note_forced_apart


def matrix_power(symmetric: Doubles, power: float) -> Doubles:
    """Return a power of a symmetric positive definite matrix.

    Args:
        symmetric: (K, K).
        power: For example -0.5.
    """
    values, vectors = np.linalg.eigh(symmetric)
    powered: Doubles = (vectors * values**power) @ vectors.T
    return powered


@dataclass(frozen=True)
class TVN(Step):
    """Typical variation normalisation; what comes out are components, not the features that went in.

    Attributes:
        samples: The rows to learn from: `controls` (the recipe names them), or a query on metadata.
        batch: Columns that name a batch, for CORAL.
        epsilon: Added to the eigenvalues when whitening; above 0.
        coral_epsilon: Added to the diagonal of the covariances that CORAL aligns; above 0. With 1 a batch of few
            controls is hardly turned.
        center: Whether every batch's control mean is moved to zero before CORAL.
    """

    samples: str = "controls"
    batch: Sequence[str] = (PLATE,)
    epsilon: float = 1e-3
    coral_epsilon: float = 1.0
    center: bool = True

    name: ClassVar[str] = "tvn"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "batch", as_names(self.name, "batch", self.batch))
        if not self.batch:
            raise ConfigError("tvn: batch is empty; name the columns of a batch, or use the step sphere.")
        if not isinstance(self.center, bool):
            raise ConfigError(f"tvn: center is {self.center!r}; it must be true or false.")
        check_number(self.name, "epsilon", self.epsilon, above=True)
        check_number(self.name, "coral_epsilon", self.coral_epsilon, above=True)

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Whiten, then align batch by batch."""
        check_finite(table, self.name)
        groups = fit_groups(table, self.samples, self.batch, self.name, note)
        lonely = [group.name for group in groups if len(group.fit) < 2]
        if lonely:
            raise DataError(
                f"tvn: {listed(lonely)} has one control only, and a covariance needs two; leave it out (step filter), "
                "or "
                "name coarser batches."
            )
        controls = np.sort(np.concatenate([group.fit for group in groups]))
        sphering = Sphering("PCA", self.epsilon, "eigenvalue").fit(
            table.values[controls], table.columns, "the controls"
        )
        whitened = sphering.transform(table.values)
        if self.center:
            for group in groups:
                whitened[group.rows] -= whitened[group.fit].mean(0)
        ridge = self.coral_epsilon * np.eye(sphering.rank)
        target = matrix_power(np.atleast_2d(np.cov(whitened[controls], rowvar=False)) + ridge, 0.5)
        aligned = np.empty_like(whitened)
        for group in groups:
            own = np.atleast_2d(np.cov(whitened[group.fit], rowvar=False)) + ridge
            aligned[group.rows] = whitened[group.rows] @ matrix_power(own, -0.5) @ target
        note.details["rank"] = sphering.rank
        note_forced_apart(groups, sphering.rank, note)
        if sphering.rank < len(table.columns):
            note.remarks.append(
                f"the controls span {sphering.rank} of {len(table.columns)} directions; what treated rows do outside "
                "them is left out"
            )
        return component_table(table, aligned)

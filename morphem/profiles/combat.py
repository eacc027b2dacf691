"""ComBat: shift and scale every feature of every batch, with both shrunk towards what the batch's features share.

For feature f and row i of batch b: x_if = a_f + c_i B_f + g_bf + d_bf e_if. a and B come from least squares, the
variance s_f^2 from the residuals of all batches; on the standardised rows z, g_hat_bf is the mean and d2_hat_bf the
variance (n - 1) of the batch. Over the features of a batch, g has a normal prior (mean, variance of g_hat) and d2 an
inverse gamma prior (matched to mean and variance of d2_hat). The posteriors g*, d2* are found by iteration:

    g* = (n t2 g_hat + d2* g_bar) / (n t2 + d2*)
    d2* = (theta + sum (z - g*)^2 / 2) / (n / 2 + lambda - 1)

and a row becomes s_f (z - g*) / sqrt(d2*) + a_f + c_i B_f.

Source: Johnson, Li, Rabinovic 2007, Biostatistics 8:118; the sva package writes the same with these priors. Ours,
because the libraries that offer it are under the GPL (inmoose, combat) or unmaintained (neuroCombat, 2021; pycombat,
2022). Differs from sva: the parameters may be learned from controls alone; `mean_only` uses the number of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from morphem.profiles.conventions import PLATE, check_columns, listed
from morphem.profiles.settings import as_names
from morphem.profiles.step import Doubles, Group, Leak, Note, Step, check_finite, check_spread, fit_groups

_TOLERANCE = 1e-6
_MAX_ITERATIONS = 1000


@dataclass(frozen=True)
class Combat(Step):
    """Remove what differs between batches, feature by feature (parametric empirical Bayes).

    Attributes:
        batch: Columns that name a batch.
        samples: The rows that the parameters are learned from: `all` (as published), `controls`, or a query.
        keep: Columns of labels whose differences are to be kept. The labels then shape the result, which the record
            says; never name here what a benchmark is to find.
        mean_only: Whether only shifts are removed; batches of one row need it.
    """

    batch: Sequence[str] = (PLATE,)
    samples: str = "all"
    keep: Sequence[str] = ()
    mean_only: bool = False

    name: ClassVar[str] = "combat"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "batch", as_names(self.name, "batch", self.batch))
        object.__setattr__(self, "keep", as_names(self.name, "keep", self.keep))
        if not self.batch:
            raise ConfigError("combat: batch is empty; name the columns of a batch.")
        if not isinstance(self.mean_only, bool):
            raise ConfigError(f"combat: mean_only is {self.mean_only!r}; it must be true or false.")

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Learn the parameters and apply them to all rows."""
        check_finite(table, self.name)
        groups = fit_groups(table, self.samples, self.batch, self.name, note)
        self._check_batches(groups)
        fit = np.sort(np.concatenate([group.fit for group in groups]))
        if self.keep:
            # scores of these labels are not fair afterwards
            note.leaks.append(Leak(what="labels", rows=len(fit), of_rows=len(table), query=", ".join(self.keep)))
        batch = np.empty(len(table), np.int64)
        for number, group in enumerate(groups):
            batch[group.rows] = number
        covariates = self._covariates(table, fit)
        values = table.values.astype(np.float64)
        result = combat(values, batch, covariates, fit, table.columns, mean_only=self.mean_only)
        return replace(table, values=result.astype(np.float32))

    def _check_batches(self, groups: Sequence[Group]) -> None:
        if len(groups) < 2:
            raise DataError(
                f"combat: all rows are of one batch ({groups[0].name}), so there is nothing to correct; name other "
                "columns."
            )
        small = [group.name for group in groups if len(group.fit) < 2]
        if small and not self.mean_only:
            raise DataError(
                f"combat: {listed(small)} has one row to learn from, which has no variance; use mean_only: true, or "
                "leave "
                "the batch out (step filter)."
            )

    def _covariates(self, table: FeatureTable, fit: NDArray[np.int64]) -> Doubles:
        """Return indicators of the labels to keep, without their first values, (R, K)."""
        check_columns(table.metadata, self.keep, self.name)
        parts = [np.zeros((len(table), 0))]
        for name in self.keep:
            if table.metadata[name].isna().any():
                raise DataError(
                    f"combat: {int(table.metadata[name].isna().sum())} rows have no {name}, a label to keep."
                )
            codes, labels = pd.factorize(table.metadata[name])
            unseen = sorted(set(range(len(labels))) - set(codes[fit].tolist()))
            if unseen:
                raise DataError(
                    f"combat: {name} has values that no row of the fit has ({listed([labels[i] for i in unseen])}); "
                    "use samples: all, or keep no labels."
                )
            parts.append(np.eye(len(labels))[codes][:, 1:])
        return np.concatenate(parts, axis=1)


def combat(
    values: Doubles,
    batch: NDArray[np.int64],
    covariates: Doubles,
    fit: NDArray[np.int64],
    columns: Sequence[str],
    *,
    mean_only: bool = False,
) -> Doubles:
    """Return corrected values, (R, F).

    Args:
        values: (R, F), finite.
        batch: Batch of every row from 0, (R,).
        covariates: Indicators of labels to keep, (R, K); K may be 0.
        fit: Positions of the rows to learn from.
        columns: Names of the features, for errors.
        mean_only: Whether only shifts are removed.

    Raises:
        DataError: If batch and labels are confounded, or a feature has no variance.
    """
    n_batches = int(batch.max()) + 1
    design = np.concatenate([np.eye(n_batches)[batch], covariates], axis=1)
    if np.linalg.matrix_rank(design[fit]) < design.shape[1]:
        raise DataError(
            "combat: the labels to keep and the batches cannot be told apart (a label occurs in one batch only, or one "
            "label says what another says); keep fewer labels."
        )
    x = values[fit]
    effects = np.linalg.lstsq(design[fit], x, rcond=None)[0]
    shares = np.bincount(batch[fit], minlength=n_batches) / len(fit)
    base = shares @ effects[:n_batches] + covariates @ effects[n_batches:]
    variance = np.mean((x - design[fit] @ effects) ** 2, axis=0)
    floor = (np.finfo(np.float32).eps * np.abs(x).max(0)) ** 2  # what rounding leaves of a feature that is flat
    variance = np.where(variance > floor, variance, 0.0)
    check_spread(variance, columns, "every batch", "variance within batches", "combat")
    scale = np.sqrt(variance)
    z = (values - base) / scale
    result = np.empty_like(z)
    for number in range(n_batches):
        shift, spread = shrunk(z[fit[batch[fit] == number]], mean_only=mean_only)
        rows = batch == number
        result[rows] = (z[rows] - shift) / np.sqrt(spread)
    corrected: Doubles = result * scale + base
    return corrected


def shrunk(z: Doubles, *, mean_only: bool) -> tuple[Doubles, Doubles]:
    """Return shift and variance of one batch after shrinking, (F,) each.

    Args:
        z: Standardised rows of the batch, (n, F).
        mean_only: Whether the variance stays one.

    Raises:
        DataError: If the iteration does not settle.
    """
    n, n_features = z.shape
    shift = z.mean(0)
    prior, prior_variance = shift.mean(), shift.var(ddof=1) if n_features > 1 else 0.0
    if mean_only:
        # with a variance of one the posterior has a closed form; sva takes n = 1 here, which shrinks too much
        return (n * prior_variance * shift + prior) / (n * prior_variance + 1), np.ones(n_features)
    spread = z.var(0, ddof=1)
    mean, variance = spread.mean(), spread.var(ddof=1) if n_features > 1 else 0.0
    if not variance > 0 or not prior_variance > 0:
        return shift, spread  # one feature, or features that all say the same: nothing to share
    shape, rate = (2 * variance + mean**2) / variance, (mean * variance + mean**3) / variance
    new_shift, new_spread = shift.copy(), spread.copy()
    squares = ((z - shift) ** 2).sum(0)
    for _ in range(_MAX_ITERATIONS):
        old_shift, old_spread = new_shift, new_spread
        new_shift = (n * prior_variance * shift + old_spread * prior) / (n * prior_variance + old_spread)
        new_spread = (rate + (squares + n * (shift - new_shift) ** 2) / 2) / (n / 2 + shape - 1)
        change = max(np.abs(new_shift - old_shift).max(), np.abs(new_spread / old_spread - 1).max())
        if change < _TOLERANCE:
            return new_shift, new_spread
    raise DataError(f"combat: the parameters did not settle within {_MAX_ITERATIONS} rounds; use mean_only: true.")

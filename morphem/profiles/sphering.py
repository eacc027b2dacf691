"""Sphering (whitening): make the features of chosen rows, usually controls, uncorrelated and of variance one.

For n fitted rows, Z = X - mean, and for the `-cor` methods Z = (X - mean) / sd with the population sd. With the
singular values s_k and directions v_k of Z, the gain of direction k is

* `epsilon_on: singular value`: sqrt(n - 1) / (s_k + epsilon); directions that the fitted rows do not span get the gain
  of the smallest of those that they span, the largest gain of all. This is what pycytominer does from 1.1 on (and
  CHAMMI-75 with epsilon 1e-3); it refuses rows whose rank is neither the number of features nor n - 1.
* `epsilon_on: eigenvalue`: 1 / sqrt(s_k^2 / (n - 1) + epsilon), with s_k = 0 outside; epsilon bounds the gain.
* `epsilon_on: clip`: 1 / sqrt(max(s_k^2 / (n - 1), epsilon)), as the pycytominer 0.2 of Kim et al. did.

ZCA turns back to the original features (W = V diag(gain) V'); PCA returns one column per direction that is spanned.

Source: Kessy et al. 2016, arXiv:1512.00809; pycytominer 1.7.1, `operations/transform.py: Spherize`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib.metadata import version
from typing import Any, ClassVar, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from morphem.profiles.settings import as_names, check_choice, check_number
from morphem.profiles.step import (
    Doubles,
    Note,
    Step,
    batches,
    check_finite,
    check_spread,
    fit_groups,
    note_forced_apart,
    without_rounding,
)

Method = Literal["ZCA-cor", "ZCA", "PCA-cor", "PCA"]
EpsilonOn = Literal["singular value", "eigenvalue", "clip"]

_PYCYTOMINER_ROWS = 5000  # its factor of n x n numbers then takes 200 MB
_ROWS_AT_ONCE = 8192


@cache
def check_pycytominer() -> str:
    """Check once that the installed pycytominer whitens: releases 1.3.0 to 1.7.0 do not.

    Returns:
        Its version.

    Raises:
        ConfigError: If the covariance of what it whitened is not the identity.
    """
    from pycytominer.operations import Spherize

    generator = np.random.default_rng(0)
    rows = generator.normal(size=(60, 5)) @ generator.normal(size=(5, 5)) + 10 * np.arange(1, 6)
    name = version("pycytominer")
    for method in get_args(Method):
        out = (
            Spherize(method=method, epsilon=1e-9, return_numpy=True)
            .fit(pd.DataFrame(rows))
            .transform(pd.DataFrame(rows))
        )
        error = float(np.abs(np.cov(out, rowvar=False) - np.eye(5)).max())
        if not error < 1e-6:
            raise ConfigError(
                f"the installed pycytominer {name} does not whiten (method {method}: the covariance is off by "
                f"{error:.2g}), as releases 1.3.0 to 1.7.0 are known not to; install pycytominer>=1.7.1."
            )
    return name


@dataclass
class Sphering:
    """The transform itself, on arrays.

    Attributes:
        method: `ZCA-cor`, `ZCA`, `PCA-cor` or `PCA`.
        epsilon: At least 0; see the module for what it does.
        epsilon_on: `singular value`, `eigenvalue` or `clip`.
    """

    method: Method = "ZCA-cor"
    epsilon: float = 1e-6
    epsilon_on: EpsilonOn = "singular value"

    def __post_init__(self) -> None:
        """Check the settings."""
        check_choice("sphere", "method", self.method, get_args(Method))
        check_choice("sphere", "epsilon_on", self.epsilon_on, get_args(EpsilonOn))
        check_number("sphere", "epsilon", self.epsilon, above=self.epsilon_on != "singular value")
        self.mean: Doubles = np.zeros(0)
        self.scale: Doubles = np.zeros(0)
        self.weights: Doubles = np.zeros((0, 0))
        self.rank = 0
        self.engine = ""

    def fit(self, values: NDArray[Any], columns: Sequence[str] | None = None, group: str = "the table") -> "Sphering":
        """Learn the transform.

        Args:
            values: Rows to learn from, (n, F), finite; float32 counts as rounded to float32, which decides the rank.
            columns: Names of the features, for errors.
            group: What to call the rows in errors.

        Raises:
            DataError: If there are fewer than two rows, a feature is constant, or the rank is too low.
        """
        columns = columns or [f"feature {i}" for i in range(values.shape[1])]
        exact = values.astype(np.float64)
        n, d = exact.shape
        if n < 2:
            raise DataError(f"sphere: {group} is fitted on {n} row; sphering needs at least two, better many more.")
        self.mean = exact.mean(0)
        if self.method.endswith("-cor"):
            is_rounded = values.dtype == np.float32
            spread = without_rounding(exact.std(0), exact) if is_rounded else exact.std(0) * (np.ptp(exact, axis=0) > 0)
            check_spread(spread, columns, group, "standard deviation", "sphere")
            self.scale = spread
        else:
            self.scale = np.ones(d)
        z = (exact - self.mean) / self.scale
        reduced = np.linalg.qr(z, mode="r") if n > d else z
        _, singular, directions = np.linalg.svd(reduced, full_matrices=False)
        above = int((singular > self._noise(values, singular, n, d)).sum())
        self.rank = min(above, n - 1)  # centred rows span one direction less
        self._check_rank(n, d, group)
        weights = self._by_pycytominer(exact)
        self.engine = "morphem" if weights is None else f"pycytominer {check_pycytominer()}"
        if weights is None:
            weights = self._weights(singular[: self.rank], directions[: self.rank], n)
        self.weights = weights
        return self

    def transform(self, values: NDArray[Any]) -> Doubles:
        """Apply the transform, (N, F) to (N, F) or (N, rank) for the PCA methods.

        Args:
            values: Rows of the features that were fitted.

        Raises:
            DataError: If the number of features is another.
        """
        if values.shape[1] != len(self.mean):
            raise DataError(
                f"sphere: fitted on {len(self.mean)} features and given {values.shape[1]}; a transform belongs to the "
                "features of one model."
            )
        out = np.empty((len(values), self.weights.shape[1]))
        for part in batches(len(values), _ROWS_AT_ONCE):
            out[part] = ((values[part] - self.mean) / self.scale) @ self.weights
        return out

    def _noise(self, values: NDArray[Any], singular: Doubles, n: int, d: int) -> float:
        """Return the singular value below which a direction is rounding of the input."""
        floor = float(singular[0]) * max(n, d) * float(np.finfo(np.float64).eps)
        size = float(np.sqrt(np.mean((values / self.scale) ** 2, dtype=np.float64)))
        rounding = size * float(np.finfo(np.float32 if values.dtype == np.float32 else np.float64).eps) / np.sqrt(12)
        return max(floor, float(3 * rounding * (np.sqrt(n) + np.sqrt(d))))

    def _check_rank(self, n: int, d: int, group: str) -> None:
        if self.rank == 0:
            raise DataError(f"sphere: all rows that {group} is fitted on are the same.")
        if self.epsilon_on == "singular value" and self.rank < min(d, n - 1):
            raise DataError(
                f"sphere: the {n} rows that {group} is fitted on have rank {self.rank} where {min(d, n - 1)} is "
                "needed, so "
                "rows are there twice or features are sums of others, and whitening would blow up rounding errors; "
                "remove them (step select_features, operations: [constant, correlation]), or use epsilon_on: "
                "eigenvalue "
                "with an epsilon such as 1e-3."
            )

    def _by_pycytominer(self, exact: Doubles) -> Doubles | None:
        """Let pycytominer find the matrix, or return None where it cannot.

        Of its PCA columns, those beyond the rank have no definite direction and are left out.
        """
        if self.epsilon_on != "singular value" or len(exact) > _PYCYTOMINER_ROWS:
            return None
        check_pycytominer()
        from pycytominer.operations import Spherize

        try:
            weights = np.asarray(Spherize(self.epsilon, True, self.method).fit(pd.DataFrame(exact)).W, np.float64)
        except ValueError as fault:
            if "not full rank" in str(fault):
                # the rank is checked; where means are large against the spread, it takes rounding for a direction
                return None
            raise
        return weights[:, : self.rank] if self.method.startswith("PCA") else weights

    def _weights(self, singular: Doubles, directions: Doubles, n: int) -> Doubles:
        gain, outside = gains(singular, n, self.epsilon, self.epsilon_on)
        if self.method.startswith("PCA"):
            return directions.T * gain
        inside = (directions.T * (gain - outside)) @ directions
        return inside + outside * np.eye(directions.shape[1])


def gains(singular: Doubles, n: int, epsilon: float, epsilon_on: EpsilonOn) -> tuple[Doubles, float]:
    """Return the gain of every spanned direction, (r,), and that of all others.

    Args:
        singular: Singular values of the centred rows, largest first, (r,), all above 0.
        n: Rows that they come from.
        epsilon: At least 0.
        epsilon_on: Where epsilon goes.
    """
    if epsilon_on == "singular value":
        every = np.sqrt(n - 1) / (singular + epsilon)
        return every, float(every[-1])
    variance = singular**2 / (n - 1)
    if epsilon_on == "eigenvalue":
        return 1 / np.sqrt(variance + epsilon), float(1 / np.sqrt(epsilon))
    return 1 / np.sqrt(np.maximum(variance, epsilon)), float(1 / np.sqrt(epsilon))


def component_table(table: FeatureTable, values: Doubles) -> FeatureTable:
    """Return a table whose features are components, named so that pycytominer infers them.

    Args:
        table: Rows.
        values: (R, K).
    """
    names = tuple(f"Cells_PC_{i:04d}" for i in range(values.shape[1]))
    dictionary = tuple({"column": n, "channel": "", "index": i, "kind": "component"} for i, n in enumerate(names))
    return replace(table, values=values.astype(np.float32), columns=names, dictionary=dictionary)


@dataclass(frozen=True)
class Sphere(Step):
    """Sphere all rows with a transform fitted on the chosen ones.

    Attributes:
        samples: The rows to learn from: `controls` (the recipe names them), `all`, or a query on metadata.
        per: Columns whose values get a transform each; `[]`, the default, pools all rows into one.
        method: `ZCA-cor` (default, as pycytominer), `ZCA`, `PCA-cor` or `PCA`.
        epsilon: 1e-6 is pycytominer's default; CHAMMI-75's JUMP-CP1 protocol uses 1e-3.
        epsilon_on: `singular value`, `eigenvalue` or `clip`; see the module.
    """

    samples: str = "controls"
    per: Sequence[str] = ()
    method: Method = "ZCA-cor"
    epsilon: float = 1e-6
    epsilon_on: EpsilonOn = "singular value"

    name: ClassVar[str] = "sphere"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "per", as_names(self.name, "per", self.per))
        Sphering(self.method, self.epsilon, self.epsilon_on)
        if self.per and self.method.startswith("PCA"):
            raise ConfigError(
                f"sphere: method '{self.method}' with per {list(self.per)} would give every group axes of its own "
                "under "
                "one name; use a ZCA method, or pool (per: [])."
            )

    def prepare(self) -> None:
        """Check that pycytominer whitens, where it does the work."""
        if self.epsilon_on == "singular value":
            check_pycytominer()

    def chunks_by(self, plate: str) -> bool:
        """Groups inside a plate have transforms of their own."""
        return plate in self.per

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Fit and apply one transform per group."""
        check_finite(table, self.name)
        values: NDArray[np.float32] = np.empty_like(table.values)
        ranks, engines = [], set()
        groups = fit_groups(table, self.samples, self.per, self.name, note)
        for group in groups:
            sphering = Sphering(self.method, self.epsilon, self.epsilon_on)
            sphering.fit(table.values[group.fit], table.columns, group.name)
            ranks.append(sphering.rank)
            engines.add(sphering.engine)
            if self.method.startswith("PCA"):
                result = component_table(table, sphering.transform(table.values))
            else:
                values[group.rows] = sphering.transform(table.values[group.rows])
        note.details |= {"rank": min(ranks), "engine": ", ".join(sorted(engines))}
        if min(ranks) < len(table.columns):
            note.remarks.append(
                f"the fitted rows span {min(ranks)} of {len(table.columns)} directions; the others get "
                + ("the largest gain" if self.epsilon_on == "singular value" else "the gain 1 / sqrt(epsilon)")
                if self.method.startswith("ZCA")
                else f"the fitted rows span {min(ranks)} of {len(table.columns)} directions; the others are left out"
            )
        note_forced_apart(groups, len(table.columns), note)
        return result if self.method.startswith("PCA") else replace(table, values=values)

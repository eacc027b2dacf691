"""Scale every feature on its own: standardise, robustize, MAD robustize, inverse normal; per plate or pooled.

The centre and the spread come from the rows that `samples` selects, group by group; all rows of a group are scaled.
Computed in float64, kept as float32.
"""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pandas as pd

from morphem.errors import DataError
from morphem.features import FeatureTable
from morphem.profiles.conventions import PLATE
from morphem.profiles.settings import as_names, check_number
from morphem.profiles.step import Doubles, Note, Step, check_finite, check_spread, fit_groups, without_rounding


@dataclass(frozen=True)
class Scale(Step):
    """Base of the steps that scale every feature: (x - centre) / spread.

    Attributes:
        samples: The rows to learn from: `all`, `controls`, or a query on metadata.
        per: Columns whose values are scaled each on their own; `[]` pools all rows.
    """

    samples: str = "all"
    per: Sequence[str] = (PLATE,)

    spread_name: ClassVar[str]

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "per", as_names(self.name, "per", self.per))

    def chunks_by(self, plate: str) -> bool:
        """Groups inside a plate are scaled without regard to others."""
        return plate in self.per

    @abstractmethod
    def learn(self, values: Doubles, columns: Sequence[str]) -> tuple[Doubles, Doubles]:
        """Return centre and spread of every feature, (F,) each.

        Args:
            values: Rows to learn from, (n, F).
            columns: Names of the features.
        """

    def divisor(self, spread: Doubles) -> Doubles:
        """Return what to divide by, (F,)."""
        return spread

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Scale the rows of every group."""
        check_finite(table, self.name)
        values = np.empty_like(table.values)
        for group in fit_groups(table, self.samples, self.per, self.name, note):
            if len(group.fit) < 2:
                raise DataError(
                    f"{self.name}: {group.name} has one row to learn from, and a spread needs two, better many more; "
                    "leave it out (step filter), or pool (per: [])."
                )
            fit = table.values[group.fit].astype(np.float64)
            center, spread = self.learn(fit, table.columns)
            spread = without_rounding(spread, fit)
            check_spread(spread, table.columns, group.name, self.spread_name, self.name)
            values[group.rows] = (table.values[group.rows] - center) / self.divisor(spread)
        return replace(table, values=values)


@dataclass(frozen=True)
class Standardize(Scale):
    """Subtract the mean and divide by the (population) standard deviation, as scikit-learn's StandardScaler does."""

    name: ClassVar[str] = "standardize"
    spread_name: ClassVar[str] = "standard deviation"

    def learn(self, values: Doubles, columns: Sequence[str]) -> tuple[Doubles, Doubles]:
        """Mean and standard deviation."""
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler().fit(values)
        return np.asarray(scaler.mean_), np.sqrt(scaler.var_)


@dataclass(frozen=True)
class Robustize(Scale):
    """Subtract the median and divide by the distance between the quartiles, as scikit-learn's RobustScaler does."""

    name: ClassVar[str] = "robustize"
    spread_name: ClassVar[str] = "interquartile range"

    def learn(self, values: Doubles, columns: Sequence[str]) -> tuple[Doubles, Doubles]:
        """Median and interquartile range; the scaler itself would turn a range of zero into one."""
        low, middle, high = np.quantile(values, (0.25, 0.5, 0.75), axis=0)
        return middle, high - low


@dataclass(frozen=True)
class MadRobustize(Scale):
    """Subtract the median and divide by 1.4826 times the median absolute deviation.

    Attributes:
        epsilon: Added to the deviation; 1e-18 is pycytominer's default and has no influence, because a deviation of
            zero is refused.

    Source: pycytominer 1.7.1, `operations/transform.py: RobustMAD`, which does the work.
    """

    epsilon: float = 1e-18

    name: ClassVar[str] = "mad_robustize"
    spread_name: ClassVar[str] = "median absolute deviation"

    def __post_init__(self) -> None:
        """Check the settings."""
        super().__post_init__()
        check_number(self.name, "epsilon", self.epsilon)

    def learn(self, values: Doubles, columns: Sequence[str]) -> tuple[Doubles, Doubles]:
        """Median and scaled median absolute deviation."""
        from pycytominer.operations import RobustMAD

        scaler = RobustMAD(epsilon=self.epsilon).fit(pd.DataFrame(values))
        return np.asarray(scaler.median, np.float64), np.asarray(scaler.mad, np.float64)

    def divisor(self, spread: Doubles) -> Doubles:
        """The deviation plus epsilon."""
        return spread + self.epsilon


@dataclass(frozen=True)
class InverseNormal(Step):
    """Replace every value by the normal score of its rank among the fitted rows.

    Attributes:
        samples: The rows to learn from: `all`, `controls`, or a query on metadata.
        per: Columns whose values are ranked each on their own; `[]` pools all rows.

    Source: pycytominer 1.7.1, `InverseNormalTransform`, which does the work.
    """

    samples: str = "all"
    per: Sequence[str] = (PLATE,)

    name: ClassVar[str] = "inverse_normal"

    def __post_init__(self) -> None:
        """Check the settings."""
        object.__setattr__(self, "per", as_names(self.name, "per", self.per))

    def chunks_by(self, plate: str) -> bool:
        """Groups inside a plate are ranked without regard to others."""
        return plate in self.per

    def run(self, table: FeatureTable, note: Note) -> FeatureTable:
        """Rank the rows of every group."""
        from pycytominer.operations.transform import InverseNormalTransform

        check_finite(table, self.name)
        values = np.empty_like(table.values)
        for group in fit_groups(table, self.samples, self.per, self.name, note):
            fit = table.values[group.fit].astype(np.float64)
            check_spread(np.ptp(fit, axis=0), table.columns, group.name, "range", self.name)
            # the seed decides nothing below the 10,000 rows from which scikit-learn draws a subsample
            scores = InverseNormalTransform(random_state=0).fit(fit)
            values[group.rows] = scores.transform(table.values[group.rows].astype(np.float64))
        return replace(table, values=values)

"""A step of curation: rows of one study in, a yes or no for every image out."""

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.data.schema import UNKNOWN
from morphem.errors import ConfigError, DataError, nearest
from morphem.spec import Configurable

Needs = Literal["metadata", "quality", "features"]
Mask = NDArray[np.bool_]
Floats = NDArray[np.float32] | NDArray[np.float64]

IMAGE = "imaging.multi_channel_id"


class Step(Configurable, ABC):
    """Decides which images of a study stay; the same ones whenever it is asked with the same seed.

    Args:
        studies: The only studies that the step looks at; all where not given.

    Attributes:
        name: What recipes and tables of counts call it.
        needs: `metadata` steps run before a pixel is read; `quality` steps need the measurements of planes
            (`quality.*` columns), `features` steps an embedding of every image.

    Raises:
        ConfigError: If a setting is of the wrong type or out of range.
    """

    name: ClassVar[str]
    needs: ClassVar[Needs]

    def __init__(self, studies: Sequence[str] = ()) -> None:
        self.studies = check_texts(self.name, "studies", studies)

    @abstractmethod
    def keep(self, planes: pd.DataFrame, features: Floats | None, seed: int) -> Mask:
        """Say which images stay.

        Args:
            planes: Plane table of one study, a row per channel plane, with `quality.*` columns where they are needed.
            features: (N, D), one row per image in order of first appearance; None where they are not needed.
            seed: The only source of chance.

        Returns:
            (N,), True for the images that stay, in order of first appearance.

        Raises:
            ConfigError: If a setting does not fit the table.
            DataError: If the table lacks what the step needs.
        """

    def remark(self, planes: pd.DataFrame) -> str | None:
        """Return a sentence on images that the step could not judge and therefore keeps, or None.

        Args:
            planes: As for `keep`.
        """
        return None

    def applies_to(self, study: str) -> bool:
        """Whether the step looks at a study.

        Args:
            study: Its name.
        """
        return not self.studies or study in self.studies


def images_of(planes: pd.DataFrame) -> pd.DataFrame:
    """Return the first row of every image, in order of first appearance.

    Args:
        planes: One row per channel plane.
    """
    return planes.drop_duplicates(IMAGE).reset_index(drop=True)


def image_numbers(planes: pd.DataFrame) -> NDArray[np.int64]:
    """Return the number of every plane's image in order of first appearance, (P,).

    Args:
        planes: One row per channel plane.
    """
    return np.asarray(pd.factorize(planes[IMAGE])[0], np.int64)


def texts(table: pd.DataFrame, column: str) -> "pd.Series[str]":
    """Return a column as texts, `unknown` where it says nothing or is not there.

    Args:
        table: Any table.
        column: Name of the column.
    """
    if column not in table:
        return pd.Series([UNKNOWN] * len(table), index=table.index, dtype=object)
    values = table[column].astype(object)
    values = values.where(values.notna(), UNKNOWN).map(str).str.strip()
    return values.where(~values.isin(["", "nan"]), UNKNOWN)


def numbers(planes: pd.DataFrame, column: str, step: str) -> NDArray[np.float64]:
    """Return a measured column of planes, (P,).

    Args:
        planes: One row per channel plane.
        column: For example `quality.mean`.
        step: Who asks.

    Raises:
        DataError: If the column is not there, or a plane has no number.
    """
    if column not in planes:
        raise DataError(
            f"the step '{step}' needs the column '{column}'; measure the quality of planes, or drop the step."
        )
    values = np.asarray(pd.to_numeric(planes[column], errors="coerce"), np.float64)
    if np.isnan(values).any():
        row = planes.iloc[int(np.isnan(values).argmax())]
        raise DataError(
            f"the step '{step}' needs '{column}', which a plane ({row.get('imaging.channel_type', UNKNOWN)}) of image "
            f"'{row[IMAGE]}' does not have; measure the quality of all planes, or drop the step."
        )
    return values


def groups(table: pd.DataFrame, columns: Sequence[Hashable]) -> NDArray[np.int64]:
    """Number the groups of equal rows in order of first appearance, (R,).

    Args:
        table: Rows.
        columns: What must be equal; with none, all rows are one group.
    """
    if not columns:
        return np.zeros(len(table), np.int64)
    return np.asarray(table.groupby(list(columns), sort=False, dropna=False).ngroup(), np.int64)


def count_of(share: float, total: int) -> int:
    """Return a share of a number as a whole number: rounded half up, at least 1 (0 of nothing).

    Args:
        share: Above 0, at most 1.
        total: At least 0.
    """
    # rounded first because 0.29 * 50 is 14.499999999999998 in binary
    return min(total, max(1, math.floor(round(share * total, 9) + 0.5)))


def check_share(step: str, key: str, value: Any) -> float:
    """Return a share.

    Raises:
        ConfigError: If it is no number above 0 and at most 1.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
        raise ConfigError(f"{step}.{key} is {value!r}; it must be a share above 0 and at most 1, for example 0.2.")
    return float(value)


def check_count(step: str, key: str, value: Any, least: int = 1) -> int:
    """Return a whole number.

    Raises:
        ConfigError: If it is none, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{step}.{key} is {value!r}; it must be a whole number of {least} or more.")
    return value


def check_number(step: str, key: str, value: Any, low: float, high: float = math.inf) -> float:
    """Return a number.

    Raises:
        ConfigError: If it is none, or not between `low` and `high`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        allowed = f"of {low:g} or more" if math.isinf(high) else f"from {low:g} to {high:g}"
        raise ConfigError(f"{step}.{key} is {value!r}; it must be a number {allowed}.")
    return float(value)


def check_text(step: str, key: str, value: Any) -> str:
    """Return a text.

    Raises:
        ConfigError: If it is none, or empty.
    """
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{step}.{key} is {value!r}; it must be a text.")
    return value


def check_texts(step: str, key: str, value: Any) -> tuple[str, ...]:
    """Return a list of texts.

    Raises:
        ConfigError: If it is none.
    """
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) and item for item in value):
        raise ConfigError(f"{step}.{key} is {value!r}; it must be a list of texts, for example [a, b].")
    return tuple(value)


def check_choice(step: str, key: str, value: Any, allowed: Sequence[str]) -> str:
    """Return one of some words.

    Raises:
        ConfigError: If it is another, with the nearest.
    """
    if value not in allowed:
        close = nearest(str(value), allowed, count=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ConfigError(f"{step}.{key} is {value!r}{hint}; it must be one of {', '.join(allowed)}.")
    return str(value)


def check_flag(step: str, key: str, value: Any) -> bool:
    """Return a truth value.

    Raises:
        ConfigError: If it is none.
    """
    if not isinstance(value, bool):
        raise ConfigError(f"{step}.{key} is {value!r}; it must be true or false.")
    return value

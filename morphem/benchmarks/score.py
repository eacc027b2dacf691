"""What a benchmark gives back: scores, the intervals around them, and the rules by which they were made.

A score is a record: it says how it was made, and it is never NaN.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from morphem.errors import DataError


@dataclass(frozen=True)
class Interval:
    """A bootstrap interval.

    Attributes:
        low: Lower bound.
        high: Upper bound.
        unit: What was drawn with replacement, for example `compound`.
        n_units: How many of them there are.
        level: Share of the draws between the bounds, for example 0.95.
        draws: Number of draws.
    """

    low: float
    high: float
    unit: str
    n_units: int
    level: float = 0.95
    draws: int = 1000


@dataclass(frozen=True)
class Score:
    """The scores of one table (or one set of tables) under one protocol.

    Attributes:
        values: Headline and other main scores by name; shares are fractions, not percent. All are finite.
        details: All sub-scores: per task, per cell line, per compound. Plain data (dict, list, str, number, None).
        intervals: For some or all of `values`, by the same names.
        rules: How the scores were made, by keyword, each one sentence; retrieval scores have `p_value` and
            `negatives`, classifications have `split`.
        counts: How many rows, classes, units went in, and how many were left out.
        missing: Scores that this table does not allow, with the reason; they are not in `values`.
        notes: What a reader should know.

    Raises:
        DataError: If a score is NaN or infinite.
    """

    values: Mapping[str, float]
    details: Mapping[str, Any] = field(default_factory=dict)
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    rules: Mapping[str, str] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what is not a number."""
        wrong = [name for name, value in self.values.items() if not math.isfinite(value)]
        if wrong:
            raise DataError(
                f"the score {', '.join(wrong)} came out as NaN or infinite, which no table of finite features should "
                "give; look for rows of constant features or groups without members, or report this."
            )
        both = sorted(set(self.values) & set(self.missing))
        if both:
            raise DataError(f"the score {', '.join(both)} is given and said to be missing.")


def to_plain(value: Any) -> Any:
    """Return numpy scalars and arrays, tuples, mappings and dataclasses as JSON takes them; NaN becomes None.

    Args:
        value: Nested plain data.

    Raises:
        TypeError: If a value is nothing that JSON could hold.
    """
    if isinstance(value, Interval):
        return {name: to_plain(getattr(value, name)) for name in value.__dataclass_fields__}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    if hasattr(value, "tolist"):
        return to_plain(value.tolist())
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, str | bool | int):
        return value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")

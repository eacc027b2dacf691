"""Labels for training: the classes of a metadata column, and their numbers.

Classes are numbered in order of name, by the training data alone: other data are numbered by the same list, and what
the training data do not have is unknown there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

UNKNOWN = -1
"""The number of a class that is not known."""

_MISSING = ("", "unknown", "nan")


def encode_labels(column: pa.ChunkedArray) -> tuple[list[str], NDArray[np.int64]]:
    """Return the classes of a column in order of name, and the number of each row's class.

    Args:
        column: Of any type that has a text; null, NaN, empty and `unknown` (in any case) are no class.

    Returns:
        The classes, and for each row its number among them, -1 where there is none.
    """
    texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
    missing = pc.is_in(pc.utf8_lower(texts), value_set=pa.array(_MISSING))
    texts = pc.if_else(missing, pa.scalar(None, pa.string()), texts)
    classes = sorted(value for value in pc.unique(texts).to_pylist() if value is not None)
    numbers = pc.fill_null(pc.index_in(texts, value_set=pa.array(classes, pa.string())), UNKNOWN)
    return classes, np.asarray(numbers.to_numpy(), np.int64)


def renumber(found: Mapping[str, Sequence[str]], wanted: Mapping[str, Sequence[str]]) -> list[list[int]]:
    """Return, for each column, what the numbers of its classes in some data are among the classes of the training.

    Args:
        found: Classes of the data by column.
        wanted: Classes of the training data, of the same columns.

    Returns:
        For each column of `found` the new number of each class, -1 for a class that training does not have; and a last
        entry -1, so that the number -1 leads to itself.
    """
    tables = []
    for column, classes in found.items():
        number = {name: i for i, name in enumerate(wanted[column])}
        tables.append([*(number.get(name, UNKNOWN) for name in classes), UNKNOWN])
    return tables


def describe_difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Return how the classes of two data sets differ, in a few words.

    Args:
        found: Classes by column of the one.
        wanted: Classes by column of the other.
    """
    parts = []
    for column in dict.fromkeys([*wanted, *found]):
        here, there = found.get(column), wanted.get(column)
        if here is None or there is None:
            parts.append(f"'{column}' is {'not a label' if here is None else 'a label'} now")
            continue
        gone, new = sorted({*there} - {*here}), sorted({*here} - {*there})
        shown = [*(f"'{name}' is gone" for name in gone[:3]), *(f"'{name}' is new" for name in new[:3])]
        if shown:
            more = len(gone) + len(new) - len(shown)
            parts.append(f"{column}: {', '.join(shown)}" + (f" and {more} more" if more else ""))
    return "; ".join(parts)

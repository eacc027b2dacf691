"""Checks of the settings of steps, each with a sentence that names the step and the key."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from morphem.errors import ConfigError


def check_choice(step: str, key: str, value: str, allowed: Sequence[str]) -> None:
    """Check that a setting is one of the allowed words.

    Raises:
        ConfigError: If it is not, with the words.
    """
    if value not in allowed:
        raise ConfigError(f"{step}: {key} is {value!r}; it must be one of {', '.join(allowed)}.")


def check_number(
    step: str, key: str, value: Any, low: float = 0.0, high: float = np.inf, *, above: bool = False, whole: bool = False
) -> None:
    """Check that a setting is a number within a range.

    Raises:
        ConfigError: If it is not, with the range.
    """
    fine = isinstance(value, int if whole else int | float) and not isinstance(value, bool) and low <= value <= high
    if not fine or (above and value == low):
        word = "above" if above else "at least"
        limit = "" if high == np.inf else f" and at most {high:g}"
        kind = "whole number" if whole else "number"
        raise ConfigError(f"{step}: {key} is {value!r}; it must be a {kind} {word} {low:g}{limit}.")


def as_names(step: str, key: str, value: Any) -> tuple[str, ...]:
    """Return a setting that lists names as a tuple; one name may stand alone.

    Raises:
        ConfigError: If it is no list of names.
    """
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) for name in names):
        raise ConfigError(f"{step}: {key} is {value!r}; it must be a list of names, for example [Metadata_Plate].")
    return tuple(names)

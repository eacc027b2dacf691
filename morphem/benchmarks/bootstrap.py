"""Bootstrap intervals over the unit that a protocol averages over.

Source: Efron and Tibshirani 1993, An Introduction to the Bootstrap, chapter 13 (percentile intervals).
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from morphem import rng
from morphem.benchmarks.score import Interval
from morphem.errors import DataError

_BLOCK = 2**22  # drawn numbers that are held at once


def generator(seed: int, *words: int | str) -> np.random.Generator:
    """Return a generator of its own for one purpose; other words give independent draws.

    Args:
        seed: Of the benchmark.
        words: What the draws are for.
    """
    return np.random.default_rng(np.random.SeedSequence(rng.mix(seed, *words) & (2**64 - 1)))


def interval_of_mean(
    values: Sequence[float] | NDArray[np.floating],
    unit: str,
    *,
    seed: int,
    scale: float = 1.0,
    level: float = 0.95,
    draws: int = 1000,
) -> Interval:
    """Return the interval of a mean over units: draw units with replacement, take the mean.

    Args:
        values: One number per unit, (U,), all finite; what was left out of the score is left out here.
        unit: Name of the unit.
        seed: Of the draws.
        scale: The score is the mean times this.
        level: Share of draws between the bounds.
        draws: Number of draws.

    Raises:
        DataError: If there is no unit, or a value is not finite.
    """
    numbers = np.sort(np.asarray(values, np.float64).ravel())  # the order of units must not matter
    if not len(numbers) or not np.isfinite(numbers).all():
        raise DataError(f"an interval over {unit} needs finite values of at least one {unit}, not {len(numbers)}.")
    random = generator(seed, "bootstrap", unit, len(numbers))
    means = np.empty(draws)
    step = max(1, _BLOCK // len(numbers))
    for begin in range(0, draws, step):
        count = min(step, draws - begin)
        means[begin : begin + count] = numbers[random.integers(0, len(numbers), (count, len(numbers)))].mean(1)
    low, high = np.quantile(means * scale, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), unit, len(numbers), level, draws)


def interval(
    statistic: Callable[[NDArray[np.int64]], float],
    n_units: int,
    unit: str,
    *,
    seed: int,
    level: float = 0.95,
    draws: int = 200,
) -> Interval:
    """Return the interval of any statistic of units: draw their numbers with replacement, compute it.

    A draw for which the statistic is not finite (a class is missing) is left out; at least half must remain.

    Args:
        statistic: Takes the numbers of the drawn units, (U,), with repetition.
        n_units: U.
        unit: Name of the unit.
        seed: Of the draws.
        level: Share of draws between the bounds.
        draws: Number of draws.

    Raises:
        DataError: If there is no unit, or most draws give no number.
    """
    if n_units < 1:
        raise DataError(f"an interval over {unit} needs at least one {unit}.")
    random = generator(seed, "bootstrap", unit, n_units)
    found = np.asarray([statistic(random.integers(0, n_units, n_units)) for _ in range(draws)], np.float64)
    good = found[np.isfinite(found)]
    if len(good) < draws / 2:
        raise DataError(f"of {draws} draws of {n_units} {unit}s, {draws - len(good)} give no score; there are too few.")
    low, high = np.quantile(good, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), unit, n_units, level, len(good))


def rows_of_units(units: Sequence[Hashable] | NDArray[np.generic]) -> list[NDArray[np.int64]]:
    """Return the rows of every unit, units sorted by name, so that draws do not depend on the order of rows.

    Args:
        units: Name of the unit of every row, (R,).
    """
    codes = np.unique(np.asarray([str(unit) for unit in units]), return_inverse=True)[1].reshape(-1)
    order = np.argsort(codes, kind="stable")
    return list(np.split(order, np.flatnonzero(np.diff(codes[order])) + 1)) if len(codes) else []

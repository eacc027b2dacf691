"""How far two groups of wells are apart on the line between their means: Z', its moments, halves and shuffled groups.

Source: Zhang, Chung and Oldenburg 1999, J. Biomol. Screen. 4:67; Algorithm A of the Analytical Methods Committee 1989,
Analyst 114:1693, with the constants of GSK-AI/campfire at b034f8d.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.neighbours import Ints
from morphem.errors import DataError

FLOOR = -100.0
"""Z' of groups whose means fall together tends to minus infinity; all below this count as this."""
Doubles = NDArray[np.float64]
Moments = Callable[[Doubles], tuple[float, float]]


def projected(
    learn: Doubles, learn_target: NDArray[np.bool_], test: Doubles, test_target: NDArray[np.bool_]
) -> Doubles:
    """Return the place of wells on the line from the reference's mean (0) to the target's mean (1), (T,).

    The line comes from the wells to learn from; the wells to test on are measured from their own reference's mean.

    Args:
        learn: (M, F).
        learn_target: Which are of the target group, (M,).
        test: (T, F).
        test_target: Which are of the target group, (T,).
    """
    direction = learn[learn_target].mean(0) - learn[~learn_target].mean(0)
    length = float(direction @ direction)
    return np.asarray((test - test[~test_target].mean(0)) @ direction / (length if length > 0 else 1.0), np.float64)


def z_prime(places: Doubles, is_target: NDArray[np.bool_], moments: Moments) -> float:
    """Return 1 - 3 (deviation of reference + deviation of target) / gap of means; at least `FLOOR`.

    Args:
        places: On the line, (R,).
        is_target: (R,).
        moments: Gives mean and deviation.
    """
    (mean_r, deviation_r), (mean_t, deviation_t) = moments(places[~is_target]), moments(places[is_target])
    gap, spread = abs(mean_r - mean_t), 3 * (deviation_r + deviation_t)
    if gap <= 1e-12:
        return FLOOR
    return max(FLOOR, 1 - spread / gap)


def plain_moments(values: Doubles) -> tuple[float, float]:
    """Return mean and deviation (n - 1)."""
    return float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0


def robust_moments(values: Doubles, tolerance: float = 1e-4, max_rounds: int = 1000) -> tuple[float, float]:
    """Return mean and deviation after winsorising at 1.5 deviations until they stand still.

    Each round clips values to mean +- 1.5 sqrt((n - 1) / n) deviation, and divides the variance of what comes out by
    0.778, which makes up for the clipping of a normal distribution. It starts from the median and 1.4826 times the
    median absolute deviation.

    Args:
        values: (R,).
        tolerance: Change of mean and deviation, relative to the deviation, at which it stops.
        max_rounds: At most.
    """
    mean = float(np.median(values))
    deviation = 1.4826 * float(np.median(np.abs(values - mean))) or plain_moments(values)[1]
    for _ in range(max_rounds):
        if deviation == 0:
            break
        reach = 1.5 * np.sqrt((len(values) - 1) / len(values)) * deviation
        clipped = np.clip(values, mean - reach, mean + reach)
        new_mean, new_deviation = float(clipped.mean()), float(np.sqrt(clipped.var(ddof=1) / 0.778))
        moved = max(abs(new_mean - mean), abs(new_deviation - deviation)) / deviation
        mean, deviation = new_mean, new_deviation
        if moved < tolerance:
            break
    return mean, deviation


def halves_of_units(is_target: NDArray[np.bool_], units: Ints, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return which half every well is in, (R,): units stay whole, and each group's are divided evenly.

    A unit that holds wells of both groups is on one side for both.

    Args:
        is_target: (R,).
        units: (R,).
        random: Draws.

    Raises:
        DataError: If no division leaves both groups on both sides.
    """
    for _ in range(100):
        side = _draw_sides(is_target, units, random)
        half = np.asarray([side[int(unit)] for unit in units], bool)
        if all(len(set(half[is_target == group])) == 2 for group in (False, True)):
            return half
    raise DataError(
        "z_prime: no division of the plates leaves wells of both groups on both sides; add plates, or take "
        "halves='wells'."
    )


def _draw_sides(is_target: NDArray[np.bool_], units: Ints, random: np.random.Generator) -> dict[int, bool]:
    side: dict[int, bool] = {}
    for group in (False, True):
        own = np.unique(units[is_target == group])
        open_units = [int(unit) for unit in random.permutation(own) if int(unit) not in side]
        taken = sum(side[int(unit)] for unit in own if int(unit) in side)
        wanted = max(0, len(own) // 2 - taken)
        side |= {unit: i < wanted for i, unit in enumerate(open_units)}
    return side


def shuffled(is_target: NDArray[np.bool_], units: Ints, random: np.random.Generator) -> NDArray[np.bool_]:
    """Return shuffled groups: within units that hold wells of both groups, or over all wells where none does.

    Args:
        is_target: (R,).
        units: (R,).
        random: Draws.
    """
    result = is_target.copy()
    mixed = [unit for unit in np.unique(units) if len(set(is_target[units == unit])) == 2]
    for rows in [np.flatnonzero(units == unit) for unit in mixed] or [np.arange(len(units))]:
        result[rows] = random.permutation(result[rows])
    return result

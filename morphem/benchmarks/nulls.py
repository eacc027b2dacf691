"""The null of average precision, p-values against it, and their correction for many tests.

The null of a row with m positives among n candidates is average precision of random rankings. A group's null is the
mean of its rows' nulls, draw by draw; rows of one (m, n) share their draws, so averaging does not narrow it (a
conservative test, as copairs makes it). Draws depend on (seed, m, n) alone: not on what else is scored, nor on what was
scored before.

Source: copairs 0.5.5, https://github.com/cytomining/copairs (rule and formula); Benjamini and Hochberg 1995.
"""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.bootstrap import generator

_BLOCK = 2**22  # drawn numbers that are held at once
_TIE = 1e-9


class Nulls:
    """Draws of the null by (positives, candidates), made when first asked for.

    Args:
        size: Draws, at least 1.
        seed: Of the draws.
    """

    def __init__(self, size: int, seed: int) -> None:
        self.size = size
        self.seed = seed
        self._drawn: dict[tuple[int, int], NDArray[np.float32]] = {}

    def draws(self, positives: int, total: int) -> NDArray[np.float32]:
        """Return average precision of random rankings, (size,).

        Args:
            positives: m, from 1 to n.
            total: n.
        """
        found = self._drawn.get((positives, total))
        if found is None:
            random = generator(self.seed, "null", positives, total)
            found = self._drawn[positives, total] = _random_precision(random, self.size, positives, total)
        return found

    def of_group(self, configurations: Iterable[tuple[int, int]]) -> NDArray[np.float64]:
        """Return the null of a mean over rows, (size,).

        Args:
            configurations: (m, n) of every row.
        """
        rows = list(configurations)
        result = np.zeros(self.size)
        for positives, total in sorted(set(rows)):
            result += self.draws(positives, total) * np.float64(rows.count((positives, total)))
        return result / len(rows)

    def p_value(self, value: float, configurations: Iterable[tuple[int, int]], *, count_ties: bool = True) -> float:
        """Return (1 + number of draws at or above the value) / (1 + draws).

        Args:
            value: A mean of average precisions.
            configurations: (m, n) of every row.
            count_ties: False: only draws strictly above count, as copairs does.
        """
        null = self.of_group(configurations)
        above = int((null >= value - _TIE).sum() if count_ties else (null > value + _TIE).sum())
        return (1 + above) / (1 + self.size)


def _random_precision(random: np.random.Generator, size: int, positives: int, total: int) -> NDArray[np.float32]:
    result = np.empty(size, np.float32)
    step = max(1, _BLOCK // total)
    found = np.arange(1, positives + 1)
    for begin in range(0, size, step):
        count = min(step, size - begin)
        ranks = _random_ranks(random, count, positives, total)  # (count, m), rising
        result[begin : begin + count] = (found / (ranks + 1)).mean(1)
    return result


def _random_ranks(random: np.random.Generator, count: int, positives: int, total: int) -> NDArray[np.int64]:
    """Return for each draw the sorted places, from 0, of m positives among n, (count, m)."""
    if 2 * positives > total:  # easier to draw those that are not
        rest = _random_ranks(random, count, total - positives, total)
        chosen = np.ones((count, total), bool)
        np.put_along_axis(chosen, rest, False, axis=1)
        return np.nonzero(chosen)[1].reshape(count, positives)
    ranks = np.sort(random.integers(0, total, (count, positives)), axis=1)
    if positives * positives > 6 * total:  # most draws would hold a place twice
        return np.sort(np.argpartition(random.random((count, total), np.float32), positives, axis=1)[:, :positives], 1)
    while True:
        again = np.flatnonzero((np.diff(ranks, axis=1) == 0).any(1))
        if not len(again):
            return ranks
        ranks[again] = np.sort(random.integers(0, total, (len(again), positives)), axis=1)


def benjamini_hochberg(p_values: NDArray[np.floating]) -> NDArray[np.float64]:
    """Return p-values corrected for the false discovery rate, in the order given.

    Args:
        p_values: Of all tests, (T,).
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    scaled = p[order] * len(p) / np.arange(1, len(p) + 1)
    result = np.empty_like(p)
    result[order] = np.minimum(np.minimum.accumulate(scaled[::-1])[::-1], 1.0)
    return result

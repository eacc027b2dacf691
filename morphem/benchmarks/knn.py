"""Exact nearest neighbours by blocked matrix products, with rules about who may be whose neighbour.

Products are in float32, over half the table where a table is searched in itself; every query whose best two candidates
lie within the rounding of float32 is compared again in float64, so that the answer is that of exact arithmetic, with
ties to the lower row.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.neighbours import Exclusion, Ints, clause_codes, codes, excluded
from morphem.benchmarks.retrieval import unit_rows
from morphem.errors import ConfigError, unknown_name

Metric = Literal["l2", "cosine", "correlation"]
METRICS = ("l2", "cosine", "correlation")
_BLOCK = 2048  # rows per side of a block: 16 MB of products, and long enough for the matrix product to be fast
_DECIMALS = 12  # equal rows may differ after that
_EPSILON = float(np.finfo(np.float32).eps)

Floats32 = NDArray[np.float32]


class Nearest(NamedTuple):
    """The nearest allowed row of every query.

    Attributes:
        row: Of the reference, (Q,); -1 where no row is allowed.
        distance: Its distance (squared for `l2`; 1 - similarity for the others), (Q,), float64; infinity where none.
    """

    row: Ints
    distance: NDArray[np.float64]


def nearest(
    queries: NDArray[np.floating[Any]],
    reference: NDArray[np.floating[Any]],
    *,
    metric: Metric = "l2",
    query_codes: Ints | None = None,
    reference_codes: Ints | None = None,
) -> Nearest:
    """Find the nearest allowed row of a reference for every query.

    Args:
        queries: (Q, F), finite.
        reference: (R, F), finite.
        metric: `l2`, `cosine` or `correlation`.
        query_codes: (K, Q); a reference row is not allowed where any of its K codes is the query's. See
            `morphem.benchmarks.neighbours.clause_codes`.
        reference_codes: (K, R), numbered together with those of the queries.
    """
    search = _Search(reference, metric, reference_codes)
    asked = search.prepare(queries)
    none = np.zeros((0, len(asked)), np.int64)
    own = none if query_codes is None else query_codes
    best = _Best(len(asked))
    for begin in range(0, len(asked), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        for start in range(0, len(search.rows), _BLOCK):
            columns = slice(start, start + _BLOCK)
            best.update(rows, columns, search.scores(asked[rows], own[:, rows], columns))
    return search.settle(queries, asked, own, best)


def nearest_within(values: NDArray[np.floating[Any]], *, metric: Metric = "l2", exclude: Ints | None = None) -> Nearest:
    """Find the nearest allowed other row for every row of one table; half the products of `nearest`.

    Args:
        values: (R, F), finite.
        metric: `l2`, `cosine` or `correlation`.
        exclude: Clause codes, (K, R); rows that share a code in any clause are not allowed for each other. The row
            itself never is.
    """
    rows_alone = np.arange(len(values), dtype=np.int64)[None]
    own = rows_alone if exclude is None else np.concatenate([exclude, rows_alone])
    search = _Search(values, metric, own)
    best = _Best(len(values))
    for begin in range(0, len(values), _BLOCK):
        rows = slice(begin, begin + _BLOCK)
        for start in range(begin, len(values), _BLOCK):
            columns = slice(start, start + _BLOCK)
            product = search.rows[rows] @ search.rows[columns].T
            banned = excluded(own[:, rows], own[:, columns])
            best.update(rows, columns, _without(product - search.half[columns], banned))
            if start > begin:
                best.update(columns, rows, _without(product.T - search.half[rows], banned.T))
    return search.settle(values, search.rows, own, best)


def _without(scores: Floats32, banned: NDArray[np.bool_]) -> Floats32:
    scores[banned] = -np.inf
    return scores


class _Best:
    """Highest and second highest score of every query so far."""

    def __init__(self, n_queries: int) -> None:
        self.index = np.full(n_queries, -1, np.int64)
        self.first = np.full(n_queries, -np.inf, np.float32)
        self.second = np.full(n_queries, -np.inf, np.float32)

    def update(self, rows: slice, columns: slice, scores: Floats32) -> None:
        """Take in the scores of some queries with some candidates, (q, c); they are overwritten."""
        place = scores.argmax(1)
        each = np.arange(len(place))
        top = scores[each, place]
        scores[each, place] = -np.inf
        runner_up = scores.max(1)
        first, second = self.first[rows], self.second[rows]
        better = top > first
        self.second[rows] = np.maximum(np.where(better, first, top), np.maximum(second, runner_up))
        self.index[rows] = np.where(better, place + columns.start, self.index[rows])
        self.first[rows] = np.where(better, top, first)


class _Search:
    """A reference in the form that products need: a query's score of a row rises as their distance falls."""

    def __init__(self, reference: NDArray[np.floating[Any]], metric: Metric, own_codes: Ints | None) -> None:
        if metric not in METRICS:
            raise ConfigError(unknown_name("distance", metric, METRICS))
        self.metric = metric
        self.reference = reference
        self.center = np.zeros(reference.shape[1], np.float32)
        if metric == "l2":  # distances do not change, products lose fewer digits
            self.center = reference.mean(0, dtype=np.float64).astype(np.float32)
        self.rows = self.prepare(reference)
        squares = np.einsum("rf,rf->r", self.rows, self.rows, dtype=np.float64)
        self.half = (squares / 2 if metric == "l2" else np.zeros(len(squares))).astype(np.float32)
        self.longest = float(np.sqrt(squares.max(initial=0.0)))
        self.codes = np.zeros((0, len(self.rows)), np.int64) if own_codes is None else own_codes

    def prepare(self, values: NDArray[np.floating[Any]]) -> Floats32:
        """Return rows as products take them, (R, F), float32."""
        if self.metric == "l2":
            return np.ascontiguousarray(values - self.center, np.float32)
        return unit_rows(values, self.metric).astype(np.float32)

    def scores(self, asked: Floats32, own: Ints, columns: slice) -> Floats32:
        """Return scores of some queries with some rows, (q, c); minus infinity where not allowed."""
        result = asked @ self.rows[columns].T
        result -= self.half[columns]
        return _without(result, excluded(own, self.codes[:, columns])) if len(own) else result

    def settle(self, queries: NDArray[np.floating[Any]], asked: Floats32, own: Ints, best: _Best) -> Nearest:
        """Decide in float64 where float32 cannot tell the two best candidates apart, and measure the distances."""
        lengths = np.sqrt(np.einsum("qf,qf->q", asked, asked, dtype=np.float64))
        slack = 4 * _EPSILON * np.sqrt(asked.shape[1]) * (lengths + self.longest) * self.longest
        close = np.flatnonzero((best.index >= 0) & (best.second >= best.first - slack))
        for begin in range(0, len(close), _BLOCK):
            part = close[begin : begin + _BLOCK]
            floor = best.first[part] - slack[part]
            best.index[part] = self._decide(queries[part], asked[part], own[:, part], floor)
        found = best.index >= 0
        distance = np.full(len(asked), np.inf)
        distance[found] = self._distance(queries[found], best.index[found])
        return Nearest(best.index, distance)

    def _decide(
        self, queries: NDArray[np.floating[Any]], asked: Floats32, own: Ints, floor: NDArray[np.float64]
    ) -> Ints:
        """Compare all candidates with a score above the floor exactly; ties go to the lower row."""
        lowest = np.full(len(queries), np.inf)
        index = np.full(len(queries), -1, np.int64)
        for start in range(0, len(self.rows), _BLOCK):
            which, place = np.nonzero(self.scores(asked, own, slice(start, start + _BLOCK)) >= floor[:, None])
            distance = self._distance(queries[which], place + start)
            for query, row, value in zip(which, place + start, distance, strict=True):
                if value < lowest[query]:  # rows come in rising order, so the lower one of a tie stays
                    lowest[query], index[query] = value, row
        return index

    def _distance(self, queries: NDArray[np.floating[Any]], rows: Ints) -> NDArray[np.float64]:
        """Return the distance of each query to the row of its own, from the features as they came."""
        result = np.empty(len(rows))
        for begin in range(0, len(rows), _BLOCK):
            part = slice(begin, begin + _BLOCK)
            mine, theirs = queries[part].astype(np.float64), self.reference[rows[part]].astype(np.float64)
            if self.metric == "l2":
                result[part] = np.square(mine - theirs).sum(1)
            else:
                mine, theirs = unit_rows(mine, self.metric), unit_rows(theirs, self.metric)
                result[part] = np.round(1 - np.einsum("qf,qf->q", mine, theirs), _DECIMALS)
        return result


def nearest_by_rule(
    values: NDArray[np.floating[Any]],
    rule: Exclusion,
    columns: "dict[str, Sequence[Any] | NDArray[Any]]",
    *,
    metric: Metric = "cosine",
) -> Nearest:
    """Find the nearest row that a neighbour rule allows, for every row of a table.

    Args:
        values: (R, F), finite.
        rule: Of `morphem.benchmarks.neighbours`.
        columns: Values by role, R each.
        metric: `l2`, `cosine` or `correlation`.
    """
    return nearest_within(values, metric=metric, exclude=clause_codes(rule, columns) if rule.clauses else None)


def leave_one_group_out(
    values: NDArray[np.floating[Any]],
    groups: Sequence[Any] | NDArray[Any],
    *,
    always: NDArray[np.floating[Any]] | None = None,
    metric: Metric = "l2",
) -> Nearest:
    """Find for every row the nearest row of another group, or of a reference that always counts.

    Args:
        values: (R, F), finite.
        groups: Of the R rows.
        always: Reference rows of no group, (M, F).
        metric: `l2`, `cosine` or `correlation`.

    Returns:
        Rows of `always` first, then of `values`: index i < M is reference row i, else row i - M of `values`.
    """
    among = nearest_within(values, metric=metric, exclude=codes(groups)[None])
    if always is None or not len(always):
        return among
    outside = nearest(values, always, metric=metric)
    row = np.where(among.row >= 0, among.row + len(always), -1)
    closer = outside.distance <= among.distance
    return Nearest(np.where(closer, outside.row, row), np.where(closer, outside.distance, among.distance))


def vote(
    queries: NDArray[np.floating[Any]],
    reference: NDArray[np.floating[Any]],
    classes: Ints,
    *,
    k: int,
    metric: Metric = "cosine",
) -> Ints:
    """Predict the class that most of the k nearest rows have; of several, that of the nearest row, (Q,).

    Args:
        queries: (Q, F), finite.
        reference: (R, F), finite.
        classes: Of the reference, (R,), 0 to K - 1.
        k: At least 1; all rows where there are fewer.
        metric: `l2`, `cosine` or `correlation`.

    Raises:
        ConfigError: If k is below 1.
    """
    if k < 1:
        raise ConfigError(f"k={k} neighbours has to be at least 1.")
    if k == 1:
        return np.asarray(classes)[nearest(queries, reference, metric=metric).row]
    search = _Search(reference, metric, None)
    asked = search.prepare(queries)
    k = min(k, len(reference))
    none = np.zeros((0, 0), np.int64)
    predicted = np.empty(len(asked), np.int64)
    step = max(1, 2**25 // len(reference))
    for begin in range(0, len(asked), step):
        rows = asked[begin : begin + step]
        scores = search.scores(rows, none, slice(0, len(reference)))
        place = np.argpartition(-scores, k - 1, axis=1)[:, :k]
        order = np.lexsort((place, -np.take_along_axis(scores, place, 1)), axis=1)
        ranked = np.asarray(classes)[np.take_along_axis(place, order, 1)]  # (q, k), nearest first
        votes = (ranked[:, :, None] == ranked[:, None, :]).sum(2)
        predicted[begin : begin + step] = ranked[np.arange(len(rows)), votes.argmax(1)]
    return predicted

"""Exact nearest neighbours by blocked matrix products, with rules about who may be whose neighbour.

Products are in float32, over half the table where a table is searched in itself. Large tables of features whose
variance lies in few directions are first compared in those, which bounds every distance; only pairs that the bound
leaves are compared in full (`screen.py`). Every query whose best two candidates lie within the rounding of float32 is
compared again in float64, so that the answer is that of exact arithmetic, with ties to the lower row.
"""

import copy
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.neighbours import Exclusion, Ints, clause_codes, codes
from morphem.benchmarks.retrieval import unit_rows
from morphem.benchmarks.screen import fit_screen
from morphem.errors import ConfigError, unknown_name

Metric = Literal["l2", "cosine", "correlation"]
METRICS = ("l2", "cosine", "correlation")
_SCREEN_PAIRS = 2**26  # fewer are compared at once in full
_GUESS_STEP = 8  # of so many rows one is looked at first
_PAIR_COST = 48  # a single pair costs as much as this many in a matrix product
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
    own = np.zeros((0, len(asked)), np.int64) if query_codes is None else query_codes
    return search.settle(queries, asked, own, _find(search, asked, own, within=False))


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
    return search.settle(values, search.rows, own, _find(search, search.rows, own, within=True))


def _find(search: "_Search", asked: Floats32, own: Ints, *, within: bool) -> "_Best":
    """Return the best rows, through a screen of few dimensions where that pays."""
    screen = fit_screen(search.rows, asked, search.half) if len(asked) * len(search.rows) >= _SCREEN_PAIRS else None
    best = _Best(search.slack(asked))
    if screen is None:
        for rows, columns, scores in search.every(asked, own, within):
            best.update(rows, columns, scores)
        return best
    small = search.like(screen(search.rows))
    few = screen(asked)
    some = np.arange(0, len(search.rows), _GUESS_STEP)  # near enough rows to make the bound bite
    guess = _Best(best.slack.astype(np.float64))
    for rows, columns, scores in small.of(some).every(few, own, within=False):
        guess.update(rows, columns, scores)
    known = np.flatnonzero(guess.index >= 0)
    near = some[guess.index[known]]
    best.offer(known, near, search.score_pairs(asked, known, near))
    bar = best.first - 2 * best.slack
    for rows, columns, scores in small.every(few, own, within):
        query, row = _at_least(scores, bar[rows])
        if len(query) * _PAIR_COST > scores.size:
            best.update(rows, columns, search.scores(asked[rows], own[:, rows], columns))
        elif len(query):
            query, row = query + rows.start, row + columns.start
            best.offer(query, row, search.score_pairs(asked, query, row))
    return best


def _at_least(scores: Floats32, bar: Floats32) -> tuple[Ints, Ints]:
    """Return the places of scores at or above the bar of their row, in the order in which they lie in memory."""
    above = scores >= bar[:, None]
    if above.flags.c_contiguous:
        query, row = np.nonzero(above)
    else:
        row, query = np.nonzero(above.T)
    return query, row


def _blocks(count: int, first: int = 0) -> Iterator[slice]:
    for begin in range(first, count, _BLOCK):
        yield slice(begin, min(begin + _BLOCK, count))


class _Best:
    """Highest and second highest score of every query so far.

    Args:
        slack: Differences in score that float32 cannot tell, (Q,).
    """

    def __init__(self, slack: NDArray[np.float64]) -> None:
        self.slack: Floats32 = slack.astype(np.float32)
        self.index = np.full(len(slack), -1, np.int64)
        self.first = np.full(len(slack), -np.inf, np.float32)
        self.second = np.full(len(slack), -np.inf, np.float32)

    def update(self, rows: slice, columns: slice, scores: Floats32) -> None:
        """Take in the scores of some queries with some candidates, (q, c).

        Most blocks change nothing for most queries, so the places of maxima are looked up only where they could.
        """
        top = scores.max(1)
        hot = np.flatnonzero((top >= self.first[rows] - self.slack[rows]) & (top > -np.inf))
        if not len(hot):
            return
        held = scores[hot]
        each = np.arange(len(hot))
        place = held.argmax(1)
        high = held[each, place]
        held[each, place] = -np.inf
        queries = hot + rows.start
        first, second = self.first[queries], np.maximum(self.second[queries], held.max(1))
        better = high > first
        self.second[queries] = np.maximum(second, np.where(better, first, high))
        self.index[queries] = np.where(better, place + columns.start, self.index[queries])
        self.first[queries] = np.where(better, high, first)

    def offer(self, queries: Ints, rows: Ints, scores: Floats32) -> None:
        """Take in the scores of some pairs; a pair that is held already changes nothing.

        Args:
            queries: Of P pairs.
            rows: Of P pairs.
            scores: Of P pairs.
        """
        new = rows != self.index[queries]
        queries, rows, scores = queries[new], rows[new], scores[new]
        order = np.lexsort((rows, -scores, queries))
        queries, rows, scores = queries[order], rows[order], scores[order]
        begins = np.flatnonzero(np.diff(queries, prepend=-1))
        asking, top = queries[begins], scores[begins]
        after = np.minimum(begins + 1, len(queries) - 1)
        has_two = (after > begins) & (queries[after] == asking) if len(queries) else np.zeros(0, bool)
        runner_up = np.where(has_two, scores[after], -np.inf) if len(queries) else top
        first, second = self.first[asking], np.maximum(self.second[asking], runner_up)
        better = top > first
        self.second[asking] = np.maximum(second, np.where(better, first, top))
        self.index[asking] = np.where(better, rows[begins], self.index[asking])
        self.first[asking] = np.where(better, top, first)


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

    def slack(self, asked: Floats32) -> NDArray[np.float64]:
        """Return the differences in score that float32 cannot tell, (Q,)."""
        lengths = np.sqrt(np.einsum("qf,qf->q", asked, asked, dtype=np.float64))
        return np.asarray(4 * _EPSILON * np.sqrt(asked.shape[1]) * (lengths + self.longest) * self.longest, np.float64)

    def scores(self, asked: Floats32, own: Ints, columns: slice) -> Floats32:
        """Return scores of some queries with some rows, (q, c); minus infinity where not allowed."""
        result = asked @ self.rows[columns].T
        result -= self.half[columns]
        for mine, theirs in zip(own, self.codes[:, columns], strict=True):
            _ban(result, mine, theirs)
        return np.asarray(result, np.float32)

    def every(self, asked: Floats32, own: Ints, within: bool) -> Iterator[tuple[slice, slice, Floats32]]:
        """Yield queries, rows and their scores, block by block; a block that is yielded may be overwritten.

        Args:
            asked: Queries.
            own: Their codes.
            within: The queries are the rows, so that one product serves both sides.
        """
        for rows in _blocks(len(asked)):
            for columns in _blocks(len(self.rows), rows.start if within else 0):
                scores = self.scores(asked[rows], own[:, rows], columns)
                yield rows, columns, scores
                if within and columns.start > rows.start:
                    scores -= self.half[rows, None]  # now half the negative distance, but for what each query adds
                    scores += self.half[columns]
                    yield columns, rows, scores.T

    def like(self, rows: Floats32) -> "_Search":
        """Return the same search over other coordinates of the same rows."""
        other = copy.copy(self)
        other.rows = rows
        return other

    def of(self, some: Ints) -> "_Search":
        """Return the same search over some of the rows, numbered anew."""
        other = self.like(self.rows[some])
        other.half, other.codes = self.half[some], self.codes[:, some]
        return other

    def score_pairs(self, asked: Floats32, queries: Ints, rows: Ints) -> Floats32:
        """Return the scores of single pairs, (P,)."""
        result = np.empty(len(rows), np.float32)
        for part in _blocks(len(rows)):
            mine, theirs = asked[queries[part]], self.rows[rows[part]]
            result[part] = np.einsum("pf,pf->p", mine, theirs) - self.half[rows[part]]
        return result

    def settle(self, queries: NDArray[np.floating[Any]], asked: Floats32, own: Ints, best: _Best) -> Nearest:
        """Decide in float64 where float32 cannot tell the two best candidates apart, and measure the distances."""
        close = np.flatnonzero((best.index >= 0) & (best.second >= best.first - best.slack))
        for part in np.array_split(close, max(1, -(-len(close) // _BLOCK))):
            floor = best.first[part] - best.slack[part]
            best.index[part] = self._decide(queries[part], asked[part], own[:, part], floor)
        found = best.index >= 0
        distance = np.full(len(asked), np.inf)
        distance[found] = self._distance(queries[found], best.index[found])
        return Nearest(best.index, distance)

    def _decide(
        self, queries: NDArray[np.floating[Any]], asked: Floats32, own: Ints, floor: NDArray[np.floating[Any]]
    ) -> Ints:
        """Compare all candidates with a score above the floor exactly; ties go to the lower row."""
        lowest = np.full(len(queries), np.inf)
        index = np.full(len(queries), -1, np.int64)
        for columns in _blocks(len(self.rows)):
            which, place = np.nonzero(self.scores(asked, own, columns) >= floor[:, None])
            distance = self._distance(queries[which], place + columns.start)
            for query, row, value in zip(which, place + columns.start, distance, strict=True):
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


def _ban(scores: Floats32, mine: Ints, theirs: Ints) -> None:
    """Set scores to minus infinity where a query's code is a candidate's."""
    shared = np.intersect1d(mine, theirs)
    if len(shared) * 4 > len(mine):  # many codes with few rows each
        order = np.argsort(theirs, kind="stable")
        begin, end = (np.searchsorted(theirs[order], mine, side) for side in ("left", "right"))
        counts = end - begin
        rows = np.repeat(np.arange(len(mine)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        scores[rows, order[np.repeat(begin, counts) + within]] = -np.inf
        return
    for code in shared:
        scores[np.ix_(mine == code, theirs == code)] = -np.inf


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

"""Retrieval: how far up in a ranking by similarity a row finds its own kind; mean average precision with p-values.

Pairs are told in the words of copairs: two rows are a positive pair if they agree in all `pos_sameby` columns and
differ in all `pos_diffby` columns, a negative pair by the same rule for `neg_...`. Similarities are computed in blocks
within the groups that `neg_sameby` allows, so negatives within a plate cost rows x wells of a plate; unrestricted ones
grow with the square of the rows and are refused past a limit.

Ties are taken together, as scikit-learn does: the order of rows does not matter, and rows that all look the same score
the share of positives.

Source: copairs 0.5.5, https://github.com/cytomining/copairs (definitions); Kalinin et al. 2025, Nature Communications.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.neighbours import Ints, codes
from morphem.benchmarks.nulls import Nulls, benjamini_hochberg
from morphem.errors import ConfigError, DataError, unknown_name

Metric = Literal["cosine", "correlation"]
PAIR_LIMIT = 2 * 10**10
_BLOCK_PAIRS = 2**22  # similarities that are held at once, 8 bytes each
_PAIRS_PER_SECOND = 2.5e7  # compared, sorted and counted by one core, at a thousand features; measured
_DECIMALS = 12  # products of the same rows in blocks of other sizes differ after that


class NothingToRetrieveError(DataError):
    """No query has both positives and negatives."""


@dataclass(frozen=True)
class PairRule:
    """Which pairs of rows are positive and which are negative; columns are named as in the table.

    Attributes:
        pos_sameby: Columns in which a positive pair agrees, at least one.
        pos_diffby: Columns in which a positive pair differs, in all of them.
        neg_sameby: Columns in which a negative pair agrees; none: candidates are not restricted.
        neg_diffby: Columns in which a negative pair differs, in all of them, at least one.
    """

    pos_sameby: tuple[str, ...]
    pos_diffby: tuple[str, ...] = ()
    neg_sameby: tuple[str, ...] = ()
    neg_diffby: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a rule that pairs everything."""
        if not self.pos_sameby or not self.neg_diffby:
            raise ConfigError("a pair rule needs columns in pos_sameby and in neg_diffby.")

    def words(self) -> str:
        """Return the negatives in one sentence, for `Score.rules`."""
        place = f"of the same {_listed(self.neg_sameby)}" if self.neg_sameby else "of all rows"
        return f"rows {place} with another {_listed(self.neg_diffby)}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(name.removeprefix("Metadata_") for name in names)


@dataclass(frozen=True)
class Cost:
    """What a retrieval will take.

    Attributes:
        pairs: Similarities of queries with candidates for negatives.
        seconds: Expected time, one core.
        peak_bytes: Expected memory beyond the table.
    """

    pairs: int
    seconds: float
    peak_bytes: int

    def __str__(self) -> str:
        return f"{self.pairs:.3g} similarities, about {self.seconds:.0f} s and {self.peak_bytes / 2**30:.1f} GiB"


def predict_cost(
    metadata: pd.DataFrame, rule: PairRule, n_features: int, queries: NDArray[np.bool_] | None = None
) -> Cost:
    """Predict what `average_precision` will take.

    Args:
        metadata: R rows with the rule's columns.
        rule: The rule.
        n_features: F.
        queries: Rows that ask, (R,); all where not given.
    """
    group = _joint_codes(metadata, rule.neg_sameby)
    asking = np.ones(len(group), bool) if queries is None else queries
    pairs = int((np.bincount(group, minlength=1) * np.bincount(group[asking], minlength=int(group.max()) + 1)).sum())
    seconds = pairs / _PAIRS_PER_SECOND * max(0.3, n_features / 1000)
    return Cost(pairs, seconds, 8 * len(metadata) * n_features + 40 * min(pairs, _BLOCK_PAIRS))


def _joint_codes(metadata: pd.DataFrame, columns: Sequence[str]) -> Ints:
    """Number the combinations of some columns, (R,); all 0 for none."""
    lost = [name for name in columns if name not in metadata]
    if lost:
        raise DataError(unknown_name("metadata column", lost[0], map(str, metadata.columns)))
    if not columns:
        return np.zeros(len(metadata), np.int64)
    return codes(list(zip(*(metadata[name].astype(str) for name in columns), strict=True)))


def unit_rows(values: NDArray[np.floating], metric: Metric = "cosine") -> NDArray[np.float64]:
    """Return rows whose dot products are the similarities, (R, F), float64.

    Args:
        values: (R, F).
        metric: `cosine`, or `correlation` (cosine of rows minus their mean).

    Raises:
        ConfigError: If there is no such metric.
        DataError: If a row has no direction.
    """
    if metric not in ("cosine", "correlation"):
        raise ConfigError(unknown_name("similarity", metric, ("cosine", "correlation")))
    rows = np.asarray(values, np.float64)
    rows = rows - rows.mean(1, keepdims=True) if metric == "correlation" else rows
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    flat = ~(norms[:, 0] > 0)
    if flat.any():
        raise DataError(
            f"{int(flat.sum())} rows (first: row {int(np.argmax(flat))}) have no direction (all features "
            f"{'equal' if metric == 'correlation' else 'zero'}), so their {metric} is undefined; drop them."
        )
    return np.asarray(rows / norms, np.float64)


def average_precision(
    values: NDArray[np.floating],
    metadata: pd.DataFrame,
    rule: PairRule,
    *,
    queries: NDArray[np.bool_] | None = None,
    metric: Metric = "cosine",
    pair_limit: int = PAIR_LIMIT,
) -> pd.DataFrame:
    """Return average precision of every query.

    Args:
        values: Features, (R, F), finite.
        metadata: R rows.
        rule: Which pairs count.
        queries: Rows that ask, (R,); all where not given.
        metric: `cosine` or `correlation`.
        pair_limit: Largest number of similarities.

    Returns:
        One row per query, in order: `row` (its number), `average_precision` (NaN where it has no positive or no
        negative), `n_pos_pairs`, `n_total_pairs`.

    Raises:
        ConfigError: If there would be more similarities than the limit.
        DataError: If a column is missing or a row has no direction.
        NothingToRetrieveError: If no query has both positives and negatives.
    """
    asking = np.ones(len(metadata), bool) if queries is None else np.asarray(queries, bool)
    cost = predict_cost(metadata, rule, values.shape[1], asking)
    if cost.pairs > pair_limit:
        raise ConfigError(
            f"retrieval among {len(metadata)} rows with negatives {rule.words()} needs {cost}, more than the limit of "
            f"{pair_limit:.3g} similarities; restrict negatives to a plate, aggregate rows, or raise pair_limit."
        )
    unit = unit_rows(values, metric)
    ranker = _Ranker(unit, metadata, rule)
    found = np.full((len(metadata), 3), np.nan)
    for rows, candidates in ranker.blocks(asking):
        for row, result in zip(rows, ranker.rank(rows, candidates), strict=True):
            found[row] = result
    rows = np.flatnonzero(asking)
    table = pd.DataFrame(
        {
            "row": rows,
            "average_precision": found[rows, 0],
            "n_pos_pairs": found[rows, 1].astype(np.int64),
            "n_total_pairs": found[rows, 2].astype(np.int64),
        }
    )
    if not table["average_precision"].notna().any():
        raise NothingToRetrieveError(
            f"no row has both positives (another row of the same {_listed(rule.pos_sameby)}) and negatives "
            f"({rule.words()}); check these columns."
        )
    return table


class _Ranker:
    """Positives and negatives of rows, and where they stand."""

    def __init__(self, unit: NDArray[np.float64], metadata: pd.DataFrame, rule: PairRule) -> None:
        self.unit = unit
        self.positive = _joint_codes(metadata, rule.pos_sameby)
        self.place = _joint_codes(metadata, rule.neg_sameby)
        self.pos_differ = [_joint_codes(metadata, [name]) for name in rule.pos_diffby]
        self.neg_differ = [_joint_codes(metadata, [name]) for name in rule.neg_diffby]
        self.members = _members(self.positive)

    def blocks(self, asking: NDArray[np.bool_]) -> "list[tuple[Ints, Ints]]":
        """Return queries with the candidates for their negatives, in pieces that fit into memory."""
        pieces = []
        for candidates in _members(self.place):
            rows = candidates[asking[candidates]]
            step = max(1, _BLOCK_PAIRS // len(candidates))
            pieces += [(rows[begin : begin + step], candidates) for begin in range(0, len(rows), step)]
        return pieces

    def rank(self, rows: Ints, candidates: Ints) -> list[tuple[float, int, int]]:
        """Return average precision, positives and candidates of some queries."""
        negative = np.ones((len(rows), len(candidates)), bool)
        for code in self.neg_differ:
            negative &= code[rows][:, None] != code[candidates][None, :]
        kept = negative.any(0)  # DMSO wells among the wells of a plate: most candidates are nobody's negative
        candidates, negative = candidates[kept], negative[:, kept]
        similar = np.round(self.unit[rows] @ self.unit[candidates].T, _DECIMALS)
        return [
            precision_of(self._positives(row), similarity[mask])
            for row, similarity, mask in zip(rows, similar, negative, strict=True)
        ]

    def _positives(self, row: int) -> NDArray[np.float64]:
        members = self.members[self.positive[row]]
        keep = members != row
        for code in self.pos_differ:
            keep &= code[members] != code[row]
        return np.asarray(np.round(self.unit[members[keep]] @ self.unit[row], _DECIMALS), np.float64)


def _members(code: Ints) -> list[Ints]:
    """Return the rows of every code, 0 to the largest."""
    order = np.argsort(code, kind="stable")
    return list(np.split(order, np.cumsum(np.bincount(code))[:-1]))


def precision_of(positives: NDArray[np.float64], negatives: NDArray[np.float64]) -> tuple[float, int, int]:
    """Return average precision of one ranking, its positives and its candidates; NaN without either.

    Args:
        positives: Similarities of the positives.
        negatives: Similarities of the negatives.
    """
    n_pos, n_neg = len(positives), len(negatives)
    if not n_pos or not n_neg:
        return float("nan"), n_pos, n_pos + n_neg
    own = np.sort(positives)
    others = np.sort(negatives)
    hits = n_pos - np.searchsorted(own, own, side="left")  # positives at or above each positive
    misses = n_neg - np.searchsorted(others, own, side="left")
    return float((hits / (hits + misses)).mean()), n_pos, n_pos + n_neg


def multilabel_average_precision(
    values: NDArray[np.floating], labels: Sequence[Sequence[str]], *, metric: Metric = "cosine"
) -> pd.DataFrame:
    """Return average precision of every row for each of its labels.

    For label t and row i that has it: positives are the other rows that have t, negatives the rows that share no label
    with i; rows that share another label are neither.

    Args:
        values: (R, F), finite.
        labels: Of every row.
        metric: `cosine` or `correlation`.

    Returns:
        Columns `row`, `label`, `average_precision`, `n_pos_pairs`, `n_total_pairs`; labels of one row are left out.

    Raises:
        NothingToRetrieveError: If no label has two rows, or no row has negatives.
    """
    names = sorted({label for row in labels for label in row})
    number = {name: i for i, name in enumerate(names)}
    has = np.zeros((len(labels), len(names)), bool)
    for row, own in enumerate(labels):
        has[row, [number[label] for label in own]] = True
    unit = unit_rows(values, metric)
    counts = has.astype(np.float32)
    apart = (counts @ counts.T) == 0  # (R, R)
    results = []
    for row in map(int, np.flatnonzero((has & (has.sum(0) > 1)).any(1))):
        similar = np.round(unit @ unit[row], _DECIMALS)
        negatives = np.sort(similar[apart[row]])
        for label in np.flatnonzero(has[row] & (has.sum(0) > 1)):
            others = has[:, label].copy()
            others[row] = False
            results.append((row, names[label], *precision_of(similar[others], negatives)))
    columns = ["row", "label", "average_precision", "n_pos_pairs", "n_total_pairs"]
    table = pd.DataFrame(results, columns=columns)
    if table.empty or not table["average_precision"].notna().any():
        raise NothingToRetrieveError("no label has two rows that have negatives; there is nothing to retrieve.")
    return table


def mean_average_precision(
    table: pd.DataFrame,
    groups: Sequence[str] | NDArray[np.generic],
    nulls: Nulls,
    *,
    threshold: float = 0.05,
    count_ties: bool = True,
) -> pd.DataFrame:
    """Average over the rows of every group, and test each group against its null.

    Args:
        table: What `average_precision` gave.
        groups: Group of every row of the table.
        nulls: Draws of the null.
        threshold: A group is significant where its corrected p-value is below.
        count_ties: See `Nulls.p_value`.

    Returns:
        One row per group that has a defined row, sorted by name: `group`, `mean_average_precision`, `p_value`,
        `corrected_p_value` (Benjamini and Hochberg), `significant`, `n_rows`.
    """
    known = table["average_precision"].notna().to_numpy()
    names = np.asarray([str(group) for group in groups])[known]
    rows = table[known]
    precision = rows["average_precision"].to_numpy(np.float64)
    configurations = list(zip(rows["n_pos_pairs"].tolist(), rows["n_total_pairs"].tolist(), strict=True))
    results = []
    for name in np.unique(names):
        members = np.flatnonzero(names == name)
        value = float(np.sort(precision[members]).mean())
        p = nulls.p_value(value, [configurations[i] for i in members], count_ties=count_ties)
        results.append((str(name), value, p, len(members)))
    found = pd.DataFrame(results, columns=["group", "mean_average_precision", "p_value", "n_rows"])
    found["corrected_p_value"] = benjamini_hochberg(found["p_value"].to_numpy())
    found["significant"] = found["corrected_p_value"] < threshold
    return found


def p_value_rule(nulls: Nulls, threshold: float, count_ties: bool = True) -> str:
    """Return the rule in one sentence, for `Score.rules`."""
    above = "at or above" if count_ties else "strictly above"
    return (
        f"p = (1 + draws {above} the mAP) / (1 + {nulls.size}), draws of random rankings averaged over the rows of a "
        f"group; Benjamini-Hochberg over groups; significant below {threshold:g}"
    )

"""Batch and biology: how far profiles of several laboratories mix, and how far they still tell compounds apart.

Source: Arevalo et al. 2024, Nature Communications 15:6516 (the scores for profiles, scenario 2); Luecken et al. 2022,
Nature Methods 19:41 (scIB: definitions, weights 0.4 and 0.6); Korsunsky et al. 2019, Nature Methods 16:1289 (LISI);
Buettner et al. 2019, Nature Methods 16:43 (kBET).
Differs from scIB: neighbours are exact and Euclidean; kBET tests all rows together, not label by label, as its authors
did; clusters need the extra `leiden`, and the variant `without_clusters` does without.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.base import (
    Benchmark,
    Column,
    FeatureRecipe,
    Inputs,
    Part,
    PublishedRow,
    column,
    make_table,
    take,
    with_values,
)
from morphem.benchmarks.bootstrap import interval_of_mean
from morphem.benchmarks.checks import is_missing
from morphem.benchmarks.metrics import class_numbers
from morphem.benchmarks.neighbours import Ints
from morphem.benchmarks.score import Score
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

Correction = Literal["none", "standardize", "sphering", "combat", "harmony"]
_CORRECTIONS = ("none", "standardize", "sphering", "combat", "harmony")
_LABEL, _BATCH = "Metadata_label", "Metadata_Batch"
_BATCH_SCORES = ("graph_connectivity", "kbet", "ilisi", "silhouette_batch")
_BIOLOGY_SCORES = ("clisi", "silhouette_label", "leiden_ari", "leiden_nmi", "map")
_TABLE = "CHAMMI-75, appendix E"
RESOLUTIONS = tuple(round(0.1 * i, 1) for i in range(1, 21))
"""Resolutions of the clustering: 0.1 to 2, as scIB."""
Doubles = NDArray[np.float64]


class BatchBiology(Benchmark):
    """Batch and biology: is a profile like others of its compound, or like others of its laboratory?

    Args:
        variant: `scib` weighs the scores as scIB and Arevalo et al. do.
        seed: Of the bootstrap and of clustering.
        correction: What is done to profiles first: `none`, `standardize` (each batch), `sphering` (on controls),
            `combat`, or `harmony` (needs the extra); score the same table with several and compare.
        n_neighbors: Of the graph and of kBET, at least 2.
        perplexity: Of LISI, above 1; three times as many neighbours are looked at. Published: 30.
        resolutions: Of the clustering; the best ARI and NMI over them count, as scIB does.

    Raises:
        ConfigError: If a setting is none of its values or out of range.
    """

    protocol_version = 1
    title = "Batch mixing and biology of profiles, before and after batch correction"
    measures = (
        "The same compounds were screened in several batches or laboratories. Batch scores ask whether profiles of "
        "different batches mix: in the neighbourhood of a well all batches should turn up as often as overall. Biology "
        "scores ask whether wells of one compound still lie together: as clusters, as neighbours, in a ranking. A "
        "correction that erases everything mixes perfectly and has no biology, so both are read together."
    )
    reading = (
        "All scores lie between 0 and 1, and 1 is best. The overall score is 0.4 times the mean batch score plus 0.6 "
        "times the mean biology score; uncorrected profiles of three laboratories gave 0.48, the best correction "
        "0.61. A batch score near 1 beside a biology score near that of shuffled labels means that nothing is left."
    )
    source = "Arevalo et al. 2024, Nature Communications 15:6516; Luecken et al. 2022, Nature Methods 19:41"
    parts = (
        Part(
            "table",
            "one row per well",
            (
                Column(
                    _LABEL, "compound or other label", ("Metadata_Compound", "Metadata_broad_sample", "Metadata_Label")
                ),
                Column(_BATCH, "batch, laboratory or plate", ("Metadata_batch", "Metadata_Source", "Metadata_Plate")),
                Column(
                    "Metadata_Control",
                    "negcon for controls; they are left out of the scores",
                    ("Metadata_control_type",),
                    required=False,
                    missing_allowed=True,
                ),
            ),
            recipe=FeatureRecipe(unit="tile", tile_size_px=224, aggregate="well"),
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "overall": "0.4 times batch plus 0.6 times biology",
        "batch": "mean of the batch scores",
        "biology": "mean of the biology scores",
        "graph_connectivity": "mean over labels of the share of wells in the largest connected piece of their graph",
        "kbet": "share of wells whose neighbourhood has the batches of the whole table (chi-square test, 0.05)",
        "ilisi": "effective number of batches in a neighbourhood, scaled to 0 to 1; median over wells",
        "silhouette_batch": "1 minus the size of the silhouette of batches inside a label, mean over labels",
        "clisi": "1 minus the scaled effective number of labels in a neighbourhood; median over wells",
        "silhouette_label": "silhouette of labels, scaled to 0 to 1",
        "leiden_ari": "adjusted Rand index of Leiden clusters and labels, best resolution",
        "leiden_nmi": "normalised mutual information of Leiden clusters and labels, best resolution",
        "map": "mean average precision of wells of a label among all other wells, cosine",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "scib": "weights 0.4 and 0.6; clusters by Leiden (extra `leiden`); made the published numbers",
        "without_clusters": "as scib, without ARI and NMI of clusters, so biology and overall are other numbers",
    }
    published = (
        PublishedRow(
            "DINO-BoC (MorphEm), Seurat CCA",
            {"overall": 0.61, "batch": 0.66, "biology": 0.57},
            _TABLE,
            "302 compounds, three laboratories; Seurat is not among our corrections",
        ),
        PublishedRow(
            "DINO-BoC (MorphEm), uncorrected",
            {"overall": 0.48, "batch": 0.40, "biology": 0.54},
            _TABLE,
            "302 compounds, three laboratories",
        ),
    )
    interval_unit = ""
    no_interval = (
        "scores of graphs and clusters have no unit that could be drawn alone; map has an interval over labels"
    )
    biology = _LABEL
    tiny_finds = 0.7
    tiny_null = 0.65

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        correction: Correction = "none",
        n_neighbors: int = 15,
        perplexity: float = 30.0,
        resolutions: tuple[float, ...] = RESOLUTIONS,
    ) -> None:
        super().__init__(variant, seed)
        if correction not in _CORRECTIONS:
            raise ConfigError(f"batch_biology: correction='{correction}' is one of {', '.join(_CORRECTIONS)}.")
        if n_neighbors < 2 or not perplexity > 1 or not resolutions or not min(resolutions) > 0:
            raise ConfigError(
                f"batch_biology: n_neighbors={n_neighbors} is at least 2, perplexity={perplexity} above 1, and "
                f"resolutions={resolutions} are above 0."
            )
        self.correction = correction
        self.n_neighbors = n_neighbors
        self.perplexity = perplexity
        self.resolutions = tuple(resolutions)

    def adapt(self, inputs: Inputs) -> Inputs:
        """Correct the profiles, with controls where a correction learns from them."""
        return Inputs({"table": corrected(inputs.table, self.correction, self.seed)}, inputs.side)

    def score(self, inputs: Inputs) -> Score:
        """Compute every score that the table allows."""
        table = _without_controls(inputs.table)
        labels, label_names = class_numbers(column(table, _LABEL), "batch_biology, labels")
        batches, batch_names = class_numbers(column(table, _BATCH), "batch_biology, batches")
        n_rows = len(table)
        needed = max(self.n_neighbors, int(3 * self.perplexity))
        if n_rows <= self.n_neighbors + 1:
            raise DataError(f"batch_biology: {n_rows} wells are too few for {self.n_neighbors} neighbours of each.")
        values = table.values.astype(np.float64)
        index, distance = neighbours(values, min(needed, n_rows - 1))
        near = index[:, : self.n_neighbors]
        scores: dict[str, float] = {}
        missing: dict[str, str] = {}
        scores["graph_connectivity"] = graph_connectivity(near, labels)
        scores["kbet"] = kbet(near, batches)
        scores["ilisi"] = (float(np.median(lisi(index, distance, batches, self.perplexity))) - 1) / (
            len(batch_names) - 1
        )
        scores["clisi"] = 1 - (float(np.median(lisi(index, distance, labels, self.perplexity))) - 1) / (
            len(label_names) - 1
        )
        scores["silhouette_label"] = silhouette_label(values, labels)
        self._silhouette_batch(values, labels, batches, scores, missing)
        resolution = self._clusters(near, labels, scores, missing)
        average_precisions = _retrieval(values, labels)
        scores["map"] = float(np.mean(list(average_precisions.values())))
        for name, members in (("batch", _BATCH_SCORES), ("biology", _BIOLOGY_SCORES)):
            scores[name] = float(np.mean([scores[member] for member in members if member in scores]))
        scores["overall"] = 0.4 * scores["batch"] + 0.6 * scores["biology"]
        notes = tuple(f"{name} is not in the mean: {reason}" for name, reason in missing.items())
        return Score(
            values=scores,
            details={
                "clustering": resolution,
                "map_of_labels": {label_names[i]: v for i, v in average_precisions.items()},
            },
            intervals={"map": interval_of_mean(list(average_precisions.values()), "label", seed=self.seed)},
            rules={
                "correction": self.correction,
                "neighbours": f"{self.n_neighbors} nearest wells, Euclidean; LISI looks at {index.shape[1]}",
                "average": self.variants[self.variant],
                "p_value": "none",
                "negatives": "all wells of other labels, on all batches",
            },
            counts={
                "wells": n_rows,
                "controls_left_out": len(inputs.table) - n_rows,
                "labels": len(label_names),
                "batches": len(batch_names),
            },
            missing=missing,
            notes=notes,
        )

    def _silhouette_batch(
        self, values: Doubles, labels: Ints, batches: Ints, scores: dict[str, float], missing: dict[str, str]
    ) -> None:
        found = silhouette_batch(values, labels, batches)
        if found is None:
            missing["silhouette_batch"] = "no label has wells of two batches, and two of one"
        else:
            scores["silhouette_batch"] = found

    def _clusters(self, near: Ints, labels: Ints, scores: dict[str, float], missing: dict[str, str]) -> dict[str, Any]:
        """Add ARI and NMI of the best resolutions, or the reason for none; return which they were."""
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        if self.variant == "without_clusters":
            missing |= dict.fromkeys(("leiden_ari", "leiden_nmi"), "the variant without_clusters leaves it out")
            return {}
        clustering = leiden()
        found = {resolution: clustering(near, resolution, self.seed) for resolution in self.resolutions}
        result: dict[str, Any] = {}
        judges: dict[str, Callable[[Ints, Ints], float]] = {
            "leiden_ari": adjusted_rand_score,
            "leiden_nmi": normalized_mutual_info_score,
        }
        for name, judge in judges.items():
            by_resolution = {resolution: float(judge(labels, cluster)) for resolution, cluster in found.items()}
            best = max(by_resolution, key=lambda resolution: (by_resolution[resolution], -resolution))
            scores[name] = max(0.0, by_resolution[best])
            result[name] = {"resolution": best, "clusters": len(set(found[best].tolist()))}
        return result

    @classmethod
    def tiny_instance(cls) -> "BatchBiology":
        """Return the protocol for few rows."""
        return cls(n_neighbors=8, perplexity=5.0, resolutions=(0.5, 1.0, 2.0))

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Eight compounds in three laboratories, four wells in each; the effect is how much features tell compounds."""
        rows = [
            {_LABEL: f"compound{i}", _BATCH: f"laboratory{j}", "Metadata_Control": "trt"}
            for i in range(8)
            for j in range(3)
            for _ in range(4)
        ]
        metadata = pd.DataFrame(rows)
        values = planted(
            list(metadata[_LABEL]), seed=seed, effect=effect, batches=list(metadata[_BATCH]), batch_effect=0.1
        )
        return Inputs({"table": make_table(values, metadata)})


def corrected(table: FeatureTable, correction: str, seed: int) -> FeatureTable:
    """Return a table with batches corrected by a step of `morphem.profiles`.

    Args:
        table: With the canonical columns.
        correction: See `BatchBiology`.
        seed: Of corrections that draw.

    Raises:
        ConfigError: If an extra is missing.
        DataError: If a correction needs controls and there are none.
    """
    from morphem import profiles

    if correction == "none":
        return table
    if correction == "standardize":
        return profiles.Standardize(per=(_BATCH,))(table)
    if correction == "combat":
        return profiles.Combat(batch=(_BATCH,))(table)
    if correction == "harmony":
        return profiles.Harmony(batch=(_BATCH,))(table)
    if not _controls(table).any():
        raise DataError("batch_biology: correction='sphering' learns from controls, but no row says negcon.")
    names = sorted({str(value) for value in column(table, "Metadata_Control")[_controls(table)]})
    return profiles.Sphere(samples=f"Metadata_Control in {names!r}")(table)


def neighbours(values: Doubles, count: int) -> tuple[Ints, Doubles]:
    """Return the nearest other rows of every row and their distances, nearest first, (R, count) each.

    Args:
        values: (R, F).
        count: Below R.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(values)
    distance, index = search.kneighbors()  # without the row itself
    return index.astype(np.int64), np.asarray(distance, np.float64)


def graph_connectivity(near: Ints, labels: Ints) -> float:
    """Return the mean over labels of the share of rows in the largest connected piece of the label's own graph.

    Args:
        near: Neighbours of every row, (R, K); an edge counts in both directions.
        labels: (R,).
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rows = np.repeat(np.arange(len(near)), near.shape[1])
    graph = coo_array((np.ones(near.size), (rows, near.ravel())), shape=(len(near), len(near))).tocsr()
    shares = []
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        _, piece = connected_components(graph[own][:, own], directed=False)
        shares.append(np.bincount(piece).max() / len(own))
    return float(np.mean(shares))


def kbet(near: Ints, batches: Ints, alpha: float = 0.05) -> float:
    """Return the share of rows whose neighbourhood does not differ from the whole table in its batches.

    The neighbourhood is the row and its neighbours; chi-square test with one degree of freedom fewer than batches.

    Args:
        near: (R, K).
        batches: (R,), 0 to B - 1.
        alpha: Level of the test.
    """
    from scipy.stats import chi2

    n_batches = int(batches.max()) + 1
    share = np.bincount(batches, minlength=n_batches) / len(batches)
    around = np.concatenate([np.arange(len(near))[:, None], near], axis=1)
    counts = (batches[around][:, :, None] == np.arange(n_batches)).sum(1)  # (R, B)
    expected = share * around.shape[1]
    statistic = ((counts - expected) ** 2 / expected).sum(1)
    return float((chi2.sf(statistic, n_batches - 1) >= alpha).mean())


def lisi(index: Ints, distance: Doubles, labels: Ints, perplexity: float) -> Doubles:
    """Return the effective number of labels around every row: 1 / sum of squared shares, with Gaussian weights.

    Args:
        index: Neighbours, (R, K).
        distance: To them, (R, K).
        labels: (R,), 0 to L - 1.
        perplexity: The weights of every row have this one; the number of neighbours limits it.
    """
    weights = _weights(distance, min(perplexity, distance.shape[1] / 3))
    simpson = np.zeros(len(index))
    of_neighbours = labels[index]
    for label in range(int(labels.max()) + 1):
        simpson += np.where(of_neighbours == label, weights, 0.0).sum(1) ** 2
    return 1.0 / simpson


def _weights(distance: Doubles, perplexity: float, steps: int = 50) -> Doubles:
    """Return weights exp(-beta d) that sum to 1 and have the entropy ln(perplexity), (R, K), by bisection."""
    low, high = np.zeros(len(distance)), np.full(len(distance), np.inf)
    beta = np.ones(len(distance))
    nearest = distance.min(1, keepdims=True)
    target = np.log(max(perplexity, 1.0 + 1e-9))
    for _ in range(steps):
        raw = np.exp(-beta[:, None] * (distance - nearest))
        weights = raw / raw.sum(1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(1)
        wide = entropy > target
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
        beta = np.where(np.isinf(high), beta * 2, (low + np.where(np.isinf(high), low, high)) / 2)
    return np.asarray(weights, np.float64)


def silhouette_label(values: Doubles, labels: Ints) -> float:
    """Return (1 + mean silhouette of labels) / 2."""
    from sklearn.metrics import silhouette_samples

    if len(np.unique(labels)) >= len(labels):
        raise DataError("batch_biology: every label has one well only; a score of biology needs replicates.")
    return float((1 + silhouette_samples(values, labels).mean()) / 2)


def silhouette_batch(values: Doubles, labels: Ints, batches: Ints) -> float | None:
    """Return the mean over labels of the mean of 1 - |silhouette of batches inside the label|; None without a label.

    Args:
        values: (R, F).
        labels: (R,).
        batches: (R,).
    """
    from sklearn.metrics import silhouette_samples

    scores = []
    for label in np.unique(labels):
        own = labels == label
        count = len(np.unique(batches[own]))
        if 2 <= count < own.sum():
            scores.append(float((1 - np.abs(silhouette_samples(values[own], batches[own]))).mean()))
    return float(np.mean(scores)) if scores else None


def leiden() -> Callable[[Ints, float, int], Ints]:
    """Return a function that clusters a graph of neighbours by Leiden's algorithm.

    Raises:
        ConfigError: If igraph is missing.
    """
    try:
        import igraph
    except ImportError as fault:
        raise ConfigError(
            "batch_biology: Leiden clusters need igraph (GPL-2.0-or-later); install 'morphem[leiden]', or take the "
            "variant without_clusters."
        ) from fault

    def cluster(near: Ints, resolution: float, seed: int) -> Ints:
        import random

        rows = np.repeat(np.arange(len(near)), near.shape[1])
        pairs = np.unique(np.sort(np.stack([rows, near.ravel()], axis=1), axis=1), axis=0)
        graph = igraph.Graph(n=len(near), edges=pairs.tolist())
        igraph.set_random_number_generator(random.Random(seed))
        try:
            found = graph.community_leiden(objective_function="modularity", resolution=resolution, n_iterations=-1)
        finally:
            igraph.set_random_number_generator(random)
        return np.asarray(found.membership, np.int64)

    return cluster


def _retrieval(values: Doubles, labels: Ints) -> dict[int, float]:
    """Return the mean average precision of every label that has two rows, by its number."""
    from morphem.benchmarks.metrics import average_precision
    from morphem.benchmarks.retrieval import unit_rows

    rows = unit_rows(values, "cosine")
    result: dict[int, float] = {}
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) > 1:
            similar = rows[own] @ rows.T
            keep = [np.arange(len(rows)) != row for row in own]
            scores = [average_precision(labels[k] == label, line[k]) for line, k in zip(similar, keep, strict=True)]
            result[int(label)] = float(np.mean(scores))
    if not result:
        raise DataError("batch_biology: every label has one well only; a score of biology needs replicates.")
    return result


def _controls(table: FeatureTable) -> NDArray[np.bool_]:
    if "Metadata_Control" not in table.metadata:
        return np.zeros(len(table), bool)
    words = column(table, "Metadata_Control").astype(str)
    return np.asarray(["neg" in word.lower() or word.lower() == "dmso" for word in words], bool)


def _without_controls(table: FeatureTable) -> FeatureTable:
    keep = ~_controls(table)
    lost = is_missing(table.metadata[_LABEL]) | is_missing(table.metadata[_BATCH])
    if (lost & keep).any():
        raise DataError(
            f"batch_biology: {int((lost & keep).sum())} wells have no label or no batch; complete or drop them."
        )
    return take(table, keep) if not keep.all() else with_values(table, table.values)

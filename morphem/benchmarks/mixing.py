"""How far groups of rows mix or keep apart: neighbourhoods, connected graphs, LISI, kBET, silhouettes.

Source: Luecken et al. 2022, Nature Methods 19:41 (graph connectivity, silhouettes); Korsunsky et al. 2019, Nature
Methods 16:1289 (LISI); Buettner et al. 2019, Nature Methods 16:43 (kBET).
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.base import column
from morphem.benchmarks.neighbours import Ints
from morphem.errors import DataError
from morphem.features import FeatureTable

GRAPH_KS, LISI_KS = (1, 2, 3, 5, 10, 15), (15, 30, 60, 90)
"""Neighbours of graphs and of LISI in Kim et al."""
Doubles = NDArray[np.float64]
Metric = Literal["euclidean", "cosine"]


def content_order(table: FeatureTable, names: tuple[str, ...] = ()) -> Ints:
    """Return the rows in an order that depends on what they hold alone, (R,): by some columns, then by features.

    Args:
        table: The rows.
        names: Columns to sort by first; those that the table lacks are passed over.
    """
    keys = [column(table, name).astype(str) for name in names if name in table.metadata]
    return np.lexsort((*table.values[:, :16].T[::-1], *keys[::-1])).astype(np.int64)


def neighbours(values: Doubles, count: int, metric: Metric = "euclidean") -> tuple[Ints, Doubles]:
    """Return the nearest other rows of every row and their distances, nearest first, (R, count) each.

    Args:
        values: (R, F).
        count: Below R.
        metric: `euclidean` or `cosine`.
    """
    from sklearn.neighbors import NearestNeighbors

    search = NearestNeighbors(n_neighbors=count, algorithm="brute", metric=metric).fit(values)
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
    counts = np.stack([(batches[around] == batch).sum(1) for batch in range(n_batches)], axis=1)  # (R, B)
    expected = share * around.shape[1]
    statistic = ((counts - expected) ** 2 / expected).sum(1)
    return float((chi2.sf(statistic, n_batches - 1) >= alpha).mean())


def lisi(index: Ints, distance: Doubles, labels: Ints, perplexity: float | None) -> Doubles:
    """Return the effective number of labels around every row: 1 / sum of squared shares, (R,).

    Args:
        index: Neighbours, (R, K).
        distance: To them, (R, K).
        labels: (R,), 0 to L - 1.
        perplexity: Of the Gaussian weights of every row; the number of neighbours limits it. None: neighbours weigh
            alike, as Kim et al. do.
    """
    if perplexity is None:
        weights: Doubles = np.full(distance.shape, 1.0 / distance.shape[1])
    else:
        weights = gaussian_weights(distance, min(perplexity, distance.shape[1] / 3))
    simpson = np.zeros(len(index))
    of_neighbours = labels[index]
    for label in range(int(labels.max()) + 1):
        simpson += np.where(of_neighbours == label, weights, 0.0).sum(1) ** 2
    return 1.0 / simpson


def gaussian_weights(distance: Doubles, perplexity: float, steps: int = 50) -> Doubles:
    """Return weights exp(-beta d) that sum to 1 and have the entropy ln(perplexity), (R, K), by bisection of beta.

    Args:
        distance: (R, K).
        perplexity: Above 1.
        steps: Of the bisection.
    """
    low, high = np.zeros(len(distance)), np.full(len(distance), np.inf)
    beta = np.ones(len(distance))
    nearest = distance.min(1, keepdims=True)
    target = np.log(max(perplexity, 1.0 + 1e-9))
    weights: Doubles = np.full(distance.shape, 1.0 / distance.shape[1])
    for _ in range(steps):
        raw = np.exp(-beta[:, None] * (distance - nearest))
        weights = raw / raw.sum(1, keepdims=True)
        entropy = -(weights * np.log(np.maximum(weights, 1e-300))).sum(1)
        wide = entropy > target
        low, high = np.where(wide, beta, low), np.where(wide, high, beta)
        beta = np.where(np.isinf(high), beta * 2, (low + np.where(np.isinf(high), low, high)) / 2)
    return np.asarray(weights, np.float64)


def scaled_lisi(values: Doubles, n_labels: int) -> float:
    """Return the median effective number of labels, scaled from 1 to L labels to 0 to 1.

    Args:
        values: What `lisi` gave.
        n_labels: L, at least 2.
    """
    return float((np.median(values) - 1) / (n_labels - 1))


def silhouette_label(values: Doubles, labels: Ints, metric: Metric = "euclidean") -> float:
    """Return (1 + mean silhouette of labels) / 2.

    Args:
        values: (R, F).
        labels: (R,).
        metric: Of distances.

    Raises:
        DataError: If every label has one row only.
    """
    from sklearn.metrics import silhouette_samples

    if len(np.unique(labels)) >= len(labels):
        raise DataError("silhouettes need replicates, but every label has one well only; choose another label.")
    return float((1 + silhouette_samples(values, labels, metric=metric).mean()) / 2)


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


def mixing_beside_baselines(values: Doubles, groups: Ints, random: np.random.Generator) -> dict[str, Any]:
    """Return how far groups mix, beside Gaussian clusters of the same sizes and the same clusters shuffled.

    Args:
        values: (R, F).
        groups: (R,), 0 to G - 1.
        random: Draws the clusters.
    """
    centres = random.normal(size=(int(groups.max()) + 1, values.shape[1]))
    clusters = 3 * centres[groups] + random.normal(size=values.shape)
    return {
        "profiles": mixing_by_neighbours(values, groups, GRAPH_KS, LISI_KS),
        "gaussian_clusters": mixing_by_neighbours(clusters, groups, GRAPH_KS, LISI_KS),
        "shuffled_clusters": mixing_by_neighbours(clusters, random.permutation(groups), GRAPH_KS, LISI_KS),
    }


def mixing_by_neighbours(
    values: Doubles, groups: Ints, graph_ks: tuple[int, ...], lisi_ks: tuple[int, ...]
) -> dict[str, Any]:
    """Return connectivity and unweighted LISI of groups for several numbers of cosine neighbours, and the silhouette.

    Numbers of neighbours that the table does not have are left out.

    Args:
        values: (R, F).
        groups: (R,), 0 to G - 1.
        graph_ks: Neighbours of graphs. Kim et al.: 1, 2, 3, 5, 10, 15.
        lisi_ks: Neighbours of LISI. Kim et al.: 15, 30, 60, 90.
    """
    possible = [k for k in (*graph_ks, *lisi_ks) if k < len(values)]
    if not possible:
        raise DataError(f"{len(values)} wells are too few for {min((*graph_ks, *lisi_ks))} neighbours of each.")
    index, distance = neighbours(values, max(possible), "cosine")
    silhouette = silhouette_label(values, groups, "cosine") if len(np.unique(groups)) < len(groups) else None
    return {
        "graph_connectivity": {str(k): graph_connectivity(index[:, :k], groups) for k in graph_ks if k in possible},
        "lisi": {
            str(k): float(np.median(lisi(index[:, :k], distance[:, :k], groups, None)))
            for k in lisi_ks
            if k in possible
        },
        "silhouette": silhouette,
    }

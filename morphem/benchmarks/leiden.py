"""Clusters of a graph of neighbours by Leiden's algorithm, and how well they agree with labels.

Source: Traag, Waltman and van Eck 2019, Scientific Reports 9:5233; the choice of the best resolution is scIB's.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from morphem.benchmarks.neighbours import Ints
from morphem.errors import ConfigError

Clustering = Callable[[Ints, float, int], Ints]


def leiden() -> Clustering:
    """Return a function of neighbours (R, K), resolution and seed that gives the cluster of every row.

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


def cluster_agreement(
    near: Ints, labels: Ints, resolutions: Sequence[float], seed: int
) -> tuple[dict[str, float], dict[str, Any]]:
    """Return the best adjusted Rand index and normalised mutual information over resolutions, and where they were.

    An index below zero, worse than chance, counts as zero.

    Args:
        near: Neighbours, (R, K).
        labels: (R,).
        resolutions: Above 0.
        seed: Of the clustering.

    Raises:
        ConfigError: If igraph is missing.
    """
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    clustering = leiden()
    found = {resolution: clustering(near, resolution, seed) for resolution in resolutions}
    judges: dict[str, Callable[[Ints, Ints], float]] = {
        "leiden_ari": adjusted_rand_score,
        "leiden_nmi": normalized_mutual_info_score,
    }
    values: dict[str, float] = {}
    details: dict[str, Any] = {}
    for name, judge in judges.items():
        by_resolution = {resolution: float(judge(labels, cluster)) for resolution, cluster in found.items()}
        best = max(by_resolution, key=lambda resolution: (by_resolution[resolution], -resolution))
        values[name] = max(0.0, by_resolution[best])
        details[name] = {"resolution": best, "clusters": len(set(found[best].tolist()))}
    return values, details

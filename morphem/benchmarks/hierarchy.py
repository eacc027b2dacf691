"""Trees of profiles: hierarchical clustering, and how well its branches agree with labels.

Source: Kim et al. (gene families: correlation matrix, complete linkage, Euclidean distance of its rows, adjusted mutual
information with the maximum as normaliser); uniDINO (trees of treatments).
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from morphem.errors import DataError

Linkage = Literal["average", "complete"]
Doubles = NDArray[np.float64]
Normaliser = Literal["max", "arithmetic"]


def profile_tree(
    similar: Doubles, names: list[str], labels: NDArray[Any], *, linkage: Linkage = "average"
) -> dict[str, Any]:
    """Cluster profiles by 1 - similarity, and compare the cut into as many clusters as labels with the labels.

    Args:
        similar: Similarities, (R, R), 1 on the diagonal.
        names: Of the profiles, R.
        labels: (R,), two different ones at least.
        linkage: How branches are joined.

    Returns:
        `profiles` in the order of the leaves, `labels` and `cluster` of each in that order, `merges` (as scipy gives
        them, by numbers in the order of `names_by_number`), `cophenetic` (correlation of the tree's distances with
        those of the profiles), `ami`.

    Raises:
        DataError: If there are fewer than three profiles, or one label only.
    """
    from scipy.cluster.hierarchy import cophenet, fcluster, leaves_list
    from scipy.cluster.hierarchy import linkage as link
    from scipy.spatial.distance import squareform

    if len(names) < 3 or len(set(labels)) < 2:
        raise DataError(f"a tree needs three profiles and two labels, not {len(names)} and {len(set(labels))}.")
    distance = np.maximum(1 - (similar + similar.T) / 2, 0)
    np.fill_diagonal(distance, 0)
    flat = squareform(distance, checks=False)
    tree = link(flat, linkage)
    cluster = fcluster(tree, len(set(labels)), criterion="maxclust")
    order = leaves_list(tree)
    cophenetic = float(cophenet(tree, flat)[0]) if np.ptp(flat) > 0 else None
    return {
        "names_by_number": names,
        "profiles": [names[i] for i in order],
        "labels": [str(labels[i]) for i in order],
        "cluster": [int(cluster[i]) for i in order],
        "merges": np.round(tree, 6),
        "cophenetic": cophenetic,
        "ami": agreement(labels, cluster, "max"),
    }


def agreement(labels: NDArray[Any], cluster: NDArray[Any], normaliser: Normaliser) -> float:
    """Return the adjusted mutual information of labels and clusters.

    Args:
        labels: (R,).
        cluster: (R,).
        normaliser: `max` as Kim et al. define it, `arithmetic` as scikit-learn does by default.
    """
    from sklearn.metrics import adjusted_mutual_info_score

    return float(adjusted_mutual_info_score(labels, cluster, average_method=normaliser))


def tightest_families(
    similar: Doubles, families: NDArray[Any], n: int = 20, least: int = 4, most: int = 10
) -> list[str]:
    """Return the families of highest mean correlation among their members, sorted by name.

    They are chosen in the very features that are then scored, as published, so two models have two sets of families.

    Args:
        similar: (R, R).
        families: Of the rows, (R,).
        n: How many at most.
        least: Members of a family at least.
        most: Members at most.
    """
    scored = []
    for name in np.unique(families):
        own = np.flatnonzero(families == name)
        if least <= len(own) <= most:
            pairs = similar[np.ix_(own, own)][np.triu_indices(len(own), 1)]
            scored.append((-float(pairs.mean()), str(name)))
    return sorted(name for _, name in sorted(scored)[:n])


def complete_linkage(similar: Doubles, n_clusters: int) -> NDArray[np.int64]:
    """Cluster rows by the Euclidean distance of their rows of the correlation matrix, complete linkage, (R,).

    Args:
        similar: (R, R).
        n_clusters: At most so many.
    """
    from scipy.cluster.hierarchy import fcluster, linkage

    tree = linkage(similar, method="complete", metric="euclidean")
    return np.asarray(fcluster(tree, n_clusters, criterion="maxclust"), np.int64)

"""Curation by content: clusters of embeddings, and equally many images from each.

Source: the curation of CHAMMI-75, https://arxiv.org/abs/2512.20833, appendix A, clusters features with k-means; Vo et
al. 2024, "Automatic data curation for self-supervised learning: a clustering-based approach",
https://arxiv.org/abs/2405.15613, section 3, for the hierarchy, the resampling and the balanced sampling.
Differs from Vo et al.: clusters that lose all their points are dropped; images are never repeated. Distances are
those of the features as the encoder gives them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.curation.step import (
    Floats,
    Mask,
    Needs,
    Step,
    check_count,
    check_flag,
    check_share,
    count_of,
)
from morphem.errors import ConfigError, DataError
from morphem.rng import mix

Ints = NDArray[np.int64]
_SKLEARN_SEEDS = 1 << 32


class Clusters(Step):
    """Keep a share of the images, drawn evenly from clusters of what they show.

    The largest n is found for which n images of every cluster (or all, where it is smaller) are no more than wanted;
    what is then missing comes from the larger clusters, one image each, by lot. With `hierarchical`, the centres of
    clusters are clustered again, and the wanted number is shared out from the coarsest level down, each time evenly.

    Args:
        share: Share of the study's images to keep, above 0, at most 1 (rounded half up, at least 1 image).
        n_clusters: Clusters of images; with `hierarchical` a list, from the finest level to the coarsest. Where there
            are fewer images (or clusters of the level below), as many as there are.
        hierarchical: Cluster in levels, with resampling.
        nearest: Points nearest to each centre that the resampling of every level takes; one number per level. 1
            switches the resampling of a level off.
        n_resamples: Rounds of resampling; 10 where not given, as in the authors' code.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "clusters"
    needs: ClassVar[Needs] = "features"

    def __init__(
        self,
        share: float,
        n_clusters: int | Sequence[int],
        hierarchical: bool = False,
        nearest: Sequence[int] | None = None,
        n_resamples: int | None = None,
        studies: Sequence[str] = (),
    ) -> None:
        super().__init__(studies)
        self.share = check_share(self.name, "share", share)
        self.hierarchical = check_flag(self.name, "hierarchical", hierarchical)
        if not hierarchical and (nearest is not None or n_resamples is not None):
            raise ConfigError("clusters: 'nearest' and 'n_resamples' have an effect with 'hierarchical: true' alone.")
        self.levels = self._check_levels(n_clusters)
        self.nearest = self._check_nearest(nearest) if hierarchical else (1,)
        self.n_resamples = check_count(self.name, "n_resamples", 10 if n_resamples is None else n_resamples)

    def _check_levels(self, value: int | Sequence[int]) -> tuple[int, ...]:
        if not self.hierarchical:
            return (check_count(self.name, "n_clusters", value),)
        if not isinstance(value, list | tuple) or len(value) < 2:
            raise ConfigError(
                f"clusters.n_clusters is {value!r}; with 'hierarchical: true' it is a list of at least two numbers, "
                "from the finest level to the coarsest, for example [1000, 100]."
            )
        levels = tuple(check_count(self.name, "n_clusters", item) for item in value)
        if list(levels) != sorted(set(levels), reverse=True):
            raise ConfigError(
                f"clusters.n_clusters is {list(levels)}; every level must have fewer clusters than the one before."
            )
        return levels

    def _check_nearest(self, value: Sequence[int] | None) -> tuple[int, ...]:
        if not isinstance(value, list | tuple) or len(value) != len(self.levels):
            raise ConfigError(
                f"clusters.nearest is {value!r}; it must be a list with a number for each of the "
                f"{len(self.levels)} levels, for example [15, 2]."
            )
        return tuple(check_count(self.name, "nearest", item) for item in value)

    def keep(self, planes: pd.DataFrame, features: Floats | None, seed: int) -> Mask:
        """Keep a balanced draw from the clusters."""
        points = finite(features, self.name)
        levels = cluster_levels(points, self.levels, self.nearest, self.n_resamples, seed)
        mask: Mask = np.zeros(len(points), np.bool_)
        mask[draw(levels, count_of(self.share, len(points)), seed)] = True
        return mask


@dataclass(frozen=True)
class _Clustering:
    """Clusters of points, all of them with a point.

    Attributes:
        centres: (K, D).
        labels: Cluster of every point, (N,).
    """

    centres: Floats
    labels: Ints


def finite(features: Floats | None, step: str) -> Floats:
    """Return features as float64, (N, D).

    Args:
        features: (N, D).
        step: Who asks.

    Raises:
        DataError: If there are none, or some are no numbers.
    """
    if features is None:
        raise DataError(f"the step '{step}' needs features of the images, and was given none.")
    values = np.asarray(features, np.float64)
    if values.ndim != 2 or not np.isfinite(values).all():
        raise DataError(f"the step '{step}' needs one row of finite features per image; this model gave others.")
    return values


def cluster_levels(
    points: Floats, n_clusters: Sequence[int], nearest: Sequence[int], n_resamples: int, seed: int
) -> list[Ints]:
    """Cluster points, then the centres of the clusters, and so on.

    Args:
        points: (N, D).
        n_clusters: Clusters of each level, the finest first.
        nearest: Points per centre that the resampling of each level takes; 1 for none.
        n_resamples: Rounds of resampling.
        seed: The only source of chance.

    Returns:
        For each level the cluster of every point (first level) or cluster of the level below.
    """
    levels: list[Ints] = []
    for level, (count, near) in enumerate(zip(n_clusters, nearest, strict=True)):
        found = _k_means(points, count, mix(seed, "level", level))
        for again in range(n_resamples if near > 1 else 0):
            sample = points[_nearest_to_centres(points, found, near)]
            centres = _k_means(sample, count, mix(seed, "level", level, again)).centres
            found = _assign(points, centres)
        levels.append(found.labels)
        points = found.centres
    return levels


def _k_means(points: Floats, count: int, seed: int) -> _Clustering:
    """Lloyd's algorithm from k-means++, once; no more clusters than different points."""
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    count = min(count, len(np.unique(points, axis=0)))
    # one thread: threads add up distances in any order, and the last bit can move an image to another cluster
    with threadpool_limits(limits=1):
        model = KMeans(count, n_init=1, max_iter=300, random_state=seed % _SKLEARN_SEEDS).fit(points)
    return _without_empty(model.cluster_centers_, np.asarray(model.labels_, np.int64))


def _without_empty(centres: Floats, labels: Ints) -> _Clustering:
    used, renumbered = np.unique(labels, return_inverse=True)
    return _Clustering(centres[used], np.asarray(renumbered, np.int64))


def _assign(points: Floats, centres: Floats) -> _Clustering:
    """Give every point to the nearest centre."""
    from sklearn.metrics import pairwise_distances_argmin
    from threadpoolctl import threadpool_limits

    with threadpool_limits(limits=1):
        return _without_empty(centres, np.asarray(pairwise_distances_argmin(points, centres), np.int64))


def _nearest_to_centres(points: Floats, found: _Clustering, count: int) -> Ints:
    """Return the points of every cluster that are nearest to its centre, up to `count` each."""
    distances = np.linalg.norm(points - found.centres[found.labels], axis=1)
    order = np.lexsort((distances, found.labels))
    sizes = np.bincount(found.labels)
    rank = np.arange(len(points)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return order[rank < count]


def draw(levels: Sequence[Ints], wanted: int, seed: int) -> Ints:
    """Draw images evenly from a hierarchy of clusters.

    Args:
        levels: As `cluster_levels` gives them.
        wanted: Number of images.
        seed: The only source of chance.

    Returns:
        Numbers of the images that were drawn, rising; as many as wanted, or all.
    """
    sizes = [np.ones(len(levels[0]), np.int64)]  # images under every node, level by level
    for labels in levels:
        sizes.append(np.bincount(labels, weights=sizes[-1]).astype(np.int64))
    quota = shares(sizes[-1], wanted, mix(seed, "top"))
    for depth in range(len(levels) - 1, -1, -1):
        below = np.zeros(len(levels[depth]), np.int64)
        members = np.split(np.argsort(levels[depth], kind="stable"), np.cumsum(np.bincount(levels[depth]))[:-1])
        for node, children in enumerate(members):
            below[children] = shares(sizes[depth][children], int(quota[node]), mix(seed, "node", depth, node))
        quota = below
    return np.flatnonzero(quota)


def shares(sizes: Ints, wanted: int, seed: int) -> Ints:
    """Share out a number as evenly as sizes allow.

    Args:
        sizes: What each part can give, (K,).
        wanted: The number.
        seed: Decides who of the larger parts gives one more.

    Returns:
        What each part gives, (K,): min(n, size) with the largest n whose sum is not above `wanted`, and one more from
        parts that have more, until the sum is `wanted` (or everything is given).
    """
    if sizes.sum() <= wanted:
        return sizes.copy()
    low, high = 0, int(sizes.max())  # sum(min(low, size)) <= wanted < sum(min(high, size))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= wanted else (low, middle)
    given = np.minimum(sizes, low)
    larger = np.flatnonzero(sizes > low)
    lots = sorted(range(len(larger)), key=lambda i: (mix(seed, i), i))
    given[larger[lots[: wanted - int(given.sum())]]] += 1
    return given

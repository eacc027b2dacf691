import itertools

import numpy as np
import pytest

from morphem.curation.clusters import Clusters, _assign, _nearest_to_centres, cluster_levels, draw, finite, shares
from morphem.errors import ConfigError, DataError


def _blobs(sizes: list[int], seed: int = 0, spread: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Points around far corners, and the number of each point's corner."""
    generator = np.random.default_rng(seed)
    centres = 10 * np.eye(len(sizes), 8)
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return centres[labels] + generator.normal(0, spread, (len(labels), 8)), labels


def _plain_shares(sizes: list[int], wanted: int) -> list[int]:
    """Sorted counts of an even division, one by one: always the part that has given least gives, while it can."""
    given = [0] * len(sizes)
    for _ in range(min(wanted, sum(sizes))):
        able = [i for i in range(len(sizes)) if given[i] < sizes[i]]
        given[min(able, key=lambda i: given[i])] += 1
    return given


@pytest.mark.parametrize("wanted", [0, 1, 5, 9, 20, 33, 40, 100])
@pytest.mark.parametrize("sizes", [[10, 3, 1, 20], [5, 5, 5, 5], [40], [1, 1, 1, 37]])
def test_an_even_division_is_that_of_dealing_one_by_one(sizes: list[int], wanted: int) -> None:
    given = shares(np.array(sizes), wanted, seed=0)
    expected = _plain_shares(sizes, wanted)
    assert given.sum() == sum(expected)
    assert (given <= sizes).all()
    assert sorted(given) == sorted(expected)


def test_balanced_sampling_takes_equally_many_from_clusters_of_any_size() -> None:
    features, labels = _blobs([100, 10, 30])
    mask = Clusters(share=30 / 140, n_clusters=3).keep(None, features, seed=1)
    assert np.bincount(labels[mask]).tolist() == [10, 10, 10]


def test_a_small_cluster_gives_all_it_has_and_the_others_the_rest() -> None:
    features, labels = _blobs([100, 4, 30])
    mask = Clusters(share=50 / 134, n_clusters=3).keep(None, features, seed=1)
    assert np.bincount(labels[mask]).tolist() == [23, 4, 23]


def test_the_same_seed_draws_the_same_images_and_another_seed_others() -> None:
    features, _ = _blobs([50, 50, 20])
    step = Clusters(share=0.2, n_clusters=3)
    draws = [step.keep(None, features, seed) for seed in (1, 1, 2)]
    assert np.array_equal(draws[0], draws[1])
    assert not np.array_equal(draws[0], draws[2])
    assert draws[0].sum() == draws[2].sum() == 24


def test_there_may_be_fewer_images_than_clusters() -> None:
    features, _ = _blobs([3, 2])
    assert Clusters(share=0.4, n_clusters=100).keep(None, features, seed=0).sum() == 2
    assert Clusters(share=0.5, n_clusters=100).keep(None, np.ones((6, 4)), seed=0).sum() == 3


def _two_levels(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Two far regions, one of 6 clusters of 40 points and one of 2 of 10: points, region and cluster of each."""
    generator = np.random.default_rng(seed)
    sizes, regions = [40] * 6 + [10] * 2, [0] * 6 + [1] * 2
    centres = np.array([[50.0 * region, 0, 0] for region in regions]) + generator.normal(0, 3, (8, 3))
    clusters = np.repeat(np.arange(8), sizes)
    points = centres[clusters] + generator.normal(0, 0.05, (len(clusters), 3))
    return points, np.array(regions)[clusters], clusters


def test_a_hierarchy_finds_the_clusters_and_the_regions() -> None:
    points, regions, clusters = _two_levels()
    fine, coarse = cluster_levels(points, [8, 2], [5, 2], 3, seed=0)
    assert len({(a, b) for a, b in zip(fine, clusters, strict=True)}) == 8
    assert len({(a, b) for a, b in zip(coarse[fine], regions, strict=True)}) == 2


def test_a_hierarchy_shares_evenly_between_regions_first() -> None:
    points, regions, clusters = _two_levels()
    levels = cluster_levels(points, [8, 2], [5, 2], 3, seed=0)
    chosen = draw(levels, 24, seed=5)
    assert len(set(chosen.tolist())) == 24
    assert np.bincount(regions[chosen]).tolist() == [12, 12]
    assert np.bincount(clusters[chosen]).tolist() == [2] * 6 + [6, 6]
    flat = draw(cluster_levels(points, [8], [1], 1, seed=0), 24, seed=5)
    assert np.bincount(regions[flat]).tolist() == [18, 6]


def test_resampling_moves_centres_from_the_dense_part_to_the_rest() -> None:
    # Vo et al. 2024, section 3: k-means spends its centres where points are dense; resampling spreads them
    generator = np.random.default_rng(0)
    dense, thin = generator.uniform(0, 1, (3000, 1)), generator.uniform(1, 10, (150, 1))
    points = np.concatenate([dense, thin])

    def centres_in_the_thin_part(rounds: int) -> int:
        fine, _ = cluster_levels(points, [30, 2], [3 if rounds else 1, 1], max(rounds, 1), seed=0)
        means = np.bincount(fine, weights=points[:, 0]) / np.bincount(fine)
        return int((means > 1).sum())

    counts = [centres_in_the_thin_part(rounds) for rounds in (0, 1, 10)]
    assert counts[0] < counts[1] <= counts[2]
    assert counts[2] >= 18  # 27 of 30 would be an even spread over the support


def test_the_step_with_a_hierarchy_keeps_the_share_it_was_asked_for() -> None:
    points, regions, _ = _two_levels()
    step = Clusters(share=0.1, n_clusters=[8, 2], hierarchical=True, nearest=[5, 2], n_resamples=2)
    mask = step.keep(None, points, seed=0)
    assert mask.sum() == 26
    assert np.bincount(regions[mask]).tolist() == [13, 13]
    assert np.array_equal(mask, step.keep(None, points.astype(np.float32).astype(np.float64), seed=0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n_clusters": [10, 2]}, r"n_clusters is \[10, 2\]; it must be a whole number"),
        ({"n_clusters": 0}, r"n_clusters is 0; it must be a whole number of 1 or more"),
        ({"n_clusters": 10, "hierarchical": True, "nearest": [3]}, "a list of at least two numbers"),
        ({"n_clusters": [2, 10], "hierarchical": True, "nearest": [3, 2]}, "fewer clusters than the one before"),
        ({"n_clusters": [10, 2], "hierarchical": True}, "a number for each of the 2 levels"),
        ({"n_clusters": 10, "nearest": [3]}, "have an effect with 'hierarchical: true' alone"),
        ({"n_clusters": 10, "hierarchical": "yes"}, "must be true or false"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Clusters(share=0.5, **settings)


def test_features_that_are_no_numbers_are_an_error() -> None:
    for features in (None, np.array([[np.nan, 1.0]]), np.zeros(3)):
        with pytest.raises(DataError, match="the step 'clusters'"):
            finite(features, "clusters")


def test_all_images_stay_where_all_are_wanted() -> None:
    for sizes, share in itertools.product(([5, 1], [3]), (1.0,)):
        features, _ = _blobs(sizes)
        assert Clusters(share=share, n_clusters=2).keep(None, features, seed=0).all()


def test_resampling_takes_the_points_nearest_to_each_centre() -> None:
    points = np.array([[0.0], [3.0], [1.0], [10.0], [14.0], [2.0], [11.0]])
    found = _assign(points, np.array([[0.4], [10.2], [99.0]]))  # nothing is near the third
    assert len(found.centres) == 2
    assert sorted(_nearest_to_centres(points, found, 2).tolist()) == [0, 2, 3, 6]
    assert sorted(_nearest_to_centres(points, found, 100).tolist()) == list(range(7))


def test_who_gives_one_more_is_decided_by_the_seed() -> None:
    winners = {int(shares(np.array([5, 5, 5, 1]), 11, seed).argmax()) for seed in range(20)}
    assert winners == {0, 1, 2}
    levels = [np.repeat(np.arange(3), 4)]
    assert {int(np.bincount(draw(levels, 7, seed) // 4).argmax()) for seed in range(20)} == {0, 1, 2}

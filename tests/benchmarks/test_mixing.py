"""Neighbourhood scores against plain loops and scib-metrics; what they say of mixed and of split groups."""

import importlib.util

import numpy as np
import pytest
from scipy.stats import chi2

from morphem.benchmarks import mixing
from morphem.benchmarks.batch_biology import RESOLUTIONS
from morphem.benchmarks.leiden import cluster_agreement
from morphem.benchmarks.tiny import planted
from morphem.errors import DataError
from tests.references import neighbourhoods as plain

LABELS = np.repeat(np.arange(4), 12)
BATCHES = np.tile(np.arange(3), 16)


def _values(effect: float = 1.0, batch_effect: float = 0.6, seed: int = 0) -> np.ndarray:
    return planted(LABELS, seed=seed, effect=effect, batches=BATCHES, batch_effect=batch_effect).astype(np.float64)


@pytest.fixture(scope="module")
def near() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    values = _values()
    return values, *mixing.neighbours(values, 15)


def test_neighbours_are_those_of_a_plain_search(near) -> None:
    values, index, distance = near
    for row, (own, far) in enumerate(plain.nearest(values, 15)):
        assert index[row].tolist() == own
        np.testing.assert_allclose(distance[row], far, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_graph_connectivity_is_the_plain_one(near, k: int) -> None:
    found = mixing.graph_connectivity(near[1][:, :k], LABELS)
    assert found == pytest.approx(plain.graph_connectivity(near[1][:, :k].tolist(), LABELS.tolist()))


def test_kbet_is_the_plain_one(near) -> None:
    found = mixing.kbet(near[1][:, :8], BATCHES)
    assert found == pytest.approx(plain.kbet(near[1][:, :8].tolist(), BATCHES.tolist(), chi2.isf(0.05, 2)))
    assert 0 < found < 1


@pytest.mark.parametrize("perplexity", [3.0, 5.0])
def test_lisi_is_the_plain_one(near, perplexity: float) -> None:
    _, index, distance = near
    found = mixing.lisi(index, distance, BATCHES, perplexity)
    for row in range(len(index)):
        asked = plain.lisi(distance[row].tolist(), BATCHES[index[row]].tolist(), perplexity)
        assert found[row] == pytest.approx(asked, rel=1e-6)


def test_lisi_without_weights_is_one_over_the_sum_of_squared_shares(near) -> None:
    _, index, distance = near
    shares = (BATCHES[index[0]][:, None] == np.arange(3)).mean(0)
    assert mixing.lisi(index, distance, BATCHES, None)[0] == pytest.approx(1 / (shares**2).sum())


def test_silhouettes_are_the_plain_ones(near) -> None:
    values = near[0]
    plainly = plain.silhouettes(values, LABELS.tolist())
    assert mixing.silhouette_label(values, LABELS) == pytest.approx((1 + np.mean(plainly)) / 2)
    within = [
        np.mean([1 - abs(s) for s in plain.silhouettes(values[label == LABELS], BATCHES[label == LABELS].tolist())])
        for label in range(4)
    ]
    assert mixing.silhouette_batch(values, LABELS, BATCHES) == pytest.approx(np.mean(within))


def test_groups_far_apart_do_not_mix_and_shuffled_ones_do() -> None:
    far = 100.0 * np.eye(8)[BATCHES] + np.random.default_rng(0).normal(size=(48, 8))
    index, distance = mixing.neighbours(far, 10)
    shuffled = np.random.default_rng(1).permutation(BATCHES)
    assert mixing.kbet(index, BATCHES) == 0
    assert mixing.kbet(index, shuffled) > 0.8
    assert mixing.scaled_lisi(mixing.lisi(index, distance, BATCHES, 3.0), 3) == pytest.approx(0, abs=1e-9)
    assert mixing.scaled_lisi(mixing.lisi(index, distance, shuffled, 3.0), 3) > 0.25
    assert mixing.graph_connectivity(index, BATCHES) == 1
    assert mixing.silhouette_label(far, BATCHES) > 0.95


def test_more_batch_effect_never_mixes_more() -> None:
    scores = []
    for effect in (0.0, 0.5, 1.0, 2.0):
        values = [_values(batch_effect=effect, seed=seed) for seed in range(3)]
        found = [mixing.neighbours(v, 8) for v in values]
        scores.append(np.mean([np.median(mixing.lisi(i, d, BATCHES, 2.5)) for i, d in found]))
    assert scores == sorted(scores, reverse=True)


def test_labels_without_replicates_are_refused() -> None:
    with pytest.raises(DataError, match="every label has one well only"):
        mixing.silhouette_label(_values(), np.arange(48))


def test_the_order_of_rows_does_not_matter() -> None:
    values = _values()
    turn = np.random.default_rng(3).permutation(48)
    one = mixing.mixing_by_neighbours(values, BATCHES, (1, 3), (5, 10))
    other = mixing.mixing_by_neighbours(values[turn], BATCHES[turn], (1, 3), (5, 10))
    assert one["graph_connectivity"] == other["graph_connectivity"]
    assert one["lisi"] == pytest.approx(other["lisi"])
    assert one["silhouette"] == pytest.approx(other["silhouette"])


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("scib_metrics") is None, reason="scib-metrics is not installed ('morphem[agreement]')"
)
def test_scib_metrics_gives_the_same() -> None:
    import scib_metrics
    from scib_metrics.nearest_neighbors import NeighborsResults

    for batch_effect in (0.0, 0.6, 1.0):
        values = _values(batch_effect=batch_effect)
        index, distance = mixing.neighbours(values, 15)
        rows = np.arange(48)[:, None]
        theirs = NeighborsResults(indices=np.hstack([rows, index]), distances=np.hstack([np.zeros((48, 1)), distance]))
        np.testing.assert_allclose(
            mixing.lisi(index, distance, BATCHES, 5.0),
            np.asarray(scib_metrics.lisi_knn(theirs, BATCHES, perplexity=5)),
            rtol=2e-4,
        )
        mine = mixing.scaled_lisi(mixing.lisi(index, distance, BATCHES, 5.0), 3)
        assert mine == pytest.approx(scib_metrics.ilisi_knn(theirs, BATCHES, perplexity=5), abs=1e-4)
        cell_types = 1 - mixing.scaled_lisi(mixing.lisi(index, distance, LABELS, 5.0), 4)
        assert cell_types == pytest.approx(scib_metrics.clisi_knn(theirs, LABELS, perplexity=5), abs=1e-4)
        assert mixing.kbet(index, BATCHES) == pytest.approx(scib_metrics.kbet(theirs, BATCHES)[0])
        assert mixing.silhouette_label(values, LABELS) == pytest.approx(
            scib_metrics.silhouette_label(values, LABELS), abs=1e-4
        )
        assert mixing.silhouette_batch(values, LABELS, BATCHES) == pytest.approx(
            scib_metrics.silhouette_batch(values, LABELS, BATCHES), abs=1e-4
        )
        ours, _ = cluster_agreement(index, LABELS, RESOLUTIONS, 0)
        leiden = scib_metrics.nmi_ari_cluster_labels_leiden(theirs, LABELS, n_jobs=1, seed=0)
        assert ours["leiden_ari"] == pytest.approx(leiden["ari"], abs=0.15)
        assert ours["leiden_nmi"] == pytest.approx(leiden["nmi"], abs=0.15)
        # theirs asks for paths along the arrows of the graph, ours (as scIB's graph without arrows) for any path
        assert mixing.graph_connectivity(index, LABELS) >= scib_metrics.graph_connectivity(theirs, LABELS) - 1e-9

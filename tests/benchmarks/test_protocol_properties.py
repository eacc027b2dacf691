"""What holds for every protocol of other papers: perfect features give 1, labels of other rows give chance."""

import numpy as np
import pytest

from morphem import registry
from morphem.benchmarks.base import Inputs, make_table
from morphem.benchmarks.share_intervals import interval_of_share

LABEL = {
    "campfire": "Metadata_Compound",
    "data_similarity": "Metadata_Study",
    "kim": "Metadata_Compound",
    "unidino": "Metadata_MoA",
    "z_prime": "Metadata_Group",
}


@pytest.mark.parametrize("name", ["campfire", "data_similarity", "kim", "unidino", "z_prime"])
def test_features_that_hold_nothing_but_the_truth_give_one(name: str) -> None:
    cls = registry.get("benchmarks", name)
    benchmark = cls.tiny_instance()
    score = benchmark.score(benchmark.adapt(cls.tiny(0, np.inf)))
    assert score.values[benchmark.headline] == pytest.approx(1, abs=1e-6)


CHANCE = {"data_similarity": (0.2, 0.12), "kim": (0.08, 0.06), "unidino": (0.25, 0.15)}


@pytest.mark.parametrize("name", CHANCE)
def test_permuted_labels_give_chance(name: str) -> None:
    """Chance: one study of five; about a compound's share of positives; one mechanism of four."""
    cls = registry.get("benchmarks", name)
    benchmark = cls.tiny_instance()
    scores = []
    for seed in range(4):
        table = cls.tiny(seed, 1.0).table
        order = np.random.default_rng(seed).permutation(len(table))
        moved = table.metadata.assign(**{LABEL[name]: table.metadata[LABEL[name]].to_numpy()[order]})
        if name == "kim":  # controls stay where they are
            moved = table.metadata.assign(Metadata_Compound=table.metadata["Metadata_Compound"].to_numpy().copy())
            own = np.random.default_rng(seed).permutation(64)
            moved.loc[:63, "Metadata_Compound"] = table.metadata["Metadata_Compound"].to_numpy()[own]
        changed = Inputs({"table": make_table(table.values, moved)})
        scores.append(benchmark.score(benchmark.adapt(changed)).values[benchmark.headline])
    chance, slack = CHANCE[name]
    assert np.mean(scores) == pytest.approx(chance, abs=slack)


def test_the_interval_of_a_share_draws_whole_units() -> None:
    hits = np.asarray([1.0] * 50 + [0.0] * 50)
    alone = interval_of_share(hits, np.arange(100), "well", 0)
    together = interval_of_share(hits, np.repeat(np.arange(4), 25), "plate", 0)
    assert (alone.n_units, together.n_units) == (100, 4)
    assert together.high - together.low > 3 * (alone.high - alone.low)
    assert alone.low < 0.5 < alone.high
    heavy = interval_of_share(np.asarray([1.0] * 90 + [0.0] * 10), np.asarray(["a"] * 90 + ["b"] * 10), "plate", 0)
    assert (heavy.low, heavy.high) == (0.0, 1.0)

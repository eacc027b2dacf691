from collections import Counter
from itertools import pairwise

import pytest

from morphem.data.order import StudyBalance, permute, slot, steps_per_epoch, study_quotas
from morphem.errors import ConfigError


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 1023])
def test_permute_sends_all_indices_to_distinct_indices(n: int) -> None:
    assert sorted(permute(index, n, "key", 1) for index in range(n)) == list(range(n))


def test_permute_depends_on_every_word_of_its_key() -> None:
    orders = {tuple(permute(i, 50, seed, name) for i in range(50)) for seed in range(10) for name in ("a", "b")}
    assert len(orders) == 20


@pytest.mark.parametrize("n", [2, 3, 4])
def test_permute_draws_all_permutations_about_equally_often(n: int) -> None:
    draws = 300 * (1, 1, 2, 6, 24)[n]
    counts = Counter(tuple(permute(i, n, seed) for i in range(n)) for seed in range(draws))
    assert len(counts) == draws // 300
    assert min(counts.values()) > 220  # five standard deviations below 300, and more
    assert max(counts.values()) < 380


def test_permute_leaves_neighbours_far_apart() -> None:
    n = 10_000
    order = [permute(i, n, 3) for i in range(n)]
    mean_distance = sum(abs(a - b) for a, b in pairwise(order)) / (n - 1)
    assert abs(mean_distance / n - 1 / 3) < 0.01  # 1/3 for independent uniform positions


def test_permute_takes_constant_memory_for_a_billion_samples() -> None:
    assert 0 <= permute(999_999_999, 10**9, 7) < 10**9


def test_permute_refuses_an_index_outside() -> None:
    with pytest.raises(ValueError, match="index 5 is not in 0 to 4"):
        permute(5, 5, 1)


@pytest.mark.parametrize("n", [1, 2, 5, 12, 13, 97])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_slots_cover_every_position_and_no_slot_is_empty(n: int, batch_size: int, world_size: int) -> None:
    n_slots = steps_per_epoch(n, batch_size, world_size) * world_size
    slots = [slot(index, n, n_slots) for index in range(n_slots)]
    counts = Counter(position for positions in slots for position in positions)
    assert set(counts) == set(range(n))
    assert all(1 <= len(positions) <= batch_size for positions in slots)
    assert sum(counts.values()) == max(n, n_slots)  # exactly once, except where there are more slots than positions


@pytest.mark.parametrize("n", [5, 12, 13, 97])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_exact_slots_cover_every_position_exactly_once(n: int, batch_size: int, world_size: int) -> None:
    n_slots = steps_per_epoch(n, batch_size, world_size, exact=True) * world_size
    slots = [slot(index, n, n_slots) for index in range(n_slots)]
    assert [position for positions in slots for position in positions] == list(range(n))
    assert all(1 <= len(positions) <= batch_size + 1 for positions in slots)


def test_exact_steps_refuse_fewer_samples_than_ranks() -> None:
    with pytest.raises(ConfigError, match="3 validation samples cannot be shared by 4 ranks"):
        steps_per_epoch(3, 8, 4, exact=True)


@pytest.mark.parametrize("n", [7, 24, 101])
def test_a_step_reads_the_same_positions_for_every_world_size(n: int) -> None:
    def global_batches(world_size: int) -> list[set[int]]:
        steps = steps_per_epoch(n, 12 // world_size, world_size)
        return [
            {
                position
                for rank in range(world_size)
                for position in slot(step * world_size + rank, n, steps * world_size)
            }
            for step in range(steps)
        ]

    assert global_batches(1) == global_batches(2) == global_batches(3) == global_batches(4) == global_batches(12)


def test_without_balance_every_sample_stands_once_in_every_pass() -> None:
    balance = StudyBalance([5, 1, 8], [5, 1, 8], seed=1)
    for turn in range(3):
        visits = [balance.at(turn * 14 + i) for i in range(14)]
        assert sorted((v.study, v.sample) for v in visits) == [
            (s, i) for s, n in enumerate([5, 1, 8]) for i in range(n)
        ]
        assert {v.visit for v in visits} == {turn}


def test_every_pass_and_every_seed_has_an_order_of_its_own() -> None:
    orders = {
        tuple(
            (v.study, v.sample)
            for v in (StudyBalance([20, 10], [20, 10], seed=seed).at(turn * 30 + i) for i in range(30))
        )
        for seed in range(3)
        for turn in range(4)
    }
    assert len(orders) == 12


def test_cycling_repeats_every_study_to_the_size_of_the_largest() -> None:
    sizes = {"a": 10, "b": 4, "c": 1}
    quotas = study_quotas(sizes, "cycle")
    balance = StudyBalance(list(sizes.values()), quotas, seed=0)
    assert balance.pass_length == 30
    visits = [balance.at(i) for i in range(60)]  # two passes
    assert Counter(v.study for v in visits[:30]) == {0: 10, 1: 10, 2: 10}
    assert Counter(v.sample for v in visits if v.study == 1) == {0: 5, 1: 5, 2: 5, 3: 5}  # 20 visits to 4 samples
    assert len(set(visits)) == 60  # no sample ever comes with the same visit number twice


def test_a_repeated_study_has_a_new_order_in_every_repetition() -> None:
    balance = StudyBalance([40, 10], [40, 40], seed=0)
    visits = [v for v in map(balance.at, range(80)) if v.study == 1]
    by_repetition = [[v.sample for v in visits if v.visit == repetition] for repetition in range(4)]
    assert all(sorted(order) == list(range(10)) for order in by_repetition)
    assert len({tuple(order) for order in by_repetition}) == 4


def test_weights_give_shares_of_the_stream() -> None:
    sizes = {"a": 60, "b": 20, "c": 20}
    assert study_quotas(sizes, weights={"a": 1, "b": 1, "c": 2}) == [25, 25, 50]
    assert study_quotas(sizes, weights={"a": 1, "b": 3, "c": 0}) == [20, 60, 0]  # as long as a and b together
    assert sum(study_quotas(sizes, weights={"a": 1, "b": 1, "c": 1})) == 100


def test_an_unweighted_study_never_appears() -> None:
    balance = StudyBalance([6, 20], [6, 0], seed=0)
    assert {balance.at(i).study for i in range(50)} == {0}


@pytest.mark.parametrize(
    ("balance", "weights", "message"),
    [
        ("cycle", {"a": 1, "b": 1}, "exclude each other"),
        ("none", {"a": 1, "bb": 1, "b": 1}, "did you mean 'b'"),
        ("none", {"a": 1}, "missing: b"),
        ("none", {"a": 1, "b": -1}, "weights.b is -1"),
        ("none", {"a": 1, "b": float("nan")}, "weights.b is nan"),
        ("none", {"a": 0, "b": 0}, "all 0"),
    ],
)
def test_weights_that_make_no_sense_are_refused(balance: str, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        study_quotas({"a": 5, "b": 5}, balance, weights)  # type: ignore[arg-type]


def test_without_shuffling_the_samples_come_in_order() -> None:
    balance = StudyBalance([2, 3], [2, 3], seed=5, shuffle=False)
    assert [(v.study, v.sample) for v in map(balance.at, range(5))] == [(0, 0), (0, 1), (1, 0), (1, 1), (1, 2)]

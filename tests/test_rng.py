"""Random numbers as pure functions: known answers, the same bits everywhere, and sound statistics."""

import math

import numpy as np
import pytest
import torch

from morphem import rng

# First outputs of SplitMix64 seeded with 0 (Vigna's splitmix64.c, public domain), as unsigned words
SPLITMIX64_OF_ZERO = 0xE220A8397B1DCDAF


def reference_mix(*numbers: int) -> int:
    """SplitMix64's finaliser over NumPy's unsigned words, which wrap by themselves."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        state = state + np.uint64(0x9E3779B97F4A7C15) + np.uint64(number % 2**64)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state = state ^ (state >> np.uint64(31))
    return int(state.view(np.int64)[0])


def test_mix_gives_the_published_first_word():
    assert rng.mix(0) % 2**64 == SPLITMIX64_OF_ZERO


@pytest.mark.parametrize("numbers", [(0,), (1, 2), (2, 1), (-1,), (2**63, 2**64 - 1, 2**64 + 5), tuple(range(20))])
def test_mix_agrees_with_a_plain_reference(numbers):
    assert rng.mix(*numbers) == reference_mix(*numbers)


@pytest.mark.parametrize("words", [(0,), (-1, "view"), (2**62, "a", 3), (-(2**63), 2**63 - 1, "b")])
def test_python_and_torch_give_the_same_bits(words):
    seeds = torch.tensor([0, 1, -5, 2**63 - 1, -(2**63)])
    mixed = rng.mix_tensor(torch.tensor([rng.mix(int(seed)) for seed in seeds]), *words)
    assert mixed.tolist() == [rng.mix(int(seed), *words) for seed in seeds]


def test_a_tensor_of_words_broadcasts_against_the_seeds():
    seeds = torch.tensor([rng.mix(7), rng.mix(8)])
    mixed = rng.mix_tensor(seeds[:, None], "name", torch.arange(3)[None, :])
    assert mixed.shape == (2, 3)
    assert mixed[1, 2] == rng.mix(8, "name", 2)


def test_the_order_of_words_matters_and_so_does_every_word():
    words = [rng.mix(*args) for args in [(1, 2), (2, 1), (1,), (1, 2, 0), (1, "2"), ("1", 2)]]
    assert len(set(words)) == len(words)


def test_mix_is_a_signed_64_bit_integer():
    values = [rng.mix(i) for i in range(1000)]
    assert min(values) < 0 < max(values)
    assert all(-(2**63) <= value < 2**63 for value in values)
    torch.tensor(values, dtype=torch.int64)


def test_one_bit_of_the_seed_flips_half_the_bits_of_the_word():
    flips = [((rng.mix(i) ^ rng.mix(i ^ (1 << (i % 64)))) & (2**64 - 1)).bit_count() for i in range(2000)]
    assert abs(np.mean(flips) - 32) < 0.5


def test_below_covers_its_range_evenly():
    counts = np.bincount([rng.below(7, "dice", i) for i in range(7000)], minlength=7)
    assert len(counts) == 7
    assert ((counts - 1000) ** 2 / 1000).sum() < 22.5  # chi square, 6 degrees of freedom, p = 0.001


def test_below_one_is_always_zero():
    assert {rng.below(1, i) for i in range(50)} == {0}


def test_uniform_float_lies_in_its_half_open_range():
    values = [rng.uniform_float("u", i) for i in range(5000)]
    assert 0 <= min(values) < 0.001
    assert 0.999 < max(values) < 1
    assert abs(np.mean(values) - 0.5) < 0.015


def test_uniform_is_the_same_alone_and_in_company():
    seeds = torch.tensor([11, -3, 2**40])
    together = rng.uniform(seeds, "crop", 4)
    alone = torch.cat([rng.uniform(seed[None], "crop", 4) for seed in seeds])
    assert torch.equal(together, alone)
    assert (together.shape, together.dtype) == ((3, 4), torch.float32)


def test_asking_for_more_numbers_leaves_the_first_ones():
    seeds = torch.arange(5)
    assert torch.equal(rng.uniform(seeds, "x", 9)[:, :4], rng.uniform(seeds, "x", 4))


def test_uniform_is_even_and_never_one():
    values = rng.uniform(torch.arange(100_000), "even").flatten()
    counts = torch.histc(values, 20, 0.0, 1.0)
    assert ((counts - 5000) ** 2 / 5000).sum() < 43.8  # chi square, 19 degrees of freedom, p = 0.001
    assert values.min() >= 0
    assert values.max() < 1


@pytest.mark.parametrize("pair", [("a", "b"), ("view/0/flip", "view/1/flip")])
def test_numbers_of_different_names_are_unrelated(pair):
    seeds = torch.arange(20_000)
    first, second = (rng.uniform(seeds, name).flatten() for name in pair)
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.03


def test_neighbouring_seeds_and_counters_are_unrelated():
    values = rng.uniform(torch.arange(20_000), "x", 2)
    assert abs(torch.corrcoef(values.T)[0, 1]) < 0.03
    assert abs(torch.corrcoef(torch.stack([values[1:, 0], values[:-1, 0]]))[0, 1]) < 0.03


def test_normal_has_the_moments_of_the_normal_distribution():
    values = rng.normal(torch.arange(50_000), "n", 3).double()
    assert values.shape == (50_000, 3)
    assert values.isfinite().all()
    assert values.mean().abs() < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values**4).mean() - 3) < 0.1
    assert abs((values < 1.0).double().mean() - 0.5 * (1 + math.erf(1 / math.sqrt(2)))) < 0.005


def test_normal_numbers_of_one_seed_are_unrelated():
    correlation = torch.corrcoef(rng.normal(torch.arange(20_000), "n", 4).T)
    assert (correlation - torch.eye(4)).abs().max() < 0.03


def test_no_draw_touches_a_global_generator():
    before = torch.random.get_rng_state()
    rng.uniform(torch.arange(3), "x")
    rng.normal(torch.arange(3), "x")
    assert torch.equal(torch.random.get_rng_state(), before)

"""Schedules against a plain reference, and at their ends."""

import pytest

from morphem.schedules import Horizon, cosine, linear, warmup_cosine
from tests.references.dino_formulas import cosine_scheduler


@pytest.mark.parametrize(("epochs", "steps", "warmup_epochs"), [(10, 7, 3), (4, 5, 0), (3, 1, 1), (2, 50, 1)])
def test_warmup_cosine_is_the_reference_at_every_step(epochs: int, steps: int, warmup_epochs: int) -> None:
    expected = cosine_scheduler(4e-4, 1e-6, epochs, steps, warmup_epochs, 0.0)
    total, warmup = epochs * steps, warmup_epochs * steps
    found = [warmup_cosine(step, total, warmup, 4e-4, 1e-6) for step in range(total)]
    assert found == pytest.approx(expected, rel=1e-12)


def test_warmup_starts_at_zero_and_reaches_the_peak_at_its_last_step() -> None:
    assert warmup_cosine(0, 100, 10, 1.0, 0.1) == 0.0
    assert warmup_cosine(9, 100, 10, 1.0, 0.1) == 1.0
    assert warmup_cosine(10, 100, 10, 1.0, 0.1) == 1.0


def test_cosine_starts_at_its_start_and_ends_at_its_end() -> None:
    assert cosine(0, 10, 0.996, 1.0) == pytest.approx(0.996)
    assert cosine(5, 10, 0.996, 1.0) == pytest.approx(0.998)
    assert cosine(10, 10, 0.996, 1.0) == 1.0
    assert cosine(99, 10, 0.996, 1.0) == 1.0


def test_cosine_of_the_momentum_is_the_published_formula() -> None:
    import math

    for t in range(50):
        assert cosine(t, 50, 0.996, 1.0) == pytest.approx(1 - (1 - 0.996) * (1 + math.cos(math.pi * t / 50)) / 2)


def test_linear_reaches_its_end_at_the_last_step_and_stays() -> None:
    assert [linear(step, 4, 0.04, 0.07) for step in (0, 3, 4, 400)] == pytest.approx([0.04, 0.07, 0.07, 0.07])
    assert linear(0, 0, 0.04, 0.07) == 0.07


def test_a_horizon_counts_epochs_in_steps() -> None:
    assert Horizon(steps_per_epoch=12, total_steps=120).steps(2.5) == 30

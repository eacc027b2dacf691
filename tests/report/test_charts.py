"""Charts: axes, numbers, bars."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from morphem.report.charts import N_BINS, Axis, axis_of, histograms, number, round_step, shorten


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (5.0, "5"),
        (1234.5, "1,234"),
        (12.345, "12.3"),
        (0.06914, "0.0691"),
        (100.5, "100"),
        (-3.25, "−3.25"),
        (2_000_000, "2,000,000"),
        (3.8e-9, "3.8e−09"),
    ],
)
def test_numbers_have_three_significant_digits_and_commas(value: float, text: str) -> None:
    assert number(value) == text


@pytest.mark.parametrize(("size", "step"), [(0.7, 1), (1.0, 1), (1.2, 2), (3, 5), (7, 10), (0.03, 0.05), (128, 200)])
def test_steps_are_one_two_or_five_times_a_power_of_ten(size: float, step: float) -> None:
    assert round_step(size) == pytest.approx(step)


def test_an_axis_over_decades_is_logarithmic_and_one_with_zeros_is_not() -> None:
    assert axis_of([np.array([1.0, 1000.0])]).log
    assert not axis_of([np.array([0.0, 1000.0])]).log
    assert not axis_of([np.array([1.0, 1000.0])], percent=True).log


def test_an_axis_of_one_value_still_has_length() -> None:
    for value in (0.0, 7.0):
        axis = axis_of([np.array([value])])
        assert axis.low <= value <= axis.high
        assert axis.high > axis.low


@pytest.mark.parametrize("axis", [Axis(0, 37, False), Axis(-2, 5, False), Axis(2, 9000, True), Axis(90, 7e8, True)])
def test_ticks_lie_on_the_axis_and_are_three_to_eight(axis: Axis) -> None:
    ticks = axis.ticks()
    assert 3 <= len(ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in ticks)


def test_bars_are_as_high_as_a_plain_count_says() -> None:
    values = np.random.default_rng(0).normal(10, 2, 500)
    chart = histograms("t", "unit", {"a": values})
    bars = re.search(r'<path d="([^"]*)" class="bars"', chart)
    assert bars is not None
    heights = [float(height) for height in re.findall(r"v-([\d.]+)", bars[1])]
    axis = axis_of([values])
    counts, _ = np.histogram(values, bins=N_BINS, range=(axis.low, axis.high))
    expected = counts[counts > 0] / counts.max() * max(heights)
    np.testing.assert_allclose(heights, np.maximum(expected, 1.0), atol=0.051)


def test_the_chart_is_well_formed_and_says_the_median() -> None:
    chart = histograms('a "b" <c>', "counts & more", {"x<y": np.array([1.0, 2.0, 4.0]), "z": np.array([np.nan, 3.0])})
    texts = [element.text for element in ElementTree.fromstring(chart).iter("text")]
    assert {"x<y", "median 2", "z", "median 3", "counts & more"} <= set(texts)


def test_nothing_is_drawn_where_nothing_is_finite() -> None:
    assert histograms("t", "unit", {"a": np.array([np.nan, np.inf])}) == ""


def test_a_long_name_keeps_both_ends() -> None:
    assert shorten("plate-2026-03-01-rerun", 11) == "plate…rerun"
    assert shorten("short", 11) == "short"

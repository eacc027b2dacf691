"""Plate maps: where wells lie, which plate it is, which colour a value gets."""

import re
from itertools import pairwise
from xml.etree import ElementTree

import pytest

from morphem.report.plates import (
    PLATES,
    VIRIDIS,
    colour_step,
    plate_map,
    plate_size,
    robust_limits,
    row_letters,
    well_place,
)


@pytest.mark.parametrize(("well", "place"), [("A01", (0, 0)), ("H12", (7, 11)), ("P24", (15, 23)), ("AF48", (31, 47))])
def test_wells_have_a_row_and_a_column(well: str, place: tuple[int, int]) -> None:
    assert well_place(well) == place
    assert f"{row_letters(place[0])}{place[1] + 1:02d}" == well


@pytest.mark.parametrize("name", ["unknown", "slide 3", "A1", "a01", "A00", "", "007"])
def test_other_names_are_no_wells(name: str) -> None:
    assert well_place(name) is None


@pytest.mark.parametrize(
    ("wells", "size"),
    [
        (["A01", "B03"], 6),
        (["H12"], 96),
        (["A13"], 384),
        (["I01"], 384),
        (["Q01"], 1536),
        (["A01", "x"], None),
        ([], None),
    ],
)
def test_the_plate_is_the_smallest_that_holds_all_wells(wells: list[str], size: int | None) -> None:
    assert plate_size(wells) == size


def test_nothing_is_drawn_outside_of_the_largest_plate() -> None:
    assert plate_size(["AG01"]) is None


@pytest.mark.parametrize("size", PLATES)
def test_every_well_is_drawn_once_and_the_empty_ones_as_dots(size: int) -> None:
    rows, columns = PLATES[size]
    wells = {f"{row_letters(r)}{c + 1:02d}": float(r) for r in range(rows) for c in range(columns) if (r + c) % 2}
    paths = ElementTree.fromstring(plate_map("P", "cells", wells, size, (0, rows))).iter("path")
    drawn = {path.get("class") or path.get("fill"): len(re.findall("M", path.get("d") or "")) for path in paths}
    assert drawn.pop("nowell") == size - len(wells)
    assert sum(drawn.values()) == len(wells)
    assert set(drawn) <= set(VIRIDIS)


def test_a_plate_of_1536_wells_stays_below_fifty_kilobytes() -> None:
    wells = {f"{row_letters(r)}{c + 1:02d}": float(r * c) for r in range(32) for c in range(48)}
    assert len(plate_map("P", "cells", wells, 1536, (0, 1457))) < 50_000


def test_colours_rise_with_the_value_and_end_at_the_limits() -> None:
    steps = [colour_step(value, (10.0, 20.0)) for value in (-5, 10, 12, 15, 19, 20, 99)]
    assert steps == sorted(steps)
    assert (steps[0], steps[1], steps[-2], steps[-1]) == (0, 0, len(VIRIDIS) - 1, len(VIRIDIS) - 1)


def test_equal_wells_get_the_middle_colour() -> None:
    assert colour_step(3.0, (3.0, 3.0)) == len(VIRIDIS) // 2


def test_one_odd_well_does_not_stretch_the_scale_and_the_bar_says_so() -> None:
    values = [*(float(k) for k in range(99)), 1e6]
    low, high = robust_limits(values)
    assert high < 200
    wells = {f"A{k + 1:02d}": value for k, value in enumerate(values[-12:])}
    assert "≥ " in plate_map("P", "cells", wells, 96, (low, high))


def test_brightness_of_the_scale_rises_steadily() -> None:
    # Relative luminance as in WCAG 2.2: what remains for somebody who sees no hue.
    def luminance(colour: str) -> float:
        parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    shades = [luminance(colour) for colour in VIRIDIS]
    assert all(later > earlier * 1.2 for earlier, later in pairwise(shades))

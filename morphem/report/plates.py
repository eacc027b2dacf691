"""Plate maps: one value per well, in a colour-blind-safe scale with its bar, as inline SVG.

Source: the colours are nine points of viridis (S. van der Walt and N. Smith, 2015, CC0),
https://bids.github.io/colormap/.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

import numpy as np

from morphem.report.charts import number

PLATES = {6: (2, 3), 12: (3, 4), 24: (4, 6), 48: (6, 8), 96: (8, 12), 384: (16, 24), 1536: (32, 48)}
"""Wells of the common plates: rows and columns."""

VIRIDIS = ("#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725")

_WIDTH = 360
_MARGIN = 20
_TITLE = 18
_BAR = 44
_WELL = re.compile(r"([A-Z]{1,2})(\d{2})")


def well_place(well: str) -> tuple[int, int] | None:
    """Return row and column of a well, from 0; None if the name is not like A01.

    Args:
        well: For example `A01` or `AF48`.
    """
    match = _WELL.fullmatch(well)
    if match is None or match[2] == "00":
        return None
    row = 0
    for letter in match[1]:
        row = 26 * row + ord(letter) - ord("A") + 1
    return row - 1, int(match[2]) - 1


def plate_size(wells: Iterable[str]) -> int | None:
    """Return the number of wells of the smallest common plate that holds all wells.

    Args:
        wells: Names of wells.

    Returns:
        6 to 1536; None if there is no well, or one that is not like A01 or on no common plate.
    """
    places = [well_place(well) for well in wells]
    known = [place for place in places if place is not None]
    if not known or len(known) < len(places):
        return None
    rows, columns = (max(place[i] for place in known) + 1 for i in (0, 1))
    return next((size for size, (high, wide) in PLATES.items() if rows <= high and columns <= wide), None)


def plate_map(title: str, unit: str, values: Mapping[str, float], size: int, limits: tuple[float, float]) -> str:
    """Draw a plate with a coloured square per well.

    Args:
        title: Name of the plate, drawn above it.
        unit: What the colours mean, with the unit.
        values: Value of each well that was imaged.
        size: As `plate_size` gives it.
        limits: Values of the first and the last colour; equal where all wells are alike. Plates that are compared
            get the same.

    Returns:
        An `svg` element; a well without a value is a dot.
    """
    rows, columns = PLATES[size]
    step = (_WIDTH - _MARGIN - 1) / columns if columns > 8 else 40.0
    height = _TITLE + _MARGIN + rows * step + _BAR
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {height:.0f}" role="img" aria-label="{escape(f"{title}: {unit}")}" class="chart">',
        f'<text x="0" y="12">{escape(title)}</text>',
        _letters(rows, columns, step),
        _squares(values, rows, columns, step, limits),
        _colour_bar(unit, list(values.values()), limits, height - _BAR),
    ]
    return "".join([*parts, "</svg>"])


def _letters(rows: int, columns: int, step: float) -> str:
    """Names of rows and columns; only every second or fourth where there is no room."""
    every = 1 if step >= 12 else 2 if step >= 10 else 4
    top = _TITLE + _MARGIN - 7
    parts = [
        f'<text x="{_MARGIN + (column + 0.5) * step:.1f}" y="{top}" text-anchor="middle" class="tick">'
        f"{column + 1}</text>"
        for column in range(0, columns, every)
    ]
    parts += [
        f'<text x="{_MARGIN - 5}" y="{_TITLE + _MARGIN + (row + 0.5) * step + 3:.1f}" text-anchor="end" class="tick">'
        f"{row_letters(row)}</text>"
        for row in range(0, rows, every)
    ]
    return "".join(parts)


def row_letters(row: int) -> str:
    """Return the letters of a row: A for 0, Z for 25, AA for 26.

    Args:
        row: From 0 to 701.
    """
    return chr(ord("A") + row) if row < 26 else chr(ord("A") + row // 26 - 1) + chr(ord("A") + row % 26)


def _squares(values: Mapping[str, float], rows: int, columns: int, step: float, limits: tuple[float, float]) -> str:
    """One path per colour, in units of a well: a plate of 1536 wells stays small."""
    at = {place: value for well, value in values.items() if (place := well_place(well)) is not None}
    paths: dict[int, list[str]] = {}
    for row in range(rows):
        for column in range(columns):
            value = at.get((row, column))
            if value is None:  # not imaged: a dot
                paths.setdefault(-1, []).append(f"M{column}.4 {row}.4h.16v.16h-.16z")
            else:
                paths.setdefault(colour_step(value, limits), []).append(f"M{column} {row}h.92v.92h-.92z")
    return (
        f'<g transform="translate({_MARGIN} {_TITLE + _MARGIN}) scale({step:.3f})">'
        + "".join(
            f'<path d="{"".join(squares)}" ' + ('class="nowell"/>' if shade < 0 else f'fill="{VIRIDIS[shade]}"/>')
            for shade, squares in sorted(paths.items())
        )
        + "</g>"
    )


def colour_step(value: float, limits: tuple[float, float]) -> int:
    """Return which of the nine colours a value gets; the middle one where all values are alike.

    Args:
        value: Between the limits; what is outside gets the nearest colour.
        limits: Values of the first and the last colour.
    """
    low, high = limits
    if not high > low:
        return len(VIRIDIS) // 2
    return min(len(VIRIDIS) - 1, max(0, int((value - low) / (high - low) * len(VIRIDIS))))


def robust_limits(values: Iterable[float]) -> tuple[float, float]:
    """Return the 2nd and 98th percentile: one odd well must not take the colours from all others.

    Args:
        values: At least one finite number.
    """
    low, high = np.percentile(list(values), (2, 98))
    return float(low), float(high)


def _colour_bar(unit: str, values: Sequence[float], limits: tuple[float, float], top: float) -> str:
    low, high = limits
    wide = 16
    shades = range(len(VIRIDIS)) if high > low else [len(VIRIDIS) // 2]
    parts = [
        f'<rect x="{_MARGIN + wide * place}" y="{top + 6:.0f}" width="{wide}" height="9" fill="{VIRIDIS[shade]}"/>'
        for place, shade in enumerate(shades)
    ]
    right = _MARGIN + wide * len(shades)
    below, above = ("≤ " if min(values) < low else ""), ("≥ " if max(values) > high else "")
    marks = [(_MARGIN, below + number(low), "start")]
    if high > low:
        marks.append((right, above + number(high), "end"))
    parts += [
        f'<text x="{x}" y="{top + 26:.0f}" text-anchor="{anchor}" class="tick">{text}</text>'
        for x, text, anchor in marks
    ]
    parts.append(f'<text x="{right + 8}" y="{top + 14:.0f}" class="quiet">{escape(unit)}</text>')
    return "".join(parts)

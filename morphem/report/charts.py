"""Small charts as inline SVG: no library, no script, and colours from the style sheet of the page (light and dark)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

N_BINS = 36
_WIDTH = 360
_LEFT, _RIGHT = 4, 4
_ROW = 46  # a line of text above the bars
_BARS = 20
_AXIS = 30
_DECADES = 30.0  # from this ratio of largest to smallest value on, a linear axis squeezes most bars into one


@dataclass(frozen=True)
class Axis:
    """The shared value axis of some histograms.

    Attributes:
        low: Value at its left end.
        high: Value at its right end, above `low`.
        log: Whether equal steps are equal ratios.
    """

    low: float
    high: float
    log: bool

    def place(self, values: Any) -> Any:
        """Return where values lie: 0 at the left end, 1 at the right end.

        Args:
            values: A number or an array, above 0 where the axis is logarithmic.
        """
        if self.log:
            return np.log(np.asarray(values) / self.low) / math.log(self.high / self.low)
        return (np.asarray(values) - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        """Return three to eight round values inside the axis."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            steps = (1,) if self.high / self.low > 1e4 else (1, 3) if self.high / self.low > 100 else (1, 2, 5)
            found = [step * 10.0**power for power in powers for step in steps]
            found = found[:: -(-len(found) // 8)]
        else:
            step = round_step((self.high - self.low) / 4)
            first = math.ceil(self.low / step - 1e-9)
            found = [step * k for k in range(first, first + 12)]
        return [value for value in found if -1e-9 <= float(self.place(value)) <= 1 + 1e-9]


def axis_of(values: Sequence[Values], percent: bool = False) -> Axis:
    """Return an axis that holds all values, logarithmic where they are positive and span more than a factor of 30.

    Args:
        values: Arrays of finite numbers, at least one number in all.
        percent: Whether they are percentages, whose axis is linear from 0 and at least 1 long.
    """
    low = min(float(array.min()) for array in values if array.size)
    high = max(float(array.max()) for array in values if array.size)
    if percent:
        return Axis(min(0.0, low), max(1.0, high), False)
    if low > 0 and high / low > _DECADES:
        return Axis(low, high, True)
    if low == high:
        low, high = (low - 0.5, high + 0.5) if low else (0.0, 1.0)
    elif 0 < low < 0.3 * high:
        low = 0.0  # counts and intensities are read against zero where it costs little room
    return Axis(low, high, False)


def round_step(size: float) -> float:
    """Return the smallest of 1, 2 and 5 times a power of ten that is not below `size`.

    Args:
        size: Above 0.
    """
    power = 10.0 ** math.floor(math.log10(size))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= size * (1 - 1e-9))


def number(value: float) -> str:
    """Return a number as people write it: whole from 1000 on, with commas, three significant digits below.

    Args:
        value: Finite.
    """
    if value == int(value) or abs(value) >= 1000:
        return f"{round(value):,}".replace("-", "−")
    digits = max(0, 2 - math.floor(math.log10(abs(value))))
    if digits > 6:
        return f"{value:.1e}".replace("-", "−")
    text = f"{value:.{digits}f}"
    return (text.rstrip("0").rstrip(".") if "." in text else text).replace("-", "−")


def histograms(title: str, unit: str, rows: Mapping[str, Values], colours: Mapping[str, str] | None = None) -> str:
    """Draw one histogram per row over a shared axis, each with its median.

    Args:
        title: What is counted, for screen readers.
        unit: What the axis means, with its unit; where it begins with `%` the axis is linear from 0.
        rows: Values of each row by its name; numbers that are not finite are not drawn.
        colours: Colour of the square before a name, as in CSS; no square where not given.

    Returns:
        An `svg` element, or an empty text if there is no finite value.
    """
    finite = {name: array[np.isfinite(array)] for name, array in rows.items()}
    finite = {name: array for name, array in finite.items() if array.size}
    if not finite:
        return ""
    axis = axis_of(list(finite.values()), percent=unit.startswith("%"))
    height = _ROW * len(finite) + _AXIS
    parts = [f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="{escape(title)}" class="chart">']
    for place, (name, array) in enumerate(finite.items()):
        parts.append(_row(name, array, axis, _ROW * place, (colours or {}).get(name)))
    parts.append(_axis(axis, unit, _ROW * len(finite)))
    return "".join([*parts, "</svg>"])


def _row(name: str, array: Values, axis: Axis, top: float, colour: str | None) -> str:
    """Name and median in a line, the bars below it, and a mark at the median."""
    inner = _WIDTH - _LEFT - _RIGHT
    counts = np.bincount(np.clip((axis.place(array) * N_BINS).astype(np.int64), 0, N_BINS - 1), minlength=N_BINS)
    base, step = top + _ROW - 10, inner / N_BINS
    path = "".join(
        f"M{_LEFT + step * k:.1f} {base}v-{max(1.0, _BARS * n / counts.max()):.1f}h{step - 1:.1f}V{base}z"
        for k, n in enumerate(counts)
        if n
    )
    median = float(np.median(array))
    x = _LEFT + inner * float(axis.place(median))
    square = f'<rect x="{_LEFT}" y="{top + 3}" width="8" height="8" class="swatch" fill="{colour}"/>' if colour else ""
    return (
        f'{square}<text x="{_LEFT + (13 if colour else 0)}" y="{top + 11}">{escape(shorten(name, 36))}</text>'
        f'<text x="{_WIDTH - _RIGHT}" y="{top + 11}" text-anchor="end" class="quiet">median {number(median)}</text>'
        f'<path d="{path}" class="bars"/><path d="M{_LEFT} {base}h{inner}" class="rule"/>'
        f'<path d="M{x:.1f} {base + 1}l3 3.5h-6z" class="mark"/>'
    )


def _axis(axis: Axis, unit: str, top: float) -> str:
    inner = _WIDTH - _LEFT - _RIGHT
    parts = []
    for tick in axis.ticks():
        place = float(axis.place(tick))
        anchor = "start" if place < 0.05 else "end" if place > 0.95 else "middle"
        x = _LEFT + inner * place
        parts.append(
            f'<path d="M{x:.1f} {top}v3" class="rule"/>'
            f'<text x="{x:.1f}" y="{top + 13}" text-anchor="{anchor}" class="tick">{number(tick)}</text>'
        )
    scale = ", log scale" if axis.log else ""
    parts.append(f'<text x="{_LEFT}" y="{top + 26}" class="quiet">{escape(unit)}{scale}</text>')
    return "".join(parts)


def shorten(text: str, length: int) -> str:
    """Return a text with its middle left out where it is too long.

    Args:
        text: Any text.
        length: At least 3 signs.
    """
    if len(text) <= length:
        return text
    head = (length - 1) // 2
    return f"{text[:head]}…{text[len(text) - (length - 1 - head) :]}"

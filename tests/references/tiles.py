"""Tiles and what makes them empty, written plainly: loops, one pixel after the other.

Source of the rules: the records unidino.json and microsnoop.json of ../shared/golden, and Kim et al.'s inference.
"""

from collections.abc import Sequence
from math import ceil


def grid_starts(length: int, size: int) -> list[int]:
    """Side by side from 0, the remainder dropped."""
    starts = []
    start = 0
    while start + size <= length:
        starts.append(start)
        start += size
    return starts or [0]


def overlap_starts(length: int, size: int) -> list[int]:
    """ceil(1.2 L / size) starts, evenly from 0 to L - size, cut to whole pixels."""
    if length <= size:
        return [0]
    count = ceil(1.2 * length / size)
    return [int(i * (length - size) / (count - 1)) for i in range(count)]


def otsu(values: Sequence[int]) -> int:
    """The value that leaves the least variance within the two classes (above it, and the others)."""
    best, found = float("inf"), values[0]
    for threshold in sorted(set(values))[:-1]:
        within = 0.0
        for members in ([v for v in values if v <= threshold], [v for v in values if v > threshold]):
            mean = sum(members) / len(members)
            within += sum((v - mean) ** 2 for v in members)
        if within < best - 1e-9:
            best, found = within, threshold
    return found


def kept(
    plane: Sequence[Sequence[int]], boxes: Sequence[tuple[int, int, int, int]], factor: float | None, stride: int
) -> list[bool]:
    """A tile stays if 1 % of its pixels are above 0 (no factor) or factor * Otsu; the middle one if none does."""
    cut = 0.0
    if factor is not None:
        cut = factor * otsu([v for row in plane[::stride] for v in row[::stride]])
    result = []
    for y, x, h, w in boxes:
        above = sum(plane[i][j] > cut for i in range(y, y + h) for j in range(x, x + w))
        result.append(above / (h * w) >= 0.01)
    if not any(result):
        result[len(boxes) // 2] = True
    return result

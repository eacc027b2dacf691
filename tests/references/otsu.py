"""Otsu's threshold written plainly: try every level, take the one with the least variance within the classes."""

from collections.abc import Sequence


def foreground(levels: Sequence[int]) -> float:
    """Share of pixels above the threshold that leaves the least variance within the two classes."""
    best, share = float("inf"), 0.0
    for threshold in range(255):
        classes = [[v for v in levels if v <= threshold], [v for v in levels if v > threshold]]
        if not all(classes):
            continue
        within = 0.0
        for members in classes:
            mean = sum(members) / len(members)
            within += sum((value - mean) ** 2 for value in members)
        if within < best - 1e-9:
            best, share = within, len(classes[1]) / len(levels)
    return share

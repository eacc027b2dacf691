"""The formulas of profiles again, written plainly from the papers: loops, float64, no cleverness."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


def median(values: Sequence[float]) -> float:
    ordered = sorted(float(value) for value in values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


def mean(values: Sequence[float]) -> float:
    return math.fsum(float(value) for value in values) / len(values)


def variance(values: Sequence[float], ddof: int) -> float:
    center = mean(values)
    return math.fsum((float(value) - center) ** 2 for value in values) / (len(values) - ddof)


def mad_robustize(rows: Doubles, fit: Doubles) -> Doubles:
    """(x - median) / (1.4826 * median |x - median|), feature by feature."""
    out = np.empty(rows.shape)
    for f in range(rows.shape[1]):
        center = median(fit[:, f])
        spread = 1.4826 * median([abs(value - center) for value in fit[:, f]])
        for r in range(len(rows)):
            out[r, f] = (rows[r, f] - center) / spread
    return out


def standardize(rows: Doubles, fit: Doubles) -> Doubles:
    """(x - mean) / population standard deviation, feature by feature."""
    out = np.empty(rows.shape)
    for f in range(rows.shape[1]):
        center, spread = mean(fit[:, f]), math.sqrt(variance(fit[:, f], 0))
        for r in range(len(rows)):
            out[r, f] = (rows[r, f] - center) / spread
    return out


def covariance(rows: Doubles) -> Doubles:
    """With n - 1, entry by entry."""
    n, d = rows.shape
    centers = [mean(rows[:, f]) for f in range(d)]
    out = np.empty((d, d))
    for a in range(d):
        for b in range(d):
            out[a, b] = math.fsum((rows[r, a] - centers[a]) * (rows[r, b] - centers[b]) for r in range(n)) / (n - 1)
    return out


def sphere(
    rows: Doubles, fit: Doubles, *, correlation: bool, rotate_back: bool, epsilon: float, epsilon_on: str
) -> Doubles:
    """Sphering by the eigenvalues of the covariance, direction by direction; the sign of a PCA direction is free."""
    n, d = fit.shape
    centers = np.array([mean(fit[:, f]) for f in range(d)])
    scales = np.array([math.sqrt(variance(fit[:, f], 0)) if correlation else 1.0 for f in range(d)])
    values, vectors = np.linalg.eigh(covariance((fit - centers) / scales))
    order = np.argsort(values)[::-1]
    values, vectors = np.maximum(values[order], 0), vectors[:, order]
    rank = min(d, n - 1)
    smallest = math.sqrt(values[rank - 1] * (n - 1))
    z = (rows - centers) / scales
    columns = []
    weights = np.zeros((d, d))
    for k in range(d):
        if epsilon_on == "singular value":
            singular = math.sqrt(values[k] * (n - 1)) if k < rank else smallest
            gain = math.sqrt(n - 1) / (singular + epsilon)
        elif epsilon_on == "eigenvalue":
            gain = 1 / math.sqrt((values[k] if k < rank else 0) + epsilon)
        else:
            gain = 1 / math.sqrt(max(values[k] if k < rank else 0, epsilon))
        columns.append(z @ vectors[:, k] * gain)
        weights += gain * np.outer(vectors[:, k], vectors[:, k])
    return z @ weights if rotate_back else np.stack(columns[:rank], axis=1)


def square_root(symmetric: Doubles) -> Doubles:
    """The positive definite root, by Newton's iteration of Denman and Beavers."""
    y, z = symmetric.copy(), np.eye(len(symmetric))
    for _ in range(60):
        y, z = (y + np.linalg.inv(z)) / 2, (z + np.linalg.inv(y)) / 2
    return y


def coral(rows: Sequence[Doubles], controls: Sequence[Doubles], ridge: float, *, center: bool) -> list[Doubles]:
    """Align every batch's control covariance with that of all controls."""
    shifts = [
        np.array([mean(part[:, f]) for f in range(part.shape[1])]) if center else np.zeros(part.shape[1])
        for part in controls
    ]
    moved = [part - shift for part, shift in zip(controls, shifts, strict=True)]
    identity = np.eye(controls[0].shape[1])
    target = square_root(covariance(np.concatenate(moved)) + ridge * identity)
    out = []
    for part, own, shift in zip(rows, moved, shifts, strict=True):
        whitening = np.linalg.inv(square_root(covariance(own) + ridge * identity))
        out.append((part - shift) @ whitening @ target)
    return out


def combat(rows: Doubles, batch: Sequence[int]) -> Doubles:
    """Parametric ComBat without labels, feature by feature and batch by batch (Johnson et al. 2007)."""
    n, d = rows.shape
    names = sorted(set(batch))
    members = {b: [r for r in range(n) if batch[r] == b] for b in names}
    z = np.empty((n, d))
    base, scale = [], []
    for f in range(d):
        means = {b: mean([rows[r, f] for r in members[b]]) for b in names}
        grand = math.fsum(len(members[b]) / n * means[b] for b in names)
        pooled = math.fsum((rows[r, f] - means[batch[r]]) ** 2 for r in range(n)) / n
        base.append(grand)
        scale.append(math.sqrt(pooled))
        for r in range(n):
            z[r, f] = (rows[r, f] - grand) / math.sqrt(pooled)
    out = np.empty((n, d))
    for b in names:
        count = len(members[b])
        shifts = [mean([z[r, f] for r in members[b]]) for f in range(d)]
        spreads = [variance([z[r, f] for r in members[b]], 1) for f in range(d)]
        shift_mean, shift_variance = mean(shifts), variance(shifts, 1)
        m, v = mean(spreads), variance(spreads, 1)
        shape, rate = (2 * v + m * m) / v, (m * v + m**3) / v
        for f in range(d):
            shift, spread = shifts[f], spreads[f]
            for _ in range(500):
                shift = (count * shift_variance * shifts[f] + spread * shift_mean) / (count * shift_variance + spread)
                squares = math.fsum((z[r, f] - shift) ** 2 for r in members[b])
                spread = (rate + squares / 2) / (count / 2 + shape - 1)
            for r in members[b]:
                out[r, f] = scale[f] * (z[r, f] - shift) / math.sqrt(spread) + base[f]
    return out


def correlated(rows: Doubles, limit: float) -> set[int]:
    """Of each pair above the limit, the feature that correlates more (absolutely) with all features."""
    d = rows.shape[1]
    matrix = np.empty((d, d))
    for a in range(d):
        for b in range(d):
            x, y = rows[:, a], rows[:, b]
            top = math.fsum((x[r] - mean(x)) * (y[r] - mean(y)) for r in range(len(x))) / len(x)
            matrix[a, b] = top / math.sqrt(variance(x, 0) * variance(y, 0))
    total = [math.fsum(abs(value) for value in matrix[a]) for a in range(d)]
    return {(a if total[a] > total[b] else b) for a in range(d) for b in range(a + 1, d) if matrix[a, b] > limit}

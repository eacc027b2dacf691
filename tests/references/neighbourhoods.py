"""Scores of neighbourhoods and matches, plainly: loops over rows, bisection by scipy, breadth-first search."""

import math
from itertools import pairwise
from statistics import mean, median

import numpy as np
from scipy.optimize import brentq

from tests.references.scores import cosine


def euclidean(a, b) -> float:
    return math.sqrt(math.fsum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True)))


def nearest(values, count, distance=euclidean):
    """Rows and distances of the nearest other rows, nearest first."""
    result = []
    for i in range(len(values)):
        others = sorted((distance(values[i], values[j]), j) for j in range(len(values)) if j != i)
        result.append(([j for _, j in others[:count]], [d for d, _ in others[:count]]))
    return result


def graph_connectivity(near, labels) -> float:
    shares = []
    for label in sorted(set(labels)):
        own = [i for i, other in enumerate(labels) if other == label]
        edges = {i: set() for i in own}
        for i in own:
            for j in near[i]:
                if labels[j] == label:
                    edges[i].add(j)
                    edges[j].add(i)
        seen, largest = set(), 0
        for start in own:
            piece, todo = set(), [start]
            while todo:
                node = todo.pop()
                if node not in piece:
                    piece.add(node)
                    todo += edges[node]
            if start not in seen:
                seen |= piece
                largest = max(largest, len(piece))
        shares.append(largest / len(own))
    return mean(shares)


def kbet(near, batches, critical: float) -> float:
    """Share of rows whose chi-square statistic does not exceed the critical value."""
    kinds = sorted(set(batches))
    accepted = 0
    for i, own in enumerate(near):
        around = [i, *own]
        statistic = 0.0
        for kind in kinds:
            expected = len(around) * batches.count(kind) / len(batches)
            statistic += (sum(batches[j] == kind for j in around) - expected) ** 2 / expected
        accepted += statistic <= critical
    return accepted / len(near)


def lisi(distances, labels_around, perplexity: float) -> float:
    """One row: weights exp(-beta d) with entropy ln(perplexity), then 1 / sum of squared shares."""

    def shares(beta):
        raw = [math.exp(-beta * (d - min(distances))) for d in distances]
        return [w / sum(raw) for w in raw]

    def excess(beta):
        return -sum(w * math.log(w) for w in shares(beta) if w > 0) - math.log(perplexity)

    weights = shares(brentq(excess, 0.0, 1e4, xtol=1e-13))
    total = 0.0
    for kind in set(labels_around):
        total += sum(w for w, label in zip(weights, labels_around, strict=True) if label == kind) ** 2
    return 1 / total


def silhouettes(values, labels):
    result = []
    for i, own in enumerate(labels):
        by = {}
        for j, other in enumerate(labels):
            if i != j:
                by.setdefault(other, []).append(euclidean(values[i], values[j]))
        if own not in by:
            result.append(0.0)
            continue
        a, b = mean(by[own]), min(mean(d) for label, d in by.items() if label != own)
        result.append((b - a) / max(a, b))
    return result


def accuracy(values, labels, allowed) -> tuple[float, int]:
    """Share of rows whose nearest allowed row (cosine) has their label, and rows that have none."""
    hits, without = [], 0
    for i in range(len(values)):
        others = [(-cosine(values[i], values[j]), j) for j in range(len(values)) if j != i and allowed(i, j)]
        if others:
            hits.append(labels[min(others)[1]] == labels[i])
        else:
            without += 1
    return sum(hits) / len(hits), without


def f1_at(similar, labels, k: int) -> float:
    """F1 of mean precision and mean recall among the k nearest."""
    precision, recall = [], []
    for i, label in enumerate(labels):
        possible = sum(other == label for other in labels) - 1
        if possible:
            order = sorted((j for j in range(len(labels)) if j != i), key=lambda j, i=i: -similar[i][j])
            found = sum(labels[j] == label for j in order[:k])
            precision.append(found / k)
            recall.append(found / possible)
    p, r = mean(precision), mean(recall)
    return 2 * p * r / (p + r) if p + r else 0.0


def auc_of_shares(r2, clip: bool, inclusive: bool) -> float:
    """Trapezoids over thresholds 0, 0.005, ..., 0.995."""
    points = []
    for step in range(200):
        threshold = step * 0.005
        counted = 0
        for value in r2:
            value = max(0.0, value) if clip else value
            counted += value >= threshold if inclusive else value > threshold
        points.append(counted / len(r2))
    return sum(0.005 * (a + b) / 2 for a, b in pairwise(points))


def z_prime(reference, target, direction) -> float:
    """Z' of two groups of vectors on a given direction, plain moments, measured from the reference's mean."""
    center = np.mean(reference, axis=0)
    norm = sum(float(x) ** 2 for x in direction)

    def place(row):
        return sum((float(x) - c) * float(d) for x, c, d in zip(row, center, direction, strict=True)) / norm

    def moments(rows):
        values = [place(row) for row in rows]
        center = sum(values) / len(values)
        return center, math.sqrt(sum((v - center) ** 2 for v in values) / (len(values) - 1))

    (mean_r, sd_r), (mean_t, sd_t) = moments(reference), moments(target)
    return 1 - 3 * (sd_r + sd_t) / abs(mean_r - mean_t)


def algorithm_a(values, tolerance: float = 1e-4) -> tuple[float, float]:
    """Robust mean and deviation by repeated winsorising."""
    center = median(values)
    spread = 1.4826 * median([abs(v - center) for v in values])
    while True:
        reach = 1.5 * math.sqrt((len(values) - 1) / len(values)) * spread
        clipped = [min(max(v, center - reach), center + reach) for v in values]
        new = sum(clipped) / len(clipped)
        variance = sum((v - new) ** 2 for v in clipped) / (len(clipped) - 1) / 0.778
        moved = max(abs(new - center), abs(math.sqrt(variance) - spread)) / spread
        center, spread = new, math.sqrt(variance)
        if moved < tolerance:
            return center, spread

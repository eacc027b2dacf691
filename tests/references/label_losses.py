"""Losses on labels, written from the papers: loops over rows, float64."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def _unit(rows: Array) -> Array:
    return np.stack([row / math.sqrt(sum(x * x for x in row)) for row in rows])


def class_loss(scores: Array, classes: list[int], smoothing: float) -> float:
    """Cross-entropy with a smoothed target, averaged over the rows that have a class."""
    losses = []
    for row, label in zip(scores, classes, strict=True):
        if label < 0:
            continue
        shares = np.exp(row) / np.exp(row).sum()
        target = np.full(len(row), smoothing / len(row))
        target[label] += 1 - smoothing
        losses.append(-sum(t * math.log(s) for t, s in zip(target, shares, strict=True)))
    return sum(losses) / len(losses) if losses else 0.0


def proxy_scores(embeddings: Array, proxies: Array, temperature: float) -> Array:
    """Minus the squared distance between vectors of length sqrt(1 / temperature)."""
    scale = math.sqrt(1 / temperature)
    return np.array([[-(((scale * a) - (scale * b)) ** 2).sum() for b in _unit(proxies)] for a in _unit(embeddings)])


def supervised_contrast(projections: Array, classes: list[int], temperature: float) -> float:
    """Equation 2 of Khosla et al., averaged over the anchors that have a positive."""
    rows, losses = _unit(projections), []
    labelled = [i for i, label in enumerate(classes) if label >= 0]
    for i in labelled:
        others = [a for a in labelled if a != i]
        positives = [p for p in others if classes[p] == classes[i]]
        if positives:
            total = sum(math.exp(rows[i] @ rows[a] / temperature) for a in others)
            shares = [math.exp(rows[i] @ rows[p] / temperature) / total for p in positives]
            losses.append(-sum(math.log(share) for share in shares) / len(positives))
    return sum(losses) / len(losses) if losses else 0.0


def triplet(embeddings: Array, classes: list[int], margin: float) -> float:
    """The hardest positive and negative of each anchor, averaged over the anchors that have both."""
    rows, losses = _unit(embeddings), []
    labelled = [i for i, label in enumerate(classes) if label >= 0]
    for i in labelled:
        near = [math.dist(rows[i], rows[a]) for a in labelled if a != i and classes[a] == classes[i]]
        far = [math.dist(rows[i], rows[a]) for a in labelled if classes[a] != classes[i]]
        if near and far:
            losses.append(max(0.0, max(near) - min(far) + margin))
    return sum(losses) / len(losses) if losses else 0.0


def group_means(rows: Array, classes: list[int], groups: list[int]) -> list[tuple[int, Array]]:
    """Class and mean of each group of rows of one class; a row of group -1 stands alone."""
    members: dict[tuple[int, int], list[Array]] = {}
    for number, (row, label, group) in enumerate(zip(rows, classes, groups, strict=True)):
        if label >= 0:
            members.setdefault((label, group if group >= 0 else -1 - number), []).append(row)
    return [(label, sum(found) / len(found)) for (label, _), found in sorted(members.items())]

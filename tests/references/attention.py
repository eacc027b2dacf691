"""Attention written plainly: one head, one query, one key after the other, in float64."""

import math
from collections.abc import Sequence

Matrix = Sequence[Sequence[float]]


def weights(queries: Matrix, keys: Matrix) -> list[list[float]]:
    """Softmax of scaled products of every query with every key."""
    rows = []
    for query in queries:
        scores = [sum(a * b for a, b in zip(query, key, strict=True)) / math.sqrt(len(query)) for key in keys]
        top = max(scores)
        powers = [math.exp(score - top) for score in scores]
        rows.append([power / sum(powers) for power in powers])
    return rows


def rollout(blocks: Sequence[Matrix], first: int = 0) -> list[float]:
    """How much one token draws from all, through blocks that each keep half of a token (Abnar and Zuidema 2020)."""
    size = len(blocks[0])
    whole = [[float(i == j) for j in range(size)] for i in range(size)]
    for block in blocks:
        half = [[0.5 * block[i][j] + 0.5 * (i == j) for j in range(size)] for i in range(size)]
        whole = [[sum(half[i][k] * whole[k][j] for k in range(size)) for j in range(size)] for i in range(size)]
    return whole[first]

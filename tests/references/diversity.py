"""The diversity terms of DiChaViT, written from the paper: loops over pairs of tokens and over channels, float64."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def cosine(a: Array, b: Array) -> float:
    """Cosine similarity of two vectors."""
    return float(sum(a * b) / math.sqrt(sum(a * a)) / math.sqrt(sum(b * b)))


def token_likeness(tokens: Array, channels: list[int], seen: list[bool]) -> tuple[float, float]:
    """Means over all ordered pairs of different tokens, the first of which is seen: of one channel, of two channels."""
    same, different = [], []
    for i, mine in enumerate(channels):
        for j, theirs in enumerate(channels):
            if i != j and seen[i]:
                (same if mine == theirs else different).append(cosine(tokens[i], tokens[j]))
    return (sum(same) / len(same) if same else 0.0, sum(different) / len(different) if different else 0.0)


def channel_confusion(
    embeddings: Array, proxies: Array, types: set[int], temperature: float, *, among_present: bool
) -> float:
    """Cross-entropy of finding the proxy of each type of an image, by minus squared distances of unit vectors."""
    losses = []
    for mine in types:
        unit = embeddings[mine] / math.sqrt(sum(embeddings[mine] ** 2))
        scores = {}
        for other in types if among_present else range(len(proxies)):
            proxy = proxies[other] / math.sqrt(sum(proxies[other] ** 2))
            scores[other] = -float(sum((unit - proxy) ** 2)) / temperature
        losses.append(math.log(sum(math.exp(score) for score in scores.values())) - scores[mine])
    return sum(losses) / len(losses) if losses else 0.0

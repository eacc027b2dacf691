"""Features with a known answer for the test layouts of benchmarks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.bootstrap import generator
from morphem.benchmarks.neighbours import codes


def planted(
    labels: Sequence[Any] | NDArray[Any],
    *,
    seed: int,
    effect: float,
    dim: int = 16,
    batches: Sequence[Any] | NDArray[Any] | None = None,
    batch_effect: float = 0.0,
) -> NDArray[np.float32]:
    """Return features in which labels show as much as asked for, (R, F).

    Every label has a random direction of length `4 * effect`; noise has a deviation of 1 in each of F features.
    With an infinite effect there is no noise and no batch effect. Rows whose label is None hold noise alone.

    Args:
        labels: What the features should tell, R; None for rows without (controls).
        seed: Of directions and noise.
        effect: 0 none, 1 clear, infinity nothing else.
        dim: F.
        batches: Of R rows; each has a random offset of length `4 * batch_effect`.
        batch_effect: Size of these offsets.
    """
    random = generator(seed, "planted")
    known = np.asarray([label is not None for label in labels])
    number = codes(["" if label is None else label for label in labels])
    directions = _directions(random, int(number.max(initial=0)) + 1, dim)
    signal = directions[number] * known[:, None]
    noise = random.normal(size=(len(number), dim))
    if math.isinf(effect):
        return np.asarray(4.0 * signal + 1e-3 * _directions(random, 1, dim), np.float32)
    if batches is not None:
        noise += 4.0 * batch_effect * _directions(random, len(set(map(str, batches))), dim)[codes(batches)]
    return np.asarray(4.0 * effect * signal + noise, np.float32)


def _directions(random: np.random.Generator, count: int, dim: int) -> NDArray[np.float64]:
    """Return random unit vectors, (count, dim)."""
    vectors = random.normal(size=(count, dim))
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float64)

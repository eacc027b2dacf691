"""iBOT's loss of hidden patches, KoLeo and the layer-wise rates, written plainly: loops, float64, no cleverness."""

import math

import numpy as np
from numpy.typing import NDArray

from tests.references.dino_formulas import softmax

Floats = NDArray[np.float64]


def balanced(scores: Floats, temperature: float) -> Floats:
    """Sinkhorn and Knopp, three turns: prototypes share the mass evenly, then every patch gets one; (M, K)."""
    mass = np.exp((scores - scores.max()) / temperature)
    n_patches, n_prototypes = mass.shape
    for _ in range(3):
        mass = mass / mass.sum(0, keepdims=True) / n_prototypes
        mass = mass / mass.sum(1, keepdims=True) / n_patches
    return mass * n_patches


def patch_loss(
    teacher: list[Floats], student: list[Floats], center: Floats, tau_t: float, tau_s: float, balance: bool = False
) -> float:
    """Mean over images of the mean cross-entropy over their hidden patches; an image without any counts 0.

    Args:
        teacher: For each image the scores of its hidden patches, (m, K); m may be 0.
        student: The same of the student.
        center: (K,).
        tau_t: Temperature of the teacher.
        tau_s: Temperature of the student.
        balance: Whether targets are balanced over all patches instead of centred.
    """
    even = balanced(np.concatenate(teacher), tau_t) if balance else None
    total, start = 0.0, 0
    for t_rows, s_rows in zip(teacher, student, strict=True):
        entropies = []
        for row in range(len(t_rows)):
            p = softmax((t_rows[row] - center) / tau_t) if even is None else even[start + row]
            entropies.append(-float((p * np.log(softmax(s_rows[row] / tau_s))).sum()))
        start += len(t_rows)
        total += sum(entropies) / len(entropies) if entropies else 0.0
    return total / len(teacher)


def koleo(rows: Floats) -> float:
    """Mean of -log of the distance of each row of unit length to its nearest neighbour."""
    unit = [row / math.sqrt(float(row @ row)) for row in rows]
    nearest = [min(math.dist(a, b) for j, b in enumerate(unit) if j != i) for i, a in enumerate(unit)]
    return -sum(math.log(distance) for distance in nearest) / len(nearest)

"""DINO's formulas written plainly from the paper and its pseudocode: loops, float64, no cleverness."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def softmax(row: Floats) -> Floats:
    """Softmax of one row."""
    powers = np.exp(row - row.max())
    return powers / powers.sum()


def dino_loss(teacher: Floats, student: Floats, center: Floats, tau_t: float, tau_s: float) -> float:
    """Mean cross-entropy over all pairs of different views; teacher (V_t, M, K), student (V_s, M, K), center (K,)."""
    total, terms = 0.0, 0
    for t in range(len(teacher)):
        for s in range(len(student)):
            if s == t:
                continue
            terms += 1
            entropy = 0.0
            for row in range(teacher.shape[1]):
                p = softmax((teacher[t, row] - center) / tau_t)
                q = softmax(student[s, row] / tau_s)
                entropy -= float((p * np.log(q)).sum())
            total += entropy / teacher.shape[1]
    return total / terms


def moved_center(teacher: Floats, center: Floats, momentum: float) -> Floats:
    """The centre after one step, (K,)."""
    return center * momentum + teacher.reshape(-1, teacher.shape[-1]).mean(0) * (1 - momentum)


def cosine_scheduler(base: float, final: float, epochs: int, steps: int, warmup_epochs: int, start: float) -> Floats:
    """Values of all steps of a run: a line over the warm-up, then half a cosine."""
    warmup_steps = warmup_epochs * steps
    line = [start + (base - start) * i / max(warmup_steps - 1, 1) for i in range(warmup_steps)]
    rest = epochs * steps - warmup_steps
    wave = [final + 0.5 * (base - final) * (1 + math.cos(math.pi * i / rest)) for i in range(rest)]
    return np.asarray(line + wave)


def head(x: Floats, weights: list[Floats], biases: list[Floats], v: Floats) -> Floats:
    """Three layers with exact GELU, unit length, cosine with each prototype; (M, D) to (M, K)."""
    for i, (w, b) in enumerate(zip(weights, biases, strict=True)):
        x = x @ w.T + b
        if i < 2:
            x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
    x = x / np.linalg.norm(x, axis=1, keepdims=True)
    return x @ (v / np.linalg.norm(v, axis=1, keepdims=True)).T

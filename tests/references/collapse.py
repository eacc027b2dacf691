"""Signals of collapse written plainly, in float64."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def feature_std(rows: Floats) -> float:
    """Root of the summed variances of rows of unit length."""
    unit = np.stack([row / np.sqrt((row**2).sum()) for row in rows])
    return float(np.sqrt(sum(((unit[:, d] - unit[:, d].mean()) ** 2).mean() for d in range(unit.shape[1]))))


def effective_rank(rows: Floats) -> float:
    """Exponential of the entropy of the singular values of centred rows."""
    centred = rows - rows.mean(0)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(centred.T @ centred), 0))
    shares = values / values.sum()
    return float(np.exp(-sum(p * np.log(p) for p in shares if p > 1e-12)))

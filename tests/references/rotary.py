"""Rotary positions written plainly: complex numbers, one pair of one token of one head at a time."""

import cmath

import torch
from torch import Tensor


def turned(values: Tensor, places: Tensor, frequencies: Tensor, rotation: str) -> Tensor:
    """Turn pairs of values (B, h, T, d) of tokens at places (T, 2), row and column, by frequencies (2, h, d / 2)."""
    result = torch.empty_like(values)
    n, n_heads, n_tokens, width = values.shape
    for b in range(n):
        for h in range(n_heads):
            for t in range(n_tokens):
                row, column = places[t].tolist()
                for k in range(width // 2):
                    angle = float(frequencies[0, h, k]) * column + float(frequencies[1, h, k]) * row
                    factor = cmath.exp(1j * angle)
                    if rotation == "cosine":
                        factor = complex(factor.real)
                    pair = complex(values[b, h, t, 2 * k], values[b, h, t, 2 * k + 1]) * factor
                    result[b, h, t, 2 * k], result[b, h, t, 2 * k + 1] = pair.real, pair.imag
    return result

"""Microsnoop's network again, in loops over pixels and channels, float64.

Source: cellimnet/microsnoop-publish at 3f0b0ce and scellseg 0.1.8, as the record of the golden file says it in words.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

Array = NDArray[np.float64]


def norm_conv(x: Array, weights: Mapping[str, Tensor], prefix: str, rectified: bool = True) -> Array:
    """Batch normalisation with running statistics, ReLU, convolution with zeros around, (C, H, W) to (K, H, W)."""
    part = {name: weights[f"{prefix}.{name}"].numpy() for name in ("conv.weight", "conv.bias", "norm.weight")}
    mean, variance = weights[f"{prefix}.norm.running_mean"].numpy(), weights[f"{prefix}.norm.running_var"].numpy()
    shift, kernel = weights[f"{prefix}.norm.bias"].numpy(), part["conv.weight"]
    y = np.empty_like(x)
    for c in range(len(x)):
        y[c] = (x[c] - mean[c]) / np.sqrt(variance[c] + 1e-5) * part["norm.weight"][c] + shift[c]
    if rectified:
        y = np.maximum(y, 0.0)
    side = kernel.shape[2] // 2
    padded = np.pad(y, [(0, 0), (side, side), (side, side)])
    out = np.empty((len(kernel), *x.shape[1:]))
    for k in range(len(kernel)):
        for row in range(x.shape[1]):
            for column in range(x.shape[2]):
                window = padded[:, row : row + kernel.shape[2], column : column + kernel.shape[3]]
                out[k, row, column] = (window * kernel[k]).sum() + part["conv.bias"][k]
    return out


def encode(plane: Array, weights: Mapping[str, Tensor], n_stages: int) -> tuple[list[Array], Array]:
    """Maps of all stages and the embedding of one plane, (H, W)."""
    maps: list[Array] = []
    x = plane[None]
    for i in range(n_stages):
        if i:
            x = _halved(maps[-1])
        at = f"stages.{i}"
        inner = norm_conv(norm_conv(x, weights, f"{at}.convs.0"), weights, f"{at}.convs.1")
        x = norm_conv(x, weights, f"{at}.projection", rectified=False) + inner
        x = x + norm_conv(norm_conv(x, weights, f"{at}.convs.2"), weights, f"{at}.convs.3")
        maps.append(x)
    mean = np.array([channel.mean() for channel in maps[-1]])
    return maps, mean / np.sqrt((mean**2).sum())


def decode(maps: list[Array], style: Array, weights: Mapping[str, Tensor]) -> Array:
    """The plane that the decoder paints, (H, W)."""
    x = maps[-1]
    for i in reversed(range(len(maps))):
        at = f"stages.{i}"
        inner = norm_conv(x, weights, f"{at}.first") + maps[i]
        x = norm_conv(x, weights, f"{at}.projection", rectified=False) + _styled(
            inner, style, weights, f"{at}.styled.0"
        )
        x = x + _styled(_styled(x, style, weights, f"{at}.styled.1"), style, weights, f"{at}.styled.2")
        if i:
            x = x.repeat(2, axis=1).repeat(2, axis=2)
    return norm_conv(x, weights, "last")[0]


def _styled(x: Array, style: Array, weights: Mapping[str, Tensor], prefix: str) -> Array:
    added = weights[f"{prefix}.from_style.weight"].numpy() @ style + weights[f"{prefix}.from_style.bias"].numpy()
    return norm_conv(x + added[:, None, None], weights, f"{prefix}.conv")


def _halved(x: Array) -> Array:
    height, width = x.shape[1] // 2, x.shape[2] // 2
    out = np.empty((len(x), height, width))
    for row in range(height):
        for column in range(width):
            out[:, row, column] = x[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2].max(axis=(1, 2))
    return out

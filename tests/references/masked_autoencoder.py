"""Masked autoencoders' formulas written plainly from the papers: loops, float64, no cleverness."""

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def normalized(patch: Floats) -> Floats:
    """One patch of a target with mean 0 and variance 1: unbiased variance, plus 1e-6."""
    return (patch - patch.mean()) / math.sqrt(patch.var(ddof=1) + 1e-6)


def pixel_loss(predicted: Floats, target: Floats, judged: NDArray[np.bool_]) -> float:
    """Mean squared error of the judged patches; (B, T, X) and (B, T)."""
    errors = [
        float(((predicted[b, t] - target[b, t]) ** 2).mean())
        for b in range(len(predicted))
        for t in range(predicted.shape[1])
        if judged[b, t]
    ]
    return sum(errors) / len(errors)


def fourier(picture: Floats) -> NDArray[np.complex128]:
    """The two-dimensional discrete Fourier transform of one picture, (H, W), by its definition."""
    height, width = picture.shape
    left = np.exp(-2j * math.pi * np.outer(np.arange(height), np.arange(height)) / height)
    right = np.exp(-2j * math.pi * np.outer(np.arange(width), np.arange(width)) / width)
    spectrum: NDArray[np.complex128] = left @ picture @ right
    return spectrum


def magnitude_loss(predicted: Floats, target: Floats, judged: NDArray[np.bool_], patch: tuple[int, int]) -> float:
    """Mean absolute difference of Fourier magnitudes of the judged patches, channel by channel."""
    errors = []
    for b in range(len(predicted)):
        for t in range(predicted.shape[1]):
            if judged[b, t]:
                pairs = zip(predicted[b, t].reshape(-1, *patch), target[b, t].reshape(-1, *patch), strict=True)
                errors.append(np.mean([np.abs(np.abs(fourier(p)) - np.abs(fourier(q))) for p, q in pairs]))
    return float(np.mean(errors))


def camae_magnitude_loss(predicted: Floats, target: Floats, judged: NDArray[np.bool_]) -> float:
    """CA-MAE's term as its code defines it: the memory of the token matrix seen as square tiles with as many pixels as
    there are tokens in a channel, here for one channel; magnitudes put back to tokens, mean over the judged ones.
    """
    count, n_tokens, n_pixels = predicted.shape
    side = math.isqrt(n_tokens)
    tiles = [x.reshape(count, n_pixels, side, side) for x in (predicted, target)]
    first, second = (np.abs(np.array([[fourier(tile) for tile in row] for row in x])) for x in tiles)
    per_token = np.abs(first - second).reshape(count, n_tokens, n_pixels).mean(2)
    return float(per_token[judged].mean())


def filtered(picture: Floats, cutoff: float, keep: str) -> Floats:
    """A picture after a sharp low or high pass, in space: frequencies in half cycles per pixel."""
    height, width = picture.shape
    spectrum = fourier(picture)
    for y in range(height):
        for x in range(width):
            fy = (y if y < (height + 1) // 2 else y - height) / height * 2
            fx = (x if x < (width + 1) // 2 else x - width) / width * 2
            low = math.hypot(fy, fx) <= cutoff
            if low != (keep == "low"):
                spectrum[y, x] = 0
    # the inverse is the transform with the other sign, divided by the number of pixels
    back = np.conj(fourier(np.conj(spectrum).real) + 1j * fourier(np.conj(spectrum).imag)) / (height * width)
    return np.real(back)


def picture_of(values: Floats, channel: int, channels: Floats, patches: Floats, grid: tuple[int, int],
               patch: tuple[int, int]) -> Floats:  # fmt: skip
    """The plane of one channel from the patches of one sequence, (T, X)."""
    picture = np.zeros((grid[0] * patch[0], grid[1] * patch[1]))
    for t in range(len(values)):
        if channels[t] in (channel, -1):
            tile = values[t].reshape(-1, *patch)[channel if channels[t] == -1 else 0]
            y, x = divmod(int(patches[t]), grid[1])
            picture[y * patch[0] : (y + 1) * patch[0], x * patch[1] : (x + 1) * patch[1]] = tile
    return picture


def position(row: int, column: int, width: int) -> Floats:
    """MAE's sine and cosine position of one patch, (width,): first the column's half, then the row's."""
    half = []
    for place in (column, row):
        rates = [1.0 / 10000 ** (k / (width // 4)) for k in range(width // 4)]
        half += [math.sin(place * rate) for rate in rates] + [math.cos(place * rate) for rate in rates]
    return np.array(half)


def attention(queries: Floats, keys: Floats, values: Floats, n_heads: int) -> Floats:
    """Multi-head attention of one sequence: queries (T, d), keys and values (S, d)."""
    size = queries.shape[1] // n_heads
    result = np.zeros_like(queries)
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        for t in range(len(queries)):
            scores = np.array([queries[t, part] @ key[part] for key in keys]) / math.sqrt(size)
            weights = np.exp(scores - scores.max())
            result[t, part] = (weights / weights.sum()) @ values[:, part]
    return result


def attention_pool(tokens: Floats, weights: dict[str, Floats], n_heads: int) -> Floats:
    """What the query gathers from the tokens of one sequence, (T, D): the MAB of the Set Transformer, unnormalised."""
    width = tokens.shape[1]
    query = weights["q.weight"] @ weights["query"] + weights["q.bias"]
    keys = [weights["k.weight"] @ token + weights["k.bias"] for token in tokens]
    values = [weights["v.weight"] @ token + weights["v.bias"] for token in tokens]
    seen = query.copy()
    size = width // n_heads
    for head in range(n_heads):
        part = slice(head * size, (head + 1) * size)
        powers = [math.exp(float(query[part] @ key[part]) / math.sqrt(width)) for key in keys]
        for power, value in zip(powers, values, strict=True):
            seen[part] += power / sum(powers) * value[part]
    return seen + np.maximum(weights["out.weight"] @ seen + weights["out.bias"], 0.0)

"""Colours of maps: a scale for attention, and three principal components of patch tokens as red, green and blue.

The components are fitted once, on tokens of several images, and can be kept: fitted image by image, their signs and
axes would be arbitrary, and a colour would mean something else in every picture.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from morphem.errors import DataError

Floats = NDArray[np.float32]
Pixels = NDArray[np.uint8]

_ANCHORS = np.array(
    [[0, 0, 4], [60, 9, 100], [140, 35, 105], [205, 70, 70], [245, 125, 25], [250, 190, 50], [252, 253, 165]],
    np.float64,
)
"""From dark to bright through violet, red and yellow: brightness rises evenly, also for the colour-blind."""
_SHOWN = (2.0, 98.0)


def heat(values: Floats) -> Pixels:
    """Return a colour for every value, (..., 3).

    Args:
        values: 0 (dark) to 1 (bright), of any shape; others are clipped.
    """
    place = np.clip(values, 0, 1) * (len(_ANCHORS) - 1)
    below = np.minimum(place.astype(int), len(_ANCHORS) - 2)
    share = (place - below)[..., None]
    return np.asarray(np.rint(_ANCHORS[below] * (1 - share) + _ANCHORS[below + 1] * share), np.uint8)


@dataclass(frozen=True)
class PatchColours:
    """Three directions in the space of patch tokens.

    Attributes:
        mean: Of the tokens, (D,).
        components: Directions of most variance, (3, D), each of length 1 with its largest number above 0.
        low: Score of each component that is dark, (3,).
        high: Score that is bright, (3,).
        explained: Share of the tokens' variance along each component, (3,).
        model: Which weights made the tokens (fingerprint).
    """

    mean: Floats
    components: Floats
    low: Floats
    high: Floats
    explained: Floats
    model: str

    @classmethod
    def fit(cls, tokens: Floats, model: str) -> Self:
        """Find the directions.

        Args:
            tokens: (N, D), of several images; N at least 4.
            model: Fingerprint of the weights.

        Raises:
            DataError: If there are too few tokens, or all are equal.
        """
        mean = tokens.mean(0, dtype=np.float64)
        centred = tokens.astype(np.float64) - mean
        if len(tokens) < 4 or tokens.shape[1] < 3 or not np.any(centred):
            raise DataError(f"{len(tokens)} patch tokens of width {tokens.shape[1]} do not span three directions.")
        values, vectors = np.linalg.eigh(centred.T @ centred / len(tokens))
        components = vectors[:, ::-1][:, :3].T
        largest = components[np.arange(3), np.abs(components).argmax(1)]
        components = components * np.sign(largest)[:, None]
        scores = centred @ components.T
        low, high = np.percentile(scores, _SHOWN, axis=0)
        explained = values[::-1][:3] / values.sum()
        found = [np.asarray(x, np.float32) for x in (mean, components, low, high, explained)]
        return cls(found[0], found[1], found[2], found[3], found[4], model)

    def __call__(self, tokens: Floats) -> Pixels:
        """Return the colour of tokens, (..., 3).

        Args:
            tokens: (..., D).
        """
        scores = (tokens - self.mean) @ self.components.T
        scaled = (scores - self.low) / np.maximum(self.high - self.low, np.finfo(np.float32).tiny)
        return np.asarray(np.rint(np.clip(scaled, 0, 1) * 255), np.uint8)

    def save(self, path: Path) -> None:
        """Write the directions, for pictures of other images in the same colours.

        Args:
            path: Ends in `.npz`.
        """
        arrays: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "model"}
        np.savez(path, model=np.asarray(self.model), **arrays)

    @classmethod
    def load(cls, path: Path, model: str) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file.
            model: Fingerprint of the weights whose tokens will be coloured.

        Raises:
            DataError: If it is no such file, or was fitted on tokens of other weights.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                told = {name: file[name] for name in ("mean", "components", "low", "high", "explained", "model")}
        except (OSError, ValueError, KeyError) as fault:
            raise DataError(
                f"'{path}' holds no colours of patch tokens ({fault}); write it with morphem maps."
            ) from fault
        if str(told["model"]) != model:
            raise DataError(f"the colours in '{path}' were fitted on tokens of other weights; fit them anew.")
        found = [told[name].astype(np.float32) for name in ("mean", "components", "low", "high", "explained")]
        return cls(found[0], found[1], found[2], found[3], found[4], model)

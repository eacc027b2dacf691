"""Plain reference: cutting planes into patches, one after another."""

import numpy as np
from numpy.typing import NDArray


def patchify(planes: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """Cut (P, C, H, W) into (P, h * w, C * height * width)."""
    return np.stack(
        [
            np.stack(
                [
                    np.concatenate([channel[y : y + height, x : x + width].ravel() for channel in plane])
                    for y in range(0, plane.shape[1], height)
                    for x in range(0, plane.shape[2], width)
                ]
            )
            for plane in planes
        ]
    )

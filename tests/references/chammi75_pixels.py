"""What the loaders of CHAMMI-75's evaluation do to one plane, from the facts: float64, one step after the other."""

import numpy as np
import torch
from torch.nn.functional import interpolate


def resized(plane: np.ndarray, side: int) -> np.ndarray:
    image = torch.from_numpy(plane)[None, None]
    return interpolate(image, (side, side), mode="bilinear", antialias=True, align_corners=False)[0, 0].numpy()


def standardised(plane: np.ndarray) -> np.ndarray:
    return (plane - plane.mean()) / np.sqrt(plane.var() + 1e-7)


def by_sample_deviation(plane: np.ndarray) -> np.ndarray:
    deviation = np.sqrt(((plane - plane.mean()) ** 2).sum() / (plane.size - 1))
    return (plane - plane.mean()) / (deviation + 1e-7)


def padded(plane: np.ndarray, patch: int) -> np.ndarray:
    missing = [-length % patch for length in plane.shape]
    return np.pad(plane, [(m // 2, m - m // 2) for m in missing])


def chammi(plane: np.ndarray, side: int) -> np.ndarray:
    height, width = plane.shape
    left = round((width - height) / 2)
    square = plane[:, left : left + height].astype(np.float64) / 255
    return standardised(resized(square, side))


def idr0017(plane: np.ndarray, side: int, standardise: bool) -> np.ndarray:
    crop = plane.astype(np.float64) / 255
    return resized(standardised(crop), side) if standardise else resized(crop, side)


def hpav23(plane: np.ndarray, side: int) -> np.ndarray:
    """Without the noise, on the scale of 0 to 255."""
    return resized(standardised(plane.astype(np.float64)), side)


def rbc_mc(plane: np.ndarray, patch: int) -> np.ndarray:
    return padded(by_sample_deviation(np.clip(plane.astype(np.float64) / 255, 0, 1)), patch)


def cellphie(plane: np.ndarray, mask: np.ndarray, patch: int) -> np.ndarray:
    return padded(by_sample_deviation(plane.astype(np.float64) * mask), patch)

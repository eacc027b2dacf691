"""A ridge probe and the area under its curve, written plainly: normal equations as least squares, loops over pairs."""

from itertools import pairwise

import numpy as np

from morphem.encoder import Encoder
from morphem.types import ChannelBatch


def image_means(encoder: Encoder, batch: ChannelBatch) -> np.ndarray:
    """Mean over the planes of each image of what the encoder gives for a plane."""
    features = encoder.features(batch).double().numpy()
    bounds = batch.offsets.tolist()
    return np.stack([features[first:last].mean(0) for first, last in pairwise(bounds)])


def area_under_curve(encoder: Encoder, fitted: ChannelBatch, judged: ChannelBatch) -> float:
    """Share of pairs of images of two classes that a ridge regression (penalty 1) puts in the right order."""
    rows, others = image_means(encoder, fitted), image_means(encoder, judged)
    mean, deviation = rows.mean(0), rows.std(0, ddof=1)
    rows, others = (rows - mean) / deviation, (others - mean) / deviation
    target = np.where(fitted.labels[:, 0].numpy() == 1, 1.0, -1.0)
    target = target - target.mean()
    width = rows.shape[1]
    stacked = np.concatenate([rows, np.eye(width)])  # a penalty of 1 is one more row for each weight
    weights = np.linalg.lstsq(stacked, np.concatenate([target, np.zeros(width)]), rcond=None)[0]
    scores, classes = others @ weights, judged.labels[:, 0].tolist()
    right = [
        1.0 if high > low else 0.5 if high == low else 0.0
        for high, kind in zip(scores, classes, strict=True)
        if kind == 1
        for low, other in zip(scores, classes, strict=True)
        if other == 0
    ]
    return sum(right) / len(right)

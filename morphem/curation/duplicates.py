"""Curation by likeness: of images that look alike one stays.

Source: removal of near duplicates by the cosine of embeddings, as web-scale sets do (Oquab et al. 2023, DINOv2,
https://arxiv.org/abs/2304.07193, appendix A).
Differs from it: groups are greedy, not connected components, and the first image of a group stays.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import pandas as pd

from morphem.curation.clusters import finite
from morphem.curation.step import Floats, Mask, Needs, Step, check_number

_BLOCK = 1024  # images that are compared with 1024 others at a time: 8 MiB of similarities
_SINGLE_PRECISION = 1e-6
_ROUNDING = 1e-9  # the cosine of a vector with itself can come out below 1


class NearDuplicates(Step):
    """Drop images whose features are nearly those of an earlier image that stays.

    Greedy, in the order of the table: an image goes when the cosine of its features with those of an earlier image
    that stayed is at least `similarity`. So every image that goes has one like it that stays, and of a long series in
    which each resembles the next (a movie) some stay; connected components would leave one.

    Features are centred on the mean of the study first: embeddings of one encoder have a large part in common, and
    without centring different images can have a cosine near 1.

    Args:
        similarity: From 0 to 1; 0.99 drops what is nearly the same picture.
        studies: The only studies that the step looks at; all where not given.
    """

    name: ClassVar[str] = "near_duplicates"
    needs: ClassVar[Needs] = "features"

    def __init__(self, similarity: float = 0.99, studies: Sequence[str] = ()) -> None:
        super().__init__(studies)
        self.similarity = check_number(self.name, "similarity", similarity, 0, 1)

    def keep(self, planes: pd.DataFrame, features: Floats | None, seed: int) -> Mask:
        """Keep the first of the images that look alike."""
        return first_of_each(directions(features, self.name), self.similarity)


def directions(features: Floats | None, step: str) -> Floats:
    """Centre features on their mean and bring them to length 1; a feature equal to the mean becomes zero.

    Args:
        features: (N, D).
        step: Who asks.

    Returns:
        (N, D), float64.

    Raises:
        DataError: If there are none, or some are no numbers.
    """
    values = finite(features, step)
    size = np.linalg.norm(values, axis=1).max(initial=0.0)
    centred = values - values.mean(axis=0) if len(values) else values
    lengths = np.linalg.norm(centred, axis=1, keepdims=True)
    same = lengths <= _SINGLE_PRECISION * size  # rounding of float32 features, not a direction
    return np.where(same, 0.0, centred / np.where(same, 1.0, lengths))


def first_of_each(points: Floats, similarity: float, block: int = _BLOCK) -> Mask:
    """Say which points are unlike every earlier point that stays.

    Args:
        points: Of length 1, or zero (which is like other zeros, and like nothing else), (N, D).
        similarity: Cosine from which two points are alike.
        block: Points that are compared at a time; no influence on the result. Memory is block * block numbers.

    Returns:
        (N,), True for the points that stay.
    """
    limit = similarity - _ROUNDING
    keep: Mask = np.ones(len(points), np.bool_)
    zero: Mask = ~np.asarray(points.any(axis=1), np.bool_)
    keep[np.flatnonzero(zero)[1:]] = False
    for start in range(0, len(points), block):
        here = np.arange(start, min(start + block, len(points)))
        here = here[keep[here] & ~zero[here]]
        for earlier in range(0, start, block):
            there = np.arange(earlier, earlier + block)
            there = there[keep[there] & ~zero[there]]
            here = here[~(points[here] @ points[there].T >= limit).any(axis=1)]
        alike = points[here] @ points[here].T >= limit
        stays = np.ones(len(here), np.bool_)
        for i in range(len(here)):
            stays[i] = not (alike[i, :i] & stays[:i]).any()
        chosen = here[stays]
        keep[start : start + block] &= zero[start : start + block]
        keep[chosen] = True
    return keep

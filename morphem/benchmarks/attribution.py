"""Which channels tell a mechanism: the most important features of one-against-the-rest forests, counted by channel.

Source: uniDINO, Comput. Struct. Biotechnol. J. 2025; Bayer-Group/uniDINO at 03c5ee3: 100 trees, balanced classes, top
50 features, channels by the block of 384 features that each has.
Differs from it: blocks are told by the table's dictionary, not by an index; every forest has a seed of its own; what
a channel would have by chance stands beside its count.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem import rng
from morphem.errors import DataError
from morphem.features import FeatureTable

N_TREES, TOP = 100, 50


def channel_attribution(
    table: FeatureTable, labels: NDArray[Any], *, seed: int, n_trees: int = N_TREES, top: int = TOP
) -> dict[str, Any]:
    """Return for every label how many of its most important features are of which channel.

    Args:
        table: Profiles, R rows; its dictionary says of which channel every feature is.
        labels: (R,), two different ones at least.
        seed: Of the forests.
        n_trees: Of a forest.
        top: Features that count; at most all.

    Returns:
        `counts` (label to channel to number), `chance` (channel to number expected) and `top`.

    Raises:
        DataError: If features are not of single channels, or there is one label only.
    """
    from sklearn.ensemble import RandomForestClassifier

    channels = np.asarray([str(entry["channel"]) for entry in table.dictionary])
    if not channels.astype(bool).all() or len(set(channels)) < 2:
        raise DataError(
            "unidino: attribution needs features of at least two channels, told by the table's dictionary; embed with "
            "combine=concat."
        )
    names = np.unique(labels)
    if len(names) < 2:
        raise DataError(f"unidino: attribution needs two mechanisms, but all profiles are of '{names[0]}'.")
    top = min(top, len(channels))
    kinds, counts = np.unique(channels, return_counts=True)
    result: dict[str, dict[str, int]] = {}
    for name in names:
        forest = RandomForestClassifier(
            n_trees,
            class_weight="balanced",
            random_state=rng.mix(seed, "attribution", str(name)) & 0x7FFFFFFF,
            n_jobs=1,
        )
        forest.fit(table.values, labels == name)
        best = np.argsort(-forest.feature_importances_, kind="stable")[:top]
        result[str(name)] = {str(kind): int((channels[best] == kind).sum()) for kind in kinds}
    chance = {str(kind): float(top * count / len(channels)) for kind, count in zip(kinds, counts, strict=True)}
    return {"counts": result, "chance": chance, "top": top}

"""A weighted nearest-neighbour classifier on frozen features.

Source: Wu et al. 2018, https://arxiv.org/abs/1805.01978, with the numbers of DINO's eval_knn.py (k = 20, 0.07).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize, one_hot

from morphem.callbacks.probe import Probe
from morphem.errors import ConfigError

_CHUNK = 1024  # rows that are compared at a time


class KNNProbe(Probe):
    """Score the exported encoder by votes of the nearest neighbours; see `Probe` for the other arguments.

    A neighbour of cosine similarity s has exp(s / temperature) votes. Features are centred by the mean of the rows to
    learn from, because the common component of all images says nothing about any of them.

    Args:
        data: Labelled shards.
        label: Column to predict.
        k: Neighbours that vote, at least 1; all rows where there are fewer.
        temperature: Above 0.
        kwargs: As `Probe` takes them.

    Raises:
        ConfigError: If a setting is out of range or without effect.
    """

    kind = "knn"

    def __init__(self, data: str, label: str, *, k: int = 20, temperature: float = 0.07, **kwargs: Any) -> None:
        super().__init__(data, label, **kwargs)
        if k < 1 or not temperature > 0:
            raise ConfigError(f"KNNProbe: k={k} has to be 1 or more and temperature={temperature} above 0.")
        self.k = k
        self.temperature = temperature

    def predict(
        self, train: NDArray[np.float32], classes: NDArray[np.int64], test: NDArray[np.float32], n_classes: int
    ) -> NDArray[np.int64]:
        """Let neighbours vote."""
        mean = train.mean(0)
        known, asked = (normalize(torch.from_numpy(rows - mean), dim=1) for rows in (train, test))
        votes_of = one_hot(torch.from_numpy(classes), n_classes).float()  # (M, n_classes)
        parts = []
        for rows in torch.split(asked, _CHUNK):
            similarity, nearest = (rows @ known.T).topk(min(self.k, len(known)), dim=1)  # (r, k)
            weight = (similarity / self.temperature).exp()
            parts.append((weight.unsqueeze(2) * votes_of[nearest]).sum(1).argmax(1))
        result: NDArray[np.int64] = torch.cat(parts).numpy()
        return result

"""Campfire's probe: single cells drawn by plate, compound and well, and one linear layer on features as they are.

Source: Hurry et al. 2025 (Campfire); GSK-AI/campfire at b034f8d (optimiser, schedule, stopping, numbers of cells).
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.benchmarks.base import column
from morphem.benchmarks.bootstrap import generator
from morphem.benchmarks.neighbours import Ints
from morphem.features import FeatureTable

PLATE, WELL, COMPOUND = "Metadata_Plate", "Metadata_Well", "Metadata_Compound"
Floats = NDArray[np.float32]


class Cells:
    """Cells in an order that does not depend on that of the table.

    Args:
        table: One row per cell.
        split: What each is for.
        rows: Which, and in which order.
    """

    def __init__(self, table: FeatureTable, split: NDArray[Any], rows: Ints) -> None:
        self._source = (table, split)
        self._rows = np.asarray(rows, np.int64)
        self.values: Floats = table.values[self._rows]
        self.compound, self.plate, self.well = (
            column(table, name).astype(str)[self._rows] for name in (COMPOUND, PLATE, WELL)
        )
        self.split = split[self._rows]

    def take(self, chosen: NDArray[np.bool_] | Ints) -> "Cells":
        """Return some cells, by mask or by number."""
        return Cells(*self._source, self._rows[chosen])

    def numbers(self, classes: list[str]) -> Ints:
        """Return the class of every cell, (R,)."""
        return np.searchsorted(np.asarray(classes), self.compound).astype(np.int64)

    def some(self, split: str, count: int, seed: int, by: tuple[str, ...] = (PLATE,)) -> "Cells":
        """Return at most `count` cells of every compound and plate (and well) of a split, drawn without replacement."""
        rows = np.flatnonzero(self.split == split)
        parts = [self.compound, self.plate] + ([self.well] if WELL in by else [])
        groups: dict[tuple[str, ...], list[int]] = {}
        for row in rows:
            groups.setdefault(tuple(str(part[row]) for part in parts), []).append(int(row))
        chosen: list[int] = []
        for name in sorted(groups):
            members = groups[name]
            random = generator(seed, "cells", split, *name)
            chosen += sorted(random.choice(members, min(count, len(members)), replace=False).tolist())
        return self.take(np.asarray(chosen, np.int64))


def parts_of_classes(labels: NDArray[Any], n_parts: int, seed: int) -> Ints:
    """Deal the rows of every class into equal parts at random, (R,).

    Args:
        labels: (R,).
        n_parts: How many.
        seed: Of the draw.
    """
    result = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        result[generator(seed, "parts", str(label)).permutation(own)] = np.arange(len(own)) % n_parts
    return result


def train_layer(
    train: Floats,
    labels: Ints,
    validation: tuple[Floats, Ints],
    tests: list[Floats],
    *,
    n_classes: int,
    seed: int,
    max_epochs: int,
    keep_best: bool,
    patience: int = 25,
) -> list[Ints]:
    """Train the published linear layer and return the classes that it gives to the rows of every test.

    Global random numbers are neither used nor changed.

    Args:
        train: (M, F).
        labels: (M,), 0 to K - 1.
        validation: Rows and labels on whose accuracy training stops.
        tests: Each (T, F); may be empty.
        n_classes: K.
        seed: Of the weights and the batches.
        max_epochs: At least 1.
        keep_best: Test the weights that validated best; otherwise the last ones, as published.
        patience: Epochs without gain after which training stops.
    """
    import torch
    from torch import nn

    rows, wanted = torch.from_numpy(np.ascontiguousarray(train)), torch.from_numpy(labels)
    judged, truth = torch.from_numpy(np.ascontiguousarray(validation[0])), torch.from_numpy(validation[1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layer = nn.Linear(train.shape[1], n_classes)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=1e-3, weight_decay=1e-2)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 25, 0.5)
        best, best_epoch = -1.0, 0
        best_weights = {name: value.clone() for name, value in layer.state_dict().items()}
        for epoch in range(max_epochs):
            for batch in torch.split(torch.randperm(len(rows)), 32):
                loss: torch.Tensor = nn.functional.cross_entropy(layer(rows[batch]), wanted[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            scheduler.step()
            with torch.no_grad():
                score = float((layer(judged).argmax(1) == truth).float().mean())
            if score > best:
                best, best_epoch = score, epoch
                best_weights = {name: value.clone() for name, value in layer.state_dict().items()}
            elif epoch - best_epoch >= patience:
                break
        if keep_best:
            layer.load_state_dict(best_weights)
        with torch.no_grad():
            return [
                layer(torch.from_numpy(np.ascontiguousarray(test))).argmax(1).numpy().astype(np.int64) for test in tests
            ]

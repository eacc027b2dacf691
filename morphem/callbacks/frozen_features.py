"""Frozen features of the encoder in training: computed by all processes together, once per state of its weights.

This is the one path to features that `morphem embed` takes.
"""

from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import lightning.pytorch as L
import numpy as np
import pandas as pd
import torch.distributed as dist
from numpy.typing import NDArray

from morphem import features, rng
from morphem.aggregation import Level, average
from morphem.data.shards import resolve_root
from morphem.encoder import Encoder
from morphem.errors import DataError
from morphem.extraction import EmbedSettings, Extraction
from morphem.features import FeatureTable
from morphem.methods.base import Method
from morphem.protocol_pixels import prepared
from morphem.sharding import whole


@dataclass(frozen=True)
class FeatureRequest:
    """Which features a probe looks at.

    Attributes:
        data: Shards.
        settings: How they are cut and combined.
        aggregate: Level to which rows are averaged, or None.
        max_images: Largest number of images, or None for all; a fixed draw.
        seed: Of that draw.
        batch_size: Planes per batch.
        num_workers: Processes that read.
        prepare: What is done to pixels in place of the encoder's own preparation; see `morphem.protocol_pixels`.
    """

    data: str
    settings: EmbedSettings
    aggregate: Level | None
    max_images: int | None
    seed: int
    batch_size: int
    num_workers: int
    prepare: str = "own"


class FeatureSource:
    """Frozen features of one request, computed once per state of the encoder.

    Args:
        request: What is wanted.
        encoder: The exported encoder of the method in training.
        method: The method in training, whose weights may be sharded.
    """

    def __init__(self, request: FeatureRequest, encoder: Encoder, method: Method) -> None:
        self.request = request
        self.encoder = encoder
        self._method = method
        self._run = Extraction(
            prepared(encoder, request.prepare),
            resolve_root(request.data),
            request.settings,
            batch_size=request.batch_size,
            num_workers=request.num_workers,
            device=method.device,
        )
        count = self._run.plan.n_images
        wanted = min(count, request.max_images or count)
        order = sorted(range(count), key=lambda image: rng.mix(request.seed, "probe images", image))
        self._images = sorted(order[:wanted])
        self._step = -1
        self._table: FeatureTable | None = None

    def metadata(self) -> pd.DataFrame:
        """Return what is known of every row before aggregation, without embedding anything."""
        return self._run.plan.metadata(self._run.row_numbers(self._images))

    def table(self, trainer: L.Trainer) -> FeatureTable:
        """Return all rows, on every process; each embeds its share of the images."""
        if self._table is None or self._step != trainer.global_step:
            with whole(self._method):
                self._table, self._step = self._extract(trainer), trainer.global_step
        return self._table

    def _extract(self, trainer: L.Trainer) -> FeatureTable:
        images = self._images[trainer.global_rank :: trainer.world_size]
        with self._run.bar(len(images), False) as bar:
            table = self._run.table(images, bar)
        numbers = self._run.row_numbers(images)
        if trainer.world_size > 1:
            table, numbers = _gather(table, numbers, trainer.world_size)
        expected = self._run.row_numbers(self._images)
        order = np.argsort(numbers, kind="stable")
        if not np.array_equal(numbers[order], expected):
            raise DataError(f"the processes embedded {len(numbers)} rows of {self.request.data}, not {len(expected)}.")
        metadata = table.metadata.iloc[order].reset_index(drop=True)
        now = {**table.provenance, **self._run.encoder.provenance()}  # the weights have moved since the plan was made
        table = replace(table, values=table.values[order], metadata=metadata, provenance=now)
        return table if self.request.aggregate is None else average([table], self.request.aggregate)


_SOURCES: "WeakKeyDictionary[L.Trainer, dict[FeatureRequest, FeatureSource]]" = WeakKeyDictionary()


def feature_source(trainer: L.Trainer, method: Method, request: FeatureRequest) -> FeatureSource:
    """Return the source of a request; probes of one run that ask for the same features share it.

    Args:
        trainer: Of the run.
        method: Its exported encoder is looked at.
        request: What is wanted.
    """
    sources = _SOURCES.setdefault(trainer, {})
    encoder = method.exported_encoder()
    if request not in sources or sources[request].encoder is not encoder:
        with whole(method):
            sources[request] = FeatureSource(request, encoder, method)
    return sources[request]


def _gather(table: FeatureTable, numbers: NDArray[np.int64], world_size: int) -> tuple[FeatureTable, NDArray[np.int64]]:
    """Join the shares of all processes."""
    shares: list[Any] = [None] * world_size
    dist.all_gather_object(shares, (table.values, table.metadata, numbers))
    joined = features.concat([replace(table, values=values, metadata=metadata) for values, metadata, _ in shares])
    return joined, np.concatenate([share[2] for share in shares])

"""An encoder over the images of a shard set: batches of bounded size in, tables of features out."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from morphem import features
from morphem.data.plan import CropPlan, CropReader, CropRule, Ints, Unit
from morphem.data.shards import ShardSet
from morphem.encoder import Encoder, check_combine, evaluating, table_columns
from morphem.engine import engine, split_crops
from morphem.errors import ConfigError, DataError
from morphem.features import Combine, FeatureTable
from morphem.types import ChannelBatch

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: dict[str, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_TILE_SIZE_PX = 224
_READ_BATCHES = 16  # crops of one image that are held at once, in batches


@dataclass(frozen=True)
class EmbedSettings:
    """What determines the rows of a table, besides the encoder and the shards.

    Attributes:
        unit: `tile`, `cell` or `image`; see `morphem.data.plan.CropRule`.
        tile_size_px: Side of a tile in pixels, with unit `tile` only; 224 where not given.
        crop_size_px: Side of a cell's crop in pixels, with unit `cell` only, and needed there.
        combine: How the channels of a crop become rows: `concat`, `mean` or `none`.
        query: Selects channel planes, for example `microscopy.type != 'fluorescence'`.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.

    Raises:
        ConfigError: If a setting is unknown, missing or without effect.
    """

    unit: Unit = "tile"
    tile_size_px: int | None = None
    crop_size_px: int | None = None
    combine: Combine = "concat"
    query: str | None = None
    precision: Precision = "32-true"

    def __post_init__(self) -> None:
        """Check everything that needs no data."""
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision='{self.precision}' must be one of {', '.join(PRECISIONS)}.")
        _ = self.rule

    @property
    def rule(self) -> CropRule:
        """What is cut out of an image."""
        tile = _TILE_SIZE_PX if self.unit == "tile" and self.tile_size_px is None else self.tile_size_px
        return CropRule(self.unit, tile, self.crop_size_px)


class Extraction:
    """An encoder over the plan of a shard set: makes the table of any of its images.

    Args:
        encoder: Embeds the crops; moved to `device`.
        root: Shards.
        settings: What determines the rows.
        batch_size: Planes per batch, at least 1.
        num_workers: Processes that read.
        device: Where to compute; where the encoder is, if not given.

    Attributes:
        plan: Which crops there are.

    Raises:
        ConfigError: If settings clash or have no effect.
        DataError: If there is nothing to embed, or images differ in channels with `concat`.
    """

    def __init__(
        self,
        encoder: Encoder,
        root: str | Path,
        settings: EmbedSettings,
        *,
        batch_size: int = 64,
        num_workers: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size={batch_size} must be at least 1 plane.")
        check_combine(encoder, settings.combine)
        self.encoder = encoder
        self.settings = settings
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.device = torch.device(device) if device is not None else encoder.device
        if self.device != encoder.device:
            encoder.to(self.device)
        shards = ShardSet(str(root))
        self.plan = CropPlan(shards, settings.rule, settings.query)
        if settings.combine == "concat" and encoder.per_channel:
            panels = (features.channel_labels(self.plan.panel(i)) for i in range(self.plan.n_images))
            features.check_one_panel(panels)
        rows = np.diff(self.plan.crop_starts) * (np.diff(self.plan.plane_starts) if self._per_plane else 1)
        self._row_starts: Ints = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.provenance: dict[str, Any] = {
            **encoder.provenance(),
            "data": {"root": str(root), "content_hash": shards.content_hash},
            "settings": asdict(replace(settings, tile_size_px=settings.rule.tile_size_px)),
            "rows": self.n_rows,
            "images_without_cells": self.plan.empty_images,
        }

    @property
    def _per_plane(self) -> bool:
        """Whether a row of the table is one plane of a crop."""
        return self.settings.combine == "none"

    @property
    def n_rows(self) -> int:
        """Rows of the whole table."""
        return int(self._row_starts[-1])

    @property
    def n_features(self) -> int:
        """Features per row."""
        side_by_side = self.settings.combine == "concat" and self.encoder.per_channel
        return self.encoder.embed_dim * (self.plan.n_planes(0) if side_by_side else 1)

    def count(self, images: Sequence[int]) -> int:
        """Return the number of rows that some images give."""
        return len(self.row_numbers(images))

    def row_numbers(self, images: Sequence[int]) -> Ints:
        """Return the place of every row of some images in the table of all images, (R,)."""
        starts = self._row_starts
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(starts[i], starts[i + 1]) for i in images)])

    def bar(self, n_images: int, show: bool) -> "tqdm[None]":
        """Return a progress bar in images, for `table`."""
        return tqdm(total=n_images, unit="image", desc="embed", disable=not show)

    def table(self, images: Sequence[int], bar: "tqdm[None]") -> FeatureTable:
        """Embed all crops of some images.

        Args:
            images: Numbers of images in the plan, rising.
            bar: Moves on with every image.

        Raises:
            DataError: If a plane is missing or damaged, or a row were lost.
        """
        values, rows, panels = self._embed(images, bar)
        values, columns, dictionary = self._columns(values, panels)
        metadata = self.plan.metadata(rows, self._per_plane)
        if not len(values) == len(metadata) == self.count(images):
            raise DataError(f"{self.count(images)} rows were planned, but {len(values)} came out; please report this.")
        return FeatureTable(values, metadata, columns, dictionary, self.provenance)

    def _columns(
        self, values: features.Floats, panels: list[list[str]]
    ) -> tuple[features.Floats, tuple[str, ...], tuple[dict[str, Any], ...]]:
        """Return rows, column names and dictionary; images without a single crop have the columns of the others."""
        if panels:
            return table_columns(self.encoder, values, panels, self.settings.combine)
        panel = self.plan.panel(0)
        stand_in = np.zeros((len(panel) if self.encoder.per_channel else 1, self.encoder.embed_dim), np.float32)
        none, columns, dictionary = table_columns(self.encoder, stand_in, [panel], self.settings.combine)
        return none[:0], columns, dictionary

    def _embed(self, images: Sequence[int], bar: "tqdm[None]") -> tuple[features.Floats, Ints, list[list[str]]]:
        """Return embeddings as `Encoder.features` orders them, crop numbers, and the panel of each crop."""
        outputs: list[torch.Tensor] = [torch.zeros(0, self.encoder.embed_dim, device=self.device)]
        rows: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int64)]
        panels: list[list[str]] = []
        done = 0
        with evaluating(self.encoder), engine(self._features, self.device, self._side_px()) as network:
            for batch in self._batches(images):
                outputs.append(network(batch.to(self.device, non_blocking=True)))
                rows.append(batch.rows)
                bounds = batch.offsets.tolist()
                panels += [list(batch.channel_types[a:b]) for a, b in pairwise(bounds)]
                image = int(np.searchsorted(self.plan.crop_starts, int(batch.rows[-1]), side="right")) - 1
                reached = int(np.searchsorted(np.asarray(images), image)) + 1
                bar.update(reached - done)
                done = reached
        bar.update(len(images) - done)
        return torch.cat(outputs).cpu().numpy(), torch.cat(rows).numpy(), panels

    def _features(self, batch: ChannelBatch) -> torch.Tensor:
        dtype = PRECISIONS[self.settings.precision]
        with torch.autocast(self.device.type, dtype=dtype) if dtype is not None else nullcontext():
            return self.encoder.features(batch)

    def _side_px(self) -> int:
        """Side of the planes that the network sees, or of the largest of them."""
        crop = self.plan.rule.tile_size_px or self.plan.rule.crop_size_px
        return self.encoder.input_size_px or crop or int(max(self.plan.heights.max(), self.plan.widths.max()))

    def _batches(self, images: Sequence[int]) -> Iterator[ChannelBatch]:
        groups = list(self.plan.pieces(images, self.batch_size, self.batch_size * _READ_BATCHES))
        loader = DataLoader(
            CropReader(self.plan, groups),
            batch_size=None,
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            generator=torch.Generator().manual_seed(0),  # else a loader draws a seed from the global generator
        )
        for read in loader:
            yield from split_crops(read, self.batch_size)

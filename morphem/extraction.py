"""Encoders over the images of a shard set: batches of bounded size in, tables of features out."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from morphem import features
from morphem.data.crops import Ints
from morphem.data.pixel_kinds import PixelKind
from morphem.data.plan import CropPlan, check_one_set, spans
from morphem.data.reading import CropReader, Read
from morphem.data.shards import ShardSet
from morphem.embed_settings import PRECISIONS, EmbedSettings, Precision
from morphem.encoder import Encoder, evaluating
from morphem.engine import Features, engines, split_crops
from morphem.errors import ConfigError, DataError, MorphemError
from morphem.features import FeatureTable
from morphem.rows import check_combine, table_columns
from morphem.types import ChannelBatch

__all__ = ["LEFT_OUT", "EmbedSettings", "Extraction", "Precision", "check_panel", "pixels_of", "tables"]

LEFT_OUT = "crops_left_out"
_SHRUNK = 2  # times, from where on a summary says so
_RAMPS = {
    "levels": (255, torch.uint8),
    "counts": (65535, torch.uint16),
    "stretched": (65535, torch.uint16),
    "unit": (1, torch.float32),
}
_READ_BATCHES = 16  # crops of one image that are held at once, in batches


class Extraction:
    """An encoder over the plan of a shard set: makes the table of any of its images.

    Args:
        encoder: Embeds the crops; moved to `device`.
        root: Shards.
        settings: What determines the rows.
        batch_size: Planes per batch, at least 1.
        num_workers: Processes that read.
        device: Where to compute; where the encoder is, if not given.
        beside: Another extraction of the same shards and query, whose table of images is used again.
        told_root: What the provenance calls the data; `root` where not given.

    Attributes:
        plan: Which crops there are.

    Raises:
        ConfigError: If settings clash or have no effect.
        DataError: If there is nothing to embed, images differ in channels with `concat`, or pixels are not of the kind
            that the encoder was made for.
        MorphemError: If the encoder does not take the channels of an image, with the image's name.
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
        beside: "Extraction | None" = None,
        told_root: str | None = None,
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
        self.pixels: PixelKind = settings.pixels or pixels_of(encoder)
        self.plan: CropPlan = (
            CropPlan(shards, settings.rule, settings.query, self.pixels)
            if beside is None
            else beside.plan.with_rule(settings.rule, self.pixels)
        )
        if settings.combine == "concat" and encoder.per_channel:
            panels = (features.channel_labels(self.plan.panel(i)) for i in range(self.plan.n_images))
            features.check_one_panel(panels)
        rows = np.diff(self.plan.crop_starts) * (np.diff(self.plan.plane_starts) if self._per_plane else 1)
        self._row_starts: Ints = np.concatenate([[0], np.cumsum(rows)]).astype(np.int64)
        self.provenance: dict[str, Any] = {
            **encoder.provenance(),
            "data": {"root": told_root or str(root), "content_hash": shards.content_hash},
            "settings": asdict(replace(settings, tile_size_px=settings.rule.tile_size_px, pixels=self.pixels)),
            "rows": self.n_rows,
            "images_without_cells": self.plan.empty_images,
        }

    @property
    def _per_plane(self) -> bool:
        """Whether a row of the table is one plane of a crop."""
        return self.settings.combine == "none"

    @property
    def n_rows(self) -> int:
        """Rows of the whole table, before empty tiles are left out."""
        return int(self._row_starts[-1])

    @property
    def remarks(self) -> tuple[str, ...]:
        """What looks odd about the pixels, or their size."""
        said = [self.plan.remark] if self.plan.remark else []
        side = self.encoder.input_size_px
        if self.plan.rule.unit == "image" and side is not None:
            longest = int(max(self.plan.heights.max(), self.plan.widths.max()))
            if longest > _SHRUNK * side:
                said.append(
                    f"images of {longest} px are shrunk {longest / side:.1f} times; if the encoder was trained on "
                    "crops at full scale, embed tiles or cells (--unit)"
                )
        return tuple(said)

    @property
    def n_features(self) -> int:
        """Features per row."""
        side_by_side = self.settings.combine == "concat" and self.encoder.per_channel
        return self.encoder.embed_dim * (self.plan.n_planes(0) if side_by_side else 1)

    def count(self, images: Sequence[int]) -> int:
        """Return the number of rows that some images give, before empty tiles are left out."""
        return len(self.row_numbers(images))

    def row_numbers(self, images: Sequence[int]) -> Ints:
        """Return the place of every row of some images in the table of all images, (R,), empty tiles included."""
        starts = self._row_starts
        return np.concatenate([np.zeros(0, np.int64), *(np.arange(starts[i], starts[i + 1]) for i in images)])

    def rows_of(self, crops: Ints) -> Ints:
        """Return the place of the rows of some crops in the table of all images, (R,).

        Args:
            crops: Numbers of crops in the plan, (K,).
        """
        if not self._per_plane:
            return crops
        image = np.searchsorted(self.plan.crop_starts, crops, side="right") - 1
        planes = np.diff(self.plan.plane_starts)[image]
        first = self._row_starts[image] + (crops - self.plan.crop_starts[image]) * planes
        return np.concatenate(
            [np.zeros(0, np.int64), *(np.arange(a, a + n) for a, n in zip(first, planes, strict=True))]
        )

    def bar(self, n_images: int, show: bool) -> "tqdm[None]":
        """Return a progress bar in images, for `table`."""
        return tqdm(total=n_images, unit="image", desc="embed", disable=not show)

    def table(self, images: Sequence[int], bar: "tqdm[None]") -> FeatureTable:
        """Embed all crops of some images; see `tables`."""
        return tables([self], images, bar)[0]

    def check_panels(self) -> None:
        """Embed one made-up crop of every panel of channels, so that a panel that the encoder refuses is found at once.

        Raises:
            MorphemError: With the first image that has such a panel.
        """
        tried: set[tuple[str, ...]] = set()
        for image in range(self.plan.n_images):
            panel = tuple(self.plan.panel(image))
            if panel not in tried and self.plan.n_crops_of(image):
                tried.add(panel)
                _, _, height, width = self.plan.boxes(image)[0]
                check_panel(self.encoder, panel, self.pixels, (height, width), self.plan.keys[image])

    def embed_batch(self, batch: ChannelBatch) -> torch.Tensor:
        """Embed a ragged batch in the precision of the settings: (P, D) or (N, D)."""
        dtype = PRECISIONS[self.settings.precision]
        with torch.autocast(self.device.type, dtype=dtype) if dtype is not None else nullcontext():
            return self.encoder.features(batch)

    def side_px(self) -> int:
        """Side of the planes that the network sees, or of the largest of them."""
        crop = self.plan.rule.tile_size_px or self.plan.rule.crop_size_px
        return self.encoder.input_size_px or crop or int(max(self.plan.heights.max(), self.plan.widths.max()))

    def made_table(self, values: features.Floats, crops: Ints, panels: list[list[str]]) -> FeatureTable:
        """Return the table of what the network gave.

        Args:
            values: Embeddings as `Encoder.features` orders them.
            crops: Numbers of the crops in the plan, (K,).
            panels: Channel types of each crop.
        """
        values, columns, dictionary = self._columns(values, panels)
        metadata = self.plan.metadata(crops, self._per_plane)
        if len(values) != len(metadata):
            raise DataError(f"{len(metadata)} rows were planned, but {len(values)} came out; please report this.")
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


def check_panel(
    encoder: Encoder, panel: Sequence[str], pixels: PixelKind, size_px: tuple[int, int], image: str
) -> None:
    """Embed a made-up crop of some channels, so that an encoder that refuses them does so before the work begins.

    Args:
        encoder: Any.
        panel: Channel types of an image.
        pixels: What its pixels stand for.
        size_px: Height and width of the crop.
        image: Name of the image, for the message.

    Raises:
        MorphemError: If the encoder refuses it.
    """
    top, dtype = _RAMPS[pixels]
    ramp = (torch.arange(size_px[0] * size_px[1]) % (top + 1)).to(dtype).reshape(size_px)
    batch = ChannelBatch.from_planes([[ramp] * len(panel)], [panel]).to(encoder.device)
    try:
        with evaluating(encoder):
            encoder.features(batch)
    except MorphemError as fault:
        height, width = size_px
        raise type(fault)(
            f"image '{image}' ({', '.join(panel)}; {height} x {width} pixels at a time): {fault}"
        ) from fault


def pixels_of(encoder: Encoder) -> PixelKind:
    """Return the kind of pixels that an encoder was made for."""
    kinds: dict[str, PixelKind] = {"uint8": "levels", "uint16": "counts", "unit": "unit", "any": "levels"}
    return kinds[encoder.input_domain]


def tables(runs: Sequence[Extraction], images: Sequence[int], bar: "tqdm[None]") -> list[FeatureTable]:
    """Embed all crops of some images with every encoder, in one pass over the pixels.

    Args:
        runs: At least one; of the same shards, images and device.
        images: Numbers of images in the plans, rising.
        bar: Moves on with every image.

    Returns:
        A table of each extraction. Where tiles were left out for being empty, its provenance has the number of their
        rows (`rows_left_out`) and, under `LEFT_OUT`, their numbers in the plan.

    Raises:
        DataError: If a plane is missing or damaged, or a row were lost.
    """
    outputs = [_Output(run) for run in runs]
    done = 0
    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(evaluating(run.encoder))
        device = runs[0].device
        networks = stack.enter_context(
            engines([run.embed_batch for run in runs], device, [run.side_px() for run in runs])
        )
        for read, reached in _reads(runs, images):
            for output, network, batch in zip(outputs, networks, read.batches, strict=True):
                output.add(network, batch)
            for output, left_out in zip(outputs, read.left_out, strict=True):
                output.left_out += left_out
            bar.update(reached - done)
            done = reached
    bar.update(len(images) - done)
    return [output.table(images) for output in outputs]


def _reads(runs: Sequence[Extraction], images: Sequence[int]) -> Iterator[tuple[Read, int]]:
    """Yield what is read at once, and how many images are read then."""
    plans = [run.plan for run in runs]
    check_one_set(plans)
    batch_size = runs[0].batch_size
    groups = list(spans(plans, images, batch_size, batch_size * _READ_BATCHES))
    loader = DataLoader(
        CropReader(plans, groups),
        batch_size=None,
        num_workers=runs[0].num_workers,
        pin_memory=runs[0].device.type == "cuda",
        generator=torch.Generator().manual_seed(0),  # else a loader draws a seed from the global generator
    )
    for group, read in zip(groups, _ahead(loader), strict=True):
        yield read, int(np.searchsorted(np.asarray(images), group[-1].image)) + 1


def _ahead(reads: Iterable[Read]) -> Iterator[Read]:
    """Yield what is read, and read the next while the network is busy: inflating needs no Python."""
    source = iter(reads)
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, source, None)
        while (read := coming.result()) is not None:
            coming = reader.submit(next, source, None)
            yield read


class _Output:
    """What one encoder has made so far."""

    def __init__(self, run: Extraction) -> None:
        self.run = run
        self.left_out = 0
        self._values: list[torch.Tensor] = [
            torch.zeros(0, run.encoder.embed_dim, device=run.device, dtype=run.encoder.dtype)
        ]
        self._crops: list[torch.Tensor] = [torch.zeros(0, dtype=torch.int64)]
        self._panels: list[list[str]] = []

    def add(self, network: Features, read: ChannelBatch | None) -> None:
        """Embed what was read, in batches."""
        for batch in split_crops(read, self.run.batch_size) if read is not None else ():
            self._values.append(network(batch.to(self.run.device, non_blocking=True)))
            self._crops.append(batch.rows)
            self._panels += [list(batch.channel_types[a:b]) for a, b in pairwise(batch.offsets.tolist())]

    def table(self, images: Sequence[int]) -> FeatureTable:
        """Return the table of all that was embedded.

        Raises:
            DataError: If not every crop was either embedded or left out.
        """
        crops = torch.cat(self._crops).numpy()
        plan = self.run.plan
        planned = sum(plan.n_crops_of(image) for image in images)
        if len(crops) + self.left_out != planned:
            raise DataError(
                f"{planned} crops were planned, but {len(crops)} were embedded and {self.left_out} left out; please "
                "report this."
            )
        table = self.run.made_table(torch.cat(self._values).float().cpu().numpy(), crops, self._panels)
        if not self.left_out:
            return table
        every = np.concatenate([np.arange(plan.crop_starts[i], plan.crop_starts[i + 1]) for i in images])
        left_out = np.setdiff1d(every, crops)
        rows = len(self.run.rows_of(left_out))
        return replace(table, provenance={**table.provenance, LEFT_OUT: left_out.tolist(), "rows_left_out": rows})

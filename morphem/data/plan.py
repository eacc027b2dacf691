"""Which crops `embed` reads, in which order, and what each row of its table is called.

A plan is a pure function of the shards, the query and the rule: crops follow the images in shard order, so a row number
means the same crop on every rank and in every run. Tiles that a rule leaves out for being empty keep their number.
"""

import copy
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.data import layout, png
from morphem.data.crops import Box, CropRule, Ints, Unit
from morphem.data.pixel_kinds import PixelKind, check_range, to_kind
from morphem.data.plan_table import PLANE_COLUMNS, CellTable, check_sizes, image_metadata, starts_of_images
from morphem.data.schema import COLUMNS
from morphem.data.shards import RangeReader, ShardSet
from morphem.errors import ConfigError, DataError
from morphem.features import channel_labels, plane_order

__all__ = ["Box", "CropPlan", "CropRule", "Ints", "Span", "Unit"]

_HEADER_BYTES = 64


class Span(NamedTuple):
    """Crops of one image that are read together, for each of several plans.

    Attributes:
        image: Number of the image in the plans.
        crops: For each plan the first crop within the image, and one past the last.
    """

    image: int
    crops: tuple[tuple[int, int], ...]


class CropPlan:
    """All crops of a shard set, in order.

    Args:
        shards: Where the images are.
        rule: What is cut out of them.
        query: Selects channel planes; an image keeps those that match and is left out where none does.
        pixels: What pixels stand for; see `morphem.data.pixel_kinds.to_kind`.

    Attributes:
        n_images: N.
        n_crops: Crops over all images, before empty ones are left out.
        crop_starts: Crops before each image, and in all, (N + 1,).
        plane_starts: Planes before each image, and in all, (N + 1,).
        images: What is known of each image: N rows of `Metadata_` columns.
        channel_types: Of all planes, in panel order within an image.
        empty_images: Images without a crop (no cells, with unit `cell`).
        remark: What looks odd about the pixels, or None.

    Raises:
        DataError: If there is nothing to embed, the planes of an image differ in size, pixels are not of the kind that
            is wanted, or cells shall be masked and their outlines are not known.
    """

    def __init__(
        self, shards: ShardSet, rule: CropRule, query: str | None = None, pixels: PixelKind = "levels"
    ) -> None:
        wanted = [*COLUMNS, "channel_name", "key", "shard", "plane_offset", "plane_nbytes", "clip_low", "clip_high"]
        wanted += [*layout.MASK_COLUMNS, *shards.labels]
        table = shards.table(columns=list(dict.fromkeys(wanted)), query=query).to_pandas()
        self._shards = shards
        self.reader: RangeReader = shards.reader()
        self.plane_starts = starts_of_images(table)
        self.n_images = len(self.plane_starts) - 1
        first = table.iloc[self.plane_starts[:-1]].reset_index(drop=True)
        self.heights, self.widths = (first[f"geometry.{side}"].to_numpy(np.int64) for side in ("height", "width"))
        check_sizes(table, np.diff(self.plane_starts), self.heights, self.widths)
        self.keys: list[str] = first["key"].tolist()
        self.shard_files: list[str] = first["shard"].tolist()
        self.offsets = table["plane_offset"].to_numpy(np.int64)
        self.nbytes = table["plane_nbytes"].to_numpy(np.int64)
        self.limits = table[["clip_low", "clip_high"]].to_numpy(np.float64)
        self._masks = first[list(layout.MASK_COLUMNS)].fillna(-1).to_numpy(np.int64)
        self.channel_types: list[str] = table["imaging.channel_type"].tolist()
        self.planes = table[list(PLANE_COLUMNS)].rename(columns=PLANE_COLUMNS)
        self.images = image_metadata(first, shards.labels)
        kinds = self.planes["Metadata_Microscopy"].tolist()
        self.images["Metadata_Microscopy"] = [
            "; ".join(sorted(set(kinds[a:b]))) for a, b in pairwise(self.plane_starts)
        ]
        self._cut(rule, pixels)

    def with_rule(self, rule: CropRule, pixels: PixelKind) -> Self:
        """Return a plan of the same images, cut in another way.

        Args:
            rule: What is cut out of them.
            pixels: What pixels stand for.
        """
        other = copy.copy(self)
        other._cut(rule, pixels)
        return other

    def _cut(self, rule: CropRule, pixels: PixelKind) -> None:
        self.rule, self.pixels = rule, pixels
        self.remark = check_range(pixels, self.limits[:, 1], self._bit_depth()) if pixels == "counts" else None
        self._cells = CellTable(self._shards, self.keys) if rule.unit == "cell" else None
        n_cells = self._cells.counts if self._cells else np.zeros(self.n_images, np.int64)
        counts = rule.count(self.heights, self.widths, n_cells)
        self.crop_starts: Ints = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.n_crops = int(self.crop_starts[-1])
        self.empty_images = int((counts == 0).sum())
        if not self.n_crops:
            raise DataError(
                f"{self._shards.root} has no cells in its {self.n_images} image(s), so unit='cell' selects nothing; "
                "ingest cell positions, or use unit='tile' or 'image'."
            )
        unmasked = np.flatnonzero((counts > 0) & (self._masks[:, 0] < 0))
        if rule.mask != "none" and len(unmasked):
            raise DataError(
                f"the outlines of cells are not known in {len(unmasked)} of {self.n_images} images (the first is "
                f"'{self.keys[unmasked[0]]}'), so mask='{rule.mask}' cannot be applied; ingest with label images or a "
                "detector (--cells), or use mask='none'."
            )
        if rule.skip_empty is not None:
            self._check_channel(rule.skip_empty.channel)

    def _check_channel(self, channel: str | None) -> None:
        lacking = [i for i in range(self.n_images) if channel is not None and channel not in self.panel(i)]
        if lacking:
            raise DataError(
                f"{len(lacking)} of {self.n_images} images (the first is '{self.keys[lacking[0]]}') have no channel "
                f"'{channel}', which decides what tiles are empty; name another one, or keep all tiles."
            )

    def _bit_depth(self) -> int:
        data = self.reader.read(self.shard_files[0], int(self.offsets[0]), min(_HEADER_BYTES, int(self.nbytes[0])))
        return png.read_header(data, self.keys[0]).bit_depth

    def boxes(self, image: int) -> list[Box]:
        """Return all crops of an image."""
        cells = self._cells.positions(image) if self._cells else np.zeros((0, 2), np.int64)
        return self.rule.boxes(int(self.heights[image]), int(self.widths[image]), cells)

    def panel(self, image: int) -> list[str]:
        """Return the channel types of an image in panel order."""
        return self.channel_types[self.plane_starts[image] : self.plane_starts[image + 1]]

    def n_planes(self, image: int) -> int:
        """Return the number of planes of an image."""
        return int(self.plane_starts[image + 1] - self.plane_starts[image])

    def n_crops_of(self, image: int) -> int:
        """Return the number of crops of an image, before empty ones are left out."""
        return int(self.crop_starts[image + 1] - self.crop_starts[image])

    def name(self, image: int, nth: int) -> str:
        """Return what to call a plane in a message: its shard, key and channel."""
        return f"{self.shard_files[image]}: {self.keys[image]}, channel {self.panel(image)[nth]}"

    def stored(self, image: int, nth: int, boxes: Sequence[Box]) -> list[NDArray[np.generic]]:
        """Read boxes of a plane as the shards hold them: uint8 levels or uint16 intensities.

        Raises:
            DataError: If the plane is missing or damaged, with its file and name.
        """
        plane = int(self.plane_starts[image]) + nth
        data = self.reader.read(self.shard_files[image], int(self.offsets[plane]), int(self.nbytes[plane]))
        return list(png.decode_many(data, boxes, self.name(image, nth), exact=True))

    def seen(self, stored: NDArray[np.generic], image: int, nth: int) -> NDArray[np.generic]:
        """Return pixels of a plane as the encoder sees them.

        Args:
            stored: What `stored` gave.
            image: Number of the image.
            nth: Number of the plane in it.
        """
        low, high = self.limits[int(self.plane_starts[image]) + nth]
        return to_kind(stored, self.pixels, float(low), float(high), self.name(image, nth))

    def objects(self, image: int, boxes: Sequence[Box]) -> list[NDArray[np.uint16]]:
        """Read boxes of the label image of the cells of an image: 0 is background, n + 1 the n-th cell.

        Raises:
            DataError: If it is missing or damaged.
        """
        offset, nbytes = self._masks[image].tolist()
        data = self.reader.read(self.shard_files[image], offset, nbytes)
        return list(png.decode_many(data, boxes, f"{self.shard_files[image]}: {self.keys[image]}, masks", exact=True))

    def metadata(self, rows: Ints, per_plane: bool = False) -> pd.DataFrame:
        """Return the `Metadata_` columns of crops.

        Args:
            rows: Numbers of crops in the plan, (R,).
            per_plane: One row per plane of each crop, in alphabetical order of its channels.
        """
        image = np.searchsorted(self.crop_starts, rows, side="right") - 1
        frame = self.images.iloc[image].reset_index(drop=True)
        frame["Metadata_Unit"] = self.rule.unit
        nth = rows - self.crop_starts[image]
        if self.rule.unit == "tile":
            tiles = {i: self.boxes(i) for i in np.unique(image)}
            frame["Metadata_Tile_Y"] = np.asarray([tiles[i][k][0] for i, k in zip(image, nth, strict=True)], np.int64)
            frame["Metadata_Tile_X"] = np.asarray([tiles[i][k][1] for i, k in zip(image, nth, strict=True)], np.int64)
        if self._cells:
            frame = pd.concat([frame, self._cells.metadata(image, nth, set(frame.columns))], axis=1)
        if not per_plane:
            return frame
        counts = np.diff(self.plane_starts)[image]
        labels = [channel_labels(self.panel(i)) for i in image]
        starts = np.repeat(self.plane_starts[image] - (np.cumsum(counts) - counts), counts)
        order = plane_order(labels)  # within the rows at hand
        planes = self.planes.iloc[starts + order].reset_index(drop=True)
        frame = frame.loc[frame.index.repeat(counts)].reset_index(drop=True).drop(columns=["Metadata_Microscopy"])
        names = [name for panel in labels for name in sorted(panel)]
        frame["Metadata_Channel"] = pd.Series(names, dtype=planes["Metadata_Channel_Name"].dtype)
        result: pd.DataFrame = pd.concat([frame, planes], axis=1)
        return result


def spans(
    plans: Sequence[CropPlan], images: Sequence[int], planes_per_batch: int, planes_per_read: int
) -> Iterator[list[Span]]:
    """Group the crops of some images into what is read at once, for all plans together.

    Small images are read together until they fill a batch; the crops of a large one are read together, so that its
    planes are decoded once, up to a bound.

    Args:
        plans: Of the same images; at least one.
        images: Numbers of images, in order.
        planes_per_batch: Crops of several images are grouped up to this many planes.
        planes_per_read: Crops of one image are split beyond this many planes.
    """
    group: list[Span] = []
    filled = 0
    for image in images:
        channels = plans[0].n_planes(image)
        counts = [plan.n_crops_of(image) for plan in plans]
        parts = max(1, *(-(-count // max(1, planes_per_read // channels)) for count in counts))
        for part in range(parts):
            cuts = tuple((part * count // parts, (part + 1) * count // parts) for count in counts)
            size = channels * max(last - first for first, last in cuts)
            if not size:
                continue
            if group and filled + size > planes_per_batch:
                yield group
                group, filled = [], 0
            group.append(Span(image, cuts))
            filled += size
    if group:
        yield group


def check_one_set(plans: Sequence[CropPlan]) -> None:
    """Check that plans are of the same images.

    Raises:
        ConfigError: If they are not.
    """
    if any(plan.keys != plans[0].keys or plan.channel_types != plans[0].channel_types for plan in plans):
        raise ConfigError("encoders that share one pass over the pixels need the same images and the same query.")

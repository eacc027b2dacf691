"""Which crops `embed` reads, in which order, and what each row of its table is called.

A plan is a pure function of the shards, the query and the unit: crops follow the images in shard order, so a row
number means the same crop on every rank and in every run.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from morphem.data import png
from morphem.data.schema import COLUMNS
from morphem.data.shards import RangeReader, ShardSet
from morphem.errors import ConfigError, DataError
from morphem.features import METADATA, channel_labels, plane_order
from morphem.pixels import crop_seed
from morphem.types import ChannelBatch

Unit = Literal["tile", "cell", "image"]
UNITS: tuple[Unit, ...] = ("tile", "cell", "image")
Box = tuple[int, int, int, int]
Ints = NDArray[np.int64]

IMAGE_COLUMNS = {
    "experiment.study": "Metadata_Study",
    "experiment.plate": "Metadata_Plate",
    "experiment.well": "Metadata_Well",
    "microscopy.fov": "Metadata_Site",
    "experiment.reagent": "Metadata_Reagent",
    "experiment.control": "Metadata_Control",
    "biology.organism": "Metadata_Organism",
    "biology.cell_line": "Metadata_Cell_Line",
    "biology.cell_type": "Metadata_Cell_Type",
    "imaging.multi_channel_id": "Metadata_Image",
    "imaging.panel": "Metadata_Panel",
    "microscopy.magnification": "Metadata_Magnification",
    "geometry.width": "Metadata_Width",
    "geometry.height": "Metadata_Height",
    "geometry.depth": "Metadata_Depth",
    "geometry.channels": "Metadata_Channels",
    "geometry.z_slice": "Metadata_Z_Slice",
    "geometry.timepoint": "Metadata_Timepoint",
}
"""Columns of the schema that belong to an image, and their names in a feature table; those that JUMP has, as it has."""

PLANE_COLUMNS = {
    "imaging.channel": "Metadata_Channel_Number",
    "microscopy.type": "Metadata_Microscopy",
    "storage.path": "Metadata_Path",
    "channel_name": "Metadata_Channel_Name",
}
"""Columns that belong to a channel plane; they stand in tables with one row per plane."""


@dataclass(frozen=True)
class CropRule:
    """What is cut out of an image.

    Attributes:
        unit: `tile`: tiles side by side, the last of a row or column shifted inside, so that every pixel is used;
            `cell`: a crop centred at each cell, shifted inside; `image`: the whole image.
        tile_size_px: Side of a tile; with `tile` only. An image that is shorter is taken whole along that axis.
        crop_size_px: Side of a cell's crop; with `cell` only. Clamped to the image.

    Raises:
        ConfigError: If the unit is unknown, or a size is missing, below 1, or without effect.
    """

    unit: Unit = "tile"
    tile_size_px: int | None = None
    crop_size_px: int | None = None

    def __post_init__(self) -> None:
        """Check that each size belongs to the unit."""
        if self.unit not in UNITS:
            raise ConfigError(f"unit='{self.unit}' must be one of {', '.join(UNITS)}.")
        for name, unit in (("tile_size_px", "tile"), ("crop_size_px", "cell")):
            size = getattr(self, name)
            if size is None and unit == self.unit:
                raise ConfigError(f"unit='{unit}' needs {name}, the side of a {unit}'s crop in pixels of the image.")
            if size is not None and unit != self.unit:
                raise ConfigError(f"{name}={size} has no effect with unit='{self.unit}'; leave it out.")
            if size is not None and size < 1:
                raise ConfigError(f"{name}={size} must be at least 1 pixel.")

    def count(self, heights: Ints, widths: Ints, n_cells: Ints) -> Ints:
        """Return the number of crops of each image, (N,).

        Args:
            heights: Of the images in pixels, (N,).
            widths: Of the images in pixels, (N,).
            n_cells: Cells of each image, (N,).
        """
        if self.unit == "tile":
            size = self.tile_size_px or 1
            return -(-heights // size) * -(-widths // size)
        return n_cells if self.unit == "cell" else np.ones_like(heights)

    def boxes(self, height: int, width: int, cells: Ints) -> list[Box]:
        """Return the crops of one image: y, x, height, width.

        Args:
            height: Of the image in pixels.
            width: Of the image in pixels.
            cells: x and y of each cell, (K, 2).
        """
        if self.unit == "image":
            return [(0, 0, height, width)]
        if self.unit == "tile":
            size = self.tile_size_px or 1
            rows, columns = _tiles(height, size), _tiles(width, size)
            return [(y, x, min(size, height), min(size, width)) for y in rows for x in columns]
        h, w = min(self.crop_size_px or 1, height), min(self.crop_size_px or 1, width)
        tops = np.clip(cells[:, 1] - h // 2, 0, height - h)
        lefts = np.clip(cells[:, 0] - w // 2, 0, width - w)
        return [(int(y), int(x), h, w) for y, x in zip(tops, lefts, strict=True)]


def _tiles(length: int, size: int) -> list[int]:
    """Starts of the tiles along one axis."""
    return [max(0, min(start, length - size)) for start in range(0, length, size)]


class Piece(NamedTuple):
    """Crops `first` to `last` - 1 of one image, read together.

    Attributes:
        image: Number of the image in the plan.
        first: First crop within the image.
        last: One past the last crop.
    """

    image: int
    first: int
    last: int


class CropPlan:
    """All crops of a shard set, in order.

    Args:
        shards: Where the images are.
        rule: What is cut out of them.
        query: Selects channel planes; an image keeps those that match and is left out where none does.

    Attributes:
        n_images: N.
        n_crops: Crops over all images.
        crop_starts: Crops before each image, and in all, (N + 1,).
        plane_starts: Planes before each image, and in all, (N + 1,).
        images: What is known of each image: N rows of `Metadata_` columns.
        channel_types: Of all planes, in panel order within an image.
        empty_images: Images without a crop (no cells, with unit `cell`).

    Raises:
        DataError: If there is nothing to embed, or the planes of an image differ in size.
    """

    def __init__(self, shards: ShardSet, rule: CropRule, query: str | None = None) -> None:
        wanted = [*COLUMNS, "channel_name", "key", "shard", "plane_offset", "plane_nbytes", *shards.labels]
        table = shards.table(columns=list(dict.fromkeys(wanted)), query=query).to_pandas()
        self.rule = rule
        self.reader: RangeReader = shards.reader()
        self.plane_starts = _starts_of_images(table)
        self.n_images = len(self.plane_starts) - 1
        first = table.iloc[self.plane_starts[:-1]].reset_index(drop=True)
        self.heights, self.widths = (first[f"geometry.{side}"].to_numpy(np.int64) for side in ("height", "width"))
        _check_sizes(table, np.diff(self.plane_starts), self.heights, self.widths)
        self.keys: list[str] = first["key"].tolist()
        self.shard_files: list[str] = first["shard"].tolist()
        self.offsets = table["plane_offset"].to_numpy(np.int64)
        self.nbytes = table["plane_nbytes"].to_numpy(np.int64)
        self.channel_types: list[str] = table["imaging.channel_type"].tolist()
        self.planes = table[list(PLANE_COLUMNS)].rename(columns=PLANE_COLUMNS)
        self.images = _image_metadata(first, shards.labels)
        kinds = self.planes["Metadata_Microscopy"].tolist()
        self.images["Metadata_Microscopy"] = [
            "; ".join(sorted(set(kinds[a:b]))) for a, b in pairwise(self.plane_starts)
        ]
        self._cells = _Cells(shards, self.keys) if rule.unit == "cell" else None
        n_cells = self._cells.counts if self._cells else np.zeros(self.n_images, np.int64)
        counts = rule.count(self.heights, self.widths, n_cells)
        self.crop_starts: Ints = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        self.n_crops = int(self.crop_starts[-1])
        self.empty_images = int((counts == 0).sum())
        if not self.n_crops:
            raise DataError(
                f"{shards.root} has no cells in its {self.n_images} image(s), so unit='cell' selects nothing; "
                "ingest cell positions, or use unit='tile' or 'image'."
            )

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

    def pieces(self, images: Sequence[int], planes_per_batch: int, planes_per_read: int) -> Iterator[list[Piece]]:
        """Group the crops of some images into what is read at once.

        Small images are read together until they fill a batch; the crops of a large one are read together, so that
        its planes are decoded once, up to a bound.

        Args:
            images: Numbers of images, in order.
            planes_per_batch: Crops of several images are grouped up to this many planes.
            planes_per_read: Crops of one image are split beyond this many planes.
        """
        group: list[Piece] = []
        filled = 0
        for image in images:
            channels, count = self.n_planes(image), int(self.crop_starts[image + 1] - self.crop_starts[image])
            step = max(1, planes_per_read // channels)
            for first in range(0, count, step):
                piece = Piece(image, first, min(count, first + step))
                size = (piece.last - piece.first) * channels
                if group and filled + size > planes_per_batch:
                    yield group
                    group, filled = [], 0
                group.append(piece)
                filled += size
        if group:
            yield group

    def read(self, pieces: Sequence[Piece]) -> ChannelBatch:
        """Read crops: ragged, uint8, `rows` counted over the plan.

        Raises:
            DataError: If a plane is missing or damaged, with its file and name.
        """
        crops: list[list[torch.Tensor]] = []
        types: list[list[str]] = []
        keys: list[str] = []
        boxes: list[Box] = []
        rows: list[int] = []
        for piece in pieces:
            cut = self.boxes(piece.image)[piece.first : piece.last]
            planes = [self._decode(piece.image, nth, cut) for nth in range(self.n_planes(piece.image))]
            crops += [[torch.from_numpy(plane[i]) for plane in planes] for i in range(len(cut))]
            types += [self.panel(piece.image)] * len(cut)
            keys += [self.keys[piece.image]] * len(cut)
            boxes += cut
            start = int(self.crop_starts[piece.image])
            rows += range(start + piece.first, start + piece.last)
        seeds = [crop_seed(key, box) for key, box in zip(keys, boxes, strict=True)]
        return ChannelBatch.from_planes(crops, types, keys=keys, seeds=seeds, boxes=boxes, rows=rows)

    def _decode(self, image: int, nth: int, boxes: list[Box]) -> list[NDArray[np.uint8]]:
        plane = int(self.plane_starts[image]) + nth
        shard = self.shard_files[image]
        data = self.reader.read(shard, int(self.offsets[plane]), int(self.nbytes[plane]))
        return png.decode_many(data, boxes, f"{shard}: {self.keys[image]}, channel {self.channel_types[plane]}")

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


class _Cells:
    """Positions and labels of the cells of each image of a plan."""

    def __init__(self, shards: ShardSet, keys: Sequence[str]) -> None:
        table = shards.cells()
        frame = table.to_pandas() if table is not None else pd.DataFrame({"key": [], "cell": [], "x": [], "y": []})
        image = pd.Series(frame["key"].map({key: i for i, key in enumerate(keys)}))
        frame = frame[image.notna()].assign(image=image.dropna().astype(np.int64))
        frame = frame.sort_values(["image", "cell"], kind="stable").reset_index(drop=True)
        self.counts: Ints = np.bincount(frame["image"], minlength=len(keys)).astype(np.int64)
        self._starts: Ints = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        self._frame, self._labels = frame, list(shards.cell_labels)

    def positions(self, image: int) -> Ints:
        """Return x and y of the cells of an image, (K, 2)."""
        part = self._frame.iloc[self._starts[image] : self._starts[image + 1]]
        return part[["x", "y"]].to_numpy(np.int64)

    def metadata(self, image: Ints, nth: Ints, taken: set[str]) -> pd.DataFrame:
        """Return number, position and labels of cells; a label whose name is taken is called `Metadata_Cell_...`."""
        part = self._frame.iloc[self._starts[image] + nth].reset_index(drop=True)
        columns = {"Metadata_Cell": part["cell"], "Metadata_Cell_Y": part["y"], "Metadata_Cell_X": part["x"]}
        for label in self._labels:
            name = f"{METADATA}{label}"
            columns[f"{METADATA}Cell_{label}" if name in taken else name] = part[label]
        return pd.DataFrame(columns)


class CropReader(Dataset[ChannelBatch]):
    """Reads the groups of a plan, for a data loader's workers.

    Args:
        plan: Where the crops are.
        groups: What each item holds.
    """

    def __init__(self, plan: CropPlan, groups: Sequence[Sequence[Piece]]) -> None:
        self.plan = plan
        self.groups = groups

    def __len__(self) -> int:
        """Number of items."""
        return len(self.groups)

    def __getitem__(self, index: int) -> ChannelBatch:
        """Read one group of crops."""
        return self.plan.read(self.groups[index])


def _starts_of_images(table: pd.DataFrame) -> Ints:
    """Return the first plane of each image, and the number of planes, (N + 1,)."""
    name = table["shard"].astype(str) + "/" + table["key"].astype(str)
    begins = (name != name.shift()).to_numpy()
    if begins.sum() != name.nunique():
        raise DataError("the planes of an image are not adjacent in metadata.parquet; ingest the study again.")
    return np.append(np.flatnonzero(begins), len(table)).astype(np.int64)


def _check_sizes(table: pd.DataFrame, counts: Ints, heights: Ints, widths: Ints) -> None:
    """Refuse images whose planes differ in size: a crop would show different places in different channels."""
    same = (table["geometry.height"].to_numpy() == np.repeat(heights, counts)) & (
        table["geometry.width"].to_numpy() == np.repeat(widths, counts)
    )
    if not same.all():
        key = table["key"].iloc[int(np.flatnonzero(~same)[0])]
        raise DataError(f"the planes of image '{key}' differ in size; bring them to one size and ingest again.")


def _image_metadata(first: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Return the columns that belong to an image, under their names in a feature table."""
    columns: dict[str, Any] = {new: first[old] for old, new in IMAGE_COLUMNS.items()}
    columns["Metadata_Key"] = first["key"]
    for label in labels:
        name = f"{METADATA}{label}"
        columns[f"{METADATA}Label_{label}" if name in columns else name] = first[label]
    return pd.DataFrame(columns)

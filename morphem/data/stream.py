"""The batch of any epoch and step, made from nothing but the settings: crops from shards, shared out over ranks.

Rank and world size are arguments: nothing is read from the environment, where a worker process could find something
else than its parent. `morphem.data.loader` asks for the batches in order.
"""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.utils.data import Dataset

from morphem.data.index import ImageEntry, Index, PlaneEntry, Unit
from morphem.data.labels import renumber
from morphem.data.order import StudyBalance, Visit, slot, steps_per_epoch
from morphem.data.png import decode_many
from morphem.data.sampling import Box, Scales, draw_box, draw_cell
from morphem.data.shards import RangeReader, cell_xy
from morphem.errors import ConfigError, DataError
from morphem.rng import mix
from morphem.types import ChannelBatch

# Tried in place of a batch whose samples are all damaged, because a rank without a batch would stop all others.
_SUBSTITUTES = 64


class Fault(NamedTuple):
    """A sample that could not be read.

    Attributes:
        member: Shard and key.
        reason: What was wrong.
    """

    member: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """What one step read.

    Attributes:
        batch: The crops; None if no sample could be read.
        n_samples: Samples that were tried.
        faults: Those that were skipped.
    """

    batch: ChannelBatch | None
    n_samples: int
    faults: tuple[Fault, ...]

    def pin_memory(self) -> Self:
        """Copy the batch to page-locked memory; torch's loader asks for it (and takes tuples apart by itself)."""
        return self if self.batch is None else replace(self, batch=self.batch.pin_memory())


class Crop(NamedTuple):
    """One image of a batch before they are joined."""

    planes: list[Tensor]
    channel_types: list[str]
    key: str
    seed: int
    box: Box
    row: int
    labels: tuple[int, ...]


class CropStream(Dataset[Reading]):
    """Makes the batch of any (epoch, step): crops of images or of single channel planes, at their native size.

    Every rank makes the same number of batches, every sample stands in exactly one batch of a pass, and the batches of
    one step over all ranks are the same samples for every world size with the same global batch size.

    Args:
        index: The selected images and planes.
        reader: Reads bytes of the shards.
        balance: Which sample stands where; its studies are those of the index, in that order.
        scales: Crop scales by study.
        batch_size: Crops per rank and step at most; a batch is shorter where samples do not divide evenly.
        unit: `image`: all selected planes of an image share a crop box. `plane`: each plane is a sample of its own, as
            in the published bag-of-channels training.
        crops_per_image: Crops cut from one decoded sample, each with a cell, a scale and a position of its own; must
            divide `batch_size`. More than one saves decoding, at the price of batches that are less mixed.
        samples_per_epoch: Samples in an epoch; the stream then goes on through its passes from epoch to epoch. None is
            one pass.
        seed: Seed of all draws.
        rank: This process's number among those that train together.
        world_size: How many train together.
        exact: Read every sample exactly once, even if a batch must then hold one sample more (see `steps_per_epoch`).
        classes: Classes of the index's label columns in the order that numbers them, those of the training data; the
            index's own where not given. A class that is not among them is unknown.

    Raises:
        ConfigError: If sizes do not fit together, or the planes of an image differ in a label of images.
    """

    def __init__(
        self,
        index: Index,
        reader: RangeReader,
        balance: StudyBalance,
        scales: Scales,
        *,
        batch_size: int,
        unit: Unit = "plane",
        crops_per_image: int = 1,
        samples_per_epoch: int | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        exact: bool = False,
        classes: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        check_sizes(batch_size, crops_per_image, samples_per_epoch)
        if unit == "image":
            for label, key in index.mixed.items():
                raise ConfigError(
                    f"label '{label}' differs among the channel planes of the image '{key}', so an image has no label; "
                    "use data.unit: plane, or a label of images."
                )
        if not 0 <= rank < world_size:
            raise ConfigError(f"rank {rank} is not in 0 to {world_size - 1}.")
        self.index = index
        self.reader = reader
        self.balance = balance
        self.unit = unit
        self.crops_per_image = crops_per_image
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.samples = samples_per_epoch or balance.pass_length
        self.steps = steps_per_epoch(self.samples, batch_size // crops_per_image, world_size, exact=exact)
        self._scales = [scales.of(study) for study in index.studies]
        self._numbers = renumber(index.classes, index.classes if classes is None else classes)
        sizes = list(index.sizes(unit).values())
        self._first = [sum(sizes[:study]) for study in range(len(sizes))]

    @property
    def fingerprint(self) -> int:
        """A number that differs where the order of the samples differs."""
        order = (self.index.path.rpartition("/")[2], self.unit, self.balance.quotas, self.balance.seed, self.seed)
        return zlib.crc32(repr((*order, self.samples, self.crops_per_image)).encode())

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, place: tuple[int, int]) -> Reading:
        """Make the batch of one step.

        Args:
            place: Epoch and step, both from 0.
        """
        epoch, step = place
        positions = slot(step * self.world_size + self.rank, self.samples, self.steps * self.world_size)
        substitutes = range(positions.stop, positions.stop + _SUBSTITUTES)
        crops: list[Crop] = []
        faults: list[Fault] = []
        for tried, position in enumerate(chain(positions, substitutes), start=1):
            result = self._read(epoch * self.samples + position)
            if isinstance(result, Fault):
                faults.append(result)
            else:
                crops.extend(result)
            if tried >= len(positions) and crops:
                break
        return Reading(_collate(crops) if crops else None, tried, tuple(faults))

    def _read(self, position: int) -> list[Crop] | Fault:
        """Cut the crops of the sample at a position of the stream, or say why it cannot be read."""
        visit = self.balance.at(position)
        number = self._first[visit.study] + visit.sample
        image, planes = self._records(number)
        seeds = [mix(self.seed, visit.visit, number, crop) for crop in range(self.crops_per_image)]
        try:
            boxes = [self._box(image, visit, seed) for seed in seeds]
            decoded = self._decode(image, planes, boxes)
        except (DataError, OSError) as fault:
            return Fault(f"{self.index.shards[image.shard]}: {image.key}", str(fault))
        types = [self.index.channel_types[plane.channel_type] for plane in planes]
        labels = tuple(numbers[label] for numbers, label in zip(self._numbers, planes[0].labels, strict=True))
        return [
            Crop(
                [crops[i] for crops in decoded],
                types,
                image.key,
                seed,
                box,
                position * self.crops_per_image + i,
                labels,
            )
            for i, (seed, box) in enumerate(zip(seeds, boxes, strict=True))
        ]

    def _records(self, number: int) -> tuple[ImageEntry, list[PlaneEntry]]:
        if self.unit == "plane":
            planes = self.index.planes(number, 1)
            return self.index.image(planes[0].image), planes
        image = self.index.image(number)
        return image, self.index.planes(image.first_plane, image.n_planes)

    def _box(self, image: ImageEntry, visit: Visit, seed: int) -> Box:
        scales = self._scales[visit.study]
        cell = draw_cell(image.n_cells, seed) if scales != ("full",) else None
        xy = None
        if cell is not None:
            shard = self.index.shards[image.shard]
            xy = cell_xy(self.reader, shard, image.cells_offset, image.cells_nbytes, cell)
        return draw_box(image.height, image.width, scales, seed, xy)

    def _decode(self, image: ImageEntry, planes: list[PlaneEntry], boxes: list[Box]) -> list[list[Tensor]]:
        """Read each plane once and cut all boxes from it: for each plane its crops, each (h, w)."""
        shard = self.index.shards[image.shard]
        decoded = []
        for plane in planes:
            name = f"{shard}: {image.key} ({self.index.channel_types[plane.channel_type]})"
            crops = decode_many(self.reader.read(shard, plane.offset, plane.nbytes), boxes, name)
            decoded.append([torch.from_numpy(crop) for crop in crops])
        return decoded


def check_sizes(batch_size: int, crops_per_image: int, samples_per_epoch: int | None) -> None:
    """Refuse sizes that do not fit together, naming the setting.

    Args:
        batch_size: Crops per rank and step.
        crops_per_image: Crops from one sample.
        samples_per_epoch: Samples in an epoch, or None.

    Raises:
        ConfigError: If one is below 1, or `crops_per_image` does not divide `batch_size`.
    """
    sizes = {"batch_size": batch_size, "crops_per_image": crops_per_image, "samples_per_epoch": samples_per_epoch}
    for name, value in sizes.items():
        if value is not None and value < 1:
            raise ConfigError(f"data.{name} is {value}; allowed are whole numbers from 1 up.")
    if batch_size % crops_per_image:
        raise ConfigError(
            f"data.batch_size ({batch_size}) is not a multiple of data.crops_per_image ({crops_per_image}); "
            "all crops of a sample stand in one batch, so choose a multiple."
        )


def _collate(crops: list[Crop]) -> ChannelBatch:
    planes, channel_types, keys, seeds, boxes, rows, labels = zip(*crops, strict=True)
    return ChannelBatch.from_planes(
        planes, channel_types, keys=keys, seeds=seeds, boxes=boxes, rows=rows, labels=labels
    )

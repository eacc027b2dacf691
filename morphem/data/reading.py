"""Crops of a shard set, read for several encoders at once: every plane is decoded once."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from morphem.data.crops import Box, masked
from morphem.data.plan import CropPlan, Span
from morphem.pixels import crop_seed
from morphem.types import ChannelBatch

Plane = NDArray[np.generic]


class Read(NamedTuple):
    """What was read at once.

    Attributes:
        batches: For each plan its crops: ragged, `rows` counted over the plan; None where all are empty.
        left_out: For each plan the number of crops that were left out for being empty.
    """

    batches: tuple[ChannelBatch | None, ...]
    left_out: tuple[int, ...]


class CropReader(Dataset[Read]):
    """Reads groups of crops, for a data loader's workers.

    Args:
        plans: Where the crops are; of the same images.
        groups: What each item holds.
    """

    def __init__(self, plans: Sequence[CropPlan], groups: Sequence[Sequence[Span]]) -> None:
        self.plans = list(plans)
        self.groups = groups

    def __len__(self) -> int:
        """Number of items."""
        return len(self.groups)

    def __getitem__(self, index: int) -> Read:
        """Read one group of crops.

        Raises:
            DataError: If a plane is missing or damaged, with its file and name.
        """
        collectors = [_Collector(plan) for plan in self.plans]
        for span in self.groups[index]:
            cuts = [_Cut.of(plan, span.image, *crops) for plan, crops in zip(self.plans, span.crops, strict=True)]
            self._read(span.image, cuts)
            for collector, cut in zip(collectors, cuts, strict=True):
                collector.add(cut)
        return Read(
            tuple(collector.batch() for collector in collectors), tuple(collector.left_out for collector in collectors)
        )

    def _read(self, image: int, cuts: Sequence["_Cut"]) -> None:
        """Decode every plane of an image once and give each plan its crops."""
        first = self.plans[0]
        wanted = [box for cut in cuts for box in cut.boxes]
        for nth in range(first.n_planes(image)):
            whole = any(cut.decided_by == nth for cut in cuts)
            boxes: list[Box] = [(0, 0, int(first.heights[image]), int(first.widths[image]))] if whole else wanted
            stored = first.stored(image, nth, boxes)
            if whole:
                stored = [stored[0][y : y + h, x : x + w] for y, x, h, w in wanted] + stored
            place = 0
            for cut in cuts:
                crops = stored[place : place + len(cut.boxes)]
                cut.take(nth, crops, stored[-1] if cut.decided_by == nth else None)
                place += len(cut.boxes)


class _Cut:
    """Some crops of one image for one plan."""

    def __init__(self, plan: CropPlan, image: int, first: int, boxes: list[Box], of_image: list[Box]) -> None:
        rule = plan.rule.skip_empty
        self.plan, self.image, self.first, self.boxes, self._of_image = plan, image, first, boxes, of_image
        self.decided_by = rule.nth_channel(plan.panel(image)) if rule is not None and boxes else None
        self.kept: NDArray[np.bool_] = np.ones(len(boxes), np.bool_)
        self.planes: list[list[Plane]] = []
        masks = plan.rule.mask != "none" and bool(boxes)
        self._objects = plan.objects(image, boxes) if masks else None

    @classmethod
    def of(cls, plan: CropPlan, image: int, first: int, last: int) -> "_Cut":
        """Cut crops `first` to `last` - 1 of an image."""
        boxes = plan.boxes(image)
        return cls(plan, image, first, boxes[first:last], boxes)

    def take(self, nth: int, stored: Sequence[Plane], whole: Plane | None) -> None:
        """Keep the crops of a plane as the encoder sees them.

        Args:
            nth: Which plane.
            stored: Its crops as the shards hold them.
            whole: All of the plane, where it decides what is empty.
        """
        seen = [self.plan.seen(crop, self.image, nth) for crop in stored]
        if self._objects is not None:
            mask = self.plan.rule.mask
            seen = [
                masked(crop, objects, self.first + i, mask)
                for i, (crop, objects) in enumerate(zip(seen, self._objects, strict=True))
            ]
        self.planes.append(seen)
        rule = self.plan.rule.skip_empty
        if whole is not None and rule is not None:
            kept = rule.kept(self.plan.seen(whole, self.image, nth), self._of_image)
            self.kept = kept[self.first : self.first + len(self.boxes)]


class _Collector:
    """The crops of several images for one plan."""

    def __init__(self, plan: CropPlan) -> None:
        self.plan = plan
        self.left_out = 0
        self._crops: list[list[torch.Tensor]] = []
        self._types: list[list[str]] = []
        self._keys: list[str] = []
        self._boxes: list[Box] = []
        self._rows: list[int] = []

    def add(self, cut: _Cut) -> None:
        """Add the crops of an image that are kept."""
        plan, panel, key = self.plan, self.plan.panel(cut.image), self.plan.keys[cut.image]
        start = int(plan.crop_starts[cut.image]) + cut.first
        for i in np.flatnonzero(cut.kept).tolist():
            self._crops.append(
                [torch.from_numpy(np.require(plane[i], requirements=["C", "W"])) for plane in cut.planes]
            )
            self._types.append(panel)
            self._keys.append(key)
            self._boxes.append(cut.boxes[i])
            self._rows.append(start + i)
        self.left_out += int((~cut.kept).sum())

    def batch(self) -> ChannelBatch | None:
        """Return all crops as one ragged batch."""
        if not self._rows:
            return None
        seeds = [crop_seed(key, box) for key, box in zip(self._keys, self._boxes, strict=True)]
        return ChannelBatch.from_planes(
            self._crops, self._types, keys=self._keys, seeds=seeds, boxes=self._boxes, rows=self._rows
        )

"""The batch that everything works on, and the letters used for shapes.

N images (or crops, or views of them), P channel planes, C channels of one image, H and W pixels, V views, T tokens,
D embedding, K prototypes. Coordinates are pixels; a box is (y, x, height, width); a cell is (x, y).
"""

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor

_NO_LABELS = torch.empty(0, 0, dtype=torch.int64)


class ChannelBatch(NamedTuple):
    """Images of any channel count, plane after plane: the compressed-row form of a batch of images.

    `planes` has one of two forms. Ragged, as the loader yields it: all pixels of all planes one after another, (S,),
    uint8 (uint16 or float where an encoder was made for these), each plane in row-major order, with its height and
    width in `sizes`. Dense, as a network takes it:
    (P, 1, H, W), float, all planes of one size. Nothing is ever padded with empty channels.

    Attributes:
        planes: Ragged (S,) with S the sum of height * width over planes, or dense (P, 1, H, W).
        sizes: Height and width of every plane in pixels, (P, 2), int64.
        offsets: Planes `offsets[i]` to `offsets[i + 1]` make image i, (N + 1,), int64, first 0, last P.
        channel_types: What each plane shows, P names of the channel vocabulary.
        keys: The sample key of each image, N names.
        seeds: Seed of all random numbers spent on an image, (N,), int64; it depends on the run's seed, the pass over
            the data and the sample alone, so that a view is the same whatever else is in the batch.
        boxes: Where the crop lies in its image: y, x, height, width in pixels, (N, 4), int64.
        rows: Position of each image in the plan that made it (stream index, or row of a table), (N,), int64.
        labels: Number of the class of each image in each of L columns, (N, L), int64; -1 where it is unknown. L is 0
            where no labels were asked for; a batch made without labels by hand may then have the shape (0, 0).
    """

    planes: Tensor
    sizes: Tensor
    offsets: Tensor
    channel_types: tuple[str, ...]
    keys: tuple[str, ...]
    seeds: Tensor
    boxes: Tensor
    rows: Tensor
    labels: Tensor = _NO_LABELS

    @property
    def ragged(self) -> bool:
        """Whether the pixels are in the ragged form."""
        return self.planes.ndim == 1

    @property
    def n_images(self) -> int:
        """N."""
        return len(self.offsets) - 1

    @property
    def n_planes(self) -> int:
        """P."""
        return len(self.sizes)

    def image_of_plane(self) -> Tensor:
        """Index of the image that each plane belongs to, (P,), int64."""
        counts = self.offsets.diff()
        images = torch.arange(len(counts), device=counts.device)
        return torch.repeat_interleave(images, counts, output_size=self.n_planes)

    def starts(self) -> Tensor:
        """Index of the first pixel of each plane in the ragged form, (P,), int64."""
        areas = self.sizes.prod(1)
        return areas.cumsum(0) - areas

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Move all tensors; arguments as `torch.Tensor.to` takes them (Lightning calls this to move a batch)."""
        return self._with_tensors(lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self) -> Self:
        """Copy all tensors to page-locked memory (the data loader calls this where pinning is on)."""
        return self._with_tensors(Tensor.pin_memory)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        fields: dict[str, Any] = self._asdict()
        moved: dict[str, Any] = {name: change(value) for name, value in fields.items() if isinstance(value, Tensor)}
        return self._replace(**moved)

    @classmethod
    def cat(cls, batches: "Sequence[ChannelBatch]") -> "ChannelBatch":
        """Join batches of one form, image after image.

        Args:
            batches: At least one; all ragged, or all dense with planes of one size; all with the same label columns.

        Raises:
            ValueError: If there is none, or the forms, sizes or numbers of label columns differ.
        """
        if not batches:
            raise ValueError("cannot join an empty list of batches")
        if len({batch.planes.shape[1:] for batch in batches}) > 1:
            raise ValueError(f"cannot join batches of planes {[tuple(batch.planes.shape[1:]) for batch in batches]}")
        if len({batch.labels.shape[1] for batch in batches}) > 1:
            raise ValueError(f"cannot join batches with {[batch.labels.shape[1] for batch in batches]} label columns")
        shifts = torch.tensor([0, *(batch.n_planes for batch in batches)]).cumsum(0).tolist()
        offsets = [batch.offsets[(1 if i else 0) :] + shifts[i] for i, batch in enumerate(batches)]
        return cls(
            planes=torch.cat([batch.planes for batch in batches]),
            sizes=torch.cat([batch.sizes for batch in batches]),
            offsets=torch.cat(offsets),
            channel_types=tuple(chain.from_iterable(batch.channel_types for batch in batches)),
            keys=tuple(chain.from_iterable(batch.keys for batch in batches)),
            seeds=torch.cat([batch.seeds for batch in batches]),
            boxes=torch.cat([batch.boxes for batch in batches]),
            rows=torch.cat([batch.rows for batch in batches]),
            labels=torch.cat([batch.labels for batch in batches]),
        )

    @classmethod
    def from_planes(
        cls,
        images: Sequence[Sequence[Tensor]],
        channel_types: Sequence[Sequence[str]],
        *,
        keys: Sequence[str] | None = None,
        seeds: Sequence[int] | None = None,
        boxes: Sequence[tuple[int, int, int, int]] | None = None,
        rows: Sequence[int] | None = None,
        labels: Sequence[Sequence[int]] | None = None,
    ) -> "ChannelBatch":
        """Build the ragged form (the collate function of the loader, of `embed` and of tests).

        Args:
            images: For each image its planes, each (H, W), of one type (uint8 in the loader).
            channel_types: For each image the name of each plane.
            keys: One per image; `0`, `1`, ... where not given.
            seeds: One per image; 0 where not given.
            boxes: One per image; the whole of its first plane where not given.
            rows: One per image; 0, 1, ... where not given.
            labels: Numbers of its L classes for each image, -1 where unknown; no column where not given.

        Raises:
            ValueError: If an image has no plane, or planes and channel types differ in number.
        """
        count = len(images)
        if count != len(channel_types) or any(len(i) != len(c) for i, c in zip(images, channel_types, strict=False)):
            raise ValueError("every plane of every image needs one channel type")
        if not count or not all(images):
            raise ValueError("every image needs at least one plane")
        planes = list(chain.from_iterable(images))
        full = [(0, 0, *image[0].shape) for image in images]
        return cls(
            planes=torch.cat([plane.reshape(-1) for plane in planes]),
            sizes=torch.tensor([tuple(plane.shape) for plane in planes], dtype=torch.int64),
            offsets=torch.tensor([0, *(len(image) for image in images)], dtype=torch.int64).cumsum(0),
            channel_types=tuple(chain.from_iterable(channel_types)),
            keys=tuple(keys) if keys is not None else tuple(str(i) for i in range(count)),
            seeds=torch.tensor(list(seeds) if seeds is not None else [0] * count, dtype=torch.int64),
            boxes=torch.tensor(list(boxes) if boxes is not None else full, dtype=torch.int64).reshape(count, 4),
            rows=torch.tensor(list(rows) if rows is not None else range(count), dtype=torch.int64),
            labels=torch.tensor(list(labels or []), dtype=torch.int64).reshape(count, len(labels[0]) if labels else 0),
        )


class StepOutput(NamedTuple):
    """What a method's step gives back.

    Attributes:
        loss: (), float32, with its graph.
        embedding: Embeddings that callbacks may look at, detached, (M, D), float32.
        logs: Scalars to log, by name.
    """

    loss: Tensor
    embedding: Tensor
    logs: dict[str, Tensor]

"""Images cut into pieces as a recipe says, and the rows of pieces brought together again."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from morphem.data.crops import Box
from morphem.errors import ChannelError, DataError
from morphem.pixels import crop_seed
from morphem.recipe import Recipe
from morphem.types import ChannelBatch

_NO_CELLS = np.zeros((0, 2), np.int64)


class Pieces(NamedTuple):
    """Pieces of images, image after image.

    Attributes:
        crops: Pixels of each piece, (C, h, w).
        boxes: Where it lies in its image: y, x, height, width.
        keys: Name of its image.
        counts: Pieces of each image.
    """

    crops: list[Tensor]
    boxes: list[Box]
    keys: list[str]
    counts: list[int]

    def batches(self, names: Sequence[str], n_pieces: int) -> Iterator[ChannelBatch]:
        """Yield ragged batches of the pieces in order.

        Args:
            names: What each of their C planes shows.
            n_pieces: At most so many in a batch.
        """
        for first in range(0, len(self.crops), n_pieces):
            some = slice(first, first + n_pieces)
            boxes, keys = self.boxes[some], self.keys[some]
            yield ChannelBatch.from_planes(
                [list(crop) for crop in self.crops[some]],
                [names] * len(keys),
                keys=keys,
                seeds=[crop_seed(key, box) for key, box in zip(keys, boxes, strict=True)],
                boxes=boxes,
            )


def cut(images: Sequence[Tensor], names: Sequence[str], keys: Sequence[str], recipe: Recipe) -> Pieces:
    """Cut images of the same channels as a recipe says.

    Args:
        images: Each (C, H, W).
        names: What each of the C planes shows.
        keys: One name per image.
        recipe: Says what is cut out and which pieces are left out for being empty.

    Raises:
        ChannelError: If the channel that decides what is empty is not there.
        DataError: If an image keeps no piece.
    """
    pieces = Pieces([], [], [], [])
    for number, (image, key) in enumerate(zip(images, keys, strict=True)):
        height, width = int(image.shape[1]), int(image.shape[2])
        boxes = _kept(image, names, recipe.crops.boxes(height, width, _NO_CELLS), recipe)
        if not boxes:
            raise DataError(f"image {key or number!r} keeps no tile: all of them are empty; leave it out.")
        pieces.counts.append(len(boxes))
        for box in boxes:
            y, x, h, w = box
            pieces.crops.append(image[:, y : y + h, x : x + w])
            pieces.boxes.append(box)
            pieces.keys.append(key)
    return pieces


def _kept(image: Tensor, names: Sequence[str], boxes: list[Box], recipe: Recipe) -> list[Box]:
    rule = recipe.crops.skip_empty
    if rule is None:
        return boxes
    number = rule.nth_channel(list(names))
    if number is None:
        raise ChannelError(
            f"the recipe looks at channel '{rule.channel}' to tell empty tiles, but these images show "
            f"{', '.join(names)}; name another channel in the recipe, or take Recipe() for whole images."
        )
    kept = rule.kept(image[number].cpu().numpy(), boxes)
    return [box for box, keep in zip(boxes, kept, strict=True) if keep]


def mean_rows(rows: Tensor, pieces: Pieces, rows_per_piece: int) -> Tensor:
    """Average the rows of the pieces of each image, in double precision.

    Args:
        rows: `rows_per_piece` rows for every piece, in order, (sum of counts * r, D).
        pieces: What the rows belong to.
        rows_per_piece: r: the number of channels where every plane has a row, else 1.

    Returns:
        r rows for every image, (N * r, D), of the type of the rows.
    """
    if all(count == 1 for count in pieces.counts):
        return rows
    by_piece = rows.reshape(-1, rows_per_piece, rows.shape[1])
    parts = torch.split(by_piece, pieces.counts)
    return torch.cat([part.double().mean(0).to(rows.dtype) for part in parts])

"""Tiles of fields in golden records: kept ones have features, those that a rule leaves out have NaN."""

import torch
from torch import Tensor

from morphem.data.crops import CropRule
from morphem.encoder import Encoder
from morphem.pieces import cut
from morphem.recipe import Recipe
from morphem.types import ChannelBatch

_NO_CELLS = torch.zeros(0, 2, dtype=torch.int64).numpy()


def tile_features(encoder: Encoder, field: Tensor, names: list[str], crops: CropRule) -> Tensor:
    """Embed every tile of a field by an encoder of a bag of channels, channels side by side.

    Args:
        encoder: Embeds planes.
        field: (C, H, W), pixels of the encoder's domain.
        names: What each of the C planes shows.
        crops: How the field is cut and which tiles are left out.

    Returns:
        A row per tile, (K, C * D), with NaN for tiles that are left out.
    """
    boxes = crops.boxes(int(field.shape[1]), int(field.shape[2]), _NO_CELLS)
    pieces = cut([field], names, ["field"], Recipe(crops))
    batch = ChannelBatch.from_planes([list(crop) for crop in pieces.crops], [names] * len(pieces.crops))
    found = encoder.features(batch).reshape(len(pieces.crops), -1)
    rows = found.new_full((len(boxes), found.shape[1]), torch.nan)
    rows[[boxes.index(box) for box in pieces.boxes]] = found
    return rows

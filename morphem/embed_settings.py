"""What determines the rows of a feature table, besides the encoder and the shards."""

from dataclasses import dataclass
from typing import Literal

import torch

from morphem.data.crops import CropRule, Masking, Tiling, Unit
from morphem.data.emptiness import EmptyRule
from morphem.data.pixel_kinds import PIXEL_KINDS, PixelKind
from morphem.errors import ConfigError
from morphem.features import Combine

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
PRECISIONS: dict[str, torch.dtype | None] = {"32-true": None, "bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}
_TILE_SIZE_PX = 224


@dataclass(frozen=True)
class EmbedSettings:
    """What determines the rows of a table, besides the encoder and the shards.

    Attributes:
        unit: `tile`, `cell` or `image`; see `morphem.data.crops.CropRule`.
        tile_size_px: Side of a tile in pixels, with unit `tile` only; 224 where not given.
        crop_size_px: Side of a cell's crop in pixels, with unit `cell` only, and needed there.
        combine: How the channels of a crop become rows: `concat`, `mean` or `none`.
        query: Selects channel planes, for example `microscopy.type != 'fluorescence'`.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        tiling: How tiles lie, with unit `tile` only: `cover`, `grid` or `overlap`.
        mask: What is outside of a cell, with unit `cell` only: `none` (it stays), `zero` or `background`.
        skip_empty: Which tiles are left out, with unit `tile` only; None keeps all.
        pixels: What pixels stand for: `levels`, `counts`, `stretched` or `unit` (see `morphem.data.pixel_kinds`); None
            takes what the encoder was made for.

    Raises:
        ConfigError: If a setting is unknown, missing or without effect.
    """

    unit: Unit = "tile"
    tile_size_px: int | None = None
    crop_size_px: int | None = None
    combine: Combine = "concat"
    query: str | None = None
    precision: Precision = "32-true"
    tiling: Tiling = "cover"
    mask: Masking = "none"
    skip_empty: EmptyRule | None = None
    pixels: PixelKind | None = None

    def __post_init__(self) -> None:
        """Check everything that needs no data."""
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision='{self.precision}' must be one of {', '.join(PRECISIONS)}.")
        if self.pixels is not None and self.pixels not in PIXEL_KINDS:
            raise ConfigError(f"pixels='{self.pixels}' must be one of {', '.join(PIXEL_KINDS)}.")
        _ = self.rule

    @property
    def rule(self) -> CropRule:
        """What is cut out of an image."""
        tile = _TILE_SIZE_PX if self.unit == "tile" and self.tile_size_px is None else self.tile_size_px
        return CropRule(self.unit, tile, self.crop_size_px, self.tiling, self.mask, self.skip_empty)

"""What is cut out of an image: tiles, cells, or all of it; a function of sizes and cell positions alone."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from morphem.data.emptiness import EmptyRule
from morphem.errors import ConfigError

Unit = Literal["tile", "cell", "image"]
UNITS: tuple[Unit, ...] = ("tile", "cell", "image")
Tiling = Literal["cover", "grid", "square_grid", "overlap"]
TILINGS: tuple[Tiling, ...] = ("cover", "grid", "square_grid", "overlap")
Masking = Literal["none", "zero", "background"]
MASKINGS: tuple[Masking, ...] = ("none", "zero", "background")
Box = tuple[int, int, int, int]
Ints = NDArray[np.int64]

_OVERLAP = 1.2
"""Tiles per side against tiles side by side, where they overlap. Source: Microsnoop, cellimnet/microsnoop-publish at
3f0b0ce (ceil(1.2 L / 224) tiles, starts evenly spaced and cut to whole pixels)."""


@dataclass(frozen=True)
class CropRule:
    """What is cut out of an image.

    Attributes:
        unit: `tile`: tiles, laid as `tiling` says; `cell`: a crop centred at each cell, shifted inside; `image`: the
            whole image.
        tile_size_px: Side of a tile; with `tile` only. An image that is shorter is taken whole along that axis.
        crop_size_px: Side of a cell's crop; with `cell` only. Clamped to the image.
        tiling: With `tile` only. `cover`: side by side, the last of a row or column shifted inside, so that every pixel
            is used; `grid`: side by side from the top left corner, what remains at the right and the bottom is not
            used (Kim et al.); `square_grid` the same with at most as many columns as rows, as uniDINO's loop makes it,
            which counts rows for both; `overlap`: evenly spaced, each overlapping the next by about a fifth
            (Microsnoop).
        mask: With `cell` only. `none`: the crop as it is; `zero`: pixels that do not belong to the cell become 0;
            `background`: they become the median of the crop's pixels that belong to no cell (0 where there is none).
        skip_empty: With `tile` only: which tiles are left out for being empty; None keeps all.

    Raises:
        ConfigError: If a word is unknown, or a setting is missing, below 1, or without effect.
    """

    unit: Unit = "tile"
    tile_size_px: int | None = None
    crop_size_px: int | None = None
    tiling: Tiling = "cover"
    mask: Masking = "none"
    skip_empty: EmptyRule | None = None

    def __post_init__(self) -> None:
        """Check that each setting belongs to the unit."""
        for name, value, known in (
            ("unit", self.unit, UNITS),
            ("tiling", self.tiling, TILINGS),
            ("mask", self.mask, MASKINGS),
        ):
            if value not in known:
                raise ConfigError(f"{name}='{value}' must be one of {', '.join(known)}.")
        for name, unit in (("tile_size_px", "tile"), ("crop_size_px", "cell")):
            size = getattr(self, name)
            if size is None and unit == self.unit:
                raise ConfigError(f"unit='{unit}' needs {name}, the side of a {unit}'s crop in pixels of the image.")
            if size is not None and unit != self.unit:
                raise ConfigError(f"{name}={size} has no effect with unit='{self.unit}'; leave it out.")
            if size is not None and size < 1:
                raise ConfigError(f"{name}={size} must be at least 1 pixel.")
        if self.unit != "cell" and self.mask != "none":
            raise ConfigError(f"mask='{self.mask}' has no effect with unit='{self.unit}'; take unit='cell'.")
        if self.unit != "tile" and (self.tiling != "cover" or self.skip_empty is not None):
            name = "skip_empty" if self.tiling == "cover" else f"tiling='{self.tiling}'"
            raise ConfigError(f"{name} has no effect with unit='{self.unit}'; take unit='tile'.")

    def count(self, heights: Ints, widths: Ints, n_cells: Ints) -> Ints:
        """Return the number of crops of each image, (N,), before empty ones are left out.

        Args:
            heights: Of the images in pixels, (N,).
            widths: Of the images in pixels, (N,).
            n_cells: Cells of each image, (N,).
        """
        if self.unit != "tile":
            return n_cells if self.unit == "cell" else np.ones_like(heights)
        sizes = np.unique(np.concatenate([heights, widths]))
        number = {int(length): len(self._starts(int(length))) for length in sizes}
        square = self.tiling == "square_grid"
        sides = [(number[int(h)], number[int(w)]) for h, w in zip(heights, widths, strict=True)]
        return np.asarray([rows * (min(rows, columns) if square else columns) for rows, columns in sides], np.int64)

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
            rows, columns = self._starts(height), self._starts(width)
            if self.tiling == "square_grid":
                columns = columns[: len(rows)]
            return [(y, x, min(size, height), min(size, width)) for y in rows for x in columns]
        h, w = min(self.crop_size_px or 1, height), min(self.crop_size_px or 1, width)
        tops = np.clip(cells[:, 1] - h // 2, 0, height - h)
        lefts = np.clip(cells[:, 0] - w // 2, 0, width - w)
        return [(int(y), int(x), h, w) for y, x in zip(tops, lefts, strict=True)]

    def _starts(self, length: int) -> list[int]:
        """Where the tiles start along one axis."""
        size = self.tile_size_px or 1
        if length <= size:
            return [0]
        if self.tiling in ("grid", "square_grid"):
            return list(range(0, length - size + 1, size))
        if self.tiling == "overlap":
            number = int(np.ceil(_OVERLAP * length / size))
            return [int(start) for start in np.linspace(0, length - size, number)]
        return [min(start, length - size) for start in range(0, length, size)]


def masked(crop: NDArray[np.generic], objects: NDArray[np.uint16], cell: int, mask: Masking) -> NDArray[np.generic]:
    """Return a crop in which only the pixels of one cell are left.

    Args:
        crop: Pixels of one plane, (h, w).
        objects: Number of the cell of each pixel, counted from 1; 0 is background, (h, w).
        cell: Which cell, counted from 0.
        mask: `zero` or `background`, as in `CropRule`.
    """
    around = objects == 0
    level = np.rint(np.median(crop[around])) if mask == "background" and around.any() else 0
    return np.where(objects == cell + 1, crop, crop.dtype.type(level))

"""From a sample to a crop: image, then cell, then scale, then crop, as CHAMMI-75 draws them.

Every draw is a function of the sample's seed alone (`morphem.rng`). Differences from the published loader: draws differ
from epoch to epoch, a crop is never larger than its image and never degenerate, and where an image has no cells its
scale is kept and the position is drawn, instead of the scale being dropped.

Source: the CHAMMI-75 paper, appendix A.8, and the crop sizes of its training code (`study_scales.csv`).
"""

import csv
from collections.abc import Collection, Mapping, Sequence
from importlib.resources import files
from typing import Literal, NamedTuple

from morphem.errors import ConfigError, DataError, unknown_name
from morphem.rng import below

Scale = int | Literal["full"]

# A side is drawn from int(0.9 s) to int(1.1 s), both included. Whole tenths, so that no rounding depends on a float.
_TENTHS = (9, 11)


class Box(NamedTuple):
    """A crop in its image, in pixels: the corner nearest to the origin, and the size."""

    y: int
    x: int
    height: int
    width: int


def published_scales() -> dict[str, tuple[Scale, ...]]:
    """Return the crop scales of the CHAMMI-75 studies, from `study_scales.csv`: one or two per study.

    Raises:
        DataError: If the table is damaged.
    """
    with files("morphem.data").joinpath("study_scales.csv").open(encoding="utf-8") as file:
        return {
            row["study"]: tuple(
                _parse(row[column], f"study_scales.csv, study {row['study']}")
                for column in ("scale_1", "scale_2")
                if row[column]
            )
            for row in csv.DictReader(file)
        }


def _parse(text: str, where: str) -> Scale:
    if text == "full":
        return "full"
    if not text.isdecimal() or int(text) < 1:
        raise DataError(f"{where}: '{text}' is not a scale; allowed are pixels from 1 up and 'full'.")
    return int(text)


class Scales:
    """The crop scales of every study: a setting of the run before the published table before the default.

    A number is the side of a square in pixels; height and width are drawn around it. `full` is the whole image.

    Args:
        overrides: Scales by study, one or several; each is drawn with equal probability.
        default: Scale of the studies that neither `overrides` nor the published table names.

    Raises:
        ConfigError: If a scale is neither `full` nor a number of pixels from 1 up, or a study has none.
    """

    def __init__(self, overrides: Mapping[str, Scale | Sequence[Scale]] | None = None, default: Scale = "full") -> None:
        self._default = (_checked(default, "data.default_scale"),)
        self._table = published_scales()
        self._overrides: dict[str, tuple[Scale, ...]] = {}
        for study, value in (overrides or {}).items():
            several = tuple(value) if isinstance(value, list | tuple) else (value,)
            self._overrides[study] = tuple(_checked(scale, f"data.scales.{study}") for scale in several)
            if not several:
                raise ConfigError(f"data.scales.{study} is empty; give at least one scale in pixels, or 'full'.")

    def of(self, study: str) -> tuple[Scale, ...]:
        """Return the scales of a study, at least one."""
        return self._overrides.get(study) or self._table.get(study) or self._default

    def check_studies(self, studies: Collection[str]) -> None:
        """Refuse overrides of studies that a data set does not have, because they would do nothing.

        Raises:
            ConfigError: With the nearest study that exists.
        """
        for study in self._overrides:
            if study not in studies:
                raise ConfigError("data.scales: " + unknown_name("study", study, studies))


def _checked(scale: object, where: str) -> Scale:
    if scale == "full":
        return "full"
    if isinstance(scale, bool) or not isinstance(scale, int) or scale < 1:
        raise ConfigError(f"{where} is {scale!r}; allowed are whole numbers of pixels from 1 up and 'full'.")
    return scale


def draw_cell(n_cells: int, seed: int) -> int | None:
    """Draw one of an image's cells, or None where it has none.

    Args:
        n_cells: At least 0.
        seed: The sample's seed.
    """
    return below(n_cells, seed, "crop/cell") if n_cells > 0 else None


def draw_box(height: int, width: int, scales: Sequence[Scale], seed: int, cell: tuple[int, int] | None) -> Box:
    """Draw a crop.

    One scale s is drawn; height and width are then drawn independently from int(0.9 s) to int(1.1 s), both included,
    and cut to the image. The crop is centred on the cell and shifted inside; without a cell its position is uniform.

    Args:
        height: Of the image, in pixels, at least 1.
        width: Of the image, in pixels, at least 1.
        scales: At least one.
        seed: The sample's seed.
        cell: x and y of the cell's centre in pixels (outside the image is allowed), or None.

    Returns:
        A box of at least one pixel, inside the image.
    """
    scale = scales[below(len(scales), seed, "crop/scale")] if len(scales) > 1 else scales[0]
    if scale == "full":
        return Box(0, 0, height, width)
    low, high = (max(scale * tenths // 10, 1) for tenths in _TENTHS)
    crop_height = min(low + below(high - low + 1, seed, "crop/height"), height)
    crop_width = min(low + below(high - low + 1, seed, "crop/width"), width)
    if cell is None:
        y = below(height - crop_height + 1, seed, "crop/y")
        x = below(width - crop_width + 1, seed, "crop/x")
    else:
        y = min(max(cell[1] - crop_height // 2, 0), height - crop_height)
        x = min(max(cell[0] - crop_width // 2, 0), width - crop_width)
    return Box(y, x, crop_height, crop_width)

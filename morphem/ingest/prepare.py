"""What is done to an image before it is written: it is scaled, measured, and its cells are found."""

from dataclasses import dataclass, replace

import numpy as np

from morphem.cells.base import CellFinder
from morphem.data.record import ImageRecord
from morphem.errors import ConfigError, DataError
from morphem.ingest.quality import measure
from morphem.ingest.scaling import DEFAULT_CLIP, BitDepth, Clip, Scaled, scale

FLAT = "quality.flat"


@dataclass(frozen=True)
class Preparation:
    """How planes are stored.

    Attributes:
        clip: Where planes are clipped; the default is that of CHAMMI-75. None keeps 8-bit planes as they are.
        bit_depth: 8: levels 0 to 255 between the clip limits. 16: the intensities exactly; readers scale them to the
            same levels.
        quality: Measure the quality columns of each plane; without it only `quality.flat` is written.
    """

    clip: Clip = DEFAULT_CLIP
    bit_depth: BitDepth = 8
    quality: bool = True

    def __post_init__(self) -> None:
        """Refuse another bit depth."""
        if self.bit_depth not in (8, 16):
            raise ConfigError(f"bit_depth is {self.bit_depth}; allowed are 8 and 16.")


def prepare(image: ImageRecord, settings: Preparation, cells: CellFinder | None = None) -> ImageRecord:
    """Bring an image into the form in which it is written.

    Args:
        image: As a source gives it.
        settings: How its planes are stored.
        cells: Finds its cells; None keeps those of the source.

    Returns:
        The image with planes as stored (uint8 or uint16), clip limits and quality.

    Raises:
        DataError: If a plane is not a grey image of finite numbers, two channels have the same pixels, or its cells
            were promised and cannot be read.
    """
    scaled = [
        scale(np.asarray(plane), settings.clip, settings.bit_depth, f"image '{image.image_id}', channel '{name}'")
        for plane, name in zip(image.planes, image.channel_names, strict=True)
    ]
    _refuse_copies(image, scaled)
    if cells is not None:
        image = _with_cells(image, cells)
    return replace(
        image,
        planes=[plane.plane for plane in scaled],
        clip_limits=[(plane.low, plane.high) for plane in scaled],
        quality=[measure(plane) if settings.quality else {FLAT: float(plane.flat)} for plane in scaled],
    )


def count_flat(image: ImageRecord) -> int:
    """Return the number of planes of a prepared image that have one level only.

    Args:
        image: As `prepare` gives it.
    """
    return sum(values.get(FLAT) == 1 for values in image.quality or ())


def _refuse_copies(image: ImageRecord, scaled: list[Scaled]) -> None:
    for i, plane in enumerate(image.planes):
        for j in range(i):
            if not scaled[i].flat and _same(np.asarray(plane), np.asarray(image.planes[j])):
                raise DataError(
                    f"image '{image.image_id}': channels '{image.channel_names[j]}' and '{image.channel_names[i]}' "
                    "have the same pixels; correct the sheet, or take one of them out."
                )


def _same(plane: np.ndarray, other: np.ndarray) -> bool:
    """Whether two planes are equal; a few rows tell nearly always that they are not."""
    return np.array_equal(plane[::64], other[::64]) and np.array_equal(plane, other)


def _with_cells(image: ImageRecord, finder: CellFinder) -> ImageRecord:
    found = finder.find(image)
    if found is None:
        told = finder.without_cells(image)
        return replace(
            image, cells=None, cell_labels=None, masks=None, remarks=[*image.remarks, *([told] if told else [])]
        )
    remarks = [*image.remarks, *([found.remark] if found.remark else [])]
    return replace(image, cells=found.centres, cell_labels=found.labels, masks=found.objects, remarks=remarks)

"""Cells by Cellpose, a network for segmentation of cells, as an optional extra.

Source: Stringer et al. 2021, doi 10.1038/s41592-020-01018-x; Pachitariu et al. 2025 (Cellpose-SAM), doi
10.1101/2025.04.28.651001; interface of the package cellpose 4 (`models.CellposeModel`, `eval`).
"""

from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from morphem.cells.base import CellFinder, Cells
from morphem.cells.classical import cells_of, plane_of
from morphem.data.schema import resolve_channel
from morphem.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from morphem.data.record import ImageRecord


class CellposeCells(CellFinder):
    """Finds cells with a network of the package `cellpose` (version 4), which needs no typical diameter.

    Args:
        channels: Channel types that the network sees together, one to three; those that an image lacks are left out.
        model: Name of a network of the package, or path of one's own; None takes the package's own default.
        diameter_px: Images are rescaled so that cells of this diameter have 30 pixels; None does not rescale.
        flow_threshold: Largest error of the flows of a cell; lower finds fewer.
        cellprob_threshold: Smallest score of a pixel of a cell, from -6 to 6; higher finds fewer.
        min_area_px: Smaller objects are left out.
        gpu: Compute on a graphics card.
        batch_size: Tiles that are computed together.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        ConfigError: If there are no or more than three channels.
    """

    def __init__(
        self,
        channels: tuple[str, ...] = ("nucleus",),
        model: str | None = None,
        diameter_px: float | None = None,
        flow_threshold: float = 0.4,
        cellprob_threshold: float = 0.0,
        min_area_px: int = 15,
        gpu: bool = False,
        batch_size: int = 8,
    ) -> None:
        names = (channels,) if isinstance(channels, str) else tuple(channels)
        if not 1 <= len(names) <= 3:
            raise ConfigError(f"cellpose sees 1 to 3 channels together; channels names {len(names)}.")
        self.channels = tuple(resolve_channel(name) for name in names)
        self.model, self.gpu = model, gpu
        self._settings: dict[str, Any] = {
            "batch_size": batch_size,
            "diameter": diameter_px,
            "flow_threshold": flow_threshold,
            "cellprob_threshold": cellprob_threshold,
            "min_size": min_area_px,
        }

    def find(self, image: "ImageRecord") -> Cells | None:
        """Return the cells of an image; None if it has none of the channels.

        Args:
            image: Pixels of any number type.

        Raises:
            ConfigError: If cellpose is not installed, has no such network, or sees no graphics card where one was asked
                for.
        """
        planes = [plane for name in self.channels if (plane := plane_of(image, (name,))) is not None]
        if not planes:
            return None
        return cells_of(self.segment(planes))

    def segment(self, planes: list[NDArray[Any]]) -> NDArray[np.int32]:
        """Return the objects that the network finds: 0 is background, cells are numbered from 1, (H, W).

        Args:
            planes: One to three channels of an image, each (H, W).
        """
        stack = np.stack([plane.astype(np.float32) for plane in planes], axis=-1)  # (H, W, C)
        masks = _network(self.model, self.gpu).eval(stack, channel_axis=-1, **self._settings)[0]
        return np.asarray(masks, np.int32)


@lru_cache(maxsize=1)
def _network(name: str | None, gpu: bool) -> Any:
    """Load a network once in each process."""
    try:
        models: Any = import_module("cellpose.models")
    except ImportError as fault:
        raise ConfigError(f"--cells cellpose needs cellpose ({fault}); pip install 'morphem[cellpose]'.") from fault
    # cellpose itself would go on with its default network, or without the card, after a line in its log
    if name is not None and name not in models.MODEL_NAMES and not Path(name).exists():
        raise ConfigError(unknown_name("network of cellpose", name, models.MODEL_NAMES))
    network = models.CellposeModel(gpu=gpu, **({} if name is None else {"pretrained_model": name}))
    if gpu and not network.gpu:
        raise ConfigError("cellpose sees no graphics card; set gpu to false, or install torch for the card.")
    return network

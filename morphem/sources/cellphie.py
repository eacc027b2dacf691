"""CellPHIE as in the evaluation of CHAMMI-75: neurons with 14 channels and a mask each, in one pandas pickle.

Source: CHAMMI-75 (arXiv 2512.20833), appendix A.9 and its evaluation code; order of the channels as in the paper.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.data.record import ImageRecord
from morphem.errors import DataError
from morphem.readers.files import Files, open_files
from morphem.sources.safe_pickle import read_frame
from morphem.sources.table import TableSource

_FILE = "CELLPHIE.pkl"
_PROTEINS = ("NeuN", "pRPS6", "RANGAP1", "NFKB", "TOM20", "LAMP1", "TDP43", "G3BP1", "GM130", "Golgin97")
_CHANNELS = (
    ("DNA", "nucleus"),
    *((name, "protein") for name in _PROTEINS),
    ("SYTO", "rna"),
    ("ER", "endoplasmic reticulum"),
    ("AGP", "golgi body"),  # so the published channel models call it
)
_PIXELS = ("image", "soma_mask")
_NEEDED = (*_PIXELS, "train", "Gene", "Time", "Media", "Sample")
_CONTROL = "non-target"


class CellPHIESource(TableSource):
    """Reads all neurons as one study; an image is one neuron of 14 stains, and its mask the outline of its only cell.

    The pickle is read with a reader that builds tables and arrays only, so that a foreign file runs nothing. All its
    pixels are in memory; other processes get those of their own images. Columns other than the pixels are labels, save
    `Gene` (`experiment.reagent`) and `Time` (`geometry.timepoint`); cells are in the order of the table.

    Args:
        location: The pickle, or the folder, zip or address with CELLPHIE.pkl.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        DataError: If the file is missing, no such table, or holds anything but tables and arrays.
    """

    priority: ClassVar[int] = 10

    def __init__(self, location: str, channel_aliases: Mapping[str, str] | None = None) -> None:
        files = open_files(location)
        name = _pickle_in(files)
        if name is None:
            raise DataError(f"'{location}' has no {_FILE}; give the file or its folder.")
        frame = read_frame(files, name)
        for column in _NEEDED:
            if column not in frame.columns:
                raise DataError(f"'{files.describe(name)}' has no column '{column}'; needed: {', '.join(_NEEDED)}.")
        ids = [f"cell{i:06d}" for i in range(len(frame))]
        self._pickle = files.describe(name)
        self._pixels = dict(zip(ids, zip(frame["image"], frame["soma_mask"], strict=True), strict=True))
        super().__init__(None, _table(frame, ids, name), channel_aliases=channel_aliases)

    def only(self, image_ids: Sequence[str]) -> Self:
        """Return the source with these images alone; see `TableSource.only`.

        Args:
            image_ids: Some of `image_ids()`.
        """
        other = super().only(image_ids)
        other._pixels = {image_id: self._pixels[image_id] for image_id in image_ids}
        return other

    def read_row(self, row: Mapping[str, str]) -> tuple[NDArray[Any], str | None]:
        """Return the plane of one row; see `TableSource.read_row`.

        Raises:
            DataError: If the image of a cell has another number of channels, or its mask another size.
        """
        image, _ = self._pixels_of(row["imaging.multi_channel_id"])
        return image[int(row["imaging.channel"]) - 1], None

    def load(self, image_id: str) -> ImageRecord:
        """Read one neuron, with the outline of its soma; see `TableSource.load`.

        Raises:
            DataError: As `read_row`.
        """
        _, mask = self._pixels_of(image_id)
        inside = np.argwhere(mask > 0)
        y, x = inside.mean(0) if len(inside) else np.asarray(mask.shape) / 2
        centre = np.asarray([[round(x), round(y)]], np.int32)
        return replace(super().load(image_id), cells=centre, masks=(mask > 0).astype(np.uint16), cell_labels={})

    def _pixels_of(self, image_id: str) -> tuple[NDArray[Any], NDArray[Any]]:
        image, mask = (np.asarray(part) for part in self._pixels[image_id])
        if image.ndim != 3 or len(image) != len(_CHANNELS) or mask.shape != image.shape[1:]:
            raise DataError(
                f"'{self._pickle}', {image_id}: 'image' is {image.shape} and 'soma_mask' {mask.shape}; needed: "
                f"({len(_CHANNELS)}, height, width) and (height, width)."
            )
        return image, mask

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether there is a CELLPHIE.pkl.

        Args:
            files: Of the location.
        """
        return _pickle_in(files) is not None

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write two cells of 16 x 20 pixels and return their source.

        Args:
            folder: Exists and is empty.
        """
        ramp = np.arange(14 * 16 * 20).reshape(14, 16, 20)
        mask = np.zeros((16, 20), np.uint8)
        mask[4:12, 5:15] = 1
        rows = [
            {
                "image": ((ramp * (cell + 3)) % 251).astype(np.uint8),
                "soma_mask": mask,
                "train": cell,
                "Gene": ("HTT", _CONTROL)[cell],
                "Time": "D28",
                "Media": "BrainPhys",
                "Sample": f"S{cell}",
                "UMI": 3.0,
            }
            for cell in range(2)
        ]
        pd.DataFrame(rows).to_pickle(folder / _FILE)
        return cls(str(folder))


def _pickle_in(files: Files) -> str | None:
    return next((name for name in files.names() if name.rpartition("/")[2] == _FILE), None)


def _table(frame: pd.DataFrame, ids: list[str], name: str) -> pd.DataFrame:
    """The plane table: for each neuron a row per stain."""
    cells = frame.drop(columns=list(_PIXELS)).reset_index(drop=True).astype(str)
    cells = cells.rename(columns={"Gene": "experiment.reagent", "Time": "geometry.timepoint"})
    controls = np.where(cells["experiment.reagent"] == _CONTROL, "negative control", "no")
    known: dict[str, Any] = {
        "imaging.multi_channel_id": ids,
        "experiment.study": "cellphie",
        "experiment.control": controls,
        "biology.cell_type": "neuron",
        "storage.path": name,
    }
    cells = cells.assign(**known)
    table = cells.loc[cells.index.repeat(len(_CHANNELS))].reset_index(drop=True)
    position = np.tile(np.arange(len(_CHANNELS)), len(cells))
    stains, types = (np.array(side, dtype=object)[position] for side in zip(*_CHANNELS, strict=True))
    planes: dict[str, Any] = {
        "imaging.channel": (position + 1).astype(str),
        "channel_name": stains,
        "imaging.channel_type": types,
    }
    return table.assign(**planes)

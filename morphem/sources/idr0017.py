"""IDR0017 as in the evaluation of CHAMMI-75: fields of two channels with a box around each cell.

Source: Breinig et al. 2015, doi 10.15252/msb.20156400; layout of the evaluation code of CHAMMI-75.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.cells.base import CellReader, Cells
from morphem.data.schema import missing_in
from morphem.errors import DataError
from morphem.readers.files import Files, open_files
from morphem.sources.sheets import read_sheet
from morphem.sources.table import TableSource
from morphem.sources.tapes import tiny_planes

_SHEET = "idr0017_meta.csv"
_NEEDED = (
    "imaging.multi_channel_id",
    "imaging.channel",
    "imaging.channel_type",
    "storage.zip",
    "storage.filename",
)
_SIDES = ("y_min", "y_max", "x_min", "x_max")
NO_BOXES = "not in the file of boxes of its plate (cells unknown)"


class IDR0017Source(TableSource):
    """Reads all plates as one study; cells are the middles of the boxes, whose sides are labels of the cells.

    Args:
        location: Folder, zip or address with idr0017_meta.csv and a folder for each plate.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        DataError: If the table is missing or malformed, or a plate has several files of boxes.
    """

    priority: ClassVar[int] = 10

    def __init__(self, location: str, channel_aliases: Mapping[str, str] | None = None) -> None:
        files = open_files(location)
        rows, problems = read_sheet(files, _SHEET, _NEEDED)
        plates = rows.pop("storage.zip")
        names = plates + "/" + rows.pop("storage.filename")
        rows = rows.assign(**{"file": names, "storage.path": names})
        if "experiment.plate" not in rows.columns or missing_in(rows["experiment.plate"]).all():
            rows["experiment.plate"] = plates
        if "experiment.study" not in rows.columns:
            rows["experiment.study"] = "idr0017"
        boxes = _box_files(files)
        super().__init__(files, rows, cells=PlateBoxes(files, boxes), channel_aliases=channel_aliases)
        self.problems[:0] = problems
        boxed = self._table["file"].isin({file for name in boxes.values() for file in _files_with_boxes(files, name)})
        without = int((~boxed.groupby(self._table["imaging.multi_channel_id"]).any()).sum())
        if without:
            self.remarks[NO_BOXES] += without

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether there is an idr0017_meta.csv.

        Args:
            files: Of the location.
        """
        return files.has(_SHEET)

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write a plate of two images, 16 x 20 pixels, with a box in each, and return their source.

        Args:
            folder: Exists and is empty.
        """
        from PIL import Image
        from safetensors.numpy import save_file

        (folder / "P1").mkdir()
        rows, boxes = [], {}
        for image in range(2):
            for channel, kind in enumerate(("nucleus", "cytoskeleton")):
                name = f"image{image}-ch{channel}.png"
                Image.fromarray(tiny_planes(2, image)[channel]).save(folder / "P1" / name)
                values = (f"image{image}", str(channel + 1), kind, "P1", name)
                rows.append(dict(zip(_NEEDED, values, strict=True)))
            boxes[f"idr0017-P1-converted/image{image}-ch0.png"] = np.array([[2, 10, 4, 12 + image]])
        pd.DataFrame(rows).to_csv(folder / _SHEET, index=False)
        save_file(boxes, folder / "P1" / "boxes.safetensors")
        return cls(str(folder))


class PlateBoxes(CellReader):
    """Cells from the file of boxes of a plate, key `idr0017-<plate>-converted/<file>`, y_min, y_max, x_min, x_max.

    Args:
        files: Of the location.
        names: File of boxes of each plate.
    """

    def __init__(self, files: Files, names: Mapping[str, str]) -> None:
        self._files = files
        self._names = dict(names)
        self._read: tuple[str, dict[str, NDArray[Any]]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Leave out the boxes of the plate that was read last."""
        return {**self.__dict__, "_read": None}

    def __call__(self, rows: Sequence[Mapping[str, str]], height: int, width: int) -> Cells | None:
        """Return the cells of an image, of which one channel at least has boxes; None if none has.

        Raises:
            DataError: If a file of boxes is damaged or a box is not in the image.
        """
        for row in rows:
            plate, _, name = row["file"].rpartition("/")
            boxes = self._boxes(plate).get(f"idr0017-{plate}-converted/{name}") if plate in self._names else None
            if boxes is not None:
                return _cells(boxes, height, width, f"{self._names[plate]}', '{name}")
        return None

    def _boxes(self, plate: str) -> dict[str, NDArray[Any]]:
        from safetensors import SafetensorError
        from safetensors.numpy import load

        if self._read is None or self._read[0] != plate:
            name = self._names[plate]
            try:
                self._read = (plate, load(self._files.read(name)))
            except SafetensorError as fault:
                raise DataError(
                    f"'{self._files.describe(name)}' is no safetensors file ({fault}); fetch it again."
                ) from fault
        return self._read[1]


def _box_files(files: Files) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in files.names():
        if name.endswith(".safetensors"):
            plate = name.rpartition("/")[0]
            if plate in found:
                raise DataError(f"'{files.location}' has two files of boxes in '{plate}'; keep one.")
            found[plate] = name
    return found


def _files_with_boxes(files: Files, name: str) -> set[str]:
    """Return the images of a file of boxes, from its header alone: 8 bytes of length, then JSON."""
    plate = name.rpartition("/")[0]
    prefix = f"idr0017-{plate}-converted/"
    length = int.from_bytes(files.read(name, 0, 8), "little")
    try:
        keys = json.loads(files.read(name, 8, min(length, files.size(name))))
    except ValueError as fault:
        raise DataError(f"'{files.describe(name)}' is no safetensors file; fetch it again.") from fault
    return {f"{plate}/{key.removeprefix(prefix)}" for key in keys if key.startswith(prefix)}


def _cells(boxes: NDArray[Any], height: int, width: int, where: str) -> Cells:
    if boxes.ndim != 2 or boxes.shape[1] != 4 or boxes.dtype.kind not in "iu":
        raise DataError(f"'{where}' has boxes of shape {boxes.shape}, {boxes.dtype}; needed: whole numbers, (N, 4).")
    y_min, y_max, x_min, x_max = boxes.astype(np.int64).T
    inside = (y_min >= 0) & (x_min >= 0) & (y_max <= height) & (x_max <= width) & (y_min < y_max) & (x_min < x_max)
    if not inside.all():
        bad = boxes[~inside][0].tolist()
        raise DataError(f"'{where}': the box {bad} (y_min, y_max, x_min, x_max) is not in {width} x {height} pixels.")
    centres = np.stack([(x_min + x_max) // 2, (y_min + y_max) // 2], axis=1).astype(np.int32)
    labels: dict[str, list[str | None]] = {
        side: [str(value) for value in values.tolist()] for side, values in zip(_SIDES, boxes.T, strict=True)
    }
    return Cells(centres, labels, None)

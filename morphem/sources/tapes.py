"""Tapes: images whose channels lie side by side in one picture, as in CHAMMI."""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError
from morphem.readers.files import Files, open_files
from morphem.sources.sheet import place_name
from morphem.sources.sheets import read_sheet
from morphem.sources.table import TableSource

IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")
_FILE_COLUMNS = ("file", "file_path", "Image_Name")
_WIDTH = "channel_width"


class TapeSource(TableSource):
    """Reads a folder of tapes, one image per file.

    Args:
        location: Folder, zip or address with the images.
        channels: Names of the stains from left to right, or one text with commas between; channel types and their
            aliases are recognised.
        metadata: Name of a CSV inside the location, one row per image: a column `file` (or `file_path`, `Image_Name`),
            columns of the schema, `channel_width` in pixels (then checked), labels. Other files are left alone.
        study: Name of the study; by default that of the folder.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        ConfigError: If no channel is named.
        DataError: If there are no images, or the table is malformed.
    """

    def __init__(
        self,
        location: str,
        channels: str | Sequence[str],
        metadata: str | None = None,
        study: str | None = None,
        channel_aliases: Mapping[str, str] | None = None,
    ) -> None:
        names = [name.strip() for name in (channels.split(",") if isinstance(channels, str) else channels)]
        if not all(names):
            raise ConfigError("channels needs the name of each stain from left to right, for example 'DAPI,ER,actin'.")
        files = open_files(location)
        images, problems = _listed(files) if metadata is None else _tabled(files, metadata)
        images["experiment.study"] = study or place_name(location)
        table = tape_table(images, [(name, "") for name in names])
        super().__init__(files, table, channel_aliases=channel_aliases)
        self.problems[:0] = problems

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write two tapes of two planes, each 16 x 20 pixels, and return their source.

        Args:
            folder: Exists and is empty.
        """
        for image in range(2):
            write_tape(folder / f"image{image}.png", tiny_planes(2, image))
        return cls(str(folder), channels=["nucleus", "actin"])


def tape_table(images: pd.DataFrame, channels: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """Return the plane table of tapes that all have the same channels.

    Args:
        images: One row per tape, with `file` and `imaging.multi_channel_id`; `channel_width`, if given, is what each
            plane must have.
        channels: Name of the stain and channel type (empty: to be guessed from the name) from left to right.
    """
    table = images.loc[images.index.repeat(len(channels))].reset_index(drop=True)
    position = np.tile(np.arange(len(channels)), len(images))
    names, types = (np.array(side, dtype=object)[position] for side in zip(*channels, strict=True))
    said: dict[str, Any] = {
        "plane_axis": "tape",
        "plane_index": position.astype(str),
        "plane_count": str(len(channels)),
        "imaging.channel": (position + 1).astype(str),
        "imaging.panel": ",".join(kind or name for name, kind in channels),
        "channel_name": names,
        "imaging.channel_type": types,
    }
    if _WIDTH in table.columns:
        said["geometry.width"] = table.pop(_WIDTH).map(_whole)
    return table.assign(**said)


def image_name(file: str) -> str:
    """Return the name of an image of which a file is all: the path without its ending.

    Args:
        file: Path inside the location.
    """
    return str(PurePosixPath(file).with_suffix(""))


def _listed(files: Files) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    names = [name for name in files.names() if name.lower().endswith(IMAGE_SUFFIXES)]
    if not names:
        raise DataError(f"'{files.location}' has no images ({', '.join(IMAGE_SUFFIXES)}).")
    ids = [image_name(name) for name in names]
    return pd.DataFrame({"file": names, "imaging.multi_channel_id": ids}, dtype=str), []


def _tabled(files: Files, metadata: str) -> tuple[pd.DataFrame, list[tuple[str, str]]]:
    table, problems = read_sheet(files, metadata, ())
    column = next((name for name in _FILE_COLUMNS if name in table.columns), None)
    if column is None:
        raise DataError(f"'{files.describe(metadata)}' has no column 'file' (or {', '.join(_FILE_COLUMNS[1:])}).")
    table = table.rename(columns={column: "file"})
    return with_image_names(table), problems


def with_image_names(table: pd.DataFrame) -> pd.DataFrame:
    """Return a table of files, one row per image, with names of the images where it has none.

    Args:
        table: Has the column `file`.
    """
    if "imaging.multi_channel_id" in table.columns:
        return table
    return table.assign(**{"imaging.multi_channel_id": table["file"].map(image_name)})


def _whole(text: str) -> str:
    """A width as a whole number; tables of other tools write 160.0."""
    return text.removesuffix(".0")


def tiny_planes(count: int, seed: int, height: int = 16, width: int = 20) -> list[NDArray[np.uint8]]:
    """Return some planes that differ from each other, for tests and docs.

    Args:
        count: How many.
        seed: Planes of another one have other pixels.
        height: Of each, in pixels.
        width: Of each, in pixels.
    """
    ramp = np.arange(height * width).reshape(height, width)
    return [((ramp * (channel + 1) + seed) % 251).astype(np.uint8) for channel in range(count)]


def write_tape(path: Path, planes: Sequence[NDArray[np.uint8]]) -> None:
    """Write planes of one size side by side, for tests and docs.

    Args:
        path: The file; its folder is made.
        planes: Each (H, W).
    """
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.hstack(list(planes))).save(path)

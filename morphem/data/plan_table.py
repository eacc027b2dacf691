"""What a plan knows of images and cells before a pixel is read, under the names of feature tables."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from morphem.data.crops import Ints
from morphem.data.shards import ShardSet
from morphem.errors import DataError
from morphem.features import METADATA

IMAGE_COLUMNS = {
    "experiment.study": "Metadata_Study",
    "experiment.plate": "Metadata_Plate",
    "experiment.well": "Metadata_Well",
    "microscopy.fov": "Metadata_Site",
    "experiment.reagent": "Metadata_Reagent",
    "experiment.control": "Metadata_Control",
    "biology.organism": "Metadata_Organism",
    "biology.cell_line": "Metadata_Cell_Line",
    "biology.cell_type": "Metadata_Cell_Type",
    "imaging.multi_channel_id": "Metadata_Image",
    "imaging.panel": "Metadata_Panel",
    "microscopy.magnification": "Metadata_Magnification",
    "geometry.width": "Metadata_Width",
    "geometry.height": "Metadata_Height",
    "geometry.depth": "Metadata_Depth",
    "geometry.channels": "Metadata_Channels",
    "geometry.z_slice": "Metadata_Z_Slice",
    "geometry.timepoint": "Metadata_Timepoint",
}
"""Columns of the schema that belong to an image, and their names in a feature table; those that JUMP has, as it has."""

PLANE_COLUMNS = {
    "imaging.channel": "Metadata_Channel_Number",
    "microscopy.type": "Metadata_Microscopy",
    "storage.path": "Metadata_Path",
    "channel_name": "Metadata_Channel_Name",
}
"""Columns that belong to a channel plane; they stand in tables with one row per plane."""


class CellTable:
    """Positions and labels of the cells of each image of a plan.

    Args:
        shards: Where they are.
        keys: Of the plan's images, in order.

    Attributes:
        counts: Cells of each image, (N,).
    """

    def __init__(self, shards: ShardSet, keys: Sequence[str]) -> None:
        table = shards.cells()
        frame = table.to_pandas() if table is not None else pd.DataFrame({"key": [], "cell": [], "x": [], "y": []})
        image = pd.Series(frame["key"].map({key: i for i, key in enumerate(keys)}))
        frame = frame[image.notna()].assign(image=image.dropna().astype(np.int64))
        frame = frame.sort_values(["image", "cell"], kind="stable").reset_index(drop=True)
        self.counts: Ints = np.bincount(frame["image"], minlength=len(keys)).astype(np.int64)
        self._starts: Ints = np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)
        self._frame, self._labels = frame, list(shards.cell_labels)

    def positions(self, image: int) -> Ints:
        """Return x and y of the cells of an image, (K, 2)."""
        part = self._frame.iloc[self._starts[image] : self._starts[image + 1]]
        return part[["x", "y"]].to_numpy(np.int64)

    def metadata(self, image: Ints, nth: Ints, taken: set[str]) -> pd.DataFrame:
        """Return number, position and labels of cells; a label whose name is taken is called `Metadata_Cell_...`.

        Args:
            image: Number of the image of each cell, (R,).
            nth: Number of each cell in its image, (R,).
            taken: Names of columns that are there already.
        """
        part = self._frame.iloc[self._starts[image] + nth].reset_index(drop=True)
        columns = {"Metadata_Cell": part["cell"], "Metadata_Cell_Y": part["y"], "Metadata_Cell_X": part["x"]}
        for label in self._labels:
            name = f"{METADATA}{label}"
            columns[f"{METADATA}Cell_{label}" if name in taken else name] = part[label]
        return pd.DataFrame(columns)


def starts_of_images(table: pd.DataFrame) -> Ints:
    """Return the first plane of each image, and the number of planes, (N + 1,).

    Args:
        table: One row per plane, with `shard` and `key`.

    Raises:
        DataError: If the planes of an image are not adjacent.
    """
    name = table["shard"].astype(str) + "/" + table["key"].astype(str)
    begins = (name != name.shift()).to_numpy()
    if begins.sum() != name.nunique():
        raise DataError("the planes of an image are not adjacent in metadata.parquet; ingest the study again.")
    return np.append(np.flatnonzero(begins), len(table)).astype(np.int64)


def check_sizes(table: pd.DataFrame, counts: Ints, heights: Ints, widths: Ints) -> None:
    """Refuse images whose planes differ in size: a crop would show different places in different channels.

    Args:
        table: One row per plane.
        counts: Planes of each image, (N,).
        heights: Of the images in pixels, (N,).
        widths: Of the images in pixels, (N,).

    Raises:
        DataError: With the first such image.
    """
    same = (table["geometry.height"].to_numpy() == np.repeat(heights, counts)) & (
        table["geometry.width"].to_numpy() == np.repeat(widths, counts)
    )
    if not same.all():
        key = table["key"].iloc[int(np.flatnonzero(~same)[0])]
        raise DataError(f"the planes of image '{key}' differ in size; bring them to one size and ingest again.")


def image_metadata(first: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """Return the columns that belong to an image, under their names in a feature table.

    Args:
        first: The row of the first plane of each image.
        labels: Label columns of images.
    """
    columns: dict[str, Any] = {new: first[old] for old, new in IMAGE_COLUMNS.items()}
    columns["Metadata_Key"] = first["key"]
    for label in labels:
        name = f"{METADATA}{label}"
        columns[f"{METADATA}Label_{label}" if name in columns else name] = first[label]
    return pd.DataFrame(columns)

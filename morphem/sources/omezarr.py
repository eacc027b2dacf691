"""OME-Zarr images and high-content plates, NGFF 0.1 to 0.5, by the libraries zarr and ome-zarr (extra `zarr`).

Source: https://ngff.openmicroscopy.org/0.5/ and https://ngff.openmicroscopy.org/0.4/; channel names of Biohub's DCA
draft v0.2 and v0.3 (`dca.channels`, entries with name, index and description).
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError
from morphem.readers.files import Files
from morphem.readers.planes import PROJECTION, check_pixels
from morphem.sources.ngff import (
    STORE_NAME,
    Found,
    attributes_of,
    called,
    first_line,
    images_of,
    multiscale,
    open_store,
    stores,
    zarr_package,
)
from morphem.sources.ome import checked_sizes
from morphem.sources.panels import image_name, names_of, panel_text, study_name
from morphem.sources.table import TableSource


class OmeZarrSource(TableSource):
    """Reads OME-Zarr images and plates; each image is one for each slice and frame, each field of a well an image.

    The location is an OME-Zarr group, a folder of them (names that end in .zarr, .zarr.zip or .ozx), a zip of one, or
    an address of one. Channel names are those of `dca.channels`, else of `omero.channels`, else of `channels`. Pixels
    are of the full resolution. Labels: `pixel_um`, and `acquisition` of plates. Chunks that a store lacks are its fill
    value, as Zarr defines; a plane without any shows in `quality.empty`.

    Args:
        location: See above.
        project: `max` for the maximum over the slices of a stack, None for one image per slice.
        channels: Names of the channels in order, for images that do not tell; a text with commas is split.
        study: Name of the study; that of the location if None.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        ConfigError: If `project` is something else, or the extra is not installed.
        DataError: If there is no OME-Zarr, or no image in it can be used.
    """

    priority = -10

    def __init__(
        self,
        location: str,
        project: Literal["max"] | None = None,
        channels: str | Sequence[str] | None = None,
        study: str | None = None,
        channel_aliases: Mapping[str, str] | None = None,
    ) -> None:
        if project not in (None, "max"):
            raise ConfigError(f"'project' is '{project}'; allowed: max, or leave it out.")
        self.location = location
        rows: list[dict[str, str]] = []
        problems: list[tuple[str, str]] = []
        remarks: Counter[str] = Counter()
        for store in stores(location):
            for found in images_of(location, store, problems):
                try:
                    rows += _rows(found, store, names_of(channels), project == "max", remarks)
                except DataError as fault:
                    problems.append((found.name, f"'{called(location, store, found.path)}': {fault}"))
        if not rows:
            why = f"; the first problem: {problems[0][1]}" if problems else "."
            raise DataError(f"'{location}' has no OME-Zarr image that can be used{why}")
        table = pd.DataFrame(rows, dtype=str).fillna("").assign(**{"experiment.study": study or study_name(location)})
        super().__init__(None, table, channel_aliases=channel_aliases)
        self.problems.extend(problems)
        self.remarks.update(remarks)

    def read_row(self, row: Mapping[str, str]) -> tuple[NDArray[Any], str | None]:
        """Read a plane, or the maximum over all slices; see `TableSource.read_row`.

        Args:
            row: Of the plane table; `plane_axis` holds the letters of the array's axes, `file` the array.

        Raises:
            DataError: If the array is missing, damaged or too large.
        """
        store, _, path = row["file"].partition("//")
        axes, z = row["plane_axis"], row["geometry.z_slice"]
        where = called(self.location, store, path)
        try:
            array = open_store(self.location, store)[path]
            # a chunk is decoded whole, however much of it lies outside of the array
            largest = max(array.shape[-1] * array.shape[-2], math.prod(array.chunks))
            check_pixels(largest, self.max_pixels, where)
            place = {"c": int(row["plane_index"]), "t": int(row["geometry.timepoint"])}
            slices = [int(z)] if z.isdecimal() else range(array.shape[axes.index("z")])
            planes = (
                np.asarray(array[tuple({**place, "z": n}.get(axis, slice(None)) for axis in axes)]) for n in slices
            )
            most = next(planes)
            for plane in planes:
                most = np.maximum(most, plane)
        except DataError:
            raise
        except Exception as fault:  # codecs of damaged chunks raise whatever they stumble over
            raise DataError(f"'{where}' cannot be read: {type(fault).__name__}: {first_line(fault)}.") from fault
        return most, f"{PROJECTION} over {len(slices)} slices" if len(slices) > 1 else None

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether a location is an OME-Zarr, by its name or metadata file, or a folder of some.

        Args:
            files: The files of a location.
        """
        if STORE_NAME.search(files.location.rstrip("/")):
            return True
        folder = Path(files.location)
        if not folder.is_dir():
            return False
        if any((folder / name).is_file() for name in ("zarr.json", ".zattrs", ".zgroup")):
            return True
        return any(STORE_NAME.search(path.name) for path in folder.iterdir())

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write one image of two channels and two slices and return its source.

        Args:
            folder: Exists and is empty.
        """
        zarr = zarr_package()
        from ome_zarr.writer import add_metadata, write_image

        root = zarr.open_group(str(folder / "tiny.zarr"), mode="w")
        pixels = np.arange(2 * 2 * 16 * 20, dtype=np.uint16).reshape(2, 2, 16, 20)
        write_image(pixels, root, axes="czyx", scale_factors=[])
        add_metadata(root, {"omero": {"channels": [{"label": "DAPI"}, {"label": "Phalloidin"}]}})
        return cls(str(folder), study="tiny")


def _rows(found: Found, store: str, names: Sequence[str], project: bool, remarks: Counter[str]) -> list[dict[str, str]]:
    """The plane table's rows of one image."""
    attributes = attributes_of(found.group)
    axes, scale, path = multiscale(attributes)
    try:
        array = found.group[path]
        shape = dict(zip(axes, array.shape, strict=True))
    except (KeyError, ValueError) as fault:
        raise DataError(f"its array '{path}' is missing or does not have the axes {axes}: {fault!r}.") from fault
    n_channels, depth, frames = checked_sizes((shape.get("c", 1), shape.get("z", 1), shape.get("t", 1)))
    channels = _channels(attributes, n_channels, names, remarks)
    rows = []
    for t, z in product(range(frames), range(1 if project else depth)):
        parts = ("z", "" if project or depth == 1 else str(z)), ("t", str(t) if frames > 1 else "")
        for number, channel in enumerate(channels):
            inside = "/".join(part for part in (found.path, path) if part)
            rows.append(
                {
                    "file": f"{store}//{inside}",
                    "plane_axis": axes,
                    "plane_index": str(number),
                    "imaging.multi_channel_id": image_name(("", found.name), *parts),
                    "imaging.panel": panel_text(channels),
                    "imaging.channel": str(number + 1),
                    "channel_name": channel,
                    "dtype": str(array.dtype),
                    "geometry.width": str(shape["x"]),
                    "geometry.height": str(shape["y"]),
                    "geometry.depth": str(depth),
                    "geometry.z_slice": "all" if project and depth > 1 else str(z),
                    "geometry.timepoint": str(t),
                    "storage.path": "/".join(part for part in (store, inside) if part),
                    "pixel_um": f"{scale:.9g}" if scale else "",
                    **found.facts,
                }
            )
    return rows


def _channels(attributes: Mapping[str, Any], count: int, names: Sequence[str], remarks: Counter[str]) -> list[str]:
    """Channel names of the DCA draft, else the display labels of OMERO, else the user's, else numbers."""
    dca = attributes.get("dca", {}).get("channels", [])
    listed = [
        [str(entry.get("name", "")) for entry in sorted(dca, key=lambda entry: int(entry.get("index", 0)))],
        [str(entry.get("label", "")) for entry in attributes.get("omero", {}).get("channels", [])],
    ]
    for own in listed:
        if own and len(own) != count:
            remarks[f"images of {count} channels whose metadata name {len(own)}: names not used"] += 1
        elif any(own):
            return _different(own)
    if names and len(names) != count:
        raise DataError(f"it has {count} channels but 'channels' names {len(names)} ({', '.join(names)}).")
    return _different(list(names) or [""] * count)


def _different(names: list[str]) -> list[str]:
    """Names that tell channels apart: empty ones become numbers, equal ones get theirs."""
    return [
        f"channel {i + 1}" if not name else f"{name} ({i + 1})" if names.count(name) > 1 else name
        for i, name in enumerate(names)
    ]

"""TIFF files that hold more than a plane: OME-TIFF, ImageJ hyperstacks, multi-page and colour files."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError
from morphem.readers.files import Files, open_files
from morphem.readers.planes import PROJECTION, Place, read_plane
from morphem.sources.panels import image_name, names_of, panel_text, study_name
from morphem.sources.table import TableSource
from morphem.sources.tiff_pictures import COMPANION, TIFF_SUFFIXES, Picture, read_pictures

_ALLOWED = {"project": ("max",), "pages": ("C", "Z", "T"), "colour": ("rgb", "grey")}
_COLOURS = ("r", "g", "b")
_SMALLEST_COLOUR = 3  # samples: red, green, blue


class TiffSource(TableSource):
    """Reads TIFF files of several planes; each file, and each series in it, is an image for each slice and frame.

    Axes, channel names, pixel size, wells and objective come from OME-XML (also in a companion file, also where planes
    lie in several files), axes and labels of ImageJ, or axes that tifffile wrote; they are never guessed. Colour images
    become the channels r, g and b. Label: `pixel_um`.

    Args:
        location: A folder, zip or bucket, or one file.
        project: `max` for the maximum over the slices of a stack, None for one image per slice.
        pages: What the pages of a file stand for that does not tell: `C`, `Z` or `T`.
        channels: Names of the channels in order, for files that do not tell; a text with commas is split.
        colour: `rgb` for three channels of a colour image, `grey` for grey that was stored as colour; None for what the
            first colour image of the location is (the one plane that is looked at before images are read).
        study: Name of the study; that of the folder if None.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        ConfigError: If a setting is not one of those above.
        DataError: If no file can be used.
    """

    priority = -30

    def __init__(
        self,
        location: str,
        project: Literal["max"] | None = None,
        pages: Literal["C", "Z", "T"] | None = None,
        channels: str | Sequence[str] | None = None,
        colour: Literal["rgb", "grey"] | None = None,
        study: str | None = None,
        channel_aliases: Mapping[str, str] | None = None,
    ) -> None:
        settings = {
            "project": (project, ("max",)),
            "pages": (pages, ("C", "Z", "T")),
            "colour": (colour, ("rgb", "grey")),
        }
        for key, (value, allowed) in settings.items():
            if value is not None and value not in allowed:
                raise ConfigError(f"'{key}' is '{value}'; allowed: {', '.join(allowed)}, or leave it out.")
        files = open_files(location)
        names = names_of(channels)
        pictures, problems = read_pictures(files, pages)
        grey = _is_grey(files, pictures) if colour is None else colour == "grey"
        rows: list[dict[str, str]] = []
        for picture in pictures:
            try:
                rows += picture_rows(picture, names, project == "max", grey)
            except DataError as fault:
                problems.append((picture.name, f"'{files.describe(picture.file)}': {fault}"))
        if not rows:
            why = f"; the first problem: {problems[0][1]}" if problems else ""
            raise DataError(f"'{location}' has no TIFF file that can be used{why}")
        table = pd.DataFrame(rows, dtype=str).fillna("").assign(**{"experiment.study": study or study_name(location)})
        super().__init__(files, table, channel_aliases=channel_aliases)
        self.problems.extend(problems)

    def read_row(self, row: Mapping[str, str]) -> tuple[NDArray[Any], str | None]:
        """Read a plane, or the maximum over the pages that are named in `plane_index`; see `TableSource.read_row`.

        Args:
            row: Of the plane table.
        """
        pages = row["plane_index"].split()
        if len(pages) <= 1:
            return super().read_row(row)
        most, _ = super().read_row({**row, "plane_index": pages[0]})
        for page in pages[1:]:
            most = np.maximum(most, super().read_row({**row, "plane_index": page})[0])
        return most, f"{PROJECTION} over {len(pages)} slices"

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether the first TIFF tells what its planes are, or there is a companion file of an OME-TIFF.

        Args:
            files: The files of a location.
        """
        import tifffile

        if any(name.lower().endswith(COMPANION) for name in files.names()):
            return True
        first = next((name for name in files.names() if name.lower().endswith(TIFF_SUFFIXES)), None)
        if first is None:
            return False
        try:
            with files.open(first) as file, tifffile.TiffFile(file, _multifile=False) as tiff:
                return bool(tiff.is_ome or tiff.is_imagej or (tiff.is_shaped and len(tiff.pages) > 1))
        except (tifffile.TiffFileError, OSError, ValueError, DataError):
            return False

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write an OME-TIFF of two channels and two slices and return its source.

        Args:
            folder: Exists and is empty.
        """
        import tifffile

        pixels = np.arange(2 * 2 * 16 * 20, dtype=np.uint16).reshape(2, 2, 16, 20)
        names = {"Name": ["DAPI", "Phalloidin"]}
        tifffile.imwrite(folder / "tiny.ome.tif", pixels, metadata={"axes": "ZCYX", "Channel": names})
        return cls(str(folder), study="tiny")


def _is_grey(files: Files, pictures: Sequence[Picture]) -> bool:
    """Whether the first colour image is grey that was stored as colour."""
    first = next((picture for picture in pictures if picture.image.samples >= _SMALLEST_COLOUR), None)
    if first is None:
        return False
    try:
        read_plane(files, first.file, Place("none", 0, "0", "0", first.series))
    except DataError:  # colours that differ are refused as one plane; a damaged file is named when its image is read
        return False
    return True


def picture_rows(picture: Picture, names: Sequence[str], project: bool, grey: bool) -> list[dict[str, str]]:
    """Return the plane table's rows of an image file: one image for each slice and frame.

    Args:
        picture: The image.
        names: Channel names for files that do not tell.
        project: One image for all slices.
        grey: Take colour as grey.

    Raises:
        DataError: If there are not as many names as channels, or its planes cannot be read so.
    """
    image = picture.image
    _, depth, frames = image.sizes
    channels = _channels(picture, names, grey)
    rows: list[dict[str, str]] = []
    for t, z in product(range(frames), range(1 if project else depth)):
        slices = range(depth) if project else (z,)
        title = image_name(
            ("", picture.name), ("z", "" if project or depth == 1 else str(z)), ("t", str(t) if frames > 1 else "")
        )
        for number, (channel, place) in enumerate(zip(channels, _places(picture, slices, t, grey), strict=True)):
            if not place:
                continue  # the file lacks this plane: the image is incomplete, and is named so later
            own = image.channel_facts[number] if number < len(image.channel_facts) else {}
            rows.append(
                {
                    **place,
                    "imaging.multi_channel_id": title,
                    "imaging.panel": panel_text(channels),
                    "imaging.channel": str(number + 1),
                    "channel_name": channel,
                    "dtype": image.dtype,
                    "geometry.width": image.width,
                    "geometry.height": image.height,
                    "geometry.depth": str(depth),
                    "geometry.z_slice": "all" if project and depth > 1 else str(z),
                    "geometry.timepoint": str(t),
                    "storage.path": place["file"],
                    **image.facts,
                    **picture.facts,
                    **own,
                }
            )
    if not rows:
        raise DataError("it describes planes that lie in no file; write it again.")
    return rows


def _channels(picture: Picture, names: Sequence[str], grey: bool) -> list[str]:
    """A name for each channel: the file's own, the user's, or its number."""
    image = picture.image
    if image.samples >= _SMALLEST_COLOUR and not grey:
        if image.sizes[0] > 1:
            raise DataError(f"it has {image.sizes[0]} channels of {image.samples} colours each; split them first.")
        return list(_COLOURS)
    own = image.channels if len(image.channels) == image.sizes[0] and any(image.channels) else list(names)
    if own and len(own) != image.sizes[0]:
        raise DataError(f"it has {image.sizes[0]} channels but 'channels' names {len(own)} ({', '.join(own)}).")
    numbered = [f"channel {i + 1}" for i in range(image.sizes[0])]
    named = [name or number for name, number in zip(own or numbered, numbered, strict=True)]
    # two channels of one name (both 'GFP', say) are told apart by their numbers
    return [f"{name} ({i + 1})" if named.count(name) > 1 else name for i, name in enumerate(named)]


def _places(picture: Picture, slices: Sequence[int], t: int, grey: bool) -> Iterator[dict[str, str]]:
    """Where each channel of one image lies; an empty mapping where the file lacks it."""
    image, series = picture.image, {"file": picture.file, "series": str(picture.series)}
    if image.samples > 1:
        colours = 1 if grey or image.samples < _SMALLEST_COLOUR else len(_COLOURS)
        for sample in range(colours):
            yield {**series, "plane_axis": "sample" if colours > 1 else "none", "plane_index": str(sample)}
        return
    for c in range(image.sizes[0]):
        if not image.pages:
            yield {**series, "plane_axis": "C" if image.sizes[0] > 1 else "none", "plane_index": str(c)}
            continue
        places = [image.pages.get((c, z, t)) for z in slices]
        found = [place for place in places if place is not None]
        if len({file for file, _ in found}) > 1:
            raise DataError("its slices lie in several files; leave 'project' out, or write them into one file.")
        if len(found) < len(places) or not found:
            yield {}
        else:
            pages = " ".join(str(page) for _, page in found)
            yield {"file": found[0][0], "series": "", "plane_axis": "page", "plane_index": pages}

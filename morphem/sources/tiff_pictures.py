"""Which images TIFF files hold, by what the files say of themselves: OME-XML, axes of ImageJ, axes of tifffile."""

import math
import posixpath
import re
from collections import Counter
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from morphem.errors import DataError
from morphem.readers.files import Files
from morphem.sources.ome import IN_UM, Coordinates, OmeImage, metadata_file, read_ome
from morphem.sources.panels import image_name

TIFF_SUFFIXES = (".tif", ".tiff", ".btf", ".tf2", ".tf8")
COMPANION = ".companion.ome"
_UNITS = {**IN_UM, "micron": 1.0, "microns": 1.0, "\\u00B5m": 1.0, "\\u00b5m": 1.0}
# ImageJ's own labels of a plane: place in the stack, then the name, if any
_IMAGEJ_LABEL = re.compile(r"^(?:[czt]:\d+/\d+ ?)+(?:- ?)?")


@dataclass
class Picture:
    """One image of a file, with its channels, slices and frames.

    Attributes:
        name: Of the image, unique.
        image: Sizes, names and facts; `pages` says where each plane lies and may be empty.
        series: Number of the image in its file.
        file: The file that describes it.
        facts: Further columns.
    """

    name: str
    image: OmeImage
    series: int
    file: str
    facts: dict[str, str] = field(default_factory=dict)


def read_pictures(files: Files, pages: str | None) -> tuple[list[Picture], list[tuple[str, str]]]:
    """Return the images in all TIFF files of a location, and the files that cannot be used, with the reason.

    A file that another one described already is not read again.

    Args:
        files: The files of the location.
        pages: What pages stand for where a file does not tell.
    """
    companions = [name for name in files.names() if name.lower().endswith(COMPANION)]
    tiffs = [name for name in files.names() if name.lower().endswith(TIFF_SUFFIXES)]
    stems = Counter(map(_stem, tiffs))
    described: set[str] = set()
    pictures: list[Picture] = []
    problems: list[tuple[str, str]] = []
    for name in [*companions, *tiffs]:
        if name in described:
            continue
        stem = _stem(name) if stems[_stem(name)] <= 1 else name.replace("/", "-")
        try:
            found = _read_file(files, name, stem, pages)
        except DataError as fault:
            problems.append((name, f"'{files.describe(name)}': {fault}"))
            continue
        pictures += found
        described.update(file for picture in found for file, _ in picture.image.pages.values())
    return pictures, problems


def _stem(name: str) -> str:
    return re.sub(r"(?i)(\.companion)?(\.ome)?\.(tiff?|btf|tf2|tf8|ome)$", "", name).replace("/", "-")


def _read_file(files: Files, name: str, stem: str, pages: str | None) -> list[Picture]:
    import tifffile

    if name.lower().endswith(COMPANION):
        return _ome_pictures(files.read(name).decode("utf-8"), name, stem)
    try:
        with files.open(name) as file, tifffile.TiffFile(file, _multifile=False) as tiff:
            if tiff.is_ome:
                return _ome_pictures(str(tiff.ome_metadata), name, stem)
            return _series_pictures(tiff, name, stem, pages)
    except DataError:
        raise
    except Exception as fault:  # headers of damaged files make tifffile raise whatever it stumbles over
        raise DataError(f"its header cannot be read: {type(fault).__name__}: {fault}; fetch it again.") from fault


def _ome_pictures(xml: str, name: str, stem: str) -> list[Picture]:
    companion = metadata_file(xml)
    if companion is not None:
        raise DataError(f"its metadata are in '{companion}', which does not describe it or is missing; restore it.")
    try:
        images = read_ome(xml)
    except DataError:
        raise
    except ValueError as fault:
        raise DataError(f"its OME-XML has a number that is none: {fault}; write it again.") from fault
    folder = posixpath.dirname(name)
    pictures = []
    for number, image in enumerate(images):
        # a file without a name of its own in the XML is the one that holds the XML
        image.pages = {
            at: (posixpath.join(folder, file) if file and len(image.files) > 1 else _own(file, name), page)
            for at, (file, page) in image.pages.items()
        }
        title = image_name(("", stem), ("i", str(number) if len(images) > 1 else ""))
        pictures.append(Picture(title, image, number, name))
    return pictures


def _own(file: str, name: str) -> str:
    """The file of planes that all lie in one: that with the XML, renamed or not; a companion has none itself."""
    return posixpath.join(posixpath.dirname(name), file) if file and name.lower().endswith(COMPANION) else name


def _series_pictures(tiff: Any, name: str, stem: str, pages: str | None) -> list[Picture]:
    pictures = []
    for number, series in enumerate(tiff.series):
        axes, shape = series.axes, tuple(series.shape)
        unknown = [axis for axis, length in zip(axes, shape, strict=True) if axis not in "CZTYXS" and length > 1]
        if unknown and (pages is None or len(unknown) > 1 or pages in axes):
            found = " x ".join(f"{axis} {length}" for axis, length in zip(axes, shape, strict=True))
            raise DataError(
                f"it does not tell what its {len(tiff.pages)} pages are ({found}); pass --set pages=C, Z or T."
            )
        for axis in unknown:
            axes = axes.replace(axis, str(pages))
        length = dict(zip(axes, shape, strict=True))
        image = OmeImage(
            sizes=(length.get("C", 1), length.get("Z", 1), length.get("T", 1)),
            samples=length.get("S", 1),
            dtype=str(series.dtype),
            width=str(length["X"]),
            height=str(length["Y"]),
            channels=[],
            pages=_pages_of(series, axes, name),
        )
        facts = _imagej_facts(tiff, image) if tiff.is_imagej else {}
        title = image_name(("", stem), ("i", str(number) if len(tiff.series) > 1 else ""))
        pictures.append(Picture(title, image, number, name, facts))
    return pictures


def _pages_of(series: Any, axes: str, name: str) -> dict[Coordinates, tuple[str, int]]:
    """The page of each plane; none where the pages of a series cannot be told apart."""
    n_inner = len(series.keyframe.shape)
    outer = [(axis, length) for axis, length in zip(axes[:-n_inner], series.shape[:-n_inner], strict=True)]
    if math.prod(length for _, length in outer) != len(series.pages) or set(axes[-n_inner:]) != {"Y", "X"}:
        return {}
    found = {}
    for number, at in enumerate(product(*(range(length) for _, length in outer))):
        where = dict(zip((axis for axis, _ in outer), at, strict=True))
        found[where.get("C", 0), where.get("Z", 0), where.get("T", 0)] = (name, int(series.pages[number].index))
    return found


def _imagej_facts(tiff: Any, image: OmeImage) -> dict[str, str]:
    """Fill in the channel names of an ImageJ file and return its pixel size."""
    facts = tiff.imagej_metadata or {}
    labels = [_IMAGEJ_LABEL.sub("", str(label)).strip() for label in facts.get("Labels") or []]
    n_channels = image.sizes[0]
    if len(labels) in (n_channels, math.prod(image.sizes)):
        image.channels = labels[:n_channels]  # of the first slice and frame: channels change fastest in a hyperstack
    unit = _UNITS.get(str(facts.get("unit", "")))
    resolution = tiff.pages.first.tags.get("XResolution")
    if unit is None or resolution is None or not resolution.value[0]:
        return {}
    return {"pixel_um": f"{unit * resolution.value[1] / resolution.value[0]:.9g}"}

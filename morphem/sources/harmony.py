"""Plates of an Opera Phenix, Operetta or Operetta CLS, by the index that Harmony exports beside the images.

The index lists one `Image` per plane. Harmony 4 (namespace HarmonyV5) writes all facts in each of them; later versions
write those of a channel once, in a `Maps/Map/Entry` with its ChannelID. Both are read. Flat-field profiles of
the index are not applied: pixels stay as the camera gave them.

Source: index files of published plates, for example
https://github.com/jump-cellpainting/datasets (Index.idx.xml and Index.xml beside the images).
"""

import posixpath
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Self
from xml.etree import ElementTree

import pandas as pd

from morphem.data.schema import UNKNOWN
from morphem.data.wells import normalise_well
from morphem.errors import DataError
from morphem.readers.files import Files, open_files
from morphem.sources.panels import image_name, study_name, with_panels
from morphem.sources.table import TableSource

INDEX_NAMES = ("index.idx.xml", "index.xml", "index.ref.xml")
_ROOT = "EvaluationInputData"
_IN_UM = {"m": 1e6, "mm": 1e3, "um": 1.0, "µm": 1.0, "μm": 1.0, "nm": 1e-3, "": 1e6}
_IN_S = {"s": 1.0, "ms": 1e-3, "us": 1e-6, "": 1.0}
_LENGTHS = {"pixel_um": "ImageResolutionX", "position_x_um": "PositionX", "position_y_um": "PositionY"}
_WAVELENGTHS = {"excitation_nm": "MainExcitationWavelength", "emission_nm": "MainEmissionWavelength"}

Facts = dict[str, tuple[str, str]]
"""Text and unit of each element of an image or a channel."""


@dataclass
class Index:
    """What an index says.

    Attributes:
        plate: Facts of the plate.
        images: Facts of each plane; those of its channel filled in.
    """

    plate: Facts = field(default_factory=dict)
    images: list[Facts] = field(default_factory=list)


class HarmonySource(TableSource):
    """Reads plates with an index of Harmony: `Index.idx.xml`, `Index.xml` or `Index.ref.xml`.

    Wells, fields, slices, timepoints, channels, objective and image size come from the index. Labels of each plane:
    `pixel_um`, `position_x_um`, `position_y_um`, `excitation_nm`, `emission_nm`, `exposure_s`.

    Args:
        location: A folder, zip or bucket with one exported plate or several.
        study: Name of the study; that of the folder if None.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        DataError: If there is no index, or one is damaged or lists no images.
    """

    priority = -10

    def __init__(
        self, location: str, study: str | None = None, channel_aliases: Mapping[str, str] | None = None
    ) -> None:
        files = open_files(location)
        table, remarks = harmony_table(files, study or study_name(location))
        super().__init__(files, table, channel_aliases=channel_aliases)
        self.remarks.update(remarks)

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether there is a file with the name and the beginning of an index of Harmony.

        Args:
            files: The files of a location.
        """
        found = index_files(files)
        return bool(found) and _ROOT.encode() in files.read(found[0], 0, 4096)

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write a plate of two wells and two channels and return its source.

        Args:
            folder: Exists and is empty.
        """
        import numpy as np
        import tifffile

        ramp = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20)
        entries = []
        for column in (1, 2):
            for channel, stain in ((1, "HOECHST 33342"), (2, "Phalloidin")):
                name = f"r02c{column:02d}f01p01-ch{channel}sk1fk1fl1.tiff"
                tifffile.imwrite(folder / name, (ramp * channel + column).astype(np.uint16))
                facts = {"URL": name, "Row": 2, "Col": column, "FieldID": 1, "PlaneID": 1, "TimepointID": 0}
                facts |= {"ChannelID": channel, "ChannelName": stain}
                inside = "".join(f"<{tag}>{value}</{tag}>" for tag, value in facts.items())
                entries.append(f'<Image Version="1">{inside}</Image>')
        (folder / "Index.idx.xml").write_text(
            f'<{_ROOT} xmlns="http://www.perkinelmer.com/PEHH/HarmonyV5"><Plates><Plate><PlateID>tiny</PlateID></Plate>'
            f"</Plates><Images>{''.join(entries)}</Images></{_ROOT}>",
            encoding="utf-8",
        )
        return cls(str(folder), study="tiny")


def index_files(files: Files) -> list[str]:
    """Return the index of each folder that has one, the first of INDEX_NAMES where it has several.

    Args:
        files: The files of a location.
    """
    best: dict[str, str] = {}
    for name in files.names():
        folder, last = posixpath.split(name)
        if last.casefold() in INDEX_NAMES:
            other = posixpath.basename(best.get(folder, name)).casefold()
            if INDEX_NAMES.index(last.casefold()) <= INDEX_NAMES.index(other):
                best[folder] = name
    return list(best.values())


def read_index(file: BinaryIO, name: str) -> Index:
    """Read an index element by element, without holding its text.

    Args:
        file: The XML.
        name: What to call it in an error.

    Raises:
        DataError: If it is not XML, no index of Harmony, or lists no image.
    """
    index, channels = Index(), dict[str, Facts]()
    try:
        for path, element in _elements(file):
            if path[0] != _ROOT:
                raise DataError(f"'{name}' is no index of Harmony: it begins with <{path[0]}>, not <{_ROOT}>.")
            if path[-2:] == ["Images", "Image"]:
                index.images.append(_facts(element))
            elif path[-2:] == ["Map", "Entry"]:
                # one Map holds what the camera did, another the flat field: both are facts of the channel
                channels.setdefault(element.get("ChannelID", ""), {}).update(_facts(element))
            elif path[-1] == "Plate" and "Images" not in path:
                index.plate = _facts(element)
            else:
                continue
            element.clear()
    except ElementTree.ParseError as fault:
        raise DataError(f"'{name}' is damaged: {fault}; export the plate again.") from fault
    if not index.images:
        raise DataError(f"'{name}' lists no images; export the plate again.")
    index.images = [{**channels.get(facts.get("ChannelID", ("", ""))[0], {}), **facts} for facts in index.images]
    return index


def _elements(file: BinaryIO) -> Iterator[tuple[list[str], ElementTree.Element]]:
    """Finished elements, each with the names from the root down to it."""
    path: list[str] = []
    for event, element in ElementTree.iterparse(file, events=("start", "end")):
        if event == "start":
            path.append(_local(element.tag))
        else:
            yield path, element
            path.pop()


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _facts(element: ElementTree.Element) -> Facts:
    facts = {}
    for child in element:
        if child.text and child.text.strip():
            facts[_local(child.tag)] = (child.text.strip(), child.get("Unit", ""))
        if child.get("BufferNo"):
            facts["BufferNo"] = (child.get("BufferNo", ""), "")
    return facts


def harmony_table(files: Files, study: str) -> tuple[pd.DataFrame, Counter[str]]:
    """Return the plane table of all plates of a location, and remarks with counts.

    Args:
        files: The files of the location.
        study: Name of the study.

    Raises:
        DataError: If there is no index, or one is damaged.
    """
    found = index_files(files)
    if not found:
        raise DataError(f"'{files.location}' has no Index.idx.xml or Index.xml; export the plate with its index.")
    indices = {}
    for name in found:
        with files.open(name) as file:
            indices[name] = read_index(file, files.describe(name))
    plates = Counter(_plate(index, name) for name, index in indices.items())
    known, remarks, rows = set(files.names()), Counter[str](), []
    for name, index in indices.items():
        plate = _plate(index, name)
        # two measurements of one plate are told apart by their folders
        prefix = plate if plates[plate] == 1 else posixpath.dirname(name).replace("/", "-")
        for facts in index.images:
            if "URL" not in facts or facts.get("State", ("Ok", ""))[0].casefold() != "ok":
                remarks["planes of the index that were not acquired"] += 1
                continue
            try:
                rows.append(_row(facts, name, known, plate, prefix))
            except ValueError as fault:
                raise DataError(
                    f"'{files.describe(name)}' has an image '{facts['URL'][0]}' whose row, column or channel is "
                    f"no number ({fault}); export the plate again."
                ) from fault
    table = pd.DataFrame(rows, dtype=str).fillna("").assign(**{"experiment.study": study})
    if table.empty:
        raise DataError(f"'{files.describe(found[0])}' lists no image that was acquired; export the plate again.")
    fields = ["experiment.plate", "experiment.well", "microscopy.fov", "geometry.timepoint"]
    depth = table.groupby(fields)["geometry.z_slice"].transform("nunique")
    order = table.drop_duplicates("channel_name").sort_values("_channel", key=lambda ids: ids.map(int))["channel_name"]
    return with_panels(table.assign(**{"geometry.depth": depth.astype(str)}).drop(columns="_channel"), order), remarks


def _plate(index: Index, name: str) -> str:
    for tag in ("Name", "PlateID"):
        if tag in index.plate:
            return index.plate[tag][0]
    return posixpath.basename(posixpath.dirname(name)) or UNKNOWN


def _row(facts: Facts, index: str, known: set[str], plate: str, prefix: str) -> dict[str, str]:
    """The plane table's row of one image of the index."""

    def text(tag: str, default: str = UNKNOWN) -> str:
        return facts.get(tag, (default, ""))[0]

    well = normalise_well(f"R{int(text('Row', '0')):02d}C{int(text('Col', '0')):02d}")
    stain = text("ChannelName", f"channel {text('ChannelID')}")
    site, z, t = text("FieldID"), text("PlaneID"), text("TimepointID")
    file = _file(text("URL"), index, known)
    return {
        "file": file,
        "plane_axis": "page" if "BufferNo" in facts else "none",
        "plane_index": text("BufferNo", "0"),
        "experiment.plate": plate,
        "experiment.well": well,
        "imaging.multi_channel_id": image_name(("", prefix), ("", well), ("s", site), ("z", z), ("t", t)),
        "channel_name": stain,
        "microscopy.type": _microscopy(text("ChannelType", ""), text("AcquisitionType", "")),
        "microscopy.magnification": _plain(text("ObjectiveMagnification", ""), 1) or UNKNOWN,
        "microscopy.fov": site,
        "geometry.width": text("ImageSizeX"),
        "geometry.height": text("ImageSizeY"),
        "geometry.z_slice": z,
        "geometry.timepoint": t,
        "storage.path": file,
        **{label: _measured(facts, tag, _IN_UM) for label, tag in _LENGTHS.items()},
        **{label: _plain(text(tag, ""), 1) for label, tag in _WAVELENGTHS.items()},
        "exposure_s": _measured(facts, "ExposureTime", _IN_S),
        "_channel": str(int(text("ChannelID", "0"))),
    }


def _file(url: str, index: str, known: set[str]) -> str:
    """Where an image lies: beside the index as a rule, under Images where the index lies above them."""
    # an address or a path of the exporting computer means nothing here; its last part does
    name = url.replace("\\", "/")
    if "://" in name or name.startswith("/") or ":/" in name:
        name = posixpath.basename(name)
    folder = posixpath.dirname(index)
    tried = [posixpath.normpath(posixpath.join(folder, *inside, name)) for inside in ((), ("Images",), ("..",))]
    return next((path for path in tried if path in known), tried[0])


def _microscopy(channel: str, acquisition: str) -> str:
    """The schema's word for what Harmony calls channel and acquisition type."""
    kind = f"{channel} {acquisition}".casefold()
    if "transmi" in kind or "brightfield" in kind:
        return "bright-field"
    if "phasecontrast" in kind.replace(" ", ""):
        return "phase contrast"
    if "fluorescence" in kind or acquisition:
        # 'NonConfocal' is Harmony's word for wide field
        return "confocal" if "confocal" in kind and "nonconfocal" not in kind else "fluorescence"
    return UNKNOWN


def _measured(facts: Facts, tag: str, units: Mapping[str, float]) -> str:
    value, unit = facts.get(tag, ("", ""))
    return _plain(value, units[unit]) if value and unit in units else ""


def _plain(value: str, factor: float) -> str:
    """A number without the noise of binary fractions, or an empty text."""
    try:
        return f"{float(value) * factor:.9g}"
    except ValueError:
        return ""

"""OME-XML: which plane lies in which page of which file, and what is known of an image.

Source: the OME data model, 2016-06, https://docs.openmicroscopy.org/ome-model/latest/ome-tiff/specification.html
(the rules for missing attributes of TiffData are in its section on the TiffData element).
"""

import math
from dataclasses import dataclass, field
from xml.etree import ElementTree

from morphem.data.schema import UNKNOWN
from morphem.data.wells import well_name
from morphem.errors import DataError

IN_UM = {"pm": 1e-6, "Å": 1e-4, "nm": 1e-3, "µm": 1.0, "μm": 1.0, "um": 1.0, "mm": 1e3, "cm": 1e4, "m": 1e6}
_DTYPES = {name: name for name in ("int8", "int16", "int32", "uint8", "uint16", "uint32")}
_DTYPES |= {"float": "float32", "double": "float64"}
_CONTRAST = {
    "Brightfield": "bright-field",
    "Phase": "phase contrast",
    "DIC": "differential interference contrast",
    "Darkfield": "dark-field",
    "Fluorescence": "fluorescence",
}
_MODES = {
    "WideField": "fluorescence",
    "LaserScanningConfocalMicroscopy": "confocal",
    "SpinningDiskConfocal": "confocal",
    "SlitScanConfocal": "confocal",
    "SPIM": "light-sheet",
    "STED": "super-resolution",
    "PALM": "super-resolution",
    "STORM": "super-resolution",
    "StructuredIllumination": "super-resolution",
    "BrightField": "bright-field",
}

MAX_PLANES = 10_000_000
"""Of one image; metadata that claim more are damaged or hostile, and would fill the memory."""

Coordinates = tuple[int, int, int]
"""Channel, slice, frame, from 0."""


@dataclass
class OmeImage:
    """One image of an OME file.

    Attributes:
        sizes: Channels, slices, frames.
        samples: Colour samples of each pixel, 1 for grey.
        dtype: Pixel type, `unknown` where NumPy has none.
        width: Pixels.
        height: Pixels.
        channels: Name of each channel; empty where it has none.
        pages: File (empty for the one that holds the XML) and page of each plane.
        facts: Columns of the schema and labels.
        channel_facts: The same for each channel.
    """

    sizes: Coordinates
    samples: int
    dtype: str
    width: str
    height: str
    channels: list[str]
    pages: dict[Coordinates, tuple[str, int]]
    facts: dict[str, str] = field(default_factory=dict)
    channel_facts: list[dict[str, str]] = field(default_factory=list)

    @property
    def files(self) -> set[str]:
        """Names of the other files that hold planes, as the XML gives them."""
        return {file for file, _ in self.pages.values() if file}


def metadata_file(xml: str) -> str | None:
    """Return the companion file that a TIFF names in place of metadata, or None.

    Args:
        xml: OME-XML.

    Raises:
        DataError: If it is not XML.
    """
    only = _parsed(xml).find("{*}BinaryOnly")
    return None if only is None else only.get("MetadataFile")


def read_ome(xml: str) -> list[OmeImage]:
    """Return the images that OME-XML describes, in order.

    Args:
        xml: OME-XML.

    Raises:
        DataError: If it is not XML, or lacks what every image needs.
    """
    root = _parsed(xml)
    objectives = {
        item.get("ID"): item.get("NominalMagnification") for item in root.findall("{*}Instrument/{*}Objective")
    }
    wells = _wells(root)
    images = []
    for element in root.findall("{*}Image"):
        pixels = element.find("{*}Pixels")
        if pixels is None:
            raise DataError(f"its OME-XML has an image '{element.get('Name', '')}' without Pixels; write it again.")
        image = _image(pixels)
        settings = element.find("{*}ObjectiveSettings")
        zoom = objectives.get(settings.get("ID")) if settings is not None else None
        image.facts |= wells.get(element.get("ID", ""), {})
        image.facts |= {"microscopy.magnification": f"{float(zoom):g}"} if zoom else {}
        images.append(image)
    return images


def _parsed(xml: str) -> ElementTree.Element:
    try:
        return ElementTree.fromstring(xml)
    except ElementTree.ParseError as fault:
        raise DataError(f"its OME-XML is damaged: {fault}; write it again.") from fault


def _image(pixels: ElementTree.Element) -> OmeImage:
    try:
        size_c, size_z, size_t = (int(pixels.get(f"Size{axis}", "1")) for axis in "CZT")
    except ValueError as fault:
        raise DataError(f"its OME-XML states a size that is no number: {fault}; write it again.") from fault
    elements = pixels.findall("{*}Channel")
    samples = int(elements[0].get("SamplesPerPixel", "1")) if elements else 1
    sizes = checked_sizes((size_c // max(samples, 1), size_z, size_t))
    unit = IN_UM.get(pixels.get("PhysicalSizeXUnit", "µm"))
    size = pixels.get("PhysicalSizeX")
    return OmeImage(
        sizes=sizes,
        samples=samples,
        dtype=_DTYPES.get(pixels.get("Type", ""), UNKNOWN),
        width=pixels.get("SizeX", UNKNOWN),
        height=pixels.get("SizeY", UNKNOWN),
        channels=[channel.get("Name") or channel.get("Fluor") or "" for channel in elements[: sizes[0]]],
        pages=_pages(pixels, sizes),
        facts={"pixel_um": f"{float(size) * unit:.9g}"} if size and unit else {},
        channel_facts=[_channel(channel) for channel in elements[: sizes[0]]],
    )


def checked_sizes(sizes: Coordinates) -> Coordinates:
    """Return the numbers of channels, slices and frames of an image, if they can be right.

    Args:
        sizes: As metadata claim them.

    Raises:
        DataError: If one is below 1, or they are more than MAX_PLANES together.
    """
    if min(sizes) < 1 or math.prod(sizes) > MAX_PLANES:
        raise DataError(
            f"it claims {' x '.join(map(str, sizes))} channels, slices and frames; each must be 1 or more, and at most "
            f"{MAX_PLANES} together."
        )
    return sizes


def _channel(channel: ElementTree.Element) -> dict[str, str]:
    contrast, mode = channel.get("ContrastMethod", ""), channel.get("AcquisitionMode", "")
    kind = _CONTRAST.get(contrast, UNKNOWN)
    if kind in ("fluorescence", UNKNOWN):
        kind = _MODES.get(mode, kind)
    return {
        "microscopy.type": kind,
        "excitation_nm": _nanometres(channel, "ExcitationWavelength"),
        "emission_nm": _nanometres(channel, "EmissionWavelength"),
    }


def _nanometres(channel: ElementTree.Element, name: str) -> str:
    value = channel.get(name)
    unit = IN_UM.get(channel.get(f"{name}Unit", "nm"))
    return f"{float(value) * unit * 1e3:.9g}" if value and unit else ""


def _pages(pixels: ElementTree.Element, sizes: Coordinates) -> dict[Coordinates, tuple[str, int]]:
    """Where each plane lies, by the TiffData elements."""
    order = ["CZT".index(axis) for axis in pixels.get("DimensionOrder", "XYCZT")[2:]]
    strides = {axis: math.prod(sizes[faster] for faster in order[:rank]) for rank, axis in enumerate(order)}
    total = math.prod(sizes)
    entries = pixels.findall("{*}TiffData") or [ElementTree.Element("TiffData")]
    pages: dict[Coordinates, tuple[str, int]] = {}
    for entry in entries:
        first = sum(int(entry.get(f"First{axis}", "0")) * strides["CZT".index(axis)] for axis in "CZT")
        uuid = entry.find("{*}UUID")
        file = "" if uuid is None else uuid.get("FileName", "")
        alone = len(entries) == 1 and entry.get("IFD") is None
        count = int(entry.get("PlaneCount", str(total if alone else 1)))
        for step in range(min(count, total - first)):
            c, z, t = ((first + step) // strides[axis] % sizes[axis] for axis in range(3))
            pages[c, z, t] = (file, int(entry.get("IFD", "0")) + step)
    return pages


def _wells(root: ElementTree.Element) -> dict[str, dict[str, str]]:
    """Plate, well and field of each image that is in a well."""
    found: dict[str, dict[str, str]] = {}
    for plate in root.findall("{*}Plate"):
        for well in plate.findall("{*}Well"):
            name = well_name(int(well.get("Row", "0")) + 1, int(well.get("Column", "0")) + 1)
            for number, sample in enumerate(well.findall("{*}WellSample")):
                image = sample.find("{*}ImageRef")
                if image is not None:
                    found[image.get("ID", "")] = {
                        "experiment.plate": plate.get("Name") or plate.get("ID") or UNKNOWN,
                        "experiment.well": name,
                        "microscopy.fov": sample.get("Index") or str(number),
                    }
    return found

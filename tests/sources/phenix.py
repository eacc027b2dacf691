"""A small plate as an Opera Phenix and Harmony export it: one TIFF per plane and an index in XML."""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
import tifffile

from tests.sources.planes_of import SHAPE, plane

CHANNELS = {
    1: {"ChannelName": "HOECHST 33342", "MainExcitationWavelength": 375, "MainEmissionWavelength": 456},
    2: {"ChannelName": "Alexa 488 & co", "MainExcitationWavelength": 488, "MainEmissionWavelength": 522},
    3: {"ChannelName": "Brightfield", "MainExcitationWavelength": 740, "MainEmissionWavelength": 0},
}
_UNITS = {"ImageResolutionX": "m", "ImageResolutionY": "m", "PositionX": "m", "PositionY": "m", "ExposureTime": "s"}
_UNITS |= {"MainExcitationWavelength": "nm", "MainEmissionWavelength": "nm"}


def number_of(key: Mapping[str, int]) -> tuple[int, ...]:
    """The numbers that tell one plane's pixels from another's."""
    return key["Row"], key["Col"], key["FieldID"], key["PlaneID"], key["TimepointID"], key["ChannelID"]


def channel_facts(channel: int) -> dict[str, object]:
    """What Harmony says of a channel: in every image up to version 4, once per plate later."""
    bright = channel == 3
    return {
        **CHANNELS[channel],
        "ImageType": "Signal",
        "AcquisitionType": "NonConfocal" if bright else "Confocal",
        "IlluminationType": "Transmission" if bright else "EpiFluorescence",
        "ChannelType": "Transmission" if bright else "Fluorescence",
        "ImageResolutionX": "5.9837668165640629E-07",
        "ImageResolutionY": "5.9837668165640629E-07",
        "ImageSizeX": SHAPE[1],
        "ImageSizeY": SHAPE[0],
        "ObjectiveMagnification": 20,
        "ObjectiveNA": 1,
        "ExposureTime": 0.04 * channel,
    }


def write_plate(
    folder: Path,
    *,
    version: int = 5,
    wells: Sequence[tuple[int, int]] = ((2, 3), (16, 24)),
    fields: int = 2,
    slices: int = 2,
    plate: str = "BR00117010",
    index: str = "Index.idx.xml",
) -> list[dict[str, int]]:
    """Write images and index into the folder `Images`, and return the numbers of each plane.

    Versions up to 5 of the namespace state everything in every image, later ones the channels in a map.
    """
    images = folder / "Images"
    images.mkdir(parents=True)
    keys = [
        {"Row": row, "Col": col, "FieldID": field, "PlaneID": z, "TimepointID": 0, "ChannelID": channel}
        for (row, col), field, z, channel in product(
            wells, range(1, fields + 1), range(1, slices + 1), sorted(CHANNELS)
        )
    ]
    for key in keys:
        tifffile.imwrite(images / file_of(key), plane(*number_of(key)))
    entries = "".join(_image(key, version) for key in keys)
    maps = "".join(f'<Entry ChannelID="{number}">{_tags(channel_facts(number))}</Entry>' for number in CHANNELS)
    flat = "".join(f'<Entry ChannelID="{n}"><FlatfieldProfile>{{}}</FlatfieldProfile></Entry>' for n in CHANNELS)
    (images / index).write_text(
        '<?xml version="1.0" encoding="utf-8"?>\n'
        '<EvaluationInputData xmlns:xsd="http://www.w3.org/2001/XMLSchema" Version="1" '
        f'xmlns="http://www.perkinelmer.com/PEHH/HarmonyV{version}"><InstrumentType>Phenix</InstrumentType>'
        f"<Plates><Plate><PlateID>{plate}</PlateID><Name>{plate}</Name><Well id='0203' /></Plate>"
        "</Plates><Wells><Well><id>0203</id><Row>2</Row><Col>3</Col><Image id='0203K1F1P1R1' /></Well></Wells>"
        f"<Maps><Map>{flat}</Map>{f'<Map>{maps}</Map>' if version > 5 else ''}</Maps>"
        f"<Images>{entries}</Images></EvaluationInputData>",
        encoding="utf-8",
    )
    return keys


def file_of(key: Mapping[str, int]) -> str:
    """Harmony's name of an image file."""
    well = f"r{key['Row']:02d}c{key['Col']:02d}f{key['FieldID']:02d}p{key['PlaneID']:02d}"
    return f"{well}-ch{key['ChannelID']}sk1fk1fl1.tiff"


def position(key: Mapping[str, int]) -> float:
    """Of a field in its well, in metres."""
    return float(np.round(key["FieldID"] * 1.25e-4, 9))


def _image(key: Mapping[str, int], version: int) -> str:
    own: dict[str, object] = {"id": "x", "State": "Ok", "URL": file_of(key), **key}
    own |= {"PositionX": position(key), "PositionY": -position(key)}
    return f'<Image Version="1">{_tags({**own, **(channel_facts(key["ChannelID"]) if version <= 5 else {})})}</Image>'


def _tags(facts: Mapping[str, object]) -> str:
    return "".join(
        f"<{tag}{f' Unit={chr(34)}{_UNITS[tag]}{chr(34)}' if tag in _UNITS else ''}>{escape(str(value))}</{tag}>"
        for tag, value in facts.items()
    )

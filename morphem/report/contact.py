"""Contact sheets: small false-colour pictures of some images of a study, made from the finished shards."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from morphem import rng
from morphem.data import png
from morphem.data.png import Plane
from morphem.data.schema import UNKNOWN
from morphem.data.shards import RangeReader
from morphem.report.charts import number, round_step
from morphem.report.colours import channels_to_mix, colours_of, mix

SIZE_PX = 160
MAX_PICTURES = 24
MAX_ALONE = 8
COLUMNS = (
    "key", "shard", "plane_offset", "plane_nbytes", "channel_name", "imaging.multi_channel_id", "imaging.channel_type",
    "experiment.plate", "experiment.well", "experiment.reagent", "microscopy.fov", "geometry.width", "geometry.height",
)  # fmt: skip
"""Columns of metadata.parquet that a contact sheet needs, one row per plane."""


@dataclass(frozen=True)
class Picture:
    """A small picture with what stands below it.

    Attributes:
        data: JPEG of at most 160 pixels on a side, as a data address.
        width: Pixels.
        height: Pixels.
        caption: Short text.
        name: The full name of the image.
    """

    data: str
    width: int
    height: int
    caption: str
    name: str


@dataclass(frozen=True)
class ContactSheet:
    """Pictures of one study.

    Attributes:
        images: False-colour pictures of some images, in the order of the study.
        alone: Each channel of one of them in grey.
        legend: Channel and its colour, for each channel that is mixed in.
        not_mixed: Channels that only `alone` shows.
        n_images: Images of the study.
        scale: What the white bar means.
    """

    images: list[Picture] = field(default_factory=list)
    alone: list[Picture] = field(default_factory=list)
    legend: dict[str, str] = field(default_factory=dict)
    not_mixed: list[str] = field(default_factory=list)
    n_images: int = 0
    scale: str = ""


def contact_sheet(reader: RangeReader, planes: pd.DataFrame, study: str, count: int = MAX_PICTURES) -> ContactSheet:
    """Read some images of a study and make small pictures of them.

    Args:
        reader: Reads the shards.
        planes: Rows of the study's planes with `COLUMNS`, and `pixel_um` where known, in the order of the study.
        study: Its name; decides with the number of images which of them are taken.
        count: Most pictures, single channels included; 1 to 24.

    Raises:
        DataError: If a shard is missing or damaged.
    """
    keys = planes["key"].drop_duplicates().tolist()
    if not keys:
        return ContactSheet()
    n_alone = min(MAX_ALONE, int(planes.groupby("key").size().max()), count - 1)
    n_alone = 0 if n_alone == 1 else n_alone
    chosen = _spread(keys, count - n_alone, study)
    shown = [rows for _, rows in planes[planes["key"].isin(chosen)].groupby("key", sort=False)]
    legend: dict[str, str] = {}
    not_mixed: dict[str, None] = {}
    bar = _bar(shown)
    one_plate = planes["experiment.plate"].nunique() == 1
    place = (
        ("experiment.well", "microscopy.fov")
        if one_plate
        else ("experiment.plate", "experiment.well", "microscopy.fov")
    )
    pictures = []
    for rows in shown:
        kinds, names = rows["imaging.channel_type"].tolist(), channel_names(rows).tolist()
        colours, mixed = colours_of(kinds), channels_to_mix(kinds)
        if len(kinds) > 1:
            legend |= {names[place]: colours[place] for place in mixed if names[place] not in legend}
        not_mixed |= dict.fromkeys(name for place, name in enumerate(names) if place not in mixed)
        small = _small_planes(reader, rows.iloc[mixed])
        picture = _with_bar(mix(small, [colours[place] for place in mixed]), rows.iloc[0], bar)
        pictures.append(_picture(picture, _caption(rows.iloc[0], place), rows["imaging.multi_channel_id"].iloc[0]))
    full = [rows for rows in shown if len(rows) == max(map(len, shown))]
    alone = _alone(reader, full[len(full) // 2].iloc[:n_alone]) if n_alone else []
    return ContactSheet(pictures, alone, legend, list(not_mixed), len(keys), bar.sentence)


def _alone(reader: RangeReader, rows: pd.DataFrame) -> list[Picture]:
    """Each channel of one image in grey."""
    name = rows["imaging.multi_channel_id"].iloc[0]
    return [
        _picture(np.repeat(plane[..., None], 3, axis=2), channel, name)
        for plane, channel in zip(_small_planes(reader, rows), channel_names(rows), strict=True)
    ]


def _small_planes(reader: RangeReader, rows: pd.DataFrame) -> list[Plane]:
    return [
        _shrink(png.decode(reader.read(row["shard"], row["plane_offset"], row["plane_nbytes"]), name=row["key"]))
        for row in rows.to_dict("records")
    ]


def _spread(keys: Sequence[str], count: int, study: str) -> list[str]:
    """One key out of each of `count` equal stretches, drawn by the study's name: no well position is favoured."""
    n = len(keys)
    if n <= count:
        return list(keys)
    edges = [place * n // count for place in range(count + 1)]
    return [keys[edges[k] + rng.below(edges[k + 1] - edges[k], "contact sheet", study, k)] for k in range(count)]


def channel_names(rows: pd.DataFrame) -> "pd.Series[str]":
    """Return a name for each plane: its channel type, and the stain's own name where that says more.

    Args:
        rows: With the columns `imaging.channel_type` and `channel_name`.
    """
    pairs = rows[["imaging.channel_type", "channel_name"]].drop_duplicates().itertuples(index=False)
    named = {(kind, stain): _channel_name(kind, stain) for kind, stain in pairs}
    both = zip(rows["imaging.channel_type"], rows["channel_name"], strict=True)
    return pd.Series([named[pair] for pair in both], index=rows.index, dtype=str)


def _channel_name(kind: str, stain: str) -> str:
    if not stain or stain == UNKNOWN or stain.casefold() == kind.casefold():
        return kind
    return stain if stain.casefold().startswith(kind.casefold()) else f"{kind} ({stain})"


def _shrink(plane: Plane) -> Plane:
    """A plane of at most 160 pixels on a side, each the mean of those that it stands for; smaller ones as they are."""
    height, width = plane.shape
    longest = max(height, width)
    if longest <= SIZE_PX:
        return plane
    size = (max(1, round(width * SIZE_PX / longest)), max(1, round(height * SIZE_PX / longest)))
    return np.asarray(Image.fromarray(plane).resize(size, Image.Resampling.BOX))


class _Bar(NamedTuple):
    """The scale bar of a sheet: its length, whether in micrometres (else pixels), and the sentence about it."""

    length: float
    in_um: bool
    sentence: str


def _bar(images: Sequence[pd.DataFrame]) -> _Bar:
    """A round length, about a sixth of the widest image."""
    first = [rows.iloc[0] for rows in images]
    widths = [float(row["geometry.width"]) for row in first]
    sizes = [size for row in first if (size := _pixel_um(row)) is not None]
    if len(sizes) == len(first):
        length = round_step(max(width * size for width, size in zip(widths, sizes, strict=True)) / 8)
        return _Bar(length, True, f"The white bar is {number(length)} µm long.")
    length = round_step(max(widths) / 8)
    return _Bar(length, False, f"The white bar is {number(length)} pixels of the original long.")


def _pixel_um(row: Any) -> float | None:
    """Size of a pixel in micrometres, where the label `pixel_um` gives it."""
    try:
        size = float(row.get("pixel_um"))
    except (TypeError, ValueError):  # no label, or a word in it
        return None
    return size if 0 < size < np.inf else None


def _with_bar(picture: Plane, row: Any, bar: _Bar) -> Plane:
    """Draw the scale bar, white with a dark edge, at the bottom left."""
    height, width = picture.shape[:2]
    pixels = bar.length / (_pixel_um(row) or 1.0) if bar.in_um else bar.length
    wide = max(1, round(pixels * width / row["geometry.width"]))
    if height < 24 or wide + 8 > width:
        return picture
    picture = picture.copy()
    picture[height - 9 : height - 4, 3 : 5 + wide] = 0
    picture[height - 8 : height - 5, 4 : 4 + wide] = 255
    return picture


def _caption(row: Any, columns: Sequence[str]) -> str:
    """Plate, well and field, and the reagent below them, as far as they are known."""
    place = [row[name] for name in columns if row[name] != UNKNOWN]
    lines = [" · ".join(place) or row["imaging.multi_channel_id"]]
    if row["experiment.reagent"] != UNKNOWN:
        lines.append(row["experiment.reagent"])
    return "\n".join(lines)


def _picture(pixels: Plane, caption: str, name: str) -> Picture:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=82, subsampling=0, optimize=True)  # colours at full resolution
    data = base64.b64encode(file.getvalue()).decode()
    return Picture(f"data:image/jpeg;base64,{data}", pixels.shape[1], pixels.shape[0], caption, name)

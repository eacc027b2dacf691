"""What the sources with a name for every channel share: panels, and names of studies and images."""

import re
from collections.abc import Iterable, Sequence

import pandas as pd

from morphem.data.schema import UNKNOWN


def natural(text: str) -> tuple[tuple[int, int, str], ...]:
    """Return a sorting key that puts ch2 before ch10.

    Args:
        text: Any name.
    """
    parts = re.split(r"(\d+)", text)
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part)


def study_name(location: str) -> str:
    """Return the name of a folder, file or bucket prefix without the endings of image formats, as the study's name.

    Args:
        location: A path or URL.
    """
    name = re.split(r"[\\/]", location.rstrip("\\/"))[-1]
    return re.sub(r"(?i)(\.companion)?(\.ome)?(\.(zip|zarr|ozx|tiff?|ome))+$", "", name) or "study"


def image_name(*parts: tuple[str, str]) -> str:
    """Return the name of an image from what is known about it, for example `P1-A01-s3-z2-t1`.

    Args:
        parts: A prefix (empty where the value speaks for itself) and a value; empty and unknown values are left out.
    """
    return "-".join(f"{prefix}{value}" for prefix, value in parts if value not in ("", UNKNOWN))


def names_of(channels: str | Sequence[str] | None) -> list[str]:
    """Return channel names that were given as a list or as a text with commas.

    Args:
        channels: The setting; None for no names.
    """
    given = channels.split(",") if isinstance(channels, str) else channels or []
    return [name.strip() for name in given]


def panel_text(channels: Iterable[str]) -> str:
    """Return the column `imaging.panel` for the channels of an image.

    Args:
        channels: Their names in order; a comma in a name becomes a space, as commas stand between names.
    """
    return ",".join(name.replace(",", " ") for name in channels)


def with_panels(table: pd.DataFrame, order: Iterable[str] | None = None) -> pd.DataFrame:
    """Give each plane its place in its plate's panel, and order rows by image and panel.

    The panel of a plate is every channel that one of its images has, so that an image that lacks one can be told.

    Args:
        table: Plane table with `imaging.multi_channel_id`, `channel_name` and perhaps `experiment.plate`.
        order: All channel names in panel order; by name, numbers by value, if None.
    """
    names = table["channel_name"]
    ranks = {name: i for i, name in enumerate(order if order is not None else sorted(set(names), key=natural))}
    plates = table.get("experiment.plate", pd.Series(UNKNOWN, index=table.index))
    pairs = list(zip(plates, names, strict=True))
    members: dict[str, list[str]] = {}
    for plate, name in sorted(set(pairs), key=lambda pair: ranks[pair[1]]):
        members.setdefault(plate, []).append(name)
    texts = {plate: panel_text(channels) for plate, channels in members.items()}
    numbers = {(plate, name): str(i + 1) for plate, channels in members.items() for i, name in enumerate(channels)}
    numbered = table.assign(
        **{"imaging.panel": [texts[plate] for plate in plates], "imaging.channel": [numbers[pair] for pair in pairs]}
    )
    images = {image: i for i, image in enumerate(sorted(set(table["imaging.multi_channel_id"]), key=natural))}
    keys = numbered["imaging.multi_channel_id"].map(images) * 1000 + numbered["imaging.channel"].astype(int)
    return numbered.loc[keys.sort_values(kind="stable").index].reset_index(drop=True)

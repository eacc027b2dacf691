"""False colours: one per channel type, told apart by colour-blind people where an image has two or three channels.

Source: the hues follow Okabe and Ito 2008, "Color Universal Design", https://jfly.uni-koeln.de/color/, made brighter
for a black ground; nuclei are blue and membranes warm, as in most published Cell Painting figures.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

BLUE, GREEN, ORANGE, PINK, YELLOW = "#4a86ff", "#1fd28a", "#ff8c26", "#f25fb4", "#f4e04d"
CYAN, RED, VIOLET, WHITE = "#5ad4f2", "#ff5a45", "#a884ff", "#ffffff"

COLOURS: dict[str, str] = {
    "nucleus": BLUE,
    "nucleoli": CYAN,
    "nuclear envelope": CYAN,
    "rna": YELLOW,
    "endoplasmic reticulum": GREEN,
    "golgi body": YELLOW,
    "actin": ORANGE,
    "actin golgi plasma membrane": ORANGE,
    "cell membrane": ORANGE,
    "cell body": ORANGE,
    "cytoskeleton": ORANGE,
    "microtubules": GREEN,
    "intermediate filaments": VIOLET,
    "mitochondria": PINK,
    "lysosome": RED,
    "endosome": VIOLET,
    "peroxisome": VIOLET,
    "lipid droplets": YELLOW,
    "vesicles": YELLOW,
    "autophagosome": RED,
    "protein": YELLOW,
    "pathogen": RED,
    "r": "#ff0000",
    "g": "#00ff00",
    "b": "#0000ff",
}
"""Colour of a channel type on a black ground; other types get the next free one. r, g and b make a colour picture."""

TRANSMITTED = (
    "bright-field",
    "phase contrast",
    "differential interference contrast",
    "dark-field",
    "quantitative phase",
)
"""Channel types that light goes through: grey, and never mixed with fluorescence."""

_ORDER = (BLUE, ORANGE, GREEN, PINK, YELLOW, CYAN, VIOLET, RED)


def colours_of(channel_types: Sequence[str]) -> list[str]:
    """Return a colour for each channel; different ones as far as there are any.

    A channel gets the colour of its type; where another channel of the same image has it already, the next free one.

    Args:
        channel_types: Types of the channels, in panel order.

    Returns:
        Colours as `#rrggbb`; white for a channel that stands alone, and for transmitted light.
    """
    if len(channel_types) == 1:
        return [WHITE]
    chosen: list[str | None] = [None] * len(channel_types)
    for place, kind in enumerate(channel_types):  # first come those whose type has a colour of its own
        wanted = COLOURS.get(kind)
        if kind in TRANSMITTED:
            chosen[place] = WHITE
        elif wanted is not None and wanted not in chosen:
            chosen[place] = wanted
    for place, colour in enumerate(chosen):
        if colour is None:
            free = [candidate for candidate in _ORDER if candidate not in chosen]
            chosen[place] = free[0] if free else _ORDER[place % len(_ORDER)]
    return [colour for colour in chosen if colour is not None]


def channels_to_mix(channel_types: Sequence[str], limit: int = 6) -> list[int]:
    """Return the positions of the channels that a false-colour picture shows.

    Args:
        channel_types: Types of the channels, in panel order.
        limit: Most channels in one picture; more turn into white.
    """
    mixed = [place for place, kind in enumerate(channel_types) if kind not in TRANSMITTED]
    return mixed[:limit] or [0]


def mix(planes: Sequence[NDArray[np.uint8]], colours: Sequence[str]) -> NDArray[np.uint8]:
    """Lay coloured planes over each other: each of red, green and blue is the largest that any channel gives.

    A sum turns white wherever three channels meet; the largest keeps the colours apart.

    Args:
        planes: Pixels of each channel, (H, W), uint8, all of one size.
        colours: Colour of each as `#rrggbb`.

    Returns:
        Picture, (H, W, 3), uint8.
    """
    picture = np.zeros((*planes[0].shape, 3), np.float32)
    for plane, colour in zip(planes, colours, strict=True):
        light = np.array([int(colour[k : k + 2], 16) for k in (1, 3, 5)], np.float32) / 255
        np.maximum(picture, plane[..., None] * light, out=picture)
    return np.rint(picture).astype(np.uint8)

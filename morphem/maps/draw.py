"""Sheets of maps as PNG: a row for each channel, with the plane, where the network looks, and what its patches are."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from morphem.maps.colours import Floats, Pixels, heat

Font: TypeAlias = ImageFont.FreeTypeFont | ImageFont.ImageFont

PANEL_PX = 320
_GAP, _HEAD, _LABEL, _FOOT = 10, 34, 128, 66
_INK, _FAINT, _GROUND = (235, 235, 235), (150, 150, 150), (16, 16, 18)
_GREY_UNDER = 0.75
_BAR_PX = 180
_SHOWN = (0.5, 99.5)  # percentiles
_LEAST_RANGE = 1e-3  # times even: less than this is the same everywhere


@dataclass(frozen=True)
class Row:
    """One channel of a sheet.

    Attributes:
        name: Of the channel.
        note: A second line, for example its share of the attention; may be empty.
        plane: 8-bit grey, (H, W).
        attention: Times even, (H, W).
        patches: Colours of patch tokens, (H, W, 3).
    """

    name: str
    note: str
    plane: Pixels
    attention: Floats
    patches: Pixels


class Scale(NamedTuple):
    """Attention that is dark and attention that is bright, times even.

    Attributes:
        low: Gets the darkest colour.
        high: Gets the brightest colour, above `low`.
    """

    low: float
    high: float

    def __call__(self, attention: Floats) -> Floats:
        """Return where attention lies between the ends, 0 to 1."""
        return np.asarray(np.clip((attention - self.low) / (self.high - self.low), 0, 1), np.float32)

    @classmethod
    def of(cls, attention: Floats) -> "Scale":
        """Return a scale from the least to the most of an image, without the few most extreme places."""
        low, high = np.percentile(attention, _SHOWN)
        return cls(float(low), max(float(high), float(low) + _LEAST_RANGE))


def overlay(plane: Pixels, attention: Floats, scale: Scale) -> Pixels:
    """Lay the colours of attention over a grey plane, (H, W, 3).

    Args:
        plane: (H, W).
        attention: Times even, (H, W).
        scale: Of the colours.
    """
    strength = scale(attention)[..., None]
    grey = np.repeat(plane[..., None], 3, axis=2).astype(np.float64) * _GREY_UNDER
    share = 0.15 + 0.75 * strength
    mixed = grey * (1 - share) + heat(strength[..., 0]).astype(np.float64) * share
    return np.asarray(np.rint(mixed), np.uint8)


def sheet(title: str, rows: Sequence[Row], scale: Scale, how: str) -> Image.Image:
    """Draw a sheet.

    Args:
        title: Name of the image.
        rows: One per channel.
        scale: Of the colours of attention, in all rows.
        how: What the attention is, in words.
    """
    height, width = rows[0].plane.shape
    shrink = PANEL_PX / max(height, width)
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    columns = ("plane", "attention", "patch tokens")
    page = Image.new(
        "RGB",
        (_LABEL + len(columns) * (size[0] + _GAP), 2 * _HEAD + len(rows) * (size[1] + _GAP) + _FOOT),
        _GROUND,
    )
    draw, large, small = ImageDraw.Draw(page), ImageFont.load_default(17), ImageFont.load_default(13)
    draw.text((_GAP, 8), _fitting(draw, title, large, page.width - 2 * _GAP), _INK, large)
    for nth, name in enumerate(columns):
        draw.text((_LABEL + nth * (size[0] + _GAP), _HEAD + 10), name, _FAINT, small)
    for nth, row in enumerate(rows):
        y = 2 * _HEAD + nth * (size[1] + _GAP)
        _label(draw, row, y, large, small)
        grey = np.repeat(row.plane[..., None], 3, axis=2)
        for column, pixels in enumerate((grey, overlay(row.plane, row.attention, scale), row.patches)):
            picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
            page.paste(picture, (_LABEL + column * (size[0] + _GAP), y))
    _legend(draw, page, scale, how, small)
    return page


def _label(draw: ImageDraw.ImageDraw, row: Row, y: int, large: Font, small: Font) -> None:
    """Write the channel's name in as many lines as it takes, and the note below."""
    lines: list[str] = []
    for word in row.name.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and draw.textlength(joined, large) <= _LABEL - 2 * _GAP:
            lines[-1] = joined
        else:
            lines.append(word)
    for nth, line in enumerate(lines):
        draw.text((_GAP, y + 4 + 21 * nth), _fitting(draw, line, large, _LABEL - 2 * _GAP), _INK, large)
    for nth, line in enumerate(row.note.split("\n")):
        draw.text((_GAP, y + 10 + 21 * len(lines) + 17 * nth), line, _FAINT, small)


def _legend(draw: ImageDraw.ImageDraw, page: Image.Image, scale: Scale, how: str, font: Font) -> None:
    y = page.height - _FOOT + 6
    bar = heat(np.tile(np.linspace(0, 1, _BAR_PX, dtype=np.float32), (10, 1)))
    page.paste(Image.fromarray(bar), (_LABEL, y + 3))
    draw.text((_LABEL, y + 16), f"{scale.low:.2g}", _FAINT, font)
    end = f"{scale.high:.3g} times even"
    draw.text((_LABEL + _BAR_PX - draw.textlength(end, font), y + 16), end, _FAINT, font)
    lines = _wrapped(draw, how, font, page.width - _LABEL - _BAR_PX - 3 * _GAP)
    for nth, line in enumerate(lines[:3]):
        draw.text((_LABEL + _BAR_PX + 2 * _GAP, y + 17 * nth), line, _FAINT, font)


def _wrapped(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> list[str]:
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if draw.textlength(joined, font) <= width:
            lines[-1] = joined
        else:
            lines.append(word)
    return lines


def _fitting(draw: ImageDraw.ImageDraw, text: str, font: Font, width: float) -> str:
    """A text, shortened until it fits."""
    if draw.textlength(text, font) <= width:
        return text
    while text and draw.textlength(f"{text}...", font) > width:
        text = text[:-1]
    return f"{text}..."


def heads_sheet(title: str, names: Sequence[str], maps: Floats, scale: Scale) -> Image.Image:
    """Draw the attention of every head, a row for each channel.

    Args:
        title: Name of the image.
        names: Of C channels.
        maps: Times even, (C, heads, H, W).
        scale: Of the colours.
    """
    _, n_heads, height, width = maps.shape
    shrink = PANEL_PX / 2 / max(height, width)
    size = max(1, round(width * shrink)), max(1, round(height * shrink))
    page = Image.new("RGB", (_LABEL + n_heads * (size[0] + _GAP), 2 * _HEAD + len(names) * (size[1] + _GAP)), _GROUND)
    draw, large, small = ImageDraw.Draw(page), ImageFont.load_default(17), ImageFont.load_default(13)
    draw.text((_GAP, 8), _fitting(draw, title, large, page.width - 2 * _GAP), _INK, large)
    for head in range(n_heads):
        draw.text((_LABEL + head * (size[0] + _GAP), _HEAD + 10), f"head {head + 1}", _FAINT, small)
    for nth, name in enumerate(names):
        y = 2 * _HEAD + nth * (size[1] + _GAP)
        blank = np.zeros((1, 1), np.uint8)
        _label(draw, Row(name, "", blank, blank.astype(np.float32), np.zeros((1, 1, 3), np.uint8)), y, large, small)
        for head in range(n_heads):
            picture = Image.fromarray(heat(scale(maps[nth, head]))).resize(size, Image.Resampling.LANCZOS)
            page.paste(picture, (_LABEL + head * (size[0] + _GAP), y))
    return page


def stretched(values: NDArray[np.generic], box_size: tuple[int, int], smooth: bool) -> NDArray[np.generic]:
    """Blow a map up to the pixels of its crop.

    Args:
        values: (h, w) float, or (h, w, 3) uint8.
        box_size: Height and width in pixels.
        smooth: Interpolate, or show each patch as a block.
    """
    way = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    height, width = box_size
    return np.asarray(Image.fromarray(np.ascontiguousarray(values)).resize((width, height), way))

"""What `embed` does where a user leaves something open: what the encoder's authors do."""

from dataclasses import replace
from typing import Literal, get_args

from morphem.data.crops import CropRule, Masking, Tiling, Unit
from morphem.data.emptiness import EmptyRule
from morphem.data.pixel_kinds import PixelKind
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.extraction import EmbedSettings, Precision
from morphem.features import Combine

_TILE_SIZE_PX = 224
Emptiness = Literal["none", "zero", "otsu"]


def settings_for(
    encoder: Encoder,
    *,
    unit: Unit | None = None,
    tile_size_px: int | None = None,
    crop_size_px: int | None = None,
    tiling: Tiling | None = None,
    mask: Masking = "none",
    skip_empty: Emptiness | None = None,
    empty_channel: str | None = None,
    combine: Combine = "concat",
    query: str | None = None,
    precision: Precision = "32-true",
    pixels: PixelKind | None = None,
) -> EmbedSettings:
    """Return settings in which everything that is not given follows the encoder's recipe.

    Args:
        encoder: Has the recipe.
        unit: What a row is; where not given, `cell` or `tile` if a setting of theirs is given, else the recipe's.
        tile_size_px: Side of a tile.
        crop_size_px: Side of a cell's crop.
        tiling: How tiles lie.
        mask: What is outside of a cell.
        skip_empty: Which tiles are left out: `none` keeps all, `zero` leaves out blank ones, `otsu` those without cells
            (as Kim et al. do); where not given, as the recipe says.
        empty_channel: Channel that decides what is empty.
        combine: How channels become rows.
        query: Selects channel planes.
        precision: Of the network.
        pixels: What pixels stand for.

    Raises:
        ConfigError: If settings clash or have no effect.
    """
    theirs = encoder.recipe.crops
    if unit is None:
        cell, tile = crop_size_px is not None or mask != "none", tile_size_px is not None or tiling is not None
        unit = "cell" if cell else "tile" if tile or skip_empty is not None else theirs.unit
    rest = {"combine": combine, "query": query, "precision": precision, "pixels": pixels}
    if unit == "tile":
        base = theirs if theirs.unit == "tile" else CropRule("tile", _TILE_SIZE_PX)
        return EmbedSettings(
            unit,
            tile_size_px or base.tile_size_px,
            crop_size_px,
            tiling=tiling or base.tiling,
            mask=mask,
            skip_empty=_rule(base.skip_empty, skip_empty, empty_channel),
            **rest,  # type: ignore[arg-type]
        )
    return EmbedSettings(
        unit,
        tile_size_px,
        crop_size_px,
        tiling=tiling or "cover",
        mask=mask,
        skip_empty=_rule(None, skip_empty, empty_channel),
        **rest,  # type: ignore[arg-type]
    )


def _rule(theirs: EmptyRule | None, asked: Emptiness | None, channel: str | None) -> EmptyRule | None:
    if asked not in (None, *get_args(Emptiness)):
        raise ConfigError(f"skip_empty='{asked}' must be one of {', '.join(get_args(Emptiness))}.")
    rule = theirs if asked is None else None if asked == "none" else EmptyRule(threshold=asked)
    if channel is not None and rule is None:
        raise ConfigError(f"empty_channel='{channel}' has no effect where no tile is left out; give skip_empty too.")
    return rule if rule is None or channel is None else replace(rule, channel=channel)


def in_words(encoder: Encoder, settings: EmbedSettings) -> str:
    """Return how images are cut, in a sentence for the summary.

    Args:
        encoder: Resizes what was cut.
        settings: Of the job.
    """
    rule, side = settings.rule, encoder.input_size_px
    resized = f", resized to {side} px" if side not in (None, rule.tile_size_px, rule.crop_size_px) else ""
    if rule.unit == "image":
        return f"whole images{resized}"
    if rule.unit == "cell":
        outside = {"none": "", "zero": ", outside of the cell 0", "background": ", outside of the cell background"}
        return f"a crop of {rule.crop_size_px} px around each cell{outside[rule.mask]}{resized}"
    laid = {
        "cover": "side by side, the last ones shifted inside",
        "grid": "side by side, the remainder unused",
        "square_grid": "side by side, no more columns than rows, the remainder unused",
        "overlap": "overlapping",
    }[rule.tiling]
    empty = ""
    if rule.skip_empty is not None:
        what = "blank" if rule.skip_empty.threshold == "zero" else "empty"
        empty = f", {what} ones left out"
    return f"tiles of {rule.tile_size_px} px {laid}{empty}{resized}"

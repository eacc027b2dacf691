"""What protocols do to pixels in place of an encoder's own preparation, by name, and whether a table says it was done.

`morphem.protocol_pixels` does it; this file needs no torch.
"""

import json
from collections.abc import Mapping
from typing import Any

from morphem.benchmarks.base import Benchmark, FeatureRecipe
from morphem.features import FeatureTable

PREPARATIONS: dict[str, str] = {
    "own": "what belongs to the encoder",
    "without_noise": "what belongs to the encoder, without noise on saturated pixels",
    "square_resized_first": "the largest square from the middle, resized (bilinear, antialias) before it is normalised",
    "resized_only": "resized (bilinear, antialias) and divided by 255, not standardised",
    "grey_levels": "standardised on the scale of 0 to 255, noise on saturated pixels of the microtubules",
    "unresized": "divided by 255, standardised (sample deviation + 1e-7), zeros up to whole patches; no resize",
    "unresized_grey_levels": "standardised (sample deviation + 1e-7) without a division, zeros up to whole patches; no "
    "resize",
}
"""With what they do to encoders that standardise every plane by itself."""

_SELF = "SelfNormalize"
_CUT = ("unit", "tile_size_px", "crop_size_px", "mask")


def feature_differences(benchmark: Benchmark, tables: Mapping[str, FeatureTable]) -> tuple[str, ...]:
    """Return what tables that morphem made say about their making that is not as the protocol has it.

    Tables of others say nothing. Protocols without published rows may be made from anything.

    Args:
        benchmark: With its settings.
        tables: By name of part.

    Returns:
        One sentence for each difference.
    """
    found: list[str] = []
    for part in benchmark.parts_in_use() if type(benchmark).published else ():
        provenance = tables[part.name].provenance if part.name in tables else {}
        found += _cut_otherwise(provenance.get("settings"), part.recipe)
        spec = provenance.get("encoder")
        if isinstance(spec, Mapping) and not _is_prepared(spec, part.recipe.prepare):
            found.append(
                f"pixels were prepared as the encoder does it, not as the protocol ({part.recipe.prepare}: "
                f"{PREPARATIONS[part.recipe.prepare]}); --model with --data does that"
            )
    return tuple(dict.fromkeys(found))


def _cut_otherwise(settings: Any, recipe: FeatureRecipe) -> list[str]:
    if not isinstance(settings, Mapping):
        return []
    return [
        f"features have {key}={settings[key]!r} instead of the protocol's {getattr(recipe, key)!r}"
        for key in _CUT
        if key in settings and settings[key] != getattr(recipe, key) and not _left_open(settings, recipe, key)
    ]


def _left_open(settings: Mapping[str, Any], recipe: FeatureRecipe, key: str) -> bool:
    """Whether a recipe leaves a size to `embed`."""
    return key.endswith("_px") and getattr(recipe, key) is None and settings.get("unit") == recipe.unit


def _is_prepared(spec: Mapping[str, Any], name: str) -> bool:
    """Whether the spec of an encoder has the steps of a preparation; True where it cannot have them."""
    settings = spec.get("init_args", {})
    first = json.dumps(settings.get("normalizer"))
    if name == "own":
        return True
    if name == "without_noise":
        return '"saturation_noise": true' not in first
    if name == "square_resized_first":
        return bool(settings.get("fit") == "crop_and_stretch")
    if name == "resized_only":
        return settings.get("after_resize") is not None and _SELF not in first
    if name == "grey_levels":
        return _SELF not in first or "NoiseInOneChannel" in first
    return "PadToPatches" in first

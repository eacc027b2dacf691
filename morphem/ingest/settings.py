"""Settings of an ingest, and the fingerprint that says whether a half-done one may go on with them."""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from morphem.data.commit import software_version
from morphem.errors import ConfigError
from morphem.ingest.prepare import Preparation
from morphem.spec import to_spec

if TYPE_CHECKING:
    import pandas as pd

    from morphem.cells.base import CellFinder
    from morphem.curation.recipe import Recipe
    from morphem.sources.base import Source

MAX_PART_IMAGES = 256
PART_PIXELS = 2**28
MIN_PARTS = 64
"""A part is what one process makes at a time: about 2**28 pixels (half a GiB of 16-bit counts read), at most 256 images
(so that small images do not become too many files), and no more than leaves 64 parts to share out."""
_USUAL_PIXELS = 2048 * 2048


@dataclass(frozen=True)
class IngestSettings:
    """How studies become shards.

    Attributes:
        preparation: Clipping, bit depth and quality columns of each plane.
        cells: Finds the cells; None keeps those that the source has.
        recipe: Selects images; None keeps all.
        max_bad: Share of a study's images that may be unusable, 0 to 1; with more of them it is not written. The
            default is one in a hundred.
        overwrite: Replace studies that the set has already.
        restart: Throw away what an earlier run with other settings has left behind.
        part_images: Images that are prepared as one piece of work, 1 or more; None takes it from the size of the
            images. It has no effect on the shards.
        max_shard_bytes: A shard is closed once it is at least this large.
        max_shard_images: A shard holds at most this many images.
        features_from: Encoder of the features that a recipe asks for, as `morphem.zoo.load` takes it; None for a small
            untrained one.
        pictures: Keep small pictures of what each step of the recipe kept and removed, for the report.
    """

    preparation: Preparation = field(default_factory=Preparation)
    cells: "CellFinder | None" = None
    recipe: "Recipe | None" = None
    features_from: str | None = None
    pictures: bool = True
    max_bad: float = 0.01
    overwrite: bool = False
    restart: bool = False
    part_images: int | None = None
    max_shard_bytes: int = 512 * 2**20
    max_shard_images: int = 4096

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad <= 1:
            raise ConfigError(f"max_bad is {self.max_bad}; it must be a share from 0 to 1, for example 0.01 or 1%.")
        for name in ("part_images", "max_shard_bytes", "max_shard_images"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} is {value}; it must be 1 or more.")


def fingerprint(source: "Source", table: "pd.DataFrame", settings: IngestSettings) -> dict[str, str]:
    """Describe all that decides what the prepared images of a study look like, one text for each thing.

    The recipe's choice by metadata is in the table; its choice by pixels is made anew when the parts are merged.

    Args:
        source: The study.
        table: Rows of the planes to be prepared, in order.
        settings: Of the run.
    """
    preparation = settings.preparation
    cells = "those of the source" if settings.cells is None else json.dumps(_located(to_spec(settings.cells)))
    return {
        "version of morphem": software_version(),
        "source": json.dumps(_located(to_spec(source))),
        "images": _hash_of(table),
        "clip": str(preparation.clip),
        "bit depth": str(preparation.bit_depth),
        "quality columns": str(preparation.quality),
        "cells": cells,
    }


def settings_of_merge(settings: IngestSettings) -> dict[str, str]:
    """Describe what decides, besides the prepared images, what the shards look like.

    Args:
        settings: Of the run.
    """
    return {
        "recipe": "none" if settings.recipe is None else json.dumps(settings.recipe.to_dict()),
        "features": settings.features_from or "untrained",
        "shards": f"{settings.max_shard_bytes} bytes, {settings.max_shard_images} images",
    }


def hash_of(described: Mapping[str, str]) -> str:
    """Return the SHA-256 of a fingerprint, in hexadecimal."""
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Say which entries of two fingerprints differ, with both values where they are short."""
    said = []
    for name in dict.fromkeys([*before, *now]):
        old, new = before.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            said.append(f"{name} ({old} before, {new} now)" if name != "images" else "the list of images")
    return ", ".join(said)


def part_size(table: "pd.DataFrame", n_images: int, asked: int | None) -> int:
    """Return how many images make a part: a pure function of the study, never of the number of workers.

    Args:
        table: Rows of the planes.
        n_images: Images in it, 1 or more.
        asked: The number that the user wants, or None.
    """
    if asked is not None:
        return asked
    pixels = max(1, _pixels(table) // n_images)
    return max(1, min(MAX_PART_IMAGES, PART_PIXELS // pixels, -(-n_images // MIN_PARTS)))


def _pixels(table: "pd.DataFrame") -> int:
    """Pixels of all planes; a plane whose size the table does not tell counts as 2048 x 2048."""
    import pandas as pd

    sizes = [
        pd.to_numeric(table[name], errors="coerce") if name in table.columns else pd.Series(float("nan"), table.index)
        for name in ("geometry.width", "geometry.height")
    ]
    return int((sizes[0] * sizes[1]).fillna(_USUAL_PIXELS).sum())


def _hash_of(table: "pd.DataFrame") -> str:
    """SHA-256 over names and cells of a table of texts."""
    digest = hashlib.sha256(json.dumps([str(name) for name in table.columns]).encode())
    for row in table.itertuples(index=False, name=None):
        digest.update(json.dumps([str(value) for value in row]).encode())
    return digest.hexdigest()


def _located(value: Any) -> Any:
    """Replace paths that exist by absolute ones, so that the folder from which a command is run does not matter."""
    if isinstance(value, str):
        return os.path.abspath(value) if value and os.path.exists(value) else value
    if isinstance(value, Mapping):
        return {key: _located(item) for key, item in value.items()}
    if isinstance(value, Sequence):
        return [_located(item) for item in value]
    return value

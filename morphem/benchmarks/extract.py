"""Features of an encoder for a benchmark, made once: kept by the hash of weights, data and recipe."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphem import features as feature_tables
from morphem.benchmarks.base import FeatureRecipe
from morphem.benchmarks.record import settings_digest
from morphem.data.cache import cache_folder
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

_BRIGHTEST = 255

if TYPE_CHECKING:
    from morphem.encoder import Encoder
    from morphem.extraction import EmbedSettings


def embed_settings(recipe: FeatureRecipe, query: str | None = None) -> "EmbedSettings":
    """Return the settings of `morphem embed` for a recipe.

    Args:
        recipe: Of a part.
        query: Selects channel planes, besides the recipe's own query.
    """
    from morphem.extraction import EmbedSettings

    queries = [f"({text})" for text in (recipe.query, query) if text]
    joined = " and ".join(queries) if len(queries) > 1 else (recipe.query or query)
    return EmbedSettings(
        recipe.unit,
        recipe.tile_size_px,
        recipe.crop_size_px,
        recipe.combine,
        joined,
        mask=recipe.mask,
        pixels=recipe.pixels,
    )


def run_remarks(encoder: "Encoder", root: str, recipe: FeatureRecipe) -> tuple[str, ...]:
    """Return why a run on these shards with this encoder cannot be identical with the protocol, one sentence each.

    Args:
        encoder: With its own preparation.
        root: Shards.
        recipe: Of the part.
    """
    from morphem.data.shards import ShardSet, resolve_root
    from morphem.protocol_pixels import remarks

    said = list(remarks(encoder, recipe.prepare))
    if recipe.as_stored:
        limits = ShardSet(str(resolve_root(root))).table(columns=["clip_low", "clip_high"]).to_pandas().dropna()
        clipped = int(((limits["clip_low"] != 0) | (limits["clip_high"] != _BRIGHTEST)).sum())
        if clipped:
            said.append(
                f"{clipped} planes were stretched when they were ingested; the protocol takes them as they are: ingest "
                "them with --clip none"
            )
    return tuple(said)


def cached_features(
    encoder: "Encoder",
    root: str,
    recipe: FeatureRecipe,
    *,
    cache: str | Path | None = None,
    query: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    progress: bool = False,
) -> FeatureTable:
    """Return the features of a shard set, from the cache where the same encoder saw the same data before.

    The key is a hash of the weights, the encoder's spec, the shards' content, the recipe and morphem's version. A job
    that was killed goes on.

    Args:
        encoder: Makes the features.
        root: Shards.
        recipe: How.
        cache: Folder; `benchmarks` in morphem's cache where not given.
        query: Selects channel planes, besides the recipe's query.
        batch_size: Planes at once; no influence on the result.
        num_workers: Processes that read.
        device: Where to compute.
        progress: Show a bar.

    Raises:
        MorphemError: If the data cannot be embedded as the recipe says.
    """
    from morphem.data.shards import ShardSet, resolve_root
    from morphem.embed import embed_to_file
    from morphem.protocol_pixels import prepared

    encoder = prepared(encoder, recipe.prepare)
    settings = embed_settings(recipe, query)
    root = str(resolve_root(root))
    key = {
        "encoder": {name: value for name, value in encoder.provenance().items() if name not in ("model", "revision")},
        "data": ShardSet(root).content_hash,
        "settings": asdict(settings),
        "aggregate": recipe.aggregate,
    }
    folder = cache_folder() / "benchmarks" if cache is None else Path(cache)
    path = folder / f"{settings_digest(key)}.parquet"
    if not path.is_file():
        _embed(
            embed_to_file, encoder, root, path, settings, recipe.aggregate, batch_size, num_workers, device, progress
        )
    try:
        return feature_tables.read(path)
    except DataError as fault:
        raise DataError(f"the cached features {path} are damaged; delete this file and run again.") from fault


def _embed(
    embed_to_file: Any,
    encoder: "Encoder",
    root: str,
    path: Path,
    settings: "EmbedSettings",
    aggregate: Any,
    batch_size: int,
    num_workers: int,
    device: str | None,
    progress: bool,
) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as fault:
        raise ConfigError(
            f"cannot make the folder {path.parent} for features ({fault}); choose another --cache."
        ) from fault
    if not os.access(path.parent, os.W_OK):
        raise ConfigError(f"cannot write features into {path.parent}; choose another --cache.")
    embed_to_file(
        encoder, root, path, settings, aggregate=aggregate, batch_size=batch_size, num_workers=num_workers,
        device=device, progress=progress,
    )  # fmt: skip

"""Curation during an ingest: on the plane table before pixels are read, on what the parts say after."""

import base64
import io
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from morphem import rng
from morphem.data import layout
from morphem.data.commit import software_version
from morphem.data.writer import to_schema
from morphem.errors import DataError, MorphemError
from morphem.ingest.merge import Merge
from morphem.ingest.parts import TAR, read_tables
from morphem.ingest.prepare import Preparation, prepare

if TYPE_CHECKING:
    from morphem.curation.recipe import Recipe
    from morphem.curation.selection import Selection
    from morphem.sources.base import Source

IMAGE = "imaging.multi_channel_id"
STAGED = "staged"
PICTURES = 6
PICTURE_PX = 120
_TRIES = 4


def select_planned(recipe: "Recipe | None", study: str, table: pd.DataFrame) -> "Selection":
    """Run the steps that need no pixels.

    Args:
        recipe: None keeps all images.
        study: Its name.
        table: One row per plane.

    Raises:
        DataError: If no image is left.
    """
    from morphem.curation.selection import Selection

    if recipe is None:
        names = table[IMAGE].drop_duplicates().tolist()
        return Selection(study, len(names), names)
    selection = recipe.before_pixels.apply(study, table)
    _refuse_nothing(selection)
    return selection


def select_prepared(recipe: "Recipe", merge: Merge, model: str | None) -> "Selection":
    """Run the steps that need measurements or features, on the images that could be prepared.

    Args:
        recipe: Its steps on metadata are left out.
        merge: The study, all of whose parts are finished.
        model: Encoder of the features, as `morphem.zoo.load` takes it; None for a small untrained one.

    Raises:
        DataError: If no image is left.
    """
    from morphem.curation.features import features_of, in_order

    later = recipe.after_pixels
    planes = _planes_of(merge).to_pandas()
    features = None
    if any(step.needs == "features" and step.applies_to(merge.study) for step in later.steps):
        root = stage(merge)
        try:
            found = features_of(root, model, recipe.seed)
        finally:
            shutil.rmtree(root)
        features = in_order(planes[IMAGE].drop_duplicates().tolist(), found)
    selection = later.apply(merge.study, planes, features)
    _refuse_nothing(selection)
    return selection


def _refuse_nothing(selection: "Selection") -> None:
    if not selection.kept:
        steps = ", ".join(f"{row['step']} {row['removed']}" for row in selection.rows)
        raise DataError(
            f"the recipe removes all {selection.n_found} images of study '{selection.study}' ({steps}); relax a step, "
            "or name with 'studies' the studies that it is for."
        )


def _planes_of(merge: Merge) -> pa.Table:
    """Rows of all planes of the parts, in order; `shard` is the name that `stage` gives to the part."""
    tables, labels = [], dict[str, None]()
    for part, report in merge.reports():
        if report.n_bytes:
            planes, _ = read_tables(merge.parts_folder, part)
            place = planes.schema.get_field_index("shard")
            names = pa.array([f"{part.name}.tar"] * planes.num_rows, pa.string())
            tables.append(planes.set_column(place, planes.schema.field(place), names))
            labels |= dict.fromkeys(report.labels)
    schema = layout.plane_schema(list(labels))
    return pa.concat_tables([to_schema(table, schema) for table in tables]) if tables else schema.empty_table()


def stage(merge: Merge) -> Path:
    """Make the parts of a study readable as a shard set, without copying them.

    Args:
        merge: The study, all of whose parts are finished.

    Returns:
        Its folder, for the caller to delete.
    """
    root = merge.folder / STAGED
    planes = _planes_of(merge)
    with layout.writing(root):
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir()
        pq.write_table(planes, root / layout.METADATA)
        shards = []
        for part, report in merge.reports():
            if report.n_bytes:
                os.symlink(os.path.join("..", merge.parts_folder.name, part.name, TAR), root / f"{part.name}.tar")
                shards.append(_entry(merge.study, f"{part.name}.tar", report.n_bytes, report.sha256))
    metadata = root / layout.METADATA
    manifest = {
        "format_version": layout.FORMAT_VERSION,
        "software": {"morphem": software_version()},
        "studies": {merge.study: {"labels": [], "cell_labels": []}},
        "labels": planes.schema.names[len(layout.plane_schema([])) :],
        "cell_labels": [],
        "shards": shards,
        "tables": {layout.METADATA: {"bytes": metadata.stat().st_size, "sha256": layout.sha256_of(metadata)}},
    }
    layout.write_atomically(root / layout.MANIFEST, json.dumps(manifest).encode())
    return root


def _entry(study: str, name: str, n_bytes: int, sha256: str) -> dict[str, Any]:
    return {"name": name, "study": study, "bytes": n_bytes, "sha256": sha256, "images": 0, "planes": 0, "cells": 0}


def pictures_of(source: "Source", selection: "Selection", seed: int) -> dict[str, dict[str, list[str]]]:
    """Make small pictures of images that each step kept and removed.

    Args:
        source: Reads them, also those that were never prepared.
        selection: What the steps did.
        seed: Decides which images are shown.

    Returns:
        For each step lists `kept` and `dropped` of JPEG data addresses.
    """
    pictures: dict[str, dict[str, list[str]]] = {}
    left = [*selection.kept, *(name for names in selection.removed.values() for name in names)]
    for step, removed in selection.removed.items():
        gone = set(removed)
        left = [name for name in left if name not in gone]
        pictures[step] = {
            "kept": _pictures(source, left, rng.mix(seed, selection.study, step, "kept")),
            "dropped": _pictures(source, removed, rng.mix(seed, selection.study, step, "dropped")),
        }
    return pictures


def _pictures(source: "Source", names: Sequence[str], seed: int) -> list[str]:
    """Pictures of up to six images; one that cannot be read is a failure of its own and not shown."""
    order = sorted(range(len(names)), key=lambda place: rng.mix(seed, place))[: _TRIES * PICTURES]
    shown: list[str] = []
    for place in order:
        if len(shown) == PICTURES:
            break
        try:
            shown.append(picture(source, names[place]))
        except (MorphemError, OSError):
            continue
    return shown


def picture(source: "Source", image_id: str) -> str:
    """Return an image in false colour, at most 120 pixels on a side, as a JPEG data address.

    Args:
        source: Reads it.
        image_id: Its name.

    Raises:
        MorphemError: If it cannot be used.
    """
    from PIL import Image

    from morphem.report.colours import channels_to_mix, colours_of, mix

    image = prepare(
        replace(source.load(image_id), cells=None, cell_labels=None, masks=None), Preparation(quality=False)
    )
    kinds = [str(row["imaging.channel_type"]) for row in image.rows]
    colours, mixed = colours_of(kinds), channels_to_mix(kinds)
    height, width = image.planes[0].shape
    scale = min(1.0, PICTURE_PX / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    planes = [
        np.asarray(Image.fromarray(np.asarray(image.planes[place])).resize(size, Image.Resampling.BOX))
        for place in mixed
    ]
    file = io.BytesIO()
    Image.fromarray(mix(planes, [colours[place] for place in mixed])).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()

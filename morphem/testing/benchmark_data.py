"""The tiny layout of a benchmark on disk: as feature tables, and as shards whose images show the planted features."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.base import Benchmark, Inputs, Part
from morphem.benchmarks.bootstrap import generator
from morphem.data.commit import finish_set
from morphem.data.plan_table import IMAGE_COLUMNS
from morphem.data.record import ImageRecord
from morphem.data.writer import ShardWriter
from morphem.features import METADATA, FeatureTable

SIDE_PX = 32
_CHANNELS = ("nucleus", "actin")
_SCHEMA = {new: old for old, new in IMAGE_COLUMNS.items()}


def tiny_settings(cls: type[Benchmark]) -> dict[str, Any]:
    """Return the settings in which `tiny_instance()` differs from the defaults."""
    default, tiny = cls().settings(), cls.tiny_instance().settings()
    return {name: value for name, value in tiny.items() if value != default[name]}


def write_tiny_tables(cls: type[Benchmark], inputs: Inputs, folder: Path) -> Path:
    """Write tables and side tables as `morphem benchmark NAME --features` takes them, and return the path to give.

    Args:
        cls: The benchmark.
        inputs: Of its `tiny`.
        folder: Made where it is not there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in inputs.tables.items():
        table.write(folder / f"{name}.parquet")
    _write_side_tables(cls, inputs, folder)
    return folder / f"{next(iter(inputs.tables))}.parquet" if len(cls.tiny_instance().parts_in_use()) == 1 else folder


def write_tiny_shards(cls: type[Benchmark], inputs: Inputs, folder: Path) -> Path:
    """Write an image for every row, 32 x 32 pixels, two channels, and return the folder.

    Args:
        cls: The benchmark.
        inputs: Of its `tiny`.
        folder: Made where it is not there; shards of a single part lie in it, of several in folders of their names.
    """
    parts = {part.name: part for part in cls.tiny_instance().parts_in_use()}
    for name, table in inputs.tables.items():
        place = folder if len(parts) == 1 else folder / name
        place.mkdir(parents=True, exist_ok=True)
        _write_part(parts[name], table, place)
    _write_side_tables(cls, inputs, folder)
    return folder


def tiny_recipe(cls: type[Benchmark]) -> dict[str, Any]:
    """Return the fields of the feature recipe that have to change for images of 32 pixels."""
    recipes = [part.recipe for part in cls.tiny_instance().parts_in_use()]
    changes: dict[str, Any] = {}
    if any(recipe.crop_size_px is not None for recipe in recipes):
        changes["crop_size_px"] = SIDE_PX
    if any(recipe.tile_size_px is not None for recipe in recipes):
        changes["tile_size_px"] = SIDE_PX
    return changes


def _write_side_tables(cls: type[Benchmark], inputs: Inputs, folder: Path) -> None:
    for side in cls.side_tables:
        if side.name in inputs.side:
            path = folder / side.patterns[0].replace("*", "tiny").replace("?", "x")
            frame = inputs.side[side.name]
            if path.suffix == ".txt":
                path.write_text("\n".join(map(str, frame["value"])) + "\n")
            elif path.suffix == ".parquet":
                frame.to_parquet(path)
            else:
                frame.to_csv(path, index=False, sep="\t" if ".tsv" in path.suffixes else ",")


def _write_part(part: Part, table: FeatureTable, folder: Path) -> None:
    if part.recipe.aggregate == "well" and not {"Metadata_Plate", "Metadata_Well"} <= set(table.metadata.columns):
        wells = [f"A{number:03d}" for number in range(len(table))]
        table = replace(table, metadata=table.metadata.assign(Metadata_Plate="P1", Metadata_Well=wells))
    fallback = f"tiny-{part.name.lower().replace('_', '-')}"
    known = table.metadata.get("Metadata_Study")
    studies = [fallback] * len(table) if known is None else [str(name) for name in known]
    spread = float(table.values.std()) or 1.0
    for study in sorted(set(studies)):
        with ShardWriter(folder, study) as writer:
            for number in [i for i, name in enumerate(studies) if name == study]:
                writer.add(_record(table, number, study, spread))
    finish_set(folder)


def _record(table: FeatureTable, number: int, study: str, spread: float) -> ImageRecord:
    known = _row(table.metadata.iloc[number], study, number)
    rows = [{**known, "imaging.channel": i + 1, "imaging.channel_type": name} for i, name in enumerate(_CHANNELS)]
    planes = _planes(table.values[number] / spread, number)
    centre = np.asarray([[SIDE_PX // 2, SIDE_PX // 2]], np.int32)
    whole = np.ones((SIDE_PX, SIDE_PX), np.uint16)  # the only cell fills the image
    return ImageRecord(f"row{number:05d}", planes, rows, list(_CHANNELS), cells=centre, masks=whole)


def _row(metadata: "pd.Series[Any]", study: str, number: int) -> dict[str, Any]:
    """Return the columns of the schema, and the other metadata as labels."""
    row: dict[str, Any] = {}
    for name, value in metadata.items():
        text = None if pd.isna(value) else str(value)
        row[_SCHEMA.get(str(name), str(name).removeprefix(METADATA))] = text
    row = {name: value for name, value in row.items() if value is not None or "." not in name}
    return {
        **row,
        "experiment.study": study,
        "imaging.multi_channel_id": f"row{number:05d}",
        "microscopy.type": "fluorescence",
        "geometry.height": SIDE_PX,
        "geometry.width": SIDE_PX,
        "geometry.channels": len(_CHANNELS),
    }


def _planes(features: NDArray[np.floating[Any]], number: int) -> list[NDArray[np.uint8]]:
    """Return squares of 4 pixels whose grey levels are features, repeated over the planes, under a little noise."""
    blocks = (SIDE_PX // 4) ** 2
    levels = np.resize(np.asarray(features, np.float64), len(_CHANNELS) * blocks).reshape(len(_CHANNELS), 8, 8)
    noise = generator(number, "pixels").normal(size=(len(_CHANNELS), SIDE_PX, SIDE_PX))
    bright = 128 + 40 * np.kron(levels, np.ones((1, 4, 4))) + 8 * noise
    return [np.clip(plane, 0, 255).astype(np.uint8) for plane in bright]

"""Make written studies part of a shard set: tables first, the manifest last, each whole or not at all."""

import json
import os
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from morphem.data import layout
from morphem.data.writer import to_schema
from morphem.errors import DataError


def finish_set(root: str | Path) -> dict[str, Any]:
    """Add all studies that were written completely to the set, and return its manifest.

    A study that the set has already is replaced. A reader sees the old set or the new one.

    Args:
        root: Folder of the shard set.

    Raises:
        DataError: If there is neither a written study nor a set, or the disk is full.
    """
    root = Path(root)
    folders = sorted(path.parent for path in (root / layout.INCOMING).glob(f"*/{layout.MANIFEST}"))
    new = {folder: json.loads((folder / layout.MANIFEST).read_text()) for folder in folders}
    old = json.loads((root / layout.MANIFEST).read_text()) if (root / layout.MANIFEST).exists() else None
    if not new:
        if old is None:
            raise DataError(f"'{root}' holds no written study; write one with `morphem ingest` first.")
        return dict(old)
    replaced = {study["study"] for study in new.values()}
    manifest = _merged(old, list(new.values()), replaced)
    names = [*_write_tables(root, folders, manifest, replaced), layout.MANIFEST]
    with layout.writing(root):  # from here on files are only renamed, which needs no room; the manifest comes last
        for folder, study in new.items():
            for shard in study["shards"]:
                os.replace(folder / shard["name"], root / shard["name"])
        for name in names:
            os.replace(root / (name + layout.PARTIAL), root / name)
    _remove_leftovers(root, old, manifest, folders)
    return manifest


def _merged(old: dict[str, Any] | None, new: list[dict[str, Any]], replaced: set[str]) -> dict[str, Any]:
    """Return the manifest of the old studies without the replaced ones, and the new ones."""
    studies = {name: entry for name, entry in (old["studies"] if old else {}).items() if name not in replaced}
    shards = [shard for shard in (old["shards"] if old else []) if shard["study"] not in replaced]
    for study in new:
        shards += study["shards"]
        counts = {what: sum(shard[what] for shard in study["shards"]) for what in ("images", "planes", "cells")}
        studies[study["study"]] = counts | {"labels": study["labels"], "cell_labels": study["cell_labels"]}
    return {
        "format_version": layout.FORMAT_VERSION,
        "software": {"morphem": _version()},
        "studies": studies,
        "labels": _union(studies, "labels"),
        "cell_labels": _union(studies, "cell_labels"),
        "shards": shards,
    }


def _union(studies: dict[str, Any], what: str) -> list[str]:
    return list(dict.fromkeys(label for study in studies.values() for label in study[what]))


def _version() -> str:
    try:
        return version("morphem")
    except PackageNotFoundError:
        return "unknown"  # a source tree that was never installed


def _write_tables(root: Path, folders: list[Path], manifest: dict[str, Any], replaced: set[str]) -> list[str]:
    """Write the tables, then the manifest with their hashes, under partial names; return the tables' names."""
    kept = {shard["name"] for shard in manifest["shards"] if shard["study"] not in replaced}
    wanted = [(layout.METADATA, "*.planes.parquet", layout.plane_schema(manifest["labels"]))]
    if any(shard["cells"] for shard in manifest["shards"]):
        wanted.append((layout.CELLS, "*.cells.parquet", layout.cell_schema(manifest["cell_labels"])))
    manifest["tables"] = {}
    partials: list[Path] = []
    try:
        for name, part, schema in wanted:
            parts = [path for folder in folders for path in sorted(folder.glob(part))]
            partials.append(root / (name + layout.PARTIAL))
            with layout.writing(root / name):
                _concatenate(partials[-1], schema, _tables(root / name, parts, kept))
            manifest["tables"][name] = {"bytes": partials[-1].stat().st_size, "sha256": layout.sha256_of(partials[-1])}
        partials.append(root / (layout.MANIFEST + layout.PARTIAL))
        with layout.writing(root / layout.MANIFEST), partials[-1].open("wb") as file:
            file.write(json.dumps(manifest, indent=1).encode())
            layout.sync(file)
    except BaseException:
        for partial in partials:
            partial.unlink(missing_ok=True)
        raise
    return list(manifest["tables"])


def _tables(old: Path, parts: list[Path], kept: set[str]) -> Iterator[pa.Table]:
    """Yield the rows that stay, then the new ones, a part at a time."""
    if old.exists() and kept:
        names = pa.array(sorted(kept))
        with pq.ParquetFile(old) as file:
            for batch in file.iter_batches(1 << 16):
                table = pa.Table.from_batches([batch])
                yield table.filter(pc.is_in(table["shard"], names))
    for part in parts:
        yield pq.read_table(part)


def _concatenate(path: Path, schema: pa.Schema, tables: Iterator[pa.Table]) -> None:
    with path.open("wb") as file:
        with pq.ParquetWriter(file, schema, compression="zstd", write_page_index=True) as writer:
            for table in tables:
                if table.num_rows:
                    writer.write_table(to_schema(table, schema))
        layout.sync(file)


def _remove_leftovers(root: Path, old: dict[str, Any] | None, manifest: dict[str, Any], folders: list[Path]) -> None:
    """Delete what the set does not name any more."""
    named = {shard["name"] for shard in manifest["shards"]}
    for shard in old["shards"] if old else []:
        if shard["name"] not in named:
            (root / shard["name"]).unlink(missing_ok=True)
    if layout.CELLS not in manifest["tables"]:
        (root / layout.CELLS).unlink(missing_ok=True)
    for folder in folders:
        shutil.rmtree(folder)
    if not any((root / layout.INCOMING).iterdir()):
        (root / layout.INCOMING).rmdir()

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
    folders = sorted(path.parent for path in (root / layout.INCOMING).glob(f"[!.]*/{layout.MANIFEST}"))
    new = {folder: json.loads((folder / layout.MANIFEST).read_text()) for folder in folders}
    old = json.loads((root / layout.MANIFEST).read_text()) if (root / layout.MANIFEST).exists() else None
    fresh = {folder: study for folder, study in new.items() if old is None or not _is_published(study, old)}
    if not fresh:
        if old is None:
            raise DataError(f"'{root}' holds no written study; write one with `morphem ingest` first.")
        with layout.writing(root):
            _remove_leftovers(root, old, new)
        return dict(old)
    replaced = {study["study"] for study in fresh.values()}
    manifest = _merged(old, list(fresh.values()), replaced)
    names = [*_write_tables(root, list(fresh), manifest, replaced), layout.MANIFEST]
    with layout.writing(root):  # from here on files are only renamed, which needs no room; the manifest comes last
        for folder, study in fresh.items():
            for shard in study["shards"]:
                if (folder / shard["name"]).exists():  # else an earlier call was killed after it had moved this one
                    os.replace(folder / shard["name"], root / shard["name"])
        for name in names:
            os.replace(root / (name + layout.PARTIAL), root / name)
        _remove_leftovers(root, manifest, new)
    return manifest


def _is_published(study: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether an earlier call has put a study into the set, and was killed before it could remove its folder."""
    made_by = old["studies"].get(study["study"], {}).get("made_by")
    return made_by is not None and made_by == study.get("made_by") and all(s in old["shards"] for s in study["shards"])


def _merged(old: dict[str, Any] | None, new: list[dict[str, Any]], replaced: set[str]) -> dict[str, Any]:
    """Return the manifest of the old studies without the replaced ones, and the new ones."""
    studies = {name: entry for name, entry in (old["studies"] if old else {}).items() if name not in replaced}
    shards = [shard for shard in (old["shards"] if old else []) if shard["study"] not in replaced]
    for study in new:
        shards += study["shards"]
        counts = {what: sum(shard[what] for shard in study["shards"]) for what in ("images", "planes", "cells")}
        told = {what: study[what] for what in ("labels", "cell_labels", "made_by") if what in study}
        studies[study["study"]] = counts | told
    return {
        "format_version": layout.FORMAT_VERSION,
        "software": {"morphem": software_version()},
        "studies": studies,
        "labels": _union(studies, "labels"),
        "cell_labels": _union(studies, "cell_labels"),
        "shards": shards,
    }


def _union(studies: dict[str, Any], what: str) -> list[str]:
    return list(dict.fromkeys(label for study in studies.values() for label in study[what]))


def software_version() -> str:
    """Return the version of morphem that is installed."""
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


def _remove_leftovers(root: Path, manifest: dict[str, Any], studies: dict[Path, dict[str, Any]]) -> None:
    """Delete what the set does not name any more; last, the folders that say which studies were written.

    Args:
        root: Folder of the shard set.
        manifest: Of the set.
        studies: Folder and manifest of each study that is in the set by now.
    """
    named = {shard["name"] for shard in manifest["shards"]}
    for study in studies.values():
        for shard in root.glob(f"{study['prefix']}-{'[0-9]' * 6}.tar"):
            if shard.name not in named:
                shard.unlink()
    if layout.CELLS not in manifest["tables"]:
        (root / layout.CELLS).unlink(missing_ok=True)
    for folder in studies:
        discard(folder)
    incoming = root / layout.INCOMING
    if incoming.is_dir() and not any(incoming.iterdir()):
        incoming.rmdir()


def discard(folder: Path) -> None:
    """Delete a folder; killed in the middle, it leaves nothing under that name that could be taken for a whole one.

    Args:
        folder: Exists.
    """
    gone = folder.with_name(f".{folder.name}-gone")
    shutil.rmtree(gone, ignore_errors=True)
    os.rename(folder, gone)
    shutil.rmtree(gone)

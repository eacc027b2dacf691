"""Names, columns and files of a shard set, and the way its files are written: whole or not at all."""

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from morphem.data.schema import COLUMNS
from morphem.errors import DataError

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
METADATA = "metadata.parquet"
CELLS = "cells.parquet"
INCOMING = ".incoming"
PARTIAL = ".partial"

POSITION_COLUMNS: dict[str, str] = {
    "key": "string",
    "shard": "string",
    "sample_offset": "int64",
    "sample_nbytes": "int64",
    "plane_offset": "int64",
    "plane_nbytes": "int64",
    "cells_offset": "int64",
    "cells_nbytes": "int64",
    "n_cells": "int64",
    "channel_name": "string",
    "clip_low": "float64",
    "clip_high": "float64",
}
"""Columns of metadata.parquet after the 22: sample key, shard file, where sample, PNG and cells lie in it (bytes; -1
where there are no cells), number of cells, the source's own channel name, and the limits that became 0 and 255."""

CELL_COLUMNS: dict[str, str] = {"key": "string", "shard": "string", "cell": "int64", "x": "int64", "y": "int64"}
"""Columns of cells.parquet before the labels: sample key, shard file, number of the cell in its image, pixels."""

QUALITY_COLUMNS: tuple[str, ...] = (
    "quality.focus",
    "quality.saturated",
    "quality.empty",
    "quality.flat",
    "quality.illumination",
    "quality.mean",
    "quality.foreground",
)
"""Columns of metadata.parquet after those: what was measured of a plane when it was written (float64, null where it was
not). `morphem.ingest.quality` defines each. Sets that were written without them read as if all were null."""

MASK_COLUMNS: tuple[str, ...] = ("masks_offset", "masks_nbytes")
"""Columns of metadata.parquet after those: where the label image of an image's cells lies in the shard (bytes; null
where only the centres of cells are known). Sets that were written without them read as if all were null."""

_MAX_PREFIX = 40
_MAX_NAME = 46
_TYPES = {"string": pa.string(), "int64": pa.int64(), "float64": pa.float64()}


def plane_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the schema of metadata.parquet.

    Args:
        labels: Label columns, which are texts and may be null.
    """
    measured = [pa.field(name, pa.float64()) for name in QUALITY_COLUMNS]
    measured += [pa.field(name, pa.int64()) for name in MASK_COLUMNS]
    return _schema(COLUMNS | POSITION_COLUMNS, measured, labels)


def cell_schema(labels: Sequence[str]) -> pa.Schema:
    """Return the schema of cells.parquet.

    Args:
        labels: Label columns of cells, which are texts and may be null.
    """
    return _schema(CELL_COLUMNS, [], labels)


def _schema(fixed: dict[str, str], measured: Sequence[pa.Field], labels: Sequence[str]) -> pa.Schema:
    fields = [pa.field(name, _TYPES[kind], nullable=False) for name, kind in fixed.items()]
    return pa.schema([*fields, *measured, *(pa.field(label, pa.string()) for label in labels)])


def shard_name(prefix: str, number: int) -> str:
    """Return the file name of a study's shard.

    Args:
        prefix: As `file_prefix` gives it.
        number: From 0.
    """
    return f"{prefix}-{number:06d}.tar"


def file_prefix(study: str) -> str:
    """Return what the names of a study's shards and keys begin with: lower-case letters, digits, `_` and `-`.

    Raises:
        DataError: If no letter or digit is left.
    """
    prefix = _clean(study, _MAX_PREFIX)
    if not prefix:
        raise DataError(f"study name '{study}' has no letter (a to z) or digit; give the study another name.")
    return prefix


def sample_key(prefix: str, image_id: str, taken: set[str]) -> str:
    """Return the sample key of an image: lower-case letters, digits, `_` and `-`, not among those taken.

    Two hyphens stand between study and image and nowhere else, so keys of different studies never meet. Where two
    names become one, the later one gets the start of its SHA-256.

    Args:
        prefix: As `file_prefix` gives it.
        image_id: The source's name of the image; anything.
        taken: Keys of the study so far.
    """
    name = _clean(image_id, _MAX_NAME)
    key, salt = f"{prefix}--{name}", image_id
    while not name or key in taken:
        salt = hashlib.sha256(salt.encode("utf-8", "surrogatepass")).hexdigest()
        name = f"{_clean(image_id, _MAX_NAME - 17)}-{salt[:16]}".strip("-")
        key = f"{prefix}--{name}"
    return key


def _clean(name: str, max_length: int) -> str:
    """Reduce a name to the key grammar; runs of other signs become one hyphen."""
    return re.sub(r"[^a-z0-9_]+", "-", name.lower())[:max_length].strip("-")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn a failure of the file system while `path` is written into a sentence.

    Raises:
        DataError: If the disk is full or the file cannot be written.
    """
    try:
        yield
    except OSError as fault:
        full = fault.errno in (errno.ENOSPC, errno.EDQUOT)
        why = "the disk is full" if full else str(fault)
        remedy = "make room and run it again" if full else "choose an output that can be written"
        raise DataError(f"'{path}' could not be written: {why}; {remedy}. Nothing half-written was kept.") from fault


def write_atomically(path: Path, data: bytes) -> None:
    """Write a small file so that it is either whole or absent.

    Raises:
        DataError: If the disk is full or the file cannot be written.
    """
    partial = path.with_name(path.name + PARTIAL)
    with writing(path):
        try:
            with partial.open("wb") as file:
                file.write(data)
                sync(file)
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def sync(file: Any) -> None:
    """Push the contents of an open file to the disk."""
    file.flush()
    os.fsync(file.fileno())


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

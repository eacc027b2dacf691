"""Shard sets: where they are, what is in them, and their bytes. Writing is in `writer` and `commit`.

A set is a folder (or the same in an object store) of tar files in the WebDataset layout, `metadata.parquet` with one
row per channel plane, `cells.parquet` where there are cells, and `manifest.json`, which is written last.
"""

import hashlib
import json
import os
import struct
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from morphem.data import layout
from morphem.data.commit import finish_set
from morphem.data.query import columns_of, compile_query, explain_empty
from morphem.data.record import ImageRecord
from morphem.data.schema import COLUMNS, validate
from morphem.data.writer import NPY_HEADER_BYTES, ShardWriter
from morphem.errors import DataError, nearest

__all__ = ["ImageRecord", "RangeReader", "ShardSet", "ShardWriter", "cell_xy", "finish_set", "resolve_root"]

_REMOTE = ("s3", "gs", "gcs", "az", "abfs", "hf", "http", "https", "memory")


def resolve_root(root: str | os.PathLike[str]) -> str:
    """Return the place of a shard set: an absolute local path, or the address of an object store.

    Args:
        root: A folder, an address that fsspec opens (`s3://`, `gs://`, `https://`, ...), or `sample://NAME` for the
            built-in sample data, which is generated on first use.

    Raises:
        DataError: If the address is of a kind that is not allowed, such as `pipe:`, which runs a command.
    """
    root = os.fspath(root)
    scheme, separator, rest = root.partition("://")
    if root.startswith("pipe:"):
        raise DataError(f"'{root}' would run a command, which is refused; copy the shards or use their address.")
    if not separator:
        return os.path.abspath(os.path.expanduser(root))
    if scheme == "sample":
        from morphem.data.synthetic import sample_root  # only who asks for the sample needs its generator

        return os.path.abspath(os.fspath(sample_root(rest)))
    if scheme == "file":
        return os.path.abspath(rest)
    if scheme not in _REMOTE or "::" in root:
        allowed = ", ".join(f"{name}://" for name in ("sample", "file", *_REMOTE))
        raise DataError(f"'{root}' is not an address of shards; allowed: a folder, {allowed}.")
    return root.rstrip("/")


def _is_local(root: str) -> bool:
    return "://" not in root


class RangeReader:
    """Reads parts of shards; pickles as its root alone, and opens files when they are first needed.

    Args:
        root: As `resolve_root` gives it.
        max_open: At most this many files are open at a time, in each process.
    """

    def __init__(self, root: str, max_open: int = 16) -> None:
        self.root = root
        self.max_open = max_open
        self._files: OrderedDict[str, int] = OrderedDict()
        self._remote: Any = None
        self._process = os.getpid()

    def __reduce__(self) -> tuple[type["RangeReader"], tuple[str, int]]:
        return type(self), (self.root, self.max_open)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; the next read opens them again."""
        for descriptor in getattr(self, "_files", {}).values():
            os.close(descriptor)
        self._files = OrderedDict()

    def read(self, shard: str, offset: int, nbytes: int) -> bytes:
        """Read bytes of a shard.

        Args:
            shard: File name in the set.
            offset: First byte, 0 or more.
            nbytes: How many.

        Raises:
            DataError: If the shard is missing, cannot be read, or ends too early; with file and offset.
        """
        try:
            data = (
                self._read_local(shard, offset, nbytes)
                if _is_local(self.root)
                else self._read_remote(shard, offset, nbytes)
            )
        except FileNotFoundError as fault:
            raise DataError(
                f"shard '{shard}' is missing from '{self.root}'; restore it or ingest its study again."
            ) from fault
        except OSError as fault:
            raise DataError(f"shard '{shard}' in '{self.root}' cannot be read at byte {offset}: {fault}.") from fault
        if len(data) != nbytes:
            raise DataError(
                f"shard '{shard}' in '{self.root}' is cut off: {nbytes} bytes from byte {offset} on were asked for, "
                f"{len(data)} are there; restore it or ingest its study again."
            )
        return data

    def _read_local(self, shard: str, offset: int, nbytes: int) -> bytes:
        descriptor = self._files.get(shard)
        if descriptor is None:
            descriptor = os.open(os.path.join(self.root, shard), os.O_RDONLY)
            if len(self._files) >= self.max_open:
                os.close(self._files.popitem(last=False)[1])
            self._files[shard] = descriptor
        self._files.move_to_end(shard)
        return os.pread(descriptor, nbytes, offset)  # keeps no position, so forked workers do not disturb each other

    def _read_remote(self, shard: str, offset: int, nbytes: int) -> bytes:
        if self._remote is None or self._process != os.getpid():  # a connection does not survive a fork
            self._remote, self._process = _file_system(self.root), os.getpid()
        return bytes(self._remote.cat_file(f"{self.root}/{shard}", start=offset, end=offset + nbytes))


def _file_system(root: str) -> Any:
    """Open the file system of an address."""
    scheme = root.partition("://")[0]
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=scheme != "memory")
    except ImportError as fault:
        raise DataError(f"'{root}' needs a package that is not installed: {fault}.") from fault


def cell_xy(reader: RangeReader, shard: str, cells_offset: int, cells_nbytes: int, index: int) -> tuple[int, int]:
    """Read the centre of one cell without reading the others.

    Args:
        reader: Reads the shard.
        shard: File name in the set.
        cells_offset: First byte of the sample's cell file in the shard.
        cells_nbytes: Length of that file.
        index: Number of the cell, from 0.

    Returns:
        x and y in pixels.

    Raises:
        DataError: If there is no such cell, or the shard cannot be read.
    """
    n_cells = (cells_nbytes - NPY_HEADER_BYTES) // 8
    if cells_offset < 0 or not 0 <= index < n_cells:
        raise DataError(
            f"shard '{shard}': there is no cell {index} at byte {cells_offset}; it holds {max(n_cells, 0)}."
        )
    x, y = struct.unpack("<2i", reader.read(shard, cells_offset + NPY_HEADER_BYTES + 8 * index, 8))
    return x, y


class ShardSet:
    """A finished shard set.

    Args:
        root: As `resolve_root` takes it.

    Attributes:
        root: Absolute path or address.
        manifest: Counts, sizes and hashes, as in manifest.json.

    Raises:
        DataError: If there is no finished set, or a file is missing or has another size than the manifest says.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = resolve_root(root)
        self.manifest: dict[str, Any] = _read_manifest(self.root)
        if _is_local(self.root):
            bad = list(self._wrong_sizes())
            if bad:
                raise DataError(_bad_files(self.root, bad))

    @property
    def labels(self) -> tuple[str, ...]:
        """Label columns of images."""
        return tuple(self.manifest["labels"])

    @property
    def cell_labels(self) -> tuple[str, ...]:
        """Label columns of cells."""
        return tuple(self.manifest["cell_labels"])

    @property
    def studies(self) -> tuple[str, ...]:
        """Names of the studies, in shard order."""
        return tuple(self.manifest["studies"])

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 over the hashes of all files, in hexadecimal: the same for the same shards, wherever they lie."""
        files = [[file["name"], file["sha256"]] for file in self.manifest["shards"]]
        tables = [[name, entry["sha256"]] for name, entry in sorted(self.manifest["tables"].items())]
        return hashlib.sha256(json.dumps([files, tables]).encode()).hexdigest()

    def reader(self) -> RangeReader:
        """Return a reader of the set's bytes."""
        return RangeReader(self.root)

    def table(self, columns: Sequence[str] | None = None, query: str | None = None) -> pa.Table:
        """Read the rows of channel planes, in shard order.

        Args:
            columns: Which columns; all where not given.
            query: Selects rows, for example `microscopy.type != 'fluorescence'`.

        Raises:
            ConfigError: If the query is malformed or names an unknown column.
            DataError: If a column does not exist, or no row matches the query.
        """
        schema = self._schema
        for column in columns or ():
            if column not in (*schema.names, *layout.QUALITY_COLUMNS, *layout.MASK_COLUMNS):
                close = ", ".join(nearest(column, schema.names)) or ", ".join(schema.names)
                raise DataError(f"'{self.root}' has no column '{column}'; nearest: {close}.")
        names = None if columns is None else [column for column in columns if column in schema.names]
        selected = self._read(layout.METADATA, names, None if query is None else compile_query(query, schema))
        if query is not None and not selected.num_rows:
            used = self._read(layout.METADATA, columns_of(query, schema), None)
            raise DataError(explain_empty(query, used, self.root))
        return _with_newer_columns(selected, columns)

    def cells(self) -> pa.Table | None:
        """Read the cells of all images: key, shard, cell, x, y and label columns; None if no image has cells."""
        return self._read(layout.CELLS, None, None) if layout.CELLS in self.manifest["tables"] else None

    @cached_property
    def _schema(self) -> pa.Schema:
        with self._opened(layout.METADATA) as file:
            return pq.read_schema(file)

    def _read(self, name: str, columns: list[str] | None, rows: Any) -> pa.Table:
        with self._opened(name) as file:
            return pq.read_table(file, columns=columns, filters=rows)

    def _opened(self, name: str) -> Any:
        try:
            if _is_local(self.root):
                return open(os.path.join(self.root, name), "rb")
            return _file_system(self.root).open(f"{self.root}/{name}", "rb")
        except OSError as fault:
            raise DataError(f"'{name}' of the shard set '{self.root}' cannot be read: {fault}.") from fault

    def verify(self) -> None:
        """Compare every file of a local set with the manifest (size, hash, number of rows), and check all metadata.

        Raises:
            ChannelError: If a channel type is not in the vocabulary.
            DataError: If any file is missing or differs, naming every one, or a column holds what it must not.
        """
        if not _is_local(self.root):
            raise DataError(f"'{self.root}' is not local; copy the set to a folder to verify it.")
        bad = list(self._wrong_sizes()) or [
            f"'{name}' has another SHA-256 than its manifest says"
            for name, entry in self._files()
            if layout.sha256_of(Path(self.root, name)) != entry["sha256"]
        ]
        planes = sum(shard["planes"] for shard in self.manifest["shards"])
        if not bad and (rows := self.table(["shard"]).num_rows) != planes:
            bad.append(f"'{layout.METADATA}' has {rows} rows for {planes} planes")
        if bad:
            raise DataError(_bad_files(self.root, bad))
        validate(self.table(list(COLUMNS)).to_pandas())

    def _files(self) -> Iterator[tuple[str, dict[str, Any]]]:
        yield from ((shard["name"], shard) for shard in self.manifest["shards"])
        yield from self.manifest["tables"].items()

    def _wrong_sizes(self) -> Iterator[str]:
        for name, entry in self._files():
            path = Path(self.root, name)
            if not path.is_file():
                yield f"'{name}' is missing"
            elif path.stat().st_size != entry["bytes"]:
                yield f"'{name}' has {path.stat().st_size} bytes instead of {entry['bytes']}"


def _with_newer_columns(table: pa.Table, columns: Sequence[str] | None) -> pa.Table:
    """Add columns that were asked for (all, without `columns`) and that an older set lacks: as nulls."""
    newer = dict.fromkeys(layout.QUALITY_COLUMNS, pa.float64()) | dict.fromkeys(layout.MASK_COLUMNS, pa.int64())
    for name, kind in newer.items():
        if name not in table.column_names and (columns is None or name in columns):
            table = table.append_column(name, pa.nulls(table.num_rows, kind))
    return table if columns is None else table.select(list(columns))


def _bad_files(root: str, bad: list[str]) -> str:
    return f"The shard set '{root}' is damaged: {'; '.join(bad)}. Restore these files or ingest their studies again."


def _read_manifest(root: str) -> dict[str, Any]:
    try:
        if _is_local(root):
            text = Path(root, layout.MANIFEST).read_bytes()
        else:
            text = _file_system(root).cat_file(f"{root}/{layout.MANIFEST}")
        manifest = json.loads(text)
    except (FileNotFoundError, NotADirectoryError) as fault:
        raise DataError(_no_set(root)) from fault
    except (OSError, ValueError) as fault:
        raise DataError(f"the manifest of '{root}' cannot be read: {fault}; ingest its studies again.") from fault
    if not isinstance(manifest, dict) or manifest.get("format_version") != layout.FORMAT_VERSION:
        found = manifest.get("format_version") if isinstance(manifest, dict) else None
        raise DataError(
            f"'{root}' has a manifest of format {found}, this version reads format {layout.FORMAT_VERSION}; "
            "update morphem or ingest again."
        )
    return manifest


def _no_set(root: str) -> str:
    if _is_local(root) and not os.path.isdir(root):
        return f"There is no folder '{root}'; make shards with `morphem ingest STUDY_FOLDER --output {root}`."
    if _is_local(root) and os.path.exists(os.path.join(root, "metadata.csv")):
        return f"'{root}' holds images, not shards; run `morphem ingest {root} --output SHARDS` and use SHARDS."
    return f"'{root}' is not a finished shard set (no {layout.MANIFEST}); make one with `morphem ingest`."

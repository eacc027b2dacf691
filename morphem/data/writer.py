"""Images to shards: tar files of planes, one sample per image, with the table that says where everything lies.

A study is written into a folder of its own under `.incoming` and becomes part of the set by `finish_set`, all of it or
nothing.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from morphem.data import layout, png
from morphem.data.record import ImageRecord, checked_rows, labels_of
from morphem.data.schema import COLUMNS, is_missing
from morphem.errors import DataError

NPY_HEADER_BYTES = 128


class ShardWriter:
    """Writes one study; use it as a context manager, then call `finish_set`.

    Args:
        root: Folder of the shard set, local; made if it does not exist.
        study: Name of the study, as in the column `experiment.study`.
        max_bytes: A shard is closed once it is at least this large.
        max_images: A shard holds at most this many images.
        overwrite: Replace the study if the set has it already.

    Raises:
        DataError: If the set has the study already and `overwrite` is off, or the folder cannot be written.
    """

    def __init__(
        self,
        root: str | Path,
        study: str,
        *,
        max_bytes: int = 512 * 2**20,
        max_images: int = 4096,
        overwrite: bool = False,
    ) -> None:
        if "://" in str(root):
            raise DataError(
                f"shards are written to a local folder, not to '{root}'; write them here and copy the folder."
            )
        self.root = Path(root)
        self.study = study
        self.max_bytes = max_bytes
        self.max_images = max_images
        self.overwrite = overwrite
        self.prefix = layout.file_prefix(study)
        self._folder = self.root / layout.INCOMING / self.prefix
        self._shards: list[dict[str, Any]] = []
        self._open: OpenShard | None = None
        self._keys: set[str] = set()
        self._ids: set[str] = set()
        self._labels: list[str] = []
        self._cell_labels: list[str] = []

    def __enter__(self) -> Self:
        refuse_existing(self.root, self.study, self.overwrite)
        with layout.writing(self._folder):
            shutil.rmtree(self._folder, ignore_errors=True)  # left over from a run that was killed
            self._folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, fault: BaseException | None, at: TracebackType | None) -> None:
        if kind is None:
            try:
                self._complete()
            except BaseException:
                self._abandon()
                raise
        else:
            self._abandon()

    def add(self, image: ImageRecord) -> str:
        """Write one image.

        Args:
            image: Its planes must be uint8 or uint16.

        Returns:
            The sample key that it got.

        Raises:
            ChannelError: If a channel type is not in the vocabulary.
            DataError: If the image is malformed, its name was used before, or the disk is full. After a full disk the
                writer can only be closed.
        """
        rows = checked_rows(image, self.study)
        if image.image_id in self._ids:
            raise DataError(f"study '{self.study}' has two images named '{image.image_id}'; names must be unique.")
        key = layout.sample_key(self.prefix, image.image_id, self._keys)
        labels, cell_labels = labels_of(rows), list(image.cell_labels or {})
        if self._open is None:
            self._open = OpenShard(self._folder / layout.shard_name(self.prefix, len(self._shards)))
        self._open.add(key, image, rows, labels)
        self._ids.add(image.image_id)
        self._keys.add(key)
        self._labels += [label for label in labels if label not in self._labels]
        self._cell_labels += [label for label in cell_labels if label not in self._cell_labels]
        if self._open.n_bytes >= self.max_bytes or self._open.n_images >= self.max_images:
            self._close_shard()
        return key

    def _close_shard(self) -> None:
        if self._open is not None:
            self._shards.append(self._open.close(self.study, self._labels, self._cell_labels))
            self._open = None

    def _complete(self) -> None:
        self._close_shard()
        if not self._shards:
            raise DataError(f"study '{self.study}' has no image; nothing was written.")
        done = {
            "study": self.study,
            "prefix": self.prefix,
            "labels": self._labels,
            "cell_labels": self._cell_labels,
            "shards": self._shards,
        }
        layout.write_atomically(self._folder / layout.MANIFEST, json.dumps(done).encode())

    def _abandon(self) -> None:
        if self._open is not None:
            self._open.abandon()
            self._open = None
        shutil.rmtree(self._folder, ignore_errors=True)


def refuse_existing(root: Path, study: str, overwrite: bool) -> None:
    """Check that a study may be written into a shard set.

    Raises:
        DataError: If the set has it already (unless `overwrite`), or one whose files would have the same names.
    """
    path = root / layout.MANIFEST
    studies = set(json.loads(path.read_text())["studies"]) if path.exists() else set()
    if study in studies and not overwrite:
        raise DataError(f"'{root}' has the study '{study}' already; pass --overwrite to replace it.")
    incoming = root / layout.INCOMING / layout.file_prefix(study) / layout.MANIFEST
    if incoming.exists():
        studies.add(json.loads(incoming.read_text())["study"])
    for other in studies:
        if other != study and layout.file_prefix(other) == layout.file_prefix(study):
            raise DataError(
                f"'{root}' has the study '{other}', whose files are named as those of '{study}'; rename one."
            )


class OpenShard:
    """One tar file while it is written, with the rows of its tables.

    Args:
        path: The finished file; until then it has a partial name beside it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.partial = path.with_name(path.name + layout.PARTIAL)
        with layout.writing(path):
            self._file = self.partial.open("wb")
        self._hash = hashlib.sha256()
        self.n_bytes = 0
        self.n_images = 0
        self._planes: list[dict[str, Any]] = []
        self._cells: list[pa.Table] = []

    def add(self, key: str, image: ImageRecord, rows: list[dict[str, Any]], labels: list[str]) -> None:
        """Write the members of one sample and keep its rows."""
        start = self.n_bytes
        with layout.writing(self.path):
            spans = [self._member(f"{key}.c{i:02d}.png", _to_png(image, i)) for i in range(len(rows))]
            self._member(f"{key}.json", _describe(key, image, rows, labels))
            cells = (-1, 0) if image.cells is None else self._member(f"{key}.cells.npy", _to_npy(image.cells))
            masks: tuple[int | None, int | None] = (None, None)
            if image.masks is not None:
                masks = self._member(f"{key}.masks.png", png.encode(image.masks))
        common = {
            "key": key,
            "shard": self.path.name,
            "sample_offset": start,
            "sample_nbytes": self.n_bytes - start,
            "cells_offset": cells[0],
            "cells_nbytes": cells[1],
            "n_cells": 0 if image.cells is None else len(image.cells),
            "masks_offset": masks[0],
            "masks_nbytes": masks[1],
        }
        limits = image.clip_limits or [(float("nan"), float("nan"))] * len(rows)
        for i, row in enumerate(rows):
            texts = {label: None if is_missing(row.get(label)) else str(row[label]) for label in labels}
            place = {"plane_offset": spans[i][0], "plane_nbytes": spans[i][1], "channel_name": image.channel_names[i]}
            clip = {"clip_low": float(limits[i][0]), "clip_high": float(limits[i][1])}
            quality = {name: image.quality[i].get(name) if image.quality else None for name in layout.QUALITY_COLUMNS}
            self._planes.append({column: row[column] for column in COLUMNS} | common | place | clip | quality | texts)
        if image.cells is not None and len(image.cells):
            self._cells.append(_cell_table(key, self.path.name, image))
        self.n_images += 1

    def copy(self, sample: bytes, rows: list[dict[str, Any]], cells: pa.Table | None) -> None:
        """Write a sample that is finished already and keep its rows, with their places corrected.

        Args:
            sample: All its members, as they lie in another tar.
            rows: Its rows in that tar's table of planes.
            cells: Its rows in that tar's table of cells; None without cells.
        """
        shift = self.n_bytes - int(rows[0]["sample_offset"])
        with layout.writing(self.path):
            self._write(sample)
        for row in rows:
            moved = {name: row[name] + shift for name in ("sample_offset", "plane_offset")}
            moved["cells_offset"] = row["cells_offset"] + shift if row["cells_offset"] >= 0 else -1
            if row["masks_offset"] is not None:
                moved["masks_offset"] = row["masks_offset"] + shift
            self._planes.append(row | moved | {"shard": self.path.name})
        if cells is not None:
            place = cells.schema.get_field_index("shard")
            names = pa.array([self.path.name] * len(cells), pa.string())
            self._cells.append(cells.set_column(place, cells.schema.field(place), names))
        self.n_images += 1

    def _member(self, name: str, data: bytes) -> tuple[int, int]:
        """Append one file to the tar; return where its data starts and how long it is, in bytes."""
        info = tarfile.TarInfo(name)
        info.size = len(data)
        self._write(info.tobuf(tarfile.USTAR_FORMAT))  # time 0 and owner 0: the same images give the same file
        start = self.n_bytes
        self._write(data + b"\0" * (-len(data) % tarfile.BLOCKSIZE))
        return start, len(data)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.n_bytes += len(data)

    def close(self, study: str, labels: list[str], cell_labels: list[str]) -> dict[str, Any]:
        """End the tar, write its tables beside it, give it its final name, and return its entry of the manifest."""
        with layout.writing(self.path):
            self._write(b"\0" * (2 * tarfile.BLOCKSIZE))
            self._write(b"\0" * (-self.n_bytes % tarfile.RECORDSIZE))
            layout.sync(self._file)
            self._file.close()
            planes = pa.Table.from_pylist(self._planes, layout.plane_schema(labels))
            pq.write_table(planes, self.path.with_suffix(".planes.parquet"))
            if self._cells:
                cells = pa.concat_tables(self._cells, promote_options="default")
                pq.write_table(
                    to_schema(cells, layout.cell_schema(cell_labels)), self.path.with_suffix(".cells.parquet")
                )
            os.replace(self.partial, self.path)
        return {
            "name": self.path.name,
            "study": study,
            "bytes": self.n_bytes,
            "sha256": self._hash.hexdigest(),
            "images": self.n_images,
            "planes": len(self._planes),
            "cells": sum(len(table) for table in self._cells),
        }

    def abandon(self) -> None:
        """Close and delete the unfinished tar."""
        with contextlib.suppress(OSError):  # closing flushes, which a full disk refuses; the file goes away in any case
            self._file.close()
        self.partial.unlink(missing_ok=True)


def _describe(key: str, image: ImageRecord, rows: list[dict[str, Any]], labels: list[str]) -> bytes:
    """The sample's JSON member: what a reader needs without the tables."""
    height, width = image.planes[0].shape
    channels = [
        {"file": f"{key}.c{i:02d}.png", "type": row["imaging.channel_type"], "name": image.channel_names[i]}
        for i, row in enumerate(rows)
    ]
    if image.clip_limits is not None:
        for channel, (low, high) in zip(channels, image.clip_limits, strict=True):
            channel["clip"] = [float(low), float(high)]
    described = {
        "key": key,
        "study": rows[0]["experiment.study"],
        "image_id": image.image_id,
        "width": width,
        "height": height,
        "channels": channels,
        "labels": {label: None if is_missing(rows[0].get(label)) else str(rows[0][label]) for label in labels},
        "n_cells": 0 if image.cells is None else len(image.cells),
        "remarks": list(image.remarks),
    }
    return json.dumps(described, ensure_ascii=False, allow_nan=True).encode("utf-8", "backslashreplace")


def _to_png(image: ImageRecord, plane: int) -> bytes:
    """One plane as PNG; with 16 bit the clip limits go into the file."""
    if image.clip_limits is None or image.planes[plane].dtype == np.uint8:
        return png.encode(image.planes[plane])
    return png.encode(image.planes[plane], limits=image.clip_limits[plane])


def _to_npy(cells: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, np.ascontiguousarray(cells, "<i4"), version=(1, 0))
    data = buffer.getvalue()
    assert len(data) == NPY_HEADER_BYTES + 8 * len(cells), "readers count on the length of this header"
    return data


def _cell_table(key: str, shard: str, image: ImageRecord) -> pa.Table:
    cells = np.asarray(image.cells, np.int64)
    columns: dict[str, Any] = {
        "key": pa.array([key] * len(cells), pa.string()),
        "shard": pa.array([shard] * len(cells), pa.string()),
        "cell": pa.array(np.arange(len(cells))),
        "x": pa.array(cells[:, 0]),
        "y": pa.array(cells[:, 1]),
    }
    for label, values in (image.cell_labels or {}).items():
        columns[label] = pa.array([None if is_missing(value) else str(value) for value in values], pa.string())
    return pa.table(columns)


def to_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Return a table with the columns of a schema in its order; label columns that it lacks are null."""
    missing = [
        pa.nulls(table.num_rows, field.type) if field.name not in table.column_names else None for field in schema
    ]
    columns = [table[field.name] if gap is None else gap for field, gap in zip(schema, missing, strict=True)]
    return pa.table(columns, schema=schema)

"""Where every sample lies, in a file that workers read record by record, so that their memory does not grow with it.

`metadata.parquet` answers questions about images; an index answers one question, millions of times: where is sample i?
It is built once per shard set and query, kept in the user's cache, and holds fixed-width records of the selected
images and planes, study after study. A worker holds its path and a short header; `os.pread` fetches one record.
"""

import json
import os
import struct
import tempfile
from collections.abc import Iterable, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from morphem.data.cache import cache_folder
from morphem.data.labels import encode_labels
from morphem.data.shards import ShardSet
from morphem.errors import DataError

Unit = Literal["image", "plane"]

_MAGIC = b"morphem-index-1\n"
_CHUNK = 1 << 16
_COLUMNS = {
    "experiment.study",
    "imaging.channel_type",
    "geometry.height",
    "geometry.width",
    "key",
    "shard",
    "plane_offset",
    "plane_nbytes",
    "cells_offset",
    "cells_nbytes",
    "n_cells",
}


class ImageEntry(NamedTuple):
    """One selected image.

    Attributes:
        study: Index into `Index.studies`.
        shard: Index into `Index.shards`.
        first_plane: Its first plane's number in the index.
        n_planes: Selected planes; they follow one another.
        height: In pixels.
        width: In pixels.
        cells_offset: Where the table of its cells starts in the shard, in bytes; -1 if it has none.
        cells_nbytes: Size of that table.
        n_cells: Rows of that table.
        key: The sample key.
    """

    study: int
    shard: int
    first_plane: int
    n_planes: int
    height: int
    width: int
    cells_offset: int
    cells_nbytes: int
    n_cells: int
    key: str


class PlaneEntry(NamedTuple):
    """One selected channel plane.

    Attributes:
        image: Number of its image in the index.
        offset: Where its PNG starts in the shard, in bytes.
        nbytes: Size of the PNG.
        channel_type: Index into `Index.channel_types`.
        labels: For each column of `Index.classes` the number of the plane's class, -1 where it is unknown.
    """

    image: int
    offset: int
    nbytes: int
    channel_type: int
    labels: tuple[int, ...] = ()


_IMAGE_FORMAT = "<9q"
_N_PLANE_NUMBERS = 4


class Index:
    """The selected images and planes of a shard set; pickles as its path alone.

    Args:
        path: A file that `build_index` wrote.

    Attributes:
        classes: Label columns and the classes that occur in each, in order of name.
        mixed: Label columns in which the planes of an image differ, each with the key of such an image.

    Raises:
        DataError: If the file is missing or damaged.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        header, start = _read_header(path)
        self.studies: tuple[str, ...] = tuple(header["studies"])
        self.shards: tuple[str, ...] = tuple(header["shards"])
        self.channel_types: tuple[str, ...] = tuple(header["channel_types"])
        self.n_images: int = header["n_images"]
        self.n_planes: int = header["n_planes"]
        self._images_of: list[int] = header["images_of"]
        self._planes_of: list[int] = header["planes_of"]
        self.classes: dict[str, list[str]] = header.get("classes", {})
        self.mixed: dict[str, str] = header.get("mixed", {})
        self._image = struct.Struct(f"{_IMAGE_FORMAT}{header['key_width']}s")
        self._plane = struct.Struct(f"<{_N_PLANE_NUMBERS + len(self.classes)}q")
        self._images_at = start
        self._planes_at = start + self.n_images * self._image.size
        self._file: int | None = None
        expected = self._planes_at + self.n_planes * self._plane.size
        if os.path.getsize(path) != expected:
            raise DataError(f"{path} has {os.path.getsize(path)} bytes instead of {expected}; delete it to rebuild it.")

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self.path,)

    def __del__(self) -> None:
        if getattr(self, "_file", None) is not None:
            os.close(self._file)  # type: ignore[arg-type]

    def sizes(self, unit: Unit) -> dict[str, int]:
        """Return the number of samples of every study, in the order of the index.

        Args:
            unit: Whether a sample is an image or a channel plane.
        """
        return dict(zip(self.studies, self._images_of if unit == "image" else self._planes_of, strict=True))

    def image(self, number: int) -> ImageEntry:
        """Read the record of one image.

        Args:
            number: From 0 to `n_images` - 1; the images of a study follow one another.
        """
        data = self._read(self._images_at + number * self._image.size, self._image.size)
        *numbers, key = self._image.unpack(data)
        return ImageEntry._make([*numbers, key.rstrip(b"\0").decode()])

    def planes(self, first: int, count: int) -> list[PlaneEntry]:
        """Read the records of planes that follow one another.

        Args:
            first: From 0 to `n_planes` - 1; the planes of an image follow one another, and so do those of a study.
            count: How many.
        """
        data = self._read(self._planes_at + first * self._plane.size, count * self._plane.size)
        return [
            PlaneEntry._make([*numbers[:_N_PLANE_NUMBERS], numbers[_N_PLANE_NUMBERS:]])
            for numbers in self._plane.iter_unpack(data)
        ]

    def _read(self, offset: int, nbytes: int) -> bytes:
        if self._file is None:
            # A forked worker shares this descriptor; pread keeps no position, so they do not disturb one another.
            self._file = os.open(self.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        return os.pread(self._file, nbytes, offset)


def _read_header(path: str) -> tuple[dict[str, Any], int]:
    try:
        with open(path, "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                raise DataError(f"{path} is not an index of this version of morphem; delete it to rebuild it.")
            (length,) = struct.unpack("<q", file.read(8))
            return json.loads(file.read(length)), file.tell()
    except (OSError, struct.error, ValueError) as fault:
        if isinstance(fault, DataError):
            raise
        raise DataError(f"{path} cannot be read as an index ({fault}); delete it to rebuild it.") from fault


def open_index(
    shards: ShardSet, query: str | None = None, *, labels: Sequence[str] = (), folder: Path | None = None
) -> Index:
    """Return the index of a shard set, query and labels: the cached one, or a new one.

    Args:
        shards: A finished shard set.
        query: Selects channel planes; an image keeps the planes that match. None selects all.
        labels: Columns of the shards that every plane shall bring along as a class.
        folder: Where indexes are kept; `index` in the cache folder where not given.

    Raises:
        DataError: If nothing matches the query, a label column does not exist, or the folder cannot be written.
    """
    folder = folder or cache_folder() / "index"
    content = [_MAGIC.decode(), shards.content_hash, query, *([list(labels)] if labels else [])]
    name = sha256(json.dumps(content).encode()).hexdigest()[:32]
    path = folder / f"{name}.index"
    if path.exists():
        try:
            return Index(str(path))
        except DataError:
            path.unlink(missing_ok=True)  # damaged, or half of it lost: it can be rebuilt
    build_index(shards.table(sorted({*_COLUMNS, *labels}), query), path, labels)
    return Index(str(path))


def build_index(table: pa.Table, path: Path, labels: Sequence[str] = ()) -> None:
    """Write the index of a table of channel planes; it appears under its name only when it is complete.

    Args:
        table: The selected rows of `metadata.parquet`, in shard order.
        path: The file to write.
        labels: Columns of the table that hold classes.

    Raises:
        DataError: If the table is empty, or the file cannot be written.
    """
    if not table.num_rows:
        raise DataError("the shard set has no channel plane to read; ingest images first, or widen the query.")
    header, images, planes = _records(table, labels)
    text = json.dumps(header).encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".partial")
    except OSError as fault:
        raise _not_writable(path, fault) from fault
    try:
        with open(descriptor, "wb") as file:
            file.writelines([_MAGIC, struct.pack("<q", len(text)), text])
            for records in (images, planes):
                file.writelines(_slices(records))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as fault:
        Path(temporary).unlink(missing_ok=True)
        raise _not_writable(path, fault) from fault


def _not_writable(path: Path, fault: OSError) -> DataError:
    return DataError(
        f"the index {path} cannot be written ({fault.strerror}); make room there, "
        "or set MORPHEM_CACHE to a folder that can be written."
    )


def _slices(records: np.ndarray[Any, Any]) -> Iterable[memoryview]:
    return (records[start : start + _CHUNK].tobytes() for start in range(0, len(records), _CHUNK))  # type: ignore[misc]


def _records(
    table: pa.Table, labels: Sequence[str]
) -> tuple[dict[str, Any], np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Lay out the records of a table: its header, images and planes, study after study in order of name."""
    studies, study = _encode(table["experiment.study"])
    shards, shard = _encode(table["shard"])
    channel_types, channel_type = _encode(table["imaging.channel_type"])
    order = np.argsort(study, kind="stable")
    sorted_rows = table.take(pa.array(order)) if np.any(np.diff(order) < 0) else table
    study, shard, channel_type = study[order], shard[order], channel_type[order]

    key = sorted_rows["key"].combine_chunks().cast(pa.string())
    new_key = pc.not_equal(key[1:], key[:-1]).to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(np.r_[True, new_key | (np.diff(shard) != 0)])
    n_planes = np.diff(np.r_[starts, len(key)])
    columns = {
        name: _integers(sorted_rows, name) for name in _COLUMNS if pa.types.is_integer(table.schema.field(name).type)
    }

    planes = np.empty((len(key), _N_PLANE_NUMBERS + len(labels)), "<i8")
    planes[:, 0] = np.repeat(np.arange(len(starts)), n_planes)
    planes[:, 1] = columns["plane_offset"]
    planes[:, 2] = columns["plane_nbytes"]
    planes[:, 3] = channel_type
    classes, mixed = {}, {}
    for column, label in enumerate(labels, start=_N_PLANE_NUMBERS):
        classes[label], planes[:, column] = encode_labels(sorted_rows[label])
        differs = planes[:, column] != planes[starts, column][planes[:, 0]]
        if differs.any():
            mixed[label] = key[int(differs.argmax())].as_py()

    key_width = int(pc.max(pc.binary_length(key)).as_py())
    images = np.empty(len(starts), [("numbers", "<i8", 9), ("key", f"S{key_width}")])
    per_image = ("geometry.height", "geometry.width", "cells_offset", "cells_nbytes", "n_cells")
    numbers = [study[starts], shard[starts], starts, n_planes, *(columns[name][starts] for name in per_image)]
    for column, values in enumerate(numbers):
        images["numbers"][:, column] = values
    for start in range(0, len(starts), _CHUNK):
        part = slice(start, start + _CHUNK)
        images["key"][part] = key.take(pa.array(starts[part])).to_numpy(zero_copy_only=False).astype("S")
    header = {
        "studies": studies,
        "shards": shards,
        "channel_types": channel_types,
        "n_images": len(images),
        "n_planes": len(planes),
        "images_of": np.bincount(study[starts], minlength=len(studies)).tolist(),
        "planes_of": np.bincount(study, minlength=len(studies)).tolist(),
        "key_width": key_width,
        "classes": classes,
        "mixed": mixed,
    }
    return header, images, planes


def _encode(column: pa.ChunkedArray) -> tuple[list[str], np.ndarray[Any, Any]]:
    """Return the distinct values in order of name, and each row's position among them."""
    encoded = column.cast(pa.string()).combine_chunks().dictionary_encode()
    names = encoded.dictionary.to_pylist()
    by_name = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), np.int64)
    rank[by_name] = np.arange(len(names))
    return [names[i] for i in by_name], rank[encoded.indices.to_numpy(zero_copy_only=False)]


def _integers(table: pa.Table, name: str) -> np.ndarray[Any, Any]:
    return np.asarray(table[name].to_numpy())

"""Feature tables that explain themselves: values, `Metadata_` columns, a dictionary of columns, their provenance.

Columns are named so that pycytominer infers them as features (`Cells_...`), metadata as JUMP names it. This module
imports no torch: a table can be scored without it.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from morphem.errors import ChannelError, ConfigError, DataError

FORMAT_VERSION = 1
PREFIX = "Cells_Morphem"
METADATA = "Metadata_"
Combine = Literal["concat", "mean", "none"]
COMBINES: tuple[Combine, ...] = ("concat", "mean", "none")
SUFFIXES = (".parquet", ".h5ad")
_HEADER = b"morphem"
_ROW_GROUP_BYTES = 256 * 2**20

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class FeatureTable:
    """Rows of features with everything needed to understand them.

    Attributes:
        values: (R, F), float32.
        metadata: R rows; every column starts with `Metadata_`.
        columns: Names of the F features.
        dictionary: One entry per feature, with `column`, `channel`, `index` and `kind` (`channel`, `mean`, `plane` or
            `image`).
        provenance: Model, revision, hashes, settings: plain data.
    """

    values: Floats
    metadata: pd.DataFrame
    columns: tuple[str, ...]
    dictionary: tuple[Mapping[str, Any], ...]
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit together."""
        if self.values.shape != (len(self.metadata), len(self.columns)) or len(self.dictionary) != len(self.columns):
            raise DataError(
                f"a feature table of {self.values.shape} values cannot have {len(self.metadata)} rows of metadata, "
                f"{len(self.columns)} columns and {len(self.dictionary)} dictionary entries."
            )
        if len(set(self.columns)) != len(self.columns):
            raise DataError("two features of a table have one name; give every channel a name of its own.")
        wrong = [name for name in self.metadata.columns if not str(name).startswith(METADATA)]
        if wrong:
            raise DataError(f"metadata columns start with '{METADATA}'; these do not: {', '.join(map(str, wrong))}.")

    def __len__(self) -> int:
        """R."""
        return len(self.values)

    def to_frame(self) -> pd.DataFrame:
        """Return metadata and features side by side, as pycytominer takes them."""
        features = pd.DataFrame(self.values, columns=list(self.columns), index=self.metadata.index)
        return pd.concat([self.metadata, features], axis=1)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write Parquet, or AnnData where the name ends in `.h5ad`; the file appears whole or not at all.

        Args:
            path: Ends in `.parquet` or `.h5ad`.

        Raises:
            ConfigError: If the ending is another, or AnnData is asked for and not installed.
            DataError: If the file cannot be written.
        """
        write(path, [self])


def short_name(channel: str) -> str:
    """Return a channel type as column names spell it: `endoplasmic reticulum` becomes `EndoplasmicReticulum`."""
    words = "".join(letter if letter.isalnum() else " " for letter in channel).split()
    return "".join(word[0].upper() + word[1:] for word in words)


def channel_labels(channel_types: Sequence[str]) -> list[str]:
    """Number the repeated channel types of one image in panel order: `protein`, `protein2`.

    Args:
        channel_types: The types of the planes of one image.
    """
    seen: dict[str, int] = {}
    labels = []
    for name in channel_types:
        seen[name] = seen.get(name, 0) + 1
        labels.append(name if seen[name] == 1 else f"{name}{seen[name]}")
    return labels


def feature_columns(
    labels: Sequence[str], embed_dim: int, kind: str
) -> tuple[tuple[str, ...], tuple[dict[str, Any], ...]]:
    """Name the features of every label, and return names and dictionary.

    Args:
        labels: Channel labels in the order of the columns, or one word such as `mean`.
        embed_dim: D features per label.
        kind: What a label is: `channel`, `mean`, `plane` or `image`.

    Raises:
        ChannelError: If two labels would give the same column names.
    """
    names = [short_name(label) for label in labels]
    if len(set(names)) != len(names):
        raise ChannelError(f"the channels {', '.join(labels)} would share column names; rename one of them.")
    width = max(4, len(str(embed_dim - 1)))
    dictionary = tuple(
        {"column": f"{PREFIX}_{name}_{index:0{width}d}", "channel": label, "index": index, "kind": kind}
        for label, name in zip(labels, names, strict=True)
        for index in range(embed_dim)
    )
    return tuple(str(entry["column"]) for entry in dictionary), dictionary


def combine_channels(
    values: Floats, labels: Sequence[Sequence[str]], combine: Combine
) -> tuple[Floats, tuple[str, ...], tuple[dict[str, Any], ...]]:
    """Turn one embedding per plane into rows, with named columns.

    Channels are put in alphabetical order of their labels, so panel order has no influence.

    Args:
        values: Embeddings of the planes, image after image, (P, D), float32.
        labels: For each of N images the label of each plane; N * C = P.
        combine: `concat`: one row per image with C * D columns; `mean`: one row per image with D columns;
            `none`: one row per plane with D columns, in alphabetical order within an image.

    Returns:
        Rows (N, C * D), (N, D) or (P, D); names; dictionary.

    Raises:
        DataError: If `combine` is `concat` and the images differ in their channels.
    """
    dim = values.shape[1]
    order = plane_order(labels)
    if combine == "none":
        return values[order], *feature_columns(["plane"], dim, "plane")
    if combine == "mean":
        bounds = np.cumsum([0, *(len(image) for image in labels)])
        rows = [values[order[a:b]].mean(0, dtype=np.float64) for a, b in pairwise(bounds)]
        return np.asarray(rows, np.float32).reshape(len(labels), dim), *feature_columns(["mean"], dim, "mean")
    check_one_panel(labels)
    channels = sorted(labels[0])
    return values[order].reshape(len(labels), len(channels) * dim), *feature_columns(channels, dim, "channel")


def plane_order(labels: Sequence[Sequence[str]]) -> NDArray[np.int64]:
    """Return the planes, image after image, in alphabetical order of their labels within each image, (P,)."""
    starts = np.cumsum([0, *(len(image) for image in labels)])
    orders = [
        start + np.asarray(sorted(range(len(image)), key=image.__getitem__), np.int64)
        for start, image in zip(starts[:-1], labels, strict=True)
    ]
    return np.concatenate(orders) if orders else np.zeros(0, np.int64)


def check_one_panel(labels: Iterable[Sequence[str]]) -> None:
    """Check that all images have the same channels, as `concat` needs.

    Args:
        labels: For each image the labels of its planes.

    Raises:
        DataError: If they differ, with the sets and the remedy.
    """
    counts: dict[tuple[str, ...], int] = {}
    for image in labels:
        panel = tuple(sorted(image))
        counts[panel] = counts.get(panel, 0) + 1
    if len(counts) > 1:
        common = sorted(counts.items(), key=lambda item: -item[1])
        shown = "; ".join(f"{count} x [{', '.join(panel)}]" for panel, count in common[:4])
        more = f"; and {len(common) - 4} more" if len(common) > 4 else ""
        raise DataError(
            f"combine='concat' needs the same channels in every image, but there are {shown}{more}; select one panel "
            "with a query (for example experiment.study == '...'), or use combine='mean' or 'none'."
        )


def write(path: str | os.PathLike[str], tables: Iterable[FeatureTable]) -> int:
    """Write tables of the same columns one after another into one file, holding one in memory at a time (Parquet).

    Args:
        path: Ends in `.parquet` or `.h5ad`.
        tables: At least one.

    Returns:
        Number of rows written.

    Raises:
        ConfigError: If the ending is another, or AnnData is asked for and not installed.
        DataError: If there is no table, tables differ in their columns, or the file cannot be written.
    """
    path = Path(path)
    writer = {".parquet": _write_parquet, ".h5ad": _write_anndata}.get(path.suffix)
    if writer is None:
        raise ConfigError(f"'{path.name}' must end in .parquet or .h5ad.")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = writer(partial, tables)
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as fault:
        raise DataError(f"cannot write {path} ({fault}); free some space or choose another place.") from fault
    finally:
        partial.unlink(missing_ok=True)
    return rows


def _write_parquet(path: Path, tables: Iterable[FeatureTable]) -> int:
    rows, writer = 0, None
    try:
        for arrow in _row_groups(tables):
            if writer is None:
                metadata_columns = [name for name in arrow.column_names if name.startswith(METADATA)]
                writer = pq.ParquetWriter(path, arrow.schema, compression="zstd", use_dictionary=metadata_columns)
            writer.write_table(arrow)
            rows += arrow.num_rows
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise DataError("there is no feature table to write.")
    return rows


def _row_groups(tables: Iterable[FeatureTable]) -> Iterator[pa.Table]:
    """Join small tables: a file of many features is slow to open if it has many row groups."""
    held: list[pa.Table] = []
    names: list[str] | None = None
    for table in tables:
        arrow = _to_arrow(table)
        names = names or arrow.column_names
        if arrow.column_names != names:
            raise DataError("the feature tables to be written differ in their columns.")
        held.append(arrow)
        if sum(part.nbytes for part in held) > _ROW_GROUP_BYTES:
            yield pa.concat_tables(held)
            held = []
    if held:
        yield pa.concat_tables(held)


def _to_arrow(table: FeatureTable) -> pa.Table:
    """Return a table whose column types do not depend on its rows: int64, float64, bool or string; features float32."""
    arrays = {str(name): _arrow_column(table.metadata[name]) for name in table.metadata.columns}
    arrays |= {name: pa.array(table.values[:, i], pa.float32()) for i, name in enumerate(table.columns)}
    header = {
        "format_version": FORMAT_VERSION,
        "dictionary": [dict(entry) for entry in table.dictionary],
        "provenance": dict(table.provenance),
    }
    return pa.table(arrays).replace_schema_metadata({_HEADER: json.dumps(header)})


def _arrow_column(column: "pd.Series[Any]") -> pa.Array:
    if column.dtype.kind in "iub":
        return pa.array(column.to_numpy(), pa.bool_() if column.dtype.kind == "b" else pa.int64())
    if column.dtype.kind == "f":
        return pa.array(column.to_numpy(), pa.float64(), from_pandas=False)
    return pa.array(
        [None if value is None or value != value or value is pd.NA else str(value) for value in column], pa.string()
    )


def _write_anndata(path: Path, tables: Iterable[FeatureTable]) -> int:
    try:
        import anndata
    except ImportError as fault:
        raise ConfigError("writing .h5ad needs AnnData; install 'morphem[anndata]', or write .parquet.") from fault
    table = concat(tables)
    observations = table.metadata.reset_index(drop=True)
    for name in observations.columns:
        if observations[name].dtype.kind not in "iufb":
            observations[name] = observations[name].astype("category")
    observations.index = pd.Index([str(i) for i in range(len(table))])
    variables = pd.DataFrame([dict(entry) for entry in table.dictionary]).set_index("column")
    variables["channel"], variables["kind"] = (
        variables["channel"].astype("category"),
        variables["kind"].astype("category"),
    )
    header = json.dumps({"format_version": FORMAT_VERSION, "provenance": dict(table.provenance)})
    anndata.AnnData(X=table.values, obs=observations, var=variables, uns={"morphem": header}).write_h5ad(path)
    return len(table)


def read(path: str | os.PathLike[str]) -> FeatureTable:
    """Read a table that `FeatureTable.write` wrote as Parquet.

    Args:
        path: The file.

    Raises:
        DataError: If the file is missing or damaged, or holds no dictionary of features.
    """
    try:
        arrow = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as fault:
        raise DataError(f"{os.fspath(path)} is no readable Parquet file ({str(fault).splitlines()[0]}).") from fault
    header = json.loads((arrow.schema.metadata or {}).get(_HEADER, b"null"))
    if header is None:
        raise DataError(f"{os.fspath(path)} has no dictionary of features; it was not written by morphem.")
    columns = tuple(entry["column"] for entry in header["dictionary"])
    values = np.empty((arrow.num_rows, len(columns)), np.float32)
    for i, name in enumerate(columns):
        values[:, i] = arrow.column(name).to_numpy()
    metadata = arrow.select([name for name in arrow.column_names if name.startswith(METADATA)]).to_pandas()
    return FeatureTable(values, metadata, columns, tuple(header["dictionary"]), header["provenance"])


def provenance_in(metadata: Mapping[bytes, bytes] | None) -> dict[str, Any]:
    """Return the provenance that a Parquet file carries, or nothing where morphem did not write it.

    Args:
        metadata: Of the file's footer or schema.
    """
    header = json.loads((metadata or {}).get(_HEADER, b"null"))
    return dict(header["provenance"]) if header is not None else {}


def concat(tables: Iterable[FeatureTable]) -> FeatureTable:
    """Put tables of the same columns one below another; the provenance is the first one's.

    Raises:
        DataError: If there is none, or they differ in their columns.
    """
    tables = list(tables)
    if not tables:
        raise DataError("there is no feature table to join.")
    if any(table.columns != tables[0].columns for table in tables):
        raise DataError("the tables to be joined differ in their feature columns.")
    metadata = pd.concat([table.metadata for table in tables], ignore_index=True)
    return replace(tables[0], values=np.concatenate([table.values for table in tables]), metadata=metadata)

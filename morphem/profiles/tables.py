"""Read and write tables of profiles: Parquet, CSV, TSV (also gzipped) and AnnData, ours and those of others."""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from morphem import features as feature_tables
from morphem.errors import ConfigError, DataError, unknown_name
from morphem.features import METADATA, FeatureTable
from morphem.profiles.conventions import COMPARTMENTS, infer_features, is_metadata
from morphem.profiles.frames import MISSING, check_same_columns, float32_values, from_frame, typed

READABLE = (".parquet", ".csv", ".csv.gz", ".tsv", ".tsv.gz", ".h5ad")
WRITABLE = (".parquet", ".h5ad", ".csv", ".csv.gz")

_HEADER = b"morphem"
_BYTES_AT_ONCE = 512 * 2**20


def suffix(path: str | os.PathLike[str]) -> str:
    """Return the ending of a table's name in small letters, with `.gz` where it is there.

    Args:
        path: Of a file.
    """
    name = Path(path).name.lower()
    return next((ending for ending in sorted(READABLE, key=len, reverse=True) if name.endswith(ending)), "")


def list_tables(path: str | os.PathLike[str], features: str | Sequence[str] = "infer") -> list[Path]:
    """Return the tables at a path, sorted by name: a file, or a folder of files, one folder deep at most.

    Tables of metadata lie beside those of features in published folders; a file without a feature column is left out.

    Args:
        path: A file, or a folder.
        features: `infer`, or names and patterns of the feature columns.

    Raises:
        ConfigError: If the ending of a file is unknown.
        DataError: If nothing is there, or no file holds features.
    """
    path = Path(path)
    if path.is_file():
        if not suffix(path):
            raise ConfigError(f"'{path.name}' must end in one of {', '.join(READABLE)}.")
        return [path]
    if not path.is_dir():
        raise DataError(f"there is no table or folder '{path}'.")
    found = sorted(file for depth in ("*", "*/*") for file in path.glob(depth) if file.is_file() and suffix(file))
    kept = [file for file in found if suffix(file) == ".h5ad" or _feature_names(file, features)]
    if not kept:
        looks = f"begin with {', '.join(COMPARTMENTS)}" if features == "infer" else f"match {features}"
        raise DataError(
            f"no table of '{path}' ({len(found)} files ending in {', '.join(READABLE)}) has columns that {looks}; say "
            "which columns are features, for example features: ['emb_*']."
        )
    return kept


def read_table(
    path: str | os.PathLike[str], features: str | Sequence[str] = "infer", columns: Sequence[str] | None = None
) -> FeatureTable:
    """Read one table, or all tables of a folder one below another.

    Tables that morphem wrote say what their features are. In others, `Metadata_` columns are metadata, features are
    inferred as pycytominer does, and columns that are neither are left out and named in the provenance. Texts of
    metadata that look like numbers become numbers unless that would lose a leading zero.

    Args:
        path: A file or a folder, as `list_tables` takes it.
        features: `infer`, or names and patterns with `*` of the feature columns.
        columns: The features that the table must have, for example those of the model that it belongs to.

    Returns:
        The rows; `provenance['tables']` names the files and their SHA-256.

    Raises:
        ConfigError: If the ending is unknown, AnnData is not installed, or a pattern matches nothing.
        DataError: If a file is damaged, a feature holds a text, or files differ in their features.
    """
    files = list_tables(path, features)
    tables = [_read_one(file, features) for file in files]
    check_same_columns([(str(file), table.columns) for file, table in zip(files, tables, strict=True)])
    if columns is not None:
        check_same_columns([("the model", tuple(columns)), (str(files[0]), tables[0].columns)])
    joined = tables[0] if len(tables) == 1 else feature_tables.concat(tables)
    sources = [
        {"file": file.name, "sha256": sha256(file), "rows": len(t)} for file, t in zip(files, tables, strict=True)
    ]
    return replace(joined, provenance={**joined.provenance, "tables": sources})


def _read_one(file: Path, features: str | Sequence[str]) -> FeatureTable:
    ending = suffix(file)
    if ending == ".h5ad":
        return _read_anndata(file)
    if ending == ".parquet":
        arrow = _open(file).read()
        return from_frame(_arrow_frame(arrow), *_with_header(arrow.schema, features, file))
    return from_frame(_read_csv(file, features), features, str(file))


def _with_header(schema: pa.Schema, features: str | Sequence[str], file: Path) -> tuple[Any, str, Any]:
    """Return what `from_frame` needs: features of our own tables come from their dictionary."""
    header = json.loads((schema.metadata or {}).get(_HEADER, b"null"))
    if header is not None and features == "infer":
        return [entry["column"] for entry in header["dictionary"]], str(file), header
    return features, str(file), header


def _arrow_frame(arrow: pa.Table) -> pd.DataFrame:
    """Return a data frame of the columns alone: an index that pandas stored is no column of ours."""
    frame: pd.DataFrame = arrow.replace_schema_metadata(None).to_pandas()
    return frame


def _open(file: Path) -> pq.ParquetFile:
    try:
        return pq.ParquetFile(file)
    except (OSError, pa.ArrowInvalid) as fault:
        raise DataError(f"{file} is no readable Parquet file ({str(fault).splitlines()[0]}).") from fault


def _read_csv(file: Path, features: str | Sequence[str]) -> pd.DataFrame:
    wanted = set(_feature_names(file, features))
    texts = {name: str for name in _csv_header(file) if name not in wanted}
    try:
        frame = pd.read_csv(
            file, sep=_separator(file), dtype=texts, keep_default_na=False, na_values=MISSING, low_memory=False
        )
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as fault:
        raise DataError(f"{file} cannot be read as a table ({str(fault).splitlines()[0]}).") from fault
    for name in frame.columns:
        if is_metadata(str(name)):
            frame[name] = typed(frame[name])
    return frame


def _feature_names(file: Path, features: str | Sequence[str]) -> list[str]:
    """Return the feature columns of a Parquet or CSV file, perhaps none, without reading its rows."""
    if suffix(file) == ".parquet":
        schema = _open(file).schema_arrow
        names, (chosen, _, _) = schema.names, _with_header(schema, features, file)
    else:
        names, chosen = _csv_header(file), features
    others = [name for name in names if not is_metadata(name)]
    if isinstance(chosen, str):
        return infer_features(others) if chosen == "infer" else [n for n in others if fnmatchcase(n, chosen)]
    exact = set(chosen)
    wild = [pattern for pattern in chosen if any(letter in pattern for letter in "*?[")]
    return [n for n in others if n in exact or any(fnmatchcase(n, pattern) for pattern in wild)]


def _csv_header(file: Path) -> list[str]:
    try:
        frame = pd.read_csv(file, sep=_separator(file), nrows=0)
        first = pd.read_csv(file, sep=_separator(file), nrows=1, header=None, dtype=str, keep_default_na=False)
    except (OSError, EOFError, ValueError, pd.errors.ParserError) as fault:
        raise DataError(f"{file} cannot be read as a table ({str(fault).splitlines()[0]}).") from fault
    names = first.iloc[0]
    if names.duplicated().any():  # pandas would call the second one NAME.1
        raise DataError(f"{file}: '{names[names.duplicated()].iloc[0]}' is the name of two columns; rename one.")
    return [str(name) for name in frame.columns]


def _separator(file: Path) -> str:
    return "\t" if suffix(file).startswith(".tsv") else ","


def _read_anndata(file: Path) -> FeatureTable:
    try:
        import anndata
    except ImportError as fault:
        raise ConfigError("reading .h5ad needs AnnData; install 'morphem[anndata]', or give Parquet or CSV.") from fault
    try:
        data = anndata.read_h5ad(file)
    except (OSError, KeyError, ValueError, AttributeError) as fault:
        raise DataError(f"{file} is no readable AnnData file ({str(fault).splitlines()[0]}).") from fault
    dense = data.X.toarray() if hasattr(data.X, "toarray") else np.asarray(data.X)
    metadata = data.obs.reset_index(drop=True)
    for name in metadata.columns:
        if isinstance(metadata[name].dtype, pd.CategoricalDtype):
            metadata[name] = metadata[name].astype(object)
    labels = pd.Index([name if is_metadata(str(name)) else f"{METADATA}{name}" for name in metadata.columns])
    if not labels.is_unique:
        raise DataError(f"{file}: {labels[labels.duplicated()][0]} is the name of two columns; rename one.")
    metadata.columns = labels
    names = [str(name) for name in data.var_names]
    header = json.loads(data.uns["morphem"]) if "morphem" in data.uns else None
    kinds = {"channel", "index", "kind"} <= set(data.var.columns)
    dictionary = tuple(
        {"column": name, "channel": str(row["channel"]), "index": int(row["index"]), "kind": str(row["kind"])}
        if kinds
        else {"column": name, "channel": "", "index": i, "kind": "measurement"}
        for i, (name, (_, row)) in enumerate(zip(names, data.var.iterrows(), strict=True))
    )
    values, notes = float32_values(pd.DataFrame(dense, columns=names), names, str(file))
    provenance = {**(header["provenance"] if header else {}), **({"notes": notes} if notes else {})}
    return FeatureTable(values, metadata, tuple(names), dictionary, provenance)


def read_by_plate(file: Path, plate: str, features: str | Sequence[str] = "infer") -> Iterator[FeatureTable]:
    """Read a Parquet file one plate after another, with memory for one plate, a pack of small ones, and a row group.

    Plates are read in packs, so that a file in which the rows of many plates are mixed is not read once per plate.

    Args:
        file: Parquet.
        plate: The column that names plates.
        features: As for `read_table`.

    Raises:
        ConfigError: If the column is not there.
        DataError: If the file is damaged, or a row does not say its plate.
    """
    source = _open(file)
    if plate not in source.schema_arrow.names:
        known = filter(is_metadata, source.schema_arrow.names)
        raise ConfigError(f"{file}: {unknown_name('metadata column', plate, known)}")
    names = [source.read_row_group(i, columns=[plate]).column(0) for i in range(source.num_row_groups)]
    if any(part.null_count for part in names):
        raise DataError(f"{file}: {sum(part.null_count for part in names)} rows have no {plate}.")
    choice = _with_header(source.schema_arrow, features, file)
    row_bytes = 8 * len(source.schema_arrow.names)
    for pack in _packs(names, max(1, _BYTES_AT_ONCE // row_bytes)):
        wanted = pa.array(pack, names[0].type)
        masks = [pc.is_in(part, value_set=wanted) for part in names]
        parts = [source.read_row_group(i).filter(mask) for i, mask in enumerate(masks) if pc.any(mask).as_py()]
        rows = pa.concat_tables(parts)
        for value in wanted:
            yield from_frame(_arrow_frame(rows.filter(pc.equal(rows.column(plate), value))), *choice)


def _packs(names: Sequence[pa.ChunkedArray], limit: int) -> Iterator[list[Any]]:
    """Yield plates in order of first appearance, together as long as their rows are no more than the limit."""
    counts: dict[Any, int] = {}
    for part in names:
        for entry in part.value_counts().to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    pack: list[Any] = []
    for value in counts:
        if pack and sum(counts[held] for held in pack) + counts[value] > limit:
            yield pack
            pack = []
        pack.append(value)
    if pack:
        yield pack


def write_table(table: FeatureTable, path: str | os.PathLike[str]) -> None:
    """Write Parquet, AnnData or CSV; a CSV gets its dictionary and provenance beside it, in `NAME.json`.

    Args:
        table: What to write.
        path: Ends in .parquet, .h5ad, .csv or .csv.gz.

    Raises:
        ConfigError: If the ending is another.
        DataError: If the file cannot be written.
    """
    path = Path(path)
    ending = suffix(path)
    if ending not in WRITABLE:
        raise ConfigError(f"'{path.name}' must end in one of {', '.join(WRITABLE)}.")
    if ending in (".parquet", ".h5ad"):
        table.write(path)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    header = {"dictionary": [dict(entry) for entry in table.dictionary], "provenance": dict(table.provenance)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        compression: Any = "gzip" if ending.endswith(".gz") else None
        table.to_frame().to_csv(partial, index=False, compression=compression)
        path.with_name(f"{path.name}.json").write_text(json.dumps(header, indent=1))
        partial.replace(path)
    except OSError as fault:
        raise DataError(f"cannot write {path} ({fault}); free some space or choose another place.") from fault
    finally:
        partial.unlink(missing_ok=True)


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file.

    Args:
        file: To read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()

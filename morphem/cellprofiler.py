"""A table of CellProfiler's features read as if it were an encoder: the baseline that needs no network.

Source: Carpenter et al. 2006, https://doi.org/10.1186/gb-2006-7-10-r100; column names as CellProfiler writes them
(compartment, category, feature, channels, settings), https://cellprofiler-manual.s3.amazonaws.com.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pandas as pd

from morphem.data.schema import resolve_channel
from morphem.errors import ChannelError, ConfigError, DataError, unknown_name
from morphem.features import FeatureTable
from morphem.profiles.tables import read_table

KEYS = ("Metadata_Plate", "Metadata_Well")
_SEVERAL = ("Correlation",)
_BRIGHT_FIELD = "BF"  # JUMP's LowZBF and HighZBF: bright field below and above the focus
_BEFORE_CHANNELS = 3  # compartment, category and feature


class CellProfilerTable:
    """Features of wells, or of whatever the rows are, from files of CellProfiler or pycytominer.

    Args:
        path: A CSV, TSV (also gzipped), Parquet or AnnData file, or a folder of them.
        features: `infer`: columns that begin with a compartment (Cells, Cytoplasm, Nuclei); or names and patterns.
        keys: Metadata columns that tell rows apart.

    Attributes:
        embed_dim: Number of features.
        keys: As given.

    Raises:
        ConfigError: If there is no such key column.
        DataError: If a file is damaged or has no features, two rows have the same keys, or a feature is not a finite
            number.
    """

    def __init__(
        self, path: str | os.PathLike[str], features: str | Sequence[str] = "infer", keys: Sequence[str] = KEYS
    ) -> None:
        table = read_table(path, features)
        _check_finite(table)
        self.keys = tuple(keys)
        _check_keys(table.metadata, self.keys, os.fspath(path))
        dictionary = tuple({**entry, "channel": channel_of(str(entry["column"]))} for entry in table.dictionary)
        self._table = replace(table, dictionary=dictionary, provenance={**self._provenance(table), **table.provenance})
        self.embed_dim = len(table.columns)

    def __len__(self) -> int:
        """Rows of the table."""
        return len(self._table)

    def table(self) -> FeatureTable:
        """Return all rows, with the channel of each feature in the dictionary."""
        return self._table

    def embed(self, rows: pd.DataFrame) -> FeatureTable:
        """Return the features of some wells, as an encoder would that saw their images.

        Args:
            rows: Metadata of the wells, for example of an encoder's table; only the key columns are looked at.

        Returns:
            One row for each of `rows`, in their order, with their metadata and, where those lack it, the table's.

        Raises:
            ConfigError: If `rows` lacks a key column.
            DataError: If the table has no row for some of them.
        """
        _check_columns(rows, self.keys, "the rows")
        places = {key: place for place, key in enumerate(_key_list(self._table.metadata, self.keys))}
        wanted = _key_list(rows, self.keys)
        missing = [key for key in wanted if key not in places]
        if missing:
            shown = "; ".join(", ".join(key) for key in missing[:3])
            raise DataError(
                f"CellProfiler's table has no row for {len(missing)} of {len(wanted)} wells ({', '.join(self.keys)}: "
                f"{shown}); give the table of these plates, or leave the wells out."
            )
        chosen = np.asarray([places[key] for key in wanted], np.int64)
        own = self._table.metadata.iloc[chosen].reset_index(drop=True)
        given = rows.reset_index(drop=True)
        metadata = pd.concat([given, own[[name for name in own.columns if name not in given.columns]]], axis=1)
        return replace(self._table, values=self._table.values[chosen], metadata=metadata)

    def _provenance(self, table: FeatureTable) -> dict[str, Any]:
        digest = hashlib.sha256(json.dumps(list(table.columns)).encode())
        digest.update(np.ascontiguousarray(table.values).data)
        return {
            "model": "CellProfiler",
            "revision": None,
            "weights_fingerprint": digest.hexdigest(),
            "morphem_version": version("morphem"),
        }


def channel_of(column: str) -> str:
    """Return what a feature was measured in: a channel type, several joined by ` and `, or `` where it is the shape.

    Args:
        column: For example `Cells_Intensity_MeanIntensity_DNA` or `Nuclei_Correlation_K_AGP_Mito`.
    """
    words = column.split("_")
    found: list[str] = []
    for word in words[2 if words[1:2] == ["Granularity"] else _BEFORE_CHANNELS :]:
        name = _channel(word)
        if name is not None and name not in found:
            found.append(name)
    return " and ".join(found if words[1:2] == list(_SEVERAL) else found[:1])


def _channel(word: str) -> str | None:
    if word.endswith(_BRIGHT_FIELD) or not word.isalpha():
        return "bright-field" if word.endswith(_BRIGHT_FIELD) else None
    try:
        return resolve_channel(word)
    except ChannelError:
        return None


def _check_finite(table: FeatureTable) -> None:
    bad = ~np.isfinite(table.values)
    if not bad.any():
        return
    columns = [table.columns[place] for place in np.flatnonzero(bad.any(axis=0))]
    raise DataError(
        f"{int(bad.sum())} values of {len(columns)} of CellProfiler's features are missing or infinite (first "
        f"'{columns[0]}'); drop these columns or rows before (`morphem profile` with feature selection does it)."
    )


def _check_columns(frame: pd.DataFrame, keys: Sequence[str], what: str) -> None:
    for key in keys:
        if key not in frame.columns:
            raise ConfigError(f"{what}: {unknown_name('key column', key, map(str, frame.columns))}")


def _check_keys(metadata: pd.DataFrame, keys: Sequence[str], what: str) -> None:
    _check_columns(metadata, keys, what)
    found = _key_list(metadata, keys)
    if len(set(found)) != len(found):
        seen: set[tuple[str, ...]] = set()
        twice = next(key for key in found if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise DataError(
            f"{what} has two rows of one key ({', '.join(keys)}: {', '.join(twice)}); name the columns that tell rows "
            "apart with keys."
        )


def _key_list(frame: pd.DataFrame, keys: Sequence[str]) -> list[tuple[str, ...]]:
    return list(zip(*(frame[key].astype(str) for key in keys), strict=True))


__all__ = ["KEYS", "CellProfilerTable", "channel_of"]

"""What a benchmark is: a published protocol with its data layout, its feature recipe, its score and its results table.

A benchmark is one file with one class, registered under the entry point group `morphem.benchmarks`. It imports no
torch: scoring a table needs no training stack. `morphem.testing.check_benchmark` checks what this page promises.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.score import Score
from morphem.errors import ConfigError, DataError, unknown_name
from morphem.features import Combine, FeatureTable

Unit = Literal["tile", "cell", "image"]
Level = Literal["cell", "image", "well"]


@dataclass(frozen=True)
class Column:
    """A `Metadata_` column that a protocol reads.

    Whatever the table calls it, the protocol finds it under `name`: the runner looks for `name`, then for each of
    `aliases`, then for `Metadata_Label_...` and `Metadata_Cell_...` (what `morphem embed` makes of labels whose name is
    taken), and copies what it finds.

    Attributes:
        name: Canonical name, for example `Metadata_compound`. Columns that JUMP or the schema have are called as there:
            `Metadata_Plate`, `Metadata_Well`, `Metadata_Study`, `Metadata_Site`, `Metadata_Cell_Line`.
        what: What it says, in a few words, for error messages and docs.
        aliases: Other names, in order of preference.
        required: Whether the protocol cannot do without.
        missing_allowed: Whether single rows may lack a value (null, NaN, empty).
        aliases_only: Whether a column that happens to have the canonical name does not count, because a setting says
            which column is meant.
    """

    name: str
    what: str
    aliases: tuple[str, ...] = ()
    required: bool = True
    missing_allowed: bool = False
    aliases_only: bool = False


@dataclass(frozen=True)
class FeatureRecipe:
    """What `morphem embed` does to make a part's table from images; the encoder adds its own preprocessing.

    Attributes:
        unit: What a row is before aggregation: `tile`, `cell` or `image` (the whole image, at its own size).
        tile_size_px: Side of a tile, with unit `tile`.
        crop_size_px: Side of a cell's crop, with unit `cell`.
        combine: `concat` (bag of channels side by side), `mean` or `none`.
        aggregate: Average rows to `cell`, `image` or `well`; None keeps them.
        query: Selects channel planes.
        mask: What is outside of a cell, with unit `cell`: `none` (it stays), `zero` or `background`.
        prepare: What is done to pixels in place of the encoder's own preparation, by its name in
            `morphem.benchmarks.preparations.PREPARATIONS`; `own` leaves it to the encoder.
        pixels: What pixels stand for, as `morphem embed --pixels` takes it; None as the encoder was made for. With
            `stretched`, an encoder of 16-bit intensities sees 8-bit images.
        as_stored: Whether the published images are 8-bit pixels that nobody may stretch; shards that were clipped
            (`morphem ingest` without `--clip none`) then put the mark on scores.
        differs: What of the published preprocessing this path does not do, one sentence each; each puts the mark `*`
            on scores that were made from images.
    """

    unit: Unit = "image"
    tile_size_px: int | None = None
    crop_size_px: int | None = None
    combine: Combine = "concat"
    aggregate: Level | None = None
    query: str | None = None
    mask: Literal["none", "zero", "background"] = "none"
    prepare: str = "own"
    pixels: Literal["levels", "counts", "stretched", "unit"] | None = None
    as_stored: bool = False
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Part:
    """One table that a protocol needs: one data set with one set of channels.

    Attributes:
        name: For example `Allen`; protocols of one table call it `table`.
        what: What it holds and what a row is, one sentence.
        columns: Metadata that is read.
        source: Short name of the morphem source that ingests its images (`morphem ingest --source ...`), or "".
        recipe: How features are made from its images.
        key: Canonical columns that together name a row; two rows of one name are refused. Empty: rows have no names.
        required: Whether the protocol cannot do without.
        study: Name of its study where its source makes several: the parts may then lie in one shard set.
    """

    name: str
    what: str
    columns: tuple[Column, ...]
    source: str = ""
    recipe: FeatureRecipe = field(default_factory=FeatureRecipe)
    key: tuple[str, ...] = ()
    required: bool = True
    study: str = ""


@dataclass(frozen=True)
class SideTable:
    """A file beside the features or the images that a protocol reads: targets of compounds, hit lists, split lists.

    Attributes:
        name: What the protocol calls it.
        patterns: Shell patterns of its file name, looked for in the folder of features, then of data, and one folder
            below. `.csv`, `.tsv` (also gzipped) and `.parquet` give a frame; `.txt` one column `value`, a row per line.
        what: What it says, one sentence.
        columns: Columns that must be there.
        required: Whether the protocol cannot do without.
    """

    name: str
    patterns: tuple[str, ...]
    what: str
    columns: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True)
class PublishedRow:
    """A row of a paper's results.

    Attributes:
        model: As the paper calls it.
        scores: By names of `Benchmark.score_names`; shares are fractions.
        table: Paper and table, for example `CHAMMI-75, Table D17`.
        note: Why the row cannot be compared one to one; it gets a mark in the leaderboard.
    """

    model: str
    scores: Mapping[str, float]
    table: str
    note: str = ""


@dataclass(frozen=True)
class Inputs:
    """What a protocol scores.

    Attributes:
        tables: Feature tables by name of part, with canonical metadata columns; values are finite float32.
        side: Side tables by name.
    """

    tables: Mapping[str, FeatureTable]
    side: Mapping[str, pd.DataFrame] = field(default_factory=dict)

    @property
    def table(self) -> FeatureTable:
        """The only table.

        Raises:
            DataError: If there are several.
        """
        if len(self.tables) != 1:
            raise DataError(f"there are {len(self.tables)} tables ({', '.join(self.tables)}); one was expected.")
        return next(iter(self.tables.values()))


class Benchmark(ABC):
    """A published evaluation protocol; a subclass is one file.

    The class attributes are what `--list`, the docs page and the checks read. Settings are named arguments of
    `__init__`, each kept as an attribute of its own name; `variant` and `seed` always exist.

    Args:
        variant: One of `variants`; the first where not given.
        seed: Of everything random in the protocol: nulls, splits, bootstrap.

    Attributes:
        protocol_version: Rises whenever a change of ours changes a number.
        title: One line.
        measures: What it measures, in the words of a biologist: two to five sentences.
        reading: What a good and what a bad value look like, with numbers: one to three sentences.
        source: Paper, and the code that was read.
        parts: The tables it needs.
        side_tables: The files it needs besides.
        score_names: Every name that `Score.values` may have, with what it is; the first is the headline.
        variants: Name and one sentence each, where code and paper differ. The first is the default: the one that made
            the published number, and its sentence says so.
        model_variant: The variant that a run from an encoder (`--model`, callbacks) takes where none is asked for, if
            the published rows of encoders were not made by the default.
        published: The results table.
        interval_unit: What the protocol averages over, hence what intervals draw (`compound`, `plate`, `gene`); "" with
            `no_interval` where there is none.
        no_interval: Why there is no interval, where there is none.
        is_retrieval: Whether a score is a ranking of neighbours: `Score.rules` then names `p_value` and `negatives`.
        lower_is_better: Names of scores of which less is better.
        control: Canonical column and its values that tell control rows, for the leak probes; they look for the usual
            columns (`Metadata_control_type`, `Metadata_Control`, ...) where this is None.
        biology: Canonical column that holds what the score is about (compound, label), for the leak probes.
        robust_to: Canonical columns whose knowledge alone must not raise the headline, for example `Metadata_Plate`
            where the protocol excludes neighbours of the same plate; checked by features that hold nothing else.
        tiny_finds: Headline that `tiny(seed, 1.0)` reaches at least (at most, where lower is better).
        tiny_null: Headline that `tiny(seed, 0.0)` stays below (above) on average over seeds.

    Raises:
        ConfigError: If there is no such variant.
    """

    protocol_version: ClassVar[int] = 1
    title: ClassVar[str]
    measures: ClassVar[str]
    reading: ClassVar[str]
    source: ClassVar[str]
    parts: ClassVar[tuple[Part, ...]]
    side_tables: ClassVar[tuple[SideTable, ...]] = ()
    score_names: ClassVar[Mapping[str, str]]
    variants: ClassVar[Mapping[str, str]]
    model_variant: ClassVar[str | None] = None
    published: ClassVar[tuple[PublishedRow, ...]] = ()
    interval_unit: ClassVar[str] = ""
    no_interval: ClassVar[str] = ""
    is_retrieval: ClassVar[bool] = False
    lower_is_better: ClassVar[frozenset[str]] = frozenset()
    control: ClassVar[tuple[str, tuple[str, ...]] | None] = None
    biology: ClassVar[str | None] = None
    robust_to: ClassVar[tuple[str, ...]] = ()
    tiny_finds: ClassVar[float]
    tiny_null: ClassVar[float]

    def __init__(self, variant: str | None = None, seed: int = 0) -> None:
        self.variant = next(iter(self.variants)) if variant is None else variant
        self.seed = seed
        if self.variant not in self.variants:
            raise ConfigError(unknown_name(f"variant of {type(self).__name__}", self.variant, self.variants))

    @abstractmethod
    def score(self, inputs: Inputs) -> Score:
        """Score the tables; the same tables in any order of rows give the same score.

        The runner has already checked that required parts, side tables and columns are there under their canonical
        names, that features are finite, that widths agree within a part, and that no `key` occurs twice.

        Args:
            inputs: Tables by part and side tables.

        Raises:
            DataError: If the tables do not allow the score (one class, no controls on a plate, ...), in one sentence.
        """

    @classmethod
    @abstractmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Build the smallest data in exactly the published layout, with a known answer; takes well under a second.

        Args:
            seed: Other seeds give other draws.
            effect: Size of the planted effect: 0 none (a null that must not be found), 1 a clear one; infinity: the
                features hold nothing but the truth. See `morphem.benchmarks.tiny`.
        """

    @classmethod
    def tiny_instance(cls) -> Self:
        """Return the benchmark with the settings that suit `tiny` (small nulls, few epochs)."""
        return cls()

    def parts_in_use(self) -> tuple[Part, ...]:
        """Return the parts as the settings of this instance need them; those of the class unless overridden."""
        return self.parts

    def adapt(self, inputs: Inputs) -> Inputs:
        """Change tables before they are scored, for example drop columns that the protocol drops; default: nothing."""
        return inputs

    @property
    def headline(self) -> str:
        """Name of the first score."""
        return next(iter(self.score_names))

    def settings(self) -> dict[str, Any]:
        """Return all arguments of `__init__` with their values, for the record."""
        return {
            name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"
        }


def column(table: FeatureTable, name: str) -> NDArray[Any]:
    """Return a metadata column as an array of objects, (R,).

    Args:
        table: Has the column.
        name: Canonical name.

    Raises:
        DataError: If it is missing, with the nearest name.
    """
    if name not in table.metadata:
        raise DataError(unknown_name("metadata column", name, map(str, table.metadata.columns)))
    return table.metadata[name].to_numpy(object)


def take(table: FeatureTable, rows: Sequence[int] | NDArray[np.int64] | NDArray[np.bool_]) -> FeatureTable:
    """Return some rows of a table, by number or by mask."""
    index = np.asarray(rows) if len(rows) else np.zeros(0, np.int64)
    metadata = table.metadata.iloc[np.flatnonzero(index) if index.dtype == bool else index].reset_index(drop=True)
    return FeatureTable(table.values[index], metadata, table.columns, table.dictionary, table.provenance)


def with_values(
    table: FeatureTable,
    values: NDArray[Any],
    columns: Sequence[str] | None = None,
    metadata: pd.DataFrame | None = None,
) -> FeatureTable:
    """Return a table with other features: same rows unless `metadata` is given, same columns unless named.

    Args:
        table: Gives what is not replaced.
        values: (R, F).
        columns: F names; those of the table where not given, or `Cells_Feature_0000` ... where the width differs.
        metadata: R rows.
    """
    if columns is None and values.shape[1] == len(table.columns):
        columns, dictionary = table.columns, table.dictionary
    else:
        names = columns or [f"Cells_Feature_{i:04d}" for i in range(values.shape[1])]
        old = {entry["column"]: entry for entry in table.dictionary}
        plain = ({"column": name, "channel": "", "index": i, "kind": "image"} for i, name in enumerate(names))
        columns, dictionary = tuple(names), tuple(old.get(str(entry["column"]), entry) for entry in plain)
    return FeatureTable(
        np.asarray(values, np.float32),
        table.metadata if metadata is None else metadata,
        tuple(columns),
        dictionary,
        table.provenance,
    )


def make_table(values: NDArray[Any], metadata: pd.DataFrame, columns: Sequence[str] | None = None) -> FeatureTable:
    """Build a feature table from arrays.

    Args:
        values: (R, F).
        metadata: R rows; every column starts with `Metadata_`.
        columns: F names; `Cells_Feature_0000` ... where not given.
    """
    names = tuple(columns or (f"Cells_Feature_{i:04d}" for i in range(values.shape[1])))
    dictionary = tuple({"column": name, "channel": "", "index": i, "kind": "image"} for i, name in enumerate(names))
    return FeatureTable(np.asarray(values, np.float32), metadata.reset_index(drop=True), names, dictionary)

"""Run a benchmark: on tables, or on an encoder whose features are made once and kept by their content's hash."""

import inspect
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from morphem import registry
from morphem.benchmarks import inputs as reading
from morphem.benchmarks.base import Benchmark, FeatureRecipe, Inputs, Part
from morphem.benchmarks.leaks import LeakReport, probe_leaks
from morphem.benchmarks.preparations import feature_differences
from morphem.benchmarks.record import Record, describe_features, frame_hash
from morphem.errors import ConfigError, DataError, unknown_name
from morphem.features import FeatureTable

if TYPE_CHECKING:
    from morphem.encoder import Encoder


def build(name: str, settings: Mapping[str, Any] | None = None, *, for_model: bool = False) -> Benchmark:
    """Build a benchmark by name.

    Args:
        name: Registered name.
        settings: Arguments of its `__init__`.
        for_model: Take its variant for encoders where no variant is asked for.

    Raises:
        PluginError: If there is no such benchmark.
        ConfigError: If a setting is unknown or out of range.
    """
    cls = registry.get("benchmarks", name)
    if not (inspect.isclass(cls) and issubclass(cls, Benchmark)):
        raise ConfigError(f"the plug-in '{name}' is no Benchmark.")
    given = dict(settings or {})
    known = [parameter for parameter in inspect.signature(cls.__init__).parameters if parameter != "self"]
    for key in given:
        if key not in known:
            raise ConfigError(unknown_name(f"setting of {name}", key, known))
    if for_model and cls.model_variant is not None and given.get("variant") is None:
        given["variant"] = cls.model_variant
    try:
        benchmark: Benchmark = cls(**given)
    except TypeError as fault:
        raise ConfigError(f"{name}: a setting has a wrong type ({fault}).") from fault
    return benchmark


def score_tables(
    name: str,
    benchmark: Benchmark,
    tables: Mapping[str, FeatureTable],
    side: Mapping[str, pd.DataFrame] | None = None,
    *,
    columns: Mapping[str, str] | None = None,
    source: Mapping[str, Any] | None = None,
    differs: tuple[str, ...] = (),
    leaks: bool = True,
) -> Record:
    """Check tables, score them, probe them for leaks, and return the record.

    Args:
        name: Registered name of the benchmark.
        benchmark: The protocol.
        tables: By name of part.
        side: By name of side table.
        columns: Column of the tables by canonical name.
        source: Where the features come from, for the record.
        differs: Why the run cannot be identical with the published protocol.
        leaks: Run the leak probes.

    Raises:
        MorphemError: If the tables do not allow the score.
    """
    begin = time.perf_counter()
    inputs = reading.prepare(benchmark, tables, side, columns)
    score = benchmark.score(inputs)
    reports = probe_parts(benchmark, inputs) if leaks else {}
    return Record(
        name,
        benchmark,
        score,
        reports,
        describe_features(inputs, source or {}),
        {side_name: frame_hash(frame) for side_name, frame in inputs.side.items()},
        differs,
        time.perf_counter() - begin,
    )


def probe_parts(benchmark: Benchmark, inputs: Inputs) -> dict[str, LeakReport]:
    """Return the leak probes of every part."""
    return {
        part: probe_leaks(table, control=benchmark.control, biology=benchmark.biology, seed=benchmark.seed)
        for part, table in inputs.tables.items()
    }


def score_features(
    name: str,
    path: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    features: str | Sequence[str] = "infer",
    metadata: str | Path | None = None,
    on: Sequence[str] = ("Metadata_Plate", "Metadata_Well"),
    columns: Mapping[str, str] | None = None,
    side: Mapping[str, Path] | None = None,
    leaks: bool = True,
) -> Record:
    """Score a feature table, or a folder of them.

    Args:
        name: Registered name of the benchmark.
        path: File or folder.
        settings: Settings of the benchmark.
        features: Which columns are features; those of CellProfiler and morphem are known.
        metadata: Table whose columns are joined to the rows.
        on: Columns by which it is joined.
        columns: Column of the tables by canonical name.
        side: Paths of side tables by name.
        leaks: Run the leak probes.

    Raises:
        MorphemError: If the tables do not allow the score.
    """
    benchmark = build(name, settings)
    tables = reading.read_features(benchmark, path, features)
    if metadata is not None:
        tables = joined(tables, metadata, on)
    frames = side_frames(benchmark, [Path(path)], side)
    source = {"features": str(path)} | ({"metadata": str(metadata)} if metadata else {})
    differs = feature_differences(benchmark, tables)
    return score_tables(name, benchmark, tables, frames, columns=columns, source=source, differs=differs, leaks=leaks)


def joined(tables: Mapping[str, FeatureTable], metadata: str | Path, on: Sequence[str]) -> dict[str, FeatureTable]:
    """Join a table of metadata to every part."""
    frame = reading.read_side_table(Path(metadata))
    return {part: reading.join_metadata(table, frame, on) for part, table in tables.items()}


def side_frames(
    benchmark: Benchmark, places: Sequence[Path], given: Mapping[str, Path] | None = None
) -> dict[str, pd.DataFrame]:
    """Find and read the side tables of a benchmark."""
    found = reading.find_side_tables(benchmark, places, given)
    return {name: reading.read_side_table(path) for name, path in found.items()}


def score_model(
    name: str,
    model: "str | Encoder",
    data: str | Path,
    settings: Mapping[str, Any] | None = None,
    *,
    cache: str | Path | None = None,
    metadata: str | Path | None = None,
    on: Sequence[str] = ("Metadata_Plate", "Metadata_Well"),
    columns: Mapping[str, str] | None = None,
    side: Mapping[str, Path] | None = None,
    leaks: bool = True,
    batch_size: int = 64,
    num_workers: int = 0,
    device: str | None = None,
    query: str | None = None,
    recipe: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> Record:
    """Score an encoder: make its features as the benchmark's recipe says, once, then score them.

    Args:
        name: Registered name of the benchmark.
        model: What `morphem.load` takes, or an encoder.
        data: Shards of the only part, or a folder with the shards of each part in a folder of its name; side tables are
            looked for there too.
        settings: Settings of the benchmark.
        cache: Folder for features; `benchmarks` in morphem's cache where not given.
        metadata: Table whose columns are joined to the rows.
        on: Columns by which it is joined.
        columns: Column of the tables by canonical name.
        side: Paths of side tables by name.
        leaks: Run the leak probes.
        batch_size: Planes at once.
        num_workers: Processes that read.
        device: Where to compute.
        query: Selects channel planes, besides the recipe's query.
        recipe: Fields of the recipe to change (`unit`, `crop_size_px`, ...); the record names each as a difference.
        progress: Show bars.

    Raises:
        MorphemError: If data, model or settings do not allow the score.
    """
    from morphem import zoo
    from morphem.benchmarks.extract import cached_features, run_remarks

    benchmark = build(name, settings, for_model=True)
    encoder = zoo.load(model) if isinstance(model, str) else model
    places = part_places(benchmark, data)
    tables: dict[str, FeatureTable] = {}
    differs: list[str] = []
    for part in benchmark.parts_in_use():
        if part.name not in places:
            continue
        changed = changed_recipe(part.recipe, recipe)
        differs += [*part.recipe.differs, *recipe_changes(part.recipe, changed)]
        differs += run_remarks(encoder, places[part.name], changed)
        chosen = of_study(part, places[part.name], data, changed)
        tables[part.name] = cached_features(
            encoder, places[part.name], chosen, cache=cache, query=query, batch_size=batch_size,
            num_workers=num_workers, device=device, progress=progress,
        )  # fmt: skip
    if metadata is not None:
        tables = joined(tables, metadata, on)
    frames = side_frames(benchmark, [Path(data)], side)
    source = {"model": model if isinstance(model, str) else encoder.provenance()["model"], "data": str(data)}
    unique = tuple(dict.fromkeys(differs))
    return score_tables(name, benchmark, tables, frames, columns=columns, source=source, differs=unique, leaks=leaks)


def changed_recipe(recipe: FeatureRecipe, changes: Mapping[str, Any] | None) -> FeatureRecipe:
    """Return a recipe with some fields changed.

    Raises:
        ConfigError: If there is no such field.
    """
    known = [field for field in FeatureRecipe.__dataclass_fields__ if field != "differs"]
    for key in changes or {}:
        if key not in known:
            raise ConfigError(unknown_name("field of a feature recipe", key, known))
    return replace(recipe, **dict(changes or {}))


def recipe_changes(old: FeatureRecipe, changed: FeatureRecipe) -> list[str]:
    """Return what a changed recipe does otherwise, one sentence per field."""
    return [
        f"{field}={getattr(changed, field)!r} instead of the protocol's {getattr(old, field)!r}"
        for field in old.__dataclass_fields__
        if field != "differs" and getattr(changed, field) != getattr(old, field)
    ]


def part_places(benchmark: Benchmark, data: str | Path) -> dict[str, str]:
    """Return the address of the shards of every part: a folder of its name, or one set with the studies of all parts.

    Raises:
        DataError: If a part's shards are not there, with the command that makes them.
    """
    parts = benchmark.parts_in_use()
    is_set = _is_address(data) or _has_shards(Path(data))
    if len(parts) == 1 and is_set:
        return {parts[0].name: str(data)}
    found = {}
    if is_set and any(part.study for part in parts):
        from morphem.data.shards import ShardSet, resolve_root

        studies = ShardSet(resolve_root(data)).studies
        found = {part.name: str(data) for part in parts if part.study in studies}
        if found:
            return found
    for part in parts:
        places = [Path(data) / part.name, Path(data) / part.name.lower()]
        there = [place for place in places if _has_shards(place)]
        if there:
            found[part.name] = str(there[0])
        elif part.required:
            words = (f"--source {part.source} " if part.source else "") + (
                "--clip none " if part.recipe.as_stored else ""
            )
            command = f"morphem ingest IMAGES {words}--output "
            place = str(data) if len(parts) == 1 else str(Path(data) / part.name)
            raise DataError(f"there are no shards of {part.what} in '{place}'; make them with: {command}{place}")
    return found


def of_study(part: Part, place: str, data: str | Path, recipe: FeatureRecipe) -> FeatureRecipe:
    """Return a recipe that selects the part's study, where its shards lie in one set with those of other parts.

    Args:
        part: Of the benchmark.
        place: As `part_places` gave it.
        data: As it was given.
        recipe: Of the part.
    """
    if not part.study or place != str(data):
        return recipe
    query = f"experiment.study == '{part.study}'"
    return replace(recipe, query=f"({recipe.query}) and {query}" if recipe.query else query)


def _is_address(data: str | Path) -> bool:
    return "://" in str(data)


def _has_shards(folder: Path) -> bool:
    return (folder / "metadata.parquet").is_file()

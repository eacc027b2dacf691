"""Benchmarks while training goes on: the protocols of `morphem benchmark` on the exported encoder, every n epochs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
from lightning.fabric.utilities import rank_zero_warn
from lightning.pytorch.trainer.states import TrainerFn

from morphem import registry
from morphem.benchmarks import inputs as reading
from morphem.benchmarks.base import Benchmark, Part, make_table
from morphem.benchmarks.extract import embed_settings, run_remarks
from morphem.benchmarks.record import Record, write_json
from morphem.benchmarks.runner import (
    build,
    changed_recipe,
    of_study,
    part_places,
    recipe_changes,
    score_tables,
    side_frames,
)
from morphem.callbacks.frozen_features import FeatureRequest, FeatureSource, feature_source
from morphem.encoder import Encoder
from morphem.errors import ConfigError, DataError, MorphemError, unknown_name
from morphem.methods.base import Method


class Benchmarks(L.Callback):
    """Score the encoder in training with published protocols.

    Every score is logged as `benchmark/{name}/{score}`; `ModelCheckpoint` can monitor it.
    Features are made by all processes together, by the one path that `morphem embed` takes, and scored on the first.
    With and without this callback a run ends with the same weights. The full record of every score is written to
    `benchmarks/{name}-step{step}.json` in the folder of the run.

    Args:
        data: Folder with the shards of each benchmark in a folder of its name; or an address by name of benchmark, each
            with shards, or with the shards of each part in a folder of its name.
        names: Names of benchmarks; all whose data are there where not given.
        every_n_epochs: Epochs between two scores.
        at_start: Also score the encoder before training.
        settings: Settings by name of benchmark, for example `{generic: {label: treatment}}`.
        columns: By name of benchmark, columns of the shards by the names that the protocol gives them.
        recipe: By name of benchmark, fields of the feature recipe to change.
        metadata: By name of benchmark, a table whose columns are joined by plate and well.
        batch_size: Planes per batch of the extraction.
        num_workers: Processes that read.
        leak_probes: Probe for leaks too, and warn.

    Attributes:
        latest: The last scores, by their names in logs.

    Raises:
        ConfigError: If a setting is out of range, or names something unknown.
    """

    def __init__(
        self,
        data: str | dict[str, str],
        names: list[str] | None = None,
        every_n_epochs: int = 1,
        at_start: bool = False,
        settings: dict[str, dict[str, Any]] | None = None,
        columns: dict[str, dict[str, str]] | None = None,
        recipe: dict[str, dict[str, Any]] | None = None,
        metadata: dict[str, str] | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        leak_probes: bool = True,
    ) -> None:
        if every_n_epochs < 1:
            raise ConfigError(f"Benchmarks: every_n_epochs={every_n_epochs} has to be 1 or more.")
        self.every_n_epochs = every_n_epochs
        self.at_start = at_start
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.leak_probes = leak_probes
        self.latest: dict[str, float] = {}
        self._places = _places(data, names)
        self._columns = columns or {}
        self._recipe = recipe or {}
        self._metadata = metadata or {}
        self._step = -1
        self._told: set[str] = set()
        for key, given in (("settings", settings), ("columns", columns), ("recipe", recipe), ("metadata", metadata)):
            for name in given or {}:
                if name not in self._places:
                    raise ConfigError(f"Benchmarks: {key}: {unknown_name('benchmark of this run', name, self._places)}")
        chosen = settings or {}
        self.benchmarks = {name: build(name, chosen.get(name), for_model=True) for name in self._places}

    def state_dict(self) -> dict[str, Any]:
        """Return the last scores."""
        return {"latest": dict(self.latest), "step": self._step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the last scores."""
        self.latest, self._step = dict(state_dict["latest"]), int(state_dict["step"])

    def on_train_start(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Check that data and columns of every benchmark are there; score the untrained encoder where asked for.

        Raises:
            DataError: If something that a protocol needs is missing.
        """
        for name, benchmark in self.benchmarks.items():
            for part, source in self._sources(trainer, pl_module, name, benchmark):
                self._check_columns(name, benchmark, part, source)
        if self.at_start and trainer.global_step == 0:
            scores = {f"{key}/before": value for key, value in self._score_all(trainer, pl_module).items()}
            for logger in trainer.loggers:
                logger.log_metrics(scores, step=0)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Score every n epochs."""
        if (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            pl_module.log_dict(self._update(trainer, pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Score what the run ended with, if the schedule did not."""
        if self._step != trainer.global_step:
            scores = self._update(trainer, pl_module)
            for logger in trainer.loggers:
                logger.log_metrics(scores, step=trainer.global_step)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Score a checkpoint under `validate`; a fit has its own schedule."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            pl_module.log_dict(self._update(trainer, pl_module))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Score a checkpoint under `test`."""
        pl_module.log_dict(self._update(trainer, pl_module))

    def _update(self, trainer: L.Trainer, pl_module: Method) -> dict[str, float]:
        self.latest, self._step = self._score_all(trainer, pl_module), trainer.global_step
        return self.latest

    def _score_all(self, trainer: L.Trainer, pl_module: Method) -> dict[str, float]:
        """Return all scores by their names in logs; all processes get the same, or raise the same error."""
        found: dict[str, float] = {}
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "benchmarks"  # log_dir asks all processes
        for name, benchmark in self.benchmarks.items():
            sources = self._sources(trainer, pl_module, name, benchmark)
            tables = {part.name: source.table(trainer) for part, source in sources}
            answer: dict[str, float] | str = {}
            if trainer.is_global_zero:
                try:
                    record = self._score(name, benchmark, tables, pl_module.exported_encoder())
                    path = folder / f"{name}-step{trainer.global_step:08d}.json"
                    write_json(record.to_json(), path)
                    answer = {f"benchmark/{name}/{score}": value for score, value in record.score.values.items()}
                except MorphemError as fault:
                    answer = f"benchmark {name}: {fault}"
            answer = trainer.strategy.broadcast(answer)
            if isinstance(answer, str):  # every process stops, instead of waiting for the first
                raise DataError(answer)
            found.update(answer)
        return found

    def _score(self, name: str, benchmark: Benchmark, tables: Mapping[str, Any], encoder: Encoder) -> Record:
        place = self._places[name]
        if name in self._metadata:
            frame = reading.read_side_table(Path(self._metadata[name]))
            keys = ("Metadata_Plate", "Metadata_Well")
            tables = {part: reading.join_metadata(table, frame, keys) for part, table in tables.items()}
        side = side_frames(benchmark, [Path(place)])
        record = score_tables(
            name,
            benchmark,
            tables,
            side,
            columns=self._columns.get(name),
            source={"model": "the encoder in training", "data": place},
            differs=self._differences(name, benchmark, encoder),
            leaks=self.leak_probes,
        )
        for text in record.warnings:
            if text.partition("(")[0] not in self._told:
                self._told.add(text.partition("(")[0])
                rank_zero_warn(f"benchmark {name}: {text}")
        return record

    def _differences(self, name: str, benchmark: Benchmark, encoder: Encoder) -> tuple[str, ...]:
        found: list[str] = []
        places = part_places(benchmark, self._places[name])
        for part in benchmark.parts_in_use():
            changed = changed_recipe(part.recipe, self._recipe.get(name))
            found += [*part.recipe.differs, *recipe_changes(part.recipe, changed)]
            if part.name in places:
                found += run_remarks(encoder, places[part.name], changed)
        return tuple(dict.fromkeys(found))

    def _sources(
        self, trainer: L.Trainer, pl_module: Method, name: str, benchmark: Benchmark
    ) -> list[tuple[Part, FeatureSource]]:
        """Return the features of every part whose shards are there; probes that ask for the same share them."""
        places = part_places(benchmark, self._places[name])
        found = []
        for part in benchmark.parts_in_use():
            if part.name in places:
                changed = changed_recipe(part.recipe, self._recipe.get(name))
                recipe = of_study(part, places[part.name], self._places[name], changed)
                request = FeatureRequest(
                    places[part.name],
                    embed_settings(recipe),
                    recipe.aggregate,
                    None,
                    0,
                    self.batch_size,
                    self.num_workers,
                    recipe.prepare,
                )
                found.append((part, feature_source(trainer, pl_module, request)))
        return found

    def _check_columns(self, name: str, benchmark: Benchmark, part: Part, source: FeatureSource) -> None:
        """Look for the columns before the first step, not after the first epoch."""
        if name in self._metadata:
            return
        metadata = source.metadata()
        stand_in = make_table(np.zeros((len(metadata), 1)), metadata)
        reading.canonical(stand_in, part, self._columns.get(name), f"benchmark {name}: '{self._places[name]}'")


def _places(data: str | Mapping[str, str], names: Sequence[str] | None) -> dict[str, str]:
    """Return the data of every benchmark that is asked for."""
    registered = registry.names("benchmarks")
    for name in [*(names or ()), *(data if isinstance(data, Mapping) else ())]:
        if name not in registered:
            raise ConfigError(f"Benchmarks: {unknown_name('benchmark', name, registered)}")
    if isinstance(data, Mapping):
        lost = [name for name in names or data if name not in data]
        if lost:
            raise ConfigError(f"Benchmarks: data names no shards for '{lost[0]}'; add them or leave the name out.")
        return {name: data[name] for name in (names or data)}
    there = {name: str(Path(data) / name) for name in registered if (Path(data) / name).is_dir()}
    if names is None:
        if not there:
            raise ConfigError(
                f"Benchmarks: '{data}' has no folder of the name of a benchmark ({', '.join(registered)})."
            )
        return there
    lost = [name for name in names if name not in there]
    if lost:
        raise ConfigError(f"Benchmarks: there is no folder '{Path(data) / lost[0]}' with the data of '{lost[0]}'.")
    return {name: there[name] for name in names}

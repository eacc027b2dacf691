"""What probes share: when they run, frozen features from all processes, a split that keeps groups together, a score.

A probe looks at the exported encoder through the one path to features that `morphem embed` takes. It draws no random
number and changes nothing of the training: with and without it a run ends with the same weights.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal

import lightning.pytorch as L
import numpy as np
import pandas as pd
import torch
from lightning.fabric.utilities import rank_zero_warn
from lightning.pytorch.trainer.states import TrainerFn
from numpy.typing import NDArray
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_f1_score

from morphem.aggregation import Level
from morphem.callbacks.frozen_features import FeatureRequest, feature_source
from morphem.callbacks.label_columns import find_column, is_missing
from morphem.callbacks.splits import Split, split_by_group
from morphem.data.plan import Unit
from morphem.errors import ConfigError, DataError
from morphem.extraction import EmbedSettings
from morphem.features import Combine, FeatureTable
from morphem.methods.base import Method

Metric = Literal["accuracy", "balanced_accuracy", "macro_f1"]
WELL = ("experiment.study", "experiment.plate", "experiment.well")
_Score = Callable[[torch.Tensor, torch.Tensor, int], float]


class Probe(L.Callback, ABC):
    """A small supervised task on frozen features, scored while training goes on.

    The score is logged as `probe/{kind}/{task}`, that of the untrained encoder as `probe/{kind}/{task}/before`;
    `ModelCheckpoint` can monitor the first. Rows without a label are left out and counted. The split keeps groups
    together: rows of one well (or what `group` names) are never on both sides.

    Args:
        data: Labelled shards; other wells than the training data, for an honest score.
        label: Column to predict: a label of the shards or of their cells, or a column of the schema.
        group: Columns that together name a group; by default study, plate and well. Empty: every image is a group.
        every_n_epochs: Epochs between two scores.
        every_n_steps: Optimizer steps between two scores, instead of epochs.
        at_start: Also score the encoder before training.
        unit: What a row is: `tile`, `cell` or `image`.
        tile_size_px: Side of a tile in pixels; with unit `tile`.
        crop_size_px: Side of a cell's crop in pixels; with unit `cell`, and needed there.
        combine: How channels become a row: `concat` or `mean`.
        aggregate: Average rows to `cell`, `image` or `well` first.
        query: Selects channel planes.
        metric: `balanced_accuracy` (mean over classes, chance is 1 / classes), `accuracy`, or `macro_f1`.
        test_fraction: Share of the groups of each class that is tested on, between 0 and 1.
        seed: Seed of the split and of `max_images`.
        max_images: Largest number of images; all where not given.
        batch_size: Planes per batch of the extraction.
        num_workers: Processes that read.
        task: Name of the score in logs; the label where not given. Two probes of one kind need two names.

    Attributes:
        before: Score of the encoder before training.
        latest: The last score.
        step: Optimizer steps taken at the last score.

    Raises:
        ConfigError: If a setting is out of range or without effect.
    """

    kind: ClassVar[str]

    def __init__(
        self,
        data: str,
        label: str,
        group: Sequence[str] | str = WELL,
        every_n_epochs: int = 1,
        every_n_steps: int | None = None,
        at_start: bool = True,
        unit: Unit = "tile",
        tile_size_px: int | None = None,
        crop_size_px: int | None = None,
        combine: Combine = "concat",
        aggregate: Level | None = None,
        query: str | None = None,
        metric: Metric = "balanced_accuracy",
        test_fraction: float = 0.3,
        seed: int = 0,
        max_images: int | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
        task: str | None = None,
    ) -> None:
        settings = EmbedSettings(unit, tile_size_px, crop_size_px, combine, query)
        self.request = FeatureRequest(data, settings, aggregate, max_images, seed, batch_size, num_workers)
        self.label = label
        self.task = task or label
        self.group = (group,) if isinstance(group, str) else tuple(group)
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.at_start = at_start
        self.metric = metric
        self.test_fraction = test_fraction
        self.before: float | None = None
        self.latest: float | None = None
        self.step = -1
        self._told = False
        self._check()

    def _check(self) -> None:
        counts = {
            "every_n_epochs": self.every_n_epochs,
            "every_n_steps": self.every_n_steps,
            "max_images": self.request.max_images,
        }
        for key, value in counts.items():
            if value is not None and value < 1:
                raise ConfigError(f"{type(self).__name__}: {key}={value} has to be 1 or more.")
        if self.every_n_steps is not None and self.every_n_epochs != 1:
            raise ConfigError(f"{type(self).__name__}: every_n_steps and every_n_epochs exclude each other; set one.")
        if not 0 < self.test_fraction < 1:
            raise ConfigError(f"{type(self).__name__}: test_fraction={self.test_fraction} has to be between 0 and 1.")
        if self.metric not in _METRICS:
            raise ConfigError(f"{type(self).__name__}: metric='{self.metric}' is not one of {', '.join(_METRICS)}.")
        if self.request.settings.combine == "none":
            raise ConfigError(f"{type(self).__name__}: combine='none' gives no row per image; use concat or mean.")

    @abstractmethod
    def predict(
        self, train: NDArray[np.float32], classes: NDArray[np.int64], test: NDArray[np.float32], n_classes: int
    ) -> NDArray[np.int64]:
        """Learn classes from features and predict them, without a random number of a global generator.

        Args:
            train: (M, F).
            classes: (M,), 0 to n_classes - 1; each occurs.
            test: (T, F).
            n_classes: At least 2.

        Returns:
            (T,).
        """

    @property
    def name(self) -> str:
        """Name of the score in logs."""
        return f"probe/{self.kind}/{self.task}"

    @property
    def state_key(self) -> str:
        """Tells probes of one class apart in a checkpoint."""
        return self._generate_state_key(kind=self.kind, label=self.label, request=repr(self.request))

    def state_dict(self) -> dict[str, Any]:
        """Return the scores, so that a resumed run knows where it started from."""
        return {"before": self.before, "latest": self.latest, "step": self.step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the scores."""
        self.before, self.latest, self.step = (state_dict[key] for key in ("before", "latest", "step"))

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Refuse two probes of one name, whose scores would overwrite each other.

        Raises:
            ConfigError: With the name.
        """
        probes = [callback for callback in trainer.callbacks if isinstance(callback, Probe)]  # type: ignore[attr-defined]
        if sum(probe.name == self.name for probe in probes) > 1:
            raise ConfigError(f"two probes write their score as '{self.name}'; give each of them a task, its own name.")

    def on_train_start(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Check labels and groups, and score the untrained encoder, unless the run goes on from a checkpoint.

        Raises:
            DataError: If there is no label, or no class with groups on both sides.
        """
        self._split(feature_source(trainer, pl_module, self.request).metadata())
        if self.at_start and trainer.global_step == 0:
            self.before = self.score(trainer, pl_module)
            _write(trainer, {f"{self.name}/before": self.before})

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: Method, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Score every n steps, where asked for."""
        steps = self.every_n_steps
        if steps is not None and trainer.global_step % steps == 0 and trainer.global_step != self.step:
            pl_module.log(self.name, self._update(trainer, pl_module))

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Score every n epochs, where asked for."""
        if self.every_n_steps is None and (trainer.current_epoch + 1) % self.every_n_epochs == 0:
            pl_module.log(self.name, self._update(trainer, pl_module))

    def on_train_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Score what the run ended with, if the schedule did not."""
        if self.step != trainer.global_step:
            _write(trainer, {self.name: self._update(trainer, pl_module)})

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Score a checkpoint under `validate`; a fit has its own schedule."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            pl_module.log(self.name, self.score(trainer, pl_module))

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Score a checkpoint under `test`."""
        pl_module.log(self.name, self.score(trainer, pl_module))

    def _update(self, trainer: L.Trainer, pl_module: Method) -> float:
        self.latest, self.step = self.score(trainer, pl_module), trainer.global_step
        return self.latest

    def score(self, trainer: L.Trainer, pl_module: Method) -> float:
        """Return the score of the exported encoder as it is now; all processes have to call this, and get the same.

        Raises:
            DataError: If there is no label, or no class with groups on both sides.
        """
        table = feature_source(trainer, pl_module, self.request).table(trainer)
        result: float = trainer.strategy.broadcast(self.evaluate(table) if trainer.is_global_zero else 0.0)
        return result

    def evaluate(self, table: FeatureTable) -> float:
        """Return the score on a table of features.

        Args:
            table: With the label's and the group's columns.

        Raises:
            DataError: If there is no label, or no class with groups on both sides.
        """
        rows, split = self._split(table.metadata)
        values = table.values[rows]
        predicted = self.predict(values[split.train], split.classes[split.train], values[split.test], split.n_classes)
        target = torch.from_numpy(split.classes[split.test])
        return _METRICS[self.metric](torch.from_numpy(predicted), target, split.n_classes)

    def _split(self, metadata: pd.DataFrame) -> tuple[NDArray[np.int64], Split]:
        """Return the rows that have a label, and their split."""
        labels = metadata[find_column(self.label, metadata, self.request.data)]
        missing = is_missing(labels).to_numpy()
        if missing.all():
            raise DataError(
                f"{self.name}: all {len(labels)} rows of {self.request.data} lack the label '{self.label}'; "
                "name another label, or ingest it."
            )
        split = split_by_group(
            labels[~missing].astype(str).tolist(),
            self._groups(metadata[~missing]),
            test_fraction=self.test_fraction,
            seed=self.request.seed,
            where=f"{self.name} on {self.request.data}",
        )
        self._tell(int(missing.sum()), split)
        return np.flatnonzero(~missing), split

    def _groups(self, metadata: pd.DataFrame) -> list[tuple[str, ...]]:
        columns = [find_column(name, metadata, self.request.data) for name in self.group]
        columns = columns or ["Metadata_Study", "Metadata_Key"]
        return list(zip(*(metadata[column].astype(str) for column in columns), strict=True))

    def _tell(self, n_missing: int, split: Split) -> None:
        """Say once what is left out."""
        if self._told:
            return
        self._told = True
        reasons = []
        if n_missing:
            reasons.append(f"{n_missing} rows without the label '{self.label}'")
        if split.n_left_out:
            names = ", ".join(f"'{name}'" for name in split.left_out)
            reasons.append(f"{split.n_left_out} rows of classes that only one group has ({names})")
        if reasons:
            rank_zero_warn(f"{self.name} leaves out {' and '.join(reasons)} of {self.request.data}.")


def _accuracy(average_over: Literal["micro", "macro"]) -> _Score:
    def compute(predicted: torch.Tensor, target: torch.Tensor, n_classes: int) -> float:
        return float(multiclass_accuracy(predicted, target, num_classes=n_classes, average=average_over))

    return compute


def _macro_f1(predicted: torch.Tensor, target: torch.Tensor, n_classes: int) -> float:
    return float(multiclass_f1_score(predicted, target, num_classes=n_classes, average="macro"))


_METRICS: dict[str, _Score] = {
    "accuracy": _accuracy("micro"),
    "balanced_accuracy": _accuracy("macro"),
    "macro_f1": _macro_f1,
}


def _write(trainer: L.Trainer, scores: dict[str, float]) -> None:
    """Write scores to the loggers where `log` is not allowed."""
    for logger in trainer.loggers:
        logger.log_metrics(scores, step=trainer.global_step)

"""What a run leaves behind: the exported encoder, a table of features, and a few lines that say where they are."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch.distributed as dist

from morphem.callbacks.frozen_features import FeatureRequest, feature_source
from morphem.callbacks.probe import Probe
from morphem.errors import ConfigError
from morphem.extraction import EmbedSettings
from morphem.features import FeatureTable
from morphem.methods.base import Method
from morphem.registry import name_of
from morphem.sharding import whole
from morphem.spec import class_of
from morphem.types import ChannelBatch
from morphem.weights import inherited


class RunSummary(L.Callback):
    """Export the encoder, embed a data set, and print what was trained, the scores, where things lie, what to do next.

    Everything lies in the run's folder: `encoder/`, and `features.parquet` where `embed_data` is given.

    Args:
        embed_data: Shards to embed with the exported encoder at the end; none where not given.
        embed_settings: How they are embedded.
        batch_size: Planes per batch of that.
        num_workers: Processes that read for that.

    Attributes:
        encoder_path: Folder of the exported encoder, once the run is over.
        features_path: The table of features, once the run is over.

    Raises:
        ConfigError: If `embed_settings` is given without `embed_data`.
    """

    def __init__(
        self,
        embed_data: str | None = None,
        embed_settings: EmbedSettings | None = None,
        batch_size: int = 64,
        num_workers: int = 0,
    ) -> None:
        if embed_data is None and embed_settings is not None:
            raise ConfigError("RunSummary: embed_settings has no effect without embed_data; give both or neither.")
        self.embed_data = embed_data
        self.embed_settings = embed_settings or EmbedSettings()
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.encoder_path: Path | None = None
        self.features_path: Path | None = None
        self._channel_types: set[str] = set()
        self._seconds = 0.0
        self._started = 0.0
        self._device = ""
        self._folder = Path()
        self._table: FeatureTable | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return the channel types seen and the time spent so far."""
        spent = self._seconds + (time.perf_counter() - self._started if self._started else 0.0)
        return {"channel_types": sorted(self._channel_types), "seconds": spent}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore them."""
        self._channel_types, self._seconds = set(state_dict["channel_types"]), state_dict["seconds"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ChannelBatch, batch_idx: int
    ) -> None:
        """Note what training sees."""
        self._channel_types.update(batch.channel_types)

    def on_train_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Embed, with all processes and while the encoder is still on its device."""
        self._seconds, self._started = self.state_dict()["seconds"], 0.0
        self._device = f"{trainer.world_size} x {pl_module.device.type}"
        self._folder = Path(trainer.strategy.broadcast(trainer.log_dir or trainer.default_root_dir))
        self._channel_types = self._all_types(trainer)
        if self.embed_data is not None:
            request = FeatureRequest(
                self.embed_data, self.embed_settings, None, None, 0, self.batch_size, self.num_workers
            )
            self._table = feature_source(trainer, pl_module, request).table(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: Method) -> None:  # type: ignore[override]
        """Write, and print, when all probes are done."""
        with whole(pl_module):
            if trainer.is_global_zero:
                self._write(trainer, pl_module)

    def _write(self, trainer: L.Trainer, pl_module: Method) -> None:
        self.encoder_path = self._folder / "encoder"
        pl_module.exported_encoder().save_pretrained(self.encoder_path, card=self._card(trainer, pl_module))
        if self._table is not None:
            self.features_path = self._folder / "features.parquet"
            origin = {**self._table.provenance, "model": str(self.encoder_path)}
            replace(self._table, provenance=origin).write(self.features_path)
        print("\n" + "\n".join(self._lines(trainer, pl_module)), flush=True)

    def _all_types(self, trainer: L.Trainer) -> set[str]:
        """Channel types that any process saw."""
        shares: list[Any] = [self._channel_types]
        if trainer.world_size > 1:
            shares = [None] * trainer.world_size
            dist.all_gather_object(shares, self._channel_types)
        return set().union(*shares)

    def _card(self, trainer: L.Trainer, method: Method) -> dict[str, Any]:
        return {
            **inherited(method.exported_encoder().card),
            "method": method_name(method),
            "exported": method.exported_encoder_key.removesuffix("."),
            "steps": trainer.global_step,
            "channel_types": sorted(self._channel_types),
            "probes": {probe.name: probe.latest for probe in _probes(trainer) if probe.latest is not None},
        }

    def _lines(self, trainer: L.Trainer, method: Method) -> list[str]:
        lines = [
            f"Trained {method_name(method)} for {trainer.current_epoch} epochs ({trainer.global_step} steps) "
            f"in {_duration(self._seconds)} on {self._device}."
        ]
        for probe in _probes(trainer):
            lines.append(
                f"  {probe.name}: {_score(probe.before)} before, {_score(probe.latest)} after ({probe.metric})"
            )
        checkpoint = trainer.checkpoint_callback
        best = getattr(checkpoint, "best_model_path", "") or getattr(checkpoint, "last_model_path", "")
        found = {"checkpoint": best, "encoder": self.encoder_path, "features": self.features_path}
        lines += [f"  {what + ':':<12}{path}" for what, path in found.items() if path]
        return [
            *lines,
            "Next, embed images of your own:",
            f"  python -m morphem embed --model {self.encoder_path} --data SHARDS{self._cut()} "
            "--output features.parquet",
        ]

    def _cut(self) -> str:
        """Return the options of `embed` that cut images as they were cut here."""
        chosen = {
            "unit": self.embed_settings.unit,
            "tile-size-px": self.embed_settings.tile_size_px,
            "crop-size-px": self.embed_settings.crop_size_px,
        }
        default = EmbedSettings()
        if (default.unit, default.tile_size_px, default.crop_size_px) == tuple(chosen.values()):
            return ""
        return "".join(f" --{name} {value}" for name, value in chosen.items() if value is not None)


def method_name(method: Method) -> str:
    """Return the registered name of a method, or the name of its class."""
    return name_of(class_of(method)) or class_of(method).__name__


def _probes(trainer: L.Trainer) -> list[Probe]:
    return [callback for callback in trainer.callbacks if isinstance(callback, Probe)]  # type: ignore[attr-defined]


def _score(score: float | None) -> str:
    return "-" if score is None else f"{score:.3f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"

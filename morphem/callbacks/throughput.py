"""How fast a run is, and whether the device waits for data."""

import time
from typing import Any

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import rank_zero_warn

from morphem.methods.base import Method
from morphem.types import ChannelBatch


class Throughput(L.Callback):
    """Log images per second over all devices, and the share of time in which training waits for data.

    `throughput/images_per_second` counts crops (channel planes where the loader's unit is a plane);
    `throughput/data_wait` is the time from the end of one step to the start of the next, which is spent on reading,
    collating and moving the batch, as a share of all time. Validation, probes and checkpoints count in neither.

    Args:
        every_n_steps: Batches between two entries in the log, at least 2. The device is waited for once in that time.
        warn_share: Warn once when the share of waiting is above this, 0 to 1.
        n_skipped: Batches left out at the start, in which workers start and kernels are chosen.
    """

    def __init__(self, every_n_steps: int = 50, warn_share: float = 0.2, n_skipped: int = 5) -> None:
        self.every_n_steps = max(every_n_steps, 2)
        self.warn_share = warn_share
        self.n_skipped = n_skipped
        self._warned = False
        self._last_end: float | None = None
        self._started_at = 0.0
        self._n_seen = 0
        self._clear()

    def _clear(self) -> None:
        self._images, self._batches, self._waited, self._worked = 0, 0, 0.0, 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the start of an epoch out: its first batch has no end of a step before it."""
        self._last_end = None

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave validation out."""
        self._last_end = None

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: ChannelBatch, batch_idx: int
    ) -> None:
        """Stop the clock of waiting, start that of working."""
        assert isinstance(pl_module, Method)
        self._started_at = time.perf_counter()
        if self._last_end is not None and self._n_seen >= self.n_skipped:
            self._waited += self._started_at - pl_module.step_ended_at

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: ChannelBatch, batch_idx: int
    ) -> None:
        """Count a batch; log every `every_n_steps`."""
        self._n_seen += 1
        counted = self._last_end is not None and self._n_seen > self.n_skipped
        due = self._batches + 1 >= self.every_n_steps
        if counted and due and pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        self._last_end = time.perf_counter()
        if not counted:
            return
        self._worked += self._last_end - self._started_at
        self._images += batch.n_images
        self._batches += 1
        if due:
            self._log(trainer, pl_module)
            self._clear()

    def _log(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = self._waited + self._worked
        share = self._waited / total
        pl_module.log("throughput/images_per_second", self._images * trainer.world_size / total)
        pl_module.log("throughput/data_wait", share)
        if share > self.warn_share and not self._warned:
            self._warned = True
            rank_zero_warn(
                f"Training waits for data {share:.0%} of the time (over {self._batches} batches); the cheapest "
                "remedy is more data.num_workers, then data.crops_per_image above 1, then shards on a faster disk."
            )

"""Ctrl-C and SIGTERM end the running step, save a checkpoint that resumes, and stop the run."""

import os
import shutil
import signal
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning.pytorch as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint

EXIT_CODE = 130
"""Exit status of a run that was stopped and can be resumed; what shells use for Ctrl-C."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class GracefulStop(L.Callback):
    """Stop a run without losing a step.

    At the first SIGINT (Ctrl-C) or SIGTERM the running optimizer step is finished, `interrupted.ckpt` is saved, and the
    process leaves with status 130. A second signal stops at once. All processes stop after the same step, whichever of
    them got the signal.

    Args:
        dirpath: Folder of the checkpoint; that of the run's `ModelCheckpoint` where not given, else `checkpoints` in
            the run's folder.

    Attributes:
        stopped: Whether the run was stopped by a signal.
        path: The checkpoint that was saved.
    """

    def __init__(self, dirpath: str | None = None) -> None:
        self.dirpath = dirpath
        self.stopped = False
        self.path: Path | None = None
        self._received = 0
        self._last_step = 0
        self._pid = 0
        self._previous: dict[signal.Signals, Any] = {}
        self._group: Any = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Take over the signals; Lightning set its own handlers just before."""
        self._received, self._last_step, self._pid = 0, trainer.global_step, os.getpid()
        if trainer.world_size > 1 and dist.get_backend() != "gloo":
            self._group = dist.new_group(backend="gloo")  # a flag on the CPU: no step waits for the accelerator
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._receive) for number in _SIGNALS}

    def _receive(self, number: int, frame: FrameType | None) -> None:
        """Note a signal. Workers of the loader inherit this and leave the signal to the training process."""
        if os.getpid() != self._pid:
            return
        self._received += 1
        if self._received > 1:
            self._release()
            raise KeyboardInterrupt
        message = "\nStopping after this step; once more stops at once, without a checkpoint.\n"
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, message.encode())  # print is not reentrant

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save and stop, if a signal came and no gradient is half accumulated.

        Raises:
            SystemExit: With status 130, on all processes.
        """
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if not self._anyone(trainer):
            return
        self._received = 1
        self.path = self._save(trainer)
        self.stopped = True
        if trainer.is_global_zero:
            print(
                f"Stopped after step {trainer.global_step}. To go on, repeat the command with --ckpt_path {self.path}",
                flush=True,
            )
        raise SystemExit(EXIT_CODE)

    def _anyone(self, trainer: L.Trainer) -> bool:
        """Whether a signal reached any process."""
        if trainer.world_size == 1:
            return self._received > 0
        flag = torch.tensor([self._received])
        dist.all_reduce(flag, op=dist.ReduceOp.MAX, group=self._group)
        return bool(flag.item())

    def _save(self, trainer: L.Trainer) -> Path:
        folder = Path(self.dirpath or _checkpoint_folder(trainer))
        path, partial = folder / "interrupted.ckpt", folder / "interrupted.ckpt.partial"
        trainer.save_checkpoint(partial)
        if trainer.is_global_zero:
            if path.is_dir():  # a checkpoint of shards is a folder, which cannot be replaced
                shutil.rmtree(path)
            os.replace(partial, path)
        trainer.strategy.barrier("interrupted")
        return path

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the signals back, before Lightning does the same with what was there before its own."""
        self._release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._release()

    def _release(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def _checkpoint_folder(trainer: L.Trainer) -> str:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath:
            return str(callback.dirpath)
    return str(Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints")

"""Short runs on the CPU, under Lightning's own Trainer: the same loop, hooks and checkpoints as a real one."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import lightning.pytorch as L
import torch
from torch import Tensor

from morphem import rng
from morphem.methods.base import Method
from morphem.testing.batches import PANELS, tiny_batch
from morphem.testing.contract import has_gradient
from morphem.types import ChannelBatch


class TinyLoader:
    """A few batches of images that are the same in every epoch, with seeds that are not; resumes where it stood.

    Args:
        n_batches: Batches per epoch.
        panels: Channel types of the images of a batch.
    """

    def __init__(self, n_batches: int, panels: Sequence[Sequence[str]] = PANELS) -> None:
        self._batches = [tiny_batch(panels, seed=i) for i in range(n_batches)]
        self._epoch, self._next, self._begun = 0, 0, False

    def __len__(self) -> int:
        """Batches per epoch."""
        return len(self._batches)

    def __iter__(self) -> Iterator[ChannelBatch]:
        # A generator: Lightning makes iterators that it never uses, so nothing moves before a batch is asked for
        if self._begun:
            self._epoch, self._next = self._epoch + 1, 0
        self._begun = True
        while self._next < len(self):
            batch = self._batches[self._next]
            self._next += 1
            yield batch._replace(seeds=rng.mix_tensor(batch.seeds, "epoch", self._epoch))

    def state_dict(self) -> dict[str, int]:
        """Return the position."""
        return {"epoch": self._epoch, "next": self._next}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position."""
        self._epoch, self._next, self._begun = state["epoch"], state["next"], False


class TinyData(L.LightningDataModule):
    """Synthetic images of one to five channels and different sizes; needs no file.

    Args:
        n_batches: Batches per epoch, of six images each.
        panels: Channel types of the images of a batch, where others are wanted.

    Attributes:
        classes: The label column of `tiny_batch` and its classes, as a data module with labels has them.
    """

    def __init__(self, n_batches: int = 2, panels: Sequence[Sequence[str]] = PANELS) -> None:
        super().__init__()
        self.n_batches = n_batches
        self.panels = panels
        self.batch_size = len(panels)
        self.classes = {"label": ["first", "second"]}

    def train_dataloader(self) -> TinyLoader:
        """Return the training batches."""
        return TinyLoader(self.n_batches, self.panels)

    def val_dataloader(self) -> TinyLoader:
        """Return one batch, always the same."""
        return TinyLoader(1, self.panels)


class Trace(L.Callback):
    """Writes down what a run did, for the checks to judge.

    Args:
        save_at: Optimizer step after which a checkpoint is saved, or None.
        folder: Where.

    Attributes:
        losses: Loss of every batch.
        outputs: What `training_step` returned last.
        reached: Names of parameters that a gradient other than zero has reached, in any step.
        stray: Names of parameters that require no gradient but have one.
        moved_between: Names of parameters that changed although no optimizer step was taken.
    """

    def __init__(self, save_at: int | None = None, folder: Path | None = None) -> None:
        self.save_at = save_at
        self.folder = folder
        self.losses: list[float] = []
        self.outputs: Any = None
        self.reached: set[str] = set()
        self.stray: set[str] = set()
        self.moved_between: set[str] = set()
        self._before: tuple[int, dict[str, Tensor]] = (-1, {})

    @property
    def checkpoint(self) -> Path:
        """The checkpoint of step `save_at`."""
        assert self.folder is not None
        return self.folder / "middle.ckpt"

    def on_after_backward(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note which parameters have a gradient."""
        for name, parameter in pl_module.named_parameters():
            if not parameter.requires_grad and parameter.grad is not None:
                self.stray.add(name)
            elif has_gradient(parameter):
                self.reached.add(name)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note what moved since the last batch if no step was taken in between, and keep the weights."""
        self._compare(trainer, pl_module)
        parameters = {name: value.detach().clone() for name, value in pl_module.named_parameters()}
        self._before = (trainer.global_step, parameters)

    def _compare(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        step, before = self._before
        if trainer.global_step == step:
            now = dict(pl_module.named_parameters())
            self.moved_between |= {name for name, value in before.items() if not torch.equal(value, now[name])}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss; save where asked."""
        self.outputs = outputs
        self.losses.append(float(outputs["loss"]))
        if trainer.global_step == self.save_at and not self.checkpoint.exists():
            trainer.save_checkpoint(self.checkpoint)


@contextmanager
def quiet_trainer(**settings: Any) -> Iterator[L.Trainer]:
    """Give a trainer on the CPU without a log, a progress bar or a file; the global generator is left alone.

    Args:
        settings: Further ones, as Lightning's Trainer takes them.
    """
    with TemporaryDirectory() as root, torch.random.fork_rng(), _quiet():
        trainer = L.Trainer(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            default_root_dir=root,
            **settings,
        )
        torch.manual_seed(31_337)  # what a run draws from torch's generator must come from its own seed
        yield trainer


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's notes on devices, workers and log intervals to itself."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def train(
    method: Method,
    *,
    epochs: int = 2,
    n_batches: int = 2,
    accumulate: int = 1,
    save_at: int | None = None,
    folder: Path | None = None,
    resume: Path | None = None,
    precision: str = "32-true",
    panels: Sequence[Sequence[str]] = PANELS,
) -> Trace:
    """Train a method on synthetic images on the CPU, without a log, a progress bar or a file.

    Args:
        method: Trained in place.
        epochs: Epochs of the run.
        n_batches: Batches per epoch.
        accumulate: Batches per optimizer step.
        save_at: Optimizer step after which a checkpoint is saved to `folder`.
        folder: Where.
        resume: Checkpoint to go on from.
        precision: As Lightning's Trainer takes it.
        panels: Channel types of the images of a batch.

    Returns:
        What happened.
    """
    trace = Trace(save_at, folder)
    settings = {"max_epochs": epochs, "accumulate_grad_batches": accumulate, "precision": precision}
    with quiet_trainer(callbacks=[trace], **settings) as trainer:
        trainer.fit(method, datamodule=TinyData(n_batches, panels), ckpt_path=resume)
    return trace

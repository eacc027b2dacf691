"""A short run of DINO in as many processes as asked for; writes losses and weights. Run by test_two_processes.py.

Arguments: number of processes, folder, labelled shards, rank of the process that gets a Ctrl-C (-1: none).
"""

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from morphem import rng
from morphem.callbacks import GracefulStop, Health, KNNProbe, LinearProbe, RunSummary, Throughput
from morphem.extraction import EmbedSettings
from morphem.testing.batches import take, tiny_batch
from morphem.types import ChannelBatch
from tests.tiny_fit import tiny_dino

GLOBAL_BATCH, STEPS = 8, 6


class Shares(L.LightningDataModule):
    """The same global batches for any number of processes: each takes its share of the images."""

    batch_size = GLOBAL_BATCH

    def train_dataloader(self) -> "Shares":
        return self

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[ChannelBatch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        for step in range(STEPS):
            batch = tiny_batch([("nucleus",)] * GLOBAL_BATCH, [(40, 48)], seed=step)
            yield take(batch, range(rank, GLOBAL_BATCH, world))._replace(
                seeds=rng.mix_tensor(batch.seeds, "shares")[rank::world]
            )


class Losses(L.Callback):
    """Mean loss over all processes at every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")))


class SignalTo(L.Callback):
    """Sends Ctrl-C to one process alone, in its third step."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 2 and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGINT)


def main(n_processes: int, folder: Path, shards: str, signal_to: int) -> None:
    torch.manual_seed(0)
    method = tiny_dino(clip_per_tensor=None, weight_decay=0.0, weight_decay_end=None)
    # AdamW turns rounding noise in gradients that should be zero into whole steps; a large eps does not
    object.__setattr__(method.recipe, "eps", 1e-3)
    losses = Losses()
    probes = [probe(shards, "texture", unit="image") for probe in (LinearProbe, KNNProbe)]
    summary = RunSummary(shards, EmbedSettings(unit="image"))
    watching = [Health(every_n_steps=2), Throughput(every_n_steps=2), GracefulStop(), SignalTo(signal_to)]
    strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=n_processes,
        strategy=strategy if n_processes > 1 else "auto",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[losses, *probes, *watching, summary],
    )
    trainer.fit(method, datamodule=Shares())
    scores = [(probe.before, probe.latest) for probe in probes]
    torch.save(
        {"losses": losses.seen, "state": method.state_dict(), "scores": scores, "steps": trainer.global_step},
        folder / f"result-{trainer.global_rank}.pt",
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))

"""A short run of a method under a strategy of Lightning's, in as many processes as asked for. Run by test_fsdp.py.

Writes losses, scores of a probe and, from the first process, all weights.

Arguments: name in METHODS, strategy (one, ddp, fsdp, fsdp_whole), folder, labelled shards, checkpoint to go on from (or
a dash), number of steps.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from morphem import registry, rng
from morphem.callbacks import KNNProbe, RunSummary
from morphem.extraction import EmbedSettings
from morphem.methods.base import Method
from morphem.methods.dino import DINO
from morphem.sharding import is_sharded, local, whole
from morphem.testing.batches import take, tiny_batch
from morphem.types import ChannelBatch, StepOutput
from tests.tiny_fit import tiny_dino

GLOBAL_BATCH = 8


class FaultyInOne(DINO):
    """Its loss is not a number from step 4 on, in the second process alone."""

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        output = super().step(views)
        faulty = self.training and self.global_step >= 4 and self.global_rank == 1
        return output._replace(loss=output.loss * torch.nan) if faulty else output


def build(name: str) -> Method:
    """Build a method; AdamW turns rounding noise in gradients of zero into whole steps, a large eps does not."""
    if name == "faulty_in_one":
        return FaultyInOne.tiny()
    method = tiny_dino(weight_decay_end=None) if name == "dino" else registry.get("methods", name).tiny()
    object.__setattr__(method.recipe, "eps", 1e-3)
    return method


def strategy(name: str) -> Any:
    if name == "one":
        return "auto"
    if name == "ddp":
        return DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
    return ModelParallelStrategy(save_distributed_checkpoint=name == "fsdp", process_group_backend="gloo")


class Shares(L.LightningDataModule):
    """The same global batches for any number of processes: each takes its share of the images."""

    batch_size = GLOBAL_BATCH

    def __init__(self, first_step: int, last_step: int) -> None:
        super().__init__()
        self.steps = range(first_step, last_step)

    def train_dataloader(self) -> "Shares":
        return self

    def __len__(self) -> int:
        return self.steps.stop

    def __iter__(self) -> Iterator[ChannelBatch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        for step in self.steps:
            batch = tiny_batch([("nucleus",)] * GLOBAL_BATCH, [(40, 48)], seed=step)
            yield take(batch, range(rank, GLOBAL_BATCH, world))._replace(
                seeds=rng.mix_tensor(batch.seeds, "shares")[rank::world]
            )


class Losses(L.Callback):
    """Mean loss over all processes at every step; how many numbers of all weights this process held."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.held = 0

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")))
        self.held = sum(local(parameter).numel() for parameter in pl_module.parameters())


def main(name: str, kind: str, folder: Path, shards: str, resume: str, n_steps: int) -> None:
    torch.manual_seed(0)
    method, losses = build(name), Losses()
    probe = KNNProbe(shards, "texture", unit="image")
    saving = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    first = 3 if resume != "-" else 0
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1 if kind == "one" else 2,
        strategy=strategy(kind),
        max_epochs=1,
        max_steps=n_steps,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[losses, probe, RunSummary(shards, EmbedSettings(unit="image")), saving],
    )
    trainer.fit(method, datamodule=Shares(first, 6), ckpt_path=None if resume == "-" else resume, weights_only=True)
    sharded = is_sharded(method)
    with whole(method):
        result = {
            "losses": losses.seen,
            "held": losses.held,
            "sharded": sharded,
            "score": probe.latest,
            "state": {key: value.detach().clone() for key, value in method.named_parameters()},
        }
        torch.save(result, folder / f"result-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), sys.argv[4], sys.argv[5], int(sys.argv[6]))

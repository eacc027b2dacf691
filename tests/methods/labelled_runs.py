"""What the tests of methods on labels share: shards with labels, data modules over them, runs in one or more processes.

As a program: a short run of a method's smallest instance in as many processes as asked for; writes losses and weights.
Arguments: number of processes, folder, `module:Class` of the method.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from morphem import rng
from morphem.data.module import ShardData
from morphem.testing.batches import take, tiny_batch
from morphem.types import ChannelBatch
from tests.data.records import make_image, write_set
from tests.methods.two_processes import Losses

ROOT = Path(__file__).resolve().parents[2]
PANELS = [("nucleus",), ("nucleus", "actin")] * 4  # ranks get different numbers of planes
STEPS = 6
TREATMENTS: list[str | None] = ["taxol", None, "dmso", "taxol", "dmso", "nocodazole", "taxol", "dmso"]


def write_labelled(root: Path, treatments: list[str | None] = TREATMENTS) -> Path:
    """Images of 40 x 40 px with the labels `treatment` and `plate_half`."""
    images = [
        make_image(
            f"i{i}", labels={"treatment": name, "plate_half": "left" if i % 2 else "right", "lonely": "same"},
            seed=i, size=(40, 40), cells=None,
        )
        for i, name in enumerate(treatments)
    ]  # fmt: skip
    write_set(root, images)
    return root


def labelled_data(root: Path | None, *labels: str, **settings: Any) -> ShardData:
    """A data module over such shards, in batches of 8 planes."""
    settings = {"batch_size": 8, "num_workers": 0, "labels": list(labels), **settings}
    return ShardData(None if root is None else str(root), **settings)


class Shares(L.LightningDataModule):
    """The same global batches for any number of processes, with labels; each process takes its share of the images."""

    batch_size = len(PANELS)

    def __init__(self) -> None:
        super().__init__()
        self.classes = {"label": ["first", "second"]}

    def train_dataloader(self) -> "Shares":
        return self

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[ChannelBatch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        for step in range(STEPS):
            batch = tiny_batch(PANELS, [(40, 48)], seed=step)
            labels = torch.tensor([[0], [1], [0], [-1], [1], [1], [0], [0]])  # ranks get different numbers of labels
            mine = take(batch._replace(labels=labels), range(rank, len(PANELS), world))
            yield mine._replace(seeds=rng.mix_tensor(batch.seeds, "shares")[rank::world])


def run_processes(n_processes: int, folder: Path, method: str) -> list[dict[str, Any]]:
    """Run this file as a program and return what each process wrote."""
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.methods.labelled_runs", str(n_processes), str(folder), method]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(n_processes)]


def main(n_processes: int, folder: Path, path: str) -> None:
    torch.manual_seed(0)
    module, _, name = path.partition(":")
    method = getattr(importlib.import_module(module), name).tiny()
    # AdamW turns rounding noise in gradients that should be zero into whole steps; a large eps does not
    object.__setattr__(method.recipe, "eps", 1e-3)
    losses = Losses()
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
        callbacks=[losses],
    )
    trainer.fit(method, datamodule=Shares())
    torch.save({"losses": losses.seen, "state": method.state_dict()}, folder / f"result-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])

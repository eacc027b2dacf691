"""A run with a benchmark in as many processes as asked for. Run by test_benchmarks.py.

python -m tests.callbacks.benchmark_processes N_PROCESSES FOLDER SHARDS LABEL
"""

import json
import sys
from pathlib import Path

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from morphem.callbacks import Benchmarks
from morphem.errors import MorphemError
from morphem.testing.training import TinyData
from tests.tiny_fit import tiny_dino


def main(n_processes: int, folder: Path, shards: str, label: str) -> None:
    torch.manual_seed(0)
    settings = {"generic": {"null_size": 500, "label": label}}
    callback = Benchmarks(shards, ["generic"], settings=settings, recipe={"generic": {"tile_size_px": 32}})
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
        limit_val_batches=0,
        default_root_dir=str(folder),
        callbacks=[callback],
    )
    answer: object
    try:
        trainer.fit(tiny_dino(lr=1e-30), datamodule=TinyData(2))
        answer = callback.latest
    except MorphemError as fault:
        answer = str(fault)
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(answer))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4])

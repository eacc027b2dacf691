"""Short runs of masked autoencoders in as many processes as asked for. Run by test_mae_processes.py.

Arguments: number of processes, folder. The processes get different numbers of planes.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from morphem import rng
from morphem.decoders import DecoderRecipe
from morphem.losses.reconstruction import LossRecipe
from morphem.masking import MaskRecipe
from morphem.testing.batches import PANELS, take, tiny_batch
from morphem.types import ChannelBatch
from tests.methods.tiny_mae import TYPES, tiny_mae

STEPS = 4
RECIPES = {
    "types": DecoderRecipe(identity="types", width=16, depth=1, n_heads=2),
    "context": DecoderRecipe(identity="context", width=16, depth=1, n_heads=2),
    "per_channel": DecoderRecipe(kind="per_channel", identity="types", channels=TYPES, width=16, depth=1, n_heads=2),
}


class Shares(L.LightningDataModule):
    """The same global batches for any number of processes: each takes its share of the images."""

    batch_size = len(PANELS)

    def train_dataloader(self) -> "Shares":
        return self

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[ChannelBatch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        for step in range(STEPS):
            batch = tiny_batch(seed=step)
            share = take(batch, range(rank, batch.n_images, world))
            yield share._replace(seeds=rng.mix_tensor(batch.seeds, "shares")[rank::world])


class Losses(L.Callback):
    """Mean loss over all processes at every step."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, *_: Any) -> None:
        self.seen.append(float(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean")))


def main(n_processes: int, folder: Path, kind: str) -> None:
    torch.manual_seed(0)
    masks = [MaskRecipe(), MaskRecipe(None, channels=True)]
    loss = LossRecipe(fourier_weight=0.01, low_pass_weight=0.1)
    method = tiny_mae(masks=masks, decoder=RECIPES[kind], loss=loss, weight_decay=0.0)
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
    torch.save({"losses": losses.seen, "state": method.state_dict()}, folder / f"{kind}-{trainer.global_rank}.pt")


if __name__ == "__main__":
    for recipe in RECIPES:
        main(int(sys.argv[1]), Path(sys.argv[2]), recipe)

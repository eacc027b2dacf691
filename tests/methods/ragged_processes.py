"""A short run of a method in as many processes as asked for; writes losses and weights (see test_ragged_processes.py).

For SimCLR the images of a batch have one and two channels in turns, so that two processes have other numbers of planes;
for DINOv2 they have other numbers of hidden patches.

Arguments: name in METHODS, number of processes, folder.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import torch
from lightning.pytorch.strategies import DDPStrategy

from morphem import rng
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_attention import ChannelAttention
from morphem.data.views import MultiCrop
from morphem.encoder import Encoder
from morphem.methods.base import Method
from morphem.methods.dinov2 import DINOv2
from morphem.methods.simclr import SimCLR
from morphem.normalizers import SelfNormalize
from morphem.testing.batches import take, tiny_batch
from morphem.types import ChannelBatch
from tests.methods.two_processes import Losses

GLOBAL_BATCH, STEPS = 8, 6
RAGGED, EVEN = (("nucleus",), ("nucleus", "actin")), (("nucleus", "actin"),) * 2
METHODS: dict[str, tuple[Callable[[], Method], tuple[tuple[str, ...], tuple[str, ...]]]] = {
    "simclr": (SimCLR.tiny, RAGGED),
    "dinov2_mean": (lambda: _dinov2(ChannelAttention, centering="mean"), EVEN),
    "dinov2_sinkhorn": (lambda: _dinov2(BagOfChannels, centering="sinkhorn_knopp", patch_head="own"), EVEN),
}


def _dinov2(strategy: type[ChannelStrategy], **changes: Any) -> DINOv2:
    encoder = Encoder(strategy.tiny(), SelfNormalize(), input_size_px=32)
    rates: dict[str, Any] = {"lr": 1e-3, "lr_per_images": None, "warmup_epochs": 0, "clip_per_tensor": None}
    widths: dict[str, Any] = {"n_prototypes": 32, "head_hidden_dim": 32, "head_bottleneck_dim": 16}
    return DINOv2(encoder, MultiCrop.tiny(), freeze_last_layer_epochs=0, **widths, **rates, **changes)


class RaggedShares(L.LightningDataModule):
    """The same global batches for any number of processes: each takes its share of the images."""

    batch_size = GLOBAL_BATCH

    def __init__(self, panels: Sequence[tuple[str, ...]]) -> None:
        super().__init__()
        self.panels = [*panels] * (GLOBAL_BATCH // 2)

    def train_dataloader(self) -> "RaggedShares":
        return self

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Iterator[ChannelBatch]:
        rank, world = self.trainer.global_rank, self.trainer.world_size
        for step in range(STEPS):
            batch = tiny_batch(self.panels, [(40, 48)], seed=step)
            mine = take(batch, range(rank, GLOBAL_BATCH, world))
            yield mine._replace(seeds=rng.mix_tensor(mine.seeds, "shares"))


def main(name: str, n_processes: int, folder: Path) -> None:
    torch.manual_seed(0)
    build, panels = METHODS[name]
    method = build()
    # AdamW turns rounding noise in gradients that should be zero into whole steps; a large eps does not
    object.__setattr__(method.recipe, "eps", 1e-3)
    losses = Losses()
    strategy: Any = DDPStrategy(process_group_backend="gloo", find_unused_parameters=False)
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
    trainer.fit(method, datamodule=RaggedShares(panels))
    torch.save({"losses": losses.seen, "state": method.state_dict()}, folder / f"result-{trainer.global_rank}.pt")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

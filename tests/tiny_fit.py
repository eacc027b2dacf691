"""Runs of a second on synthetic batches, for tests that need Lightning's own loop."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop
from morphem.encoder import Encoder
from morphem.methods.base import Method
from morphem.methods.dino import DINO
from morphem.normalizers import SelfNormalize
from morphem.testing.training import TinyData


def tiny_dino(*, drop_path_rate: float = 0.0, **changes: Any) -> DINO:
    """DINO on the smallest vision transformer; other settings by name."""
    backbone = VisionTransformer(
        "vit_tiny_patch16_224",
        drop_path_rate=drop_path_rate,
        patch_size_px=8,
        image_size_px=32,
        embed_dim=16,
        depth=2,
        n_heads=2,
    )
    settings: dict[str, Any] = {
        "n_prototypes": 32,
        "head_hidden_dim": 32,
        "head_bottleneck_dim": 16,
        "lr": 1e-3,
        "lr_per_images": None,
        "warmup_epochs": 0,
        **changes,
    }
    return DINO(Encoder(BagOfChannels(backbone), SelfNormalize(), input_size_px=32), MultiCrop.tiny(), **settings)


def fit(
    method: Method,
    *callbacks: L.Callback,
    folder: Path | str,
    n_batches: int = 2,
    data: L.LightningDataModule | None = None,
    ckpt_path: Path | str | None = None,
    **trainer: Any,
) -> L.Trainer:
    """Train on the CPU without log, bar and checkpoint, unless asked for; returns the trainer."""
    settings: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
        "default_root_dir": str(folder),
        **trainer,
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="lightning")
        run = L.Trainer(callbacks=list(callbacks), **settings)
        run.fit(method, datamodule=data or TinyData(n_batches), ckpt_path=ckpt_path, weights_only=True)
    return run

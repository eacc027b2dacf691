"""Small masked autoencoders for tests."""

from typing import Any

from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_attention import ChannelAttention
from morphem.data.view_recipe import ViewRecipe
from morphem.data.views import MultiCrop
from morphem.decoders import DecoderRecipe
from morphem.encoder import Encoder
from morphem.methods.mae import MAE
from morphem.normalizers import SelfNormalize

TYPES = ("nucleus", "actin", "mitochondria", "endoplasmic reticulum", "rna", "bright-field", "r", "g", "b")
SMALL: dict[str, Any] = {"width": 16, "depth": 1, "n_heads": 2}


def tiny_mae(strategy: ChannelStrategy | None = None, *, size_px: int = 32, n_views: int = 1, **changes: Any) -> MAE:
    """MAE over channel attention, or another strategy; other settings by name."""
    encoder = Encoder(strategy or ChannelAttention.tiny(), SelfNormalize(), input_size_px=32)
    views = MultiCrop([ViewRecipe(count=n_views, size_px=size_px, area=(0.9, 1.0), interpolation="bilinear")])
    settings: dict[str, Any] = {
        "decoder": DecoderRecipe(identity="types", **SMALL),
        "lr": 1e-3,
        "warmup_epochs": 0,
        **changes,
    }
    return MAE(encoder, views, **settings)

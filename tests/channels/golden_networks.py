"""Golden files of vision transformers over several channels: their weights under our names, and dense batches."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from morphem.backbones.vit import VisionTransformer
from morphem.types import ChannelBatch


def network_keys(tensors: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors under a prefix, with the patch projection as a 2-D convolution and nothing of the channels."""
    own = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    kept = ("cls_token", "pos_embed", "patch_embed.proj.", "blocks.", "norm.")
    return {
        f"backbone.network.{key}": value.squeeze(2) if value.ndim == 5 else value
        for key, value in own.items()
        if key.startswith(kept)
    }


def backbone(tensors: Mapping[str, Tensor], n_heads: int, prefix: str = "") -> VisionTransformer:
    """Return the network that the tensors belong to, without them."""
    patch = tensors[f"{prefix}patch_embed.proj.weight"].shape[-1]
    return VisionTransformer(
        "vit_tiny_patch16_224",
        patch_size_px=patch,
        image_size_px=round((tensors[f"{prefix}pos_embed"].shape[1] - 1) ** 0.5) * patch,
        embed_dim=tensors[f"{prefix}cls_token"].shape[-1],
        depth=1 + max(int(key.split("blocks.")[1].split(".")[0]) for key in tensors if f"{prefix}blocks." in key),
        n_heads=n_heads,
    )


def load(path: Path) -> dict:
    """Read a golden checkpoint."""
    return torch.load(path, weights_only=True)


def dense(images: Sequence[Tensor], names: Sequence[Sequence[str]]) -> ChannelBatch:
    """Return a dense batch of images, each (C, H, W), of one size."""
    size = images[0].shape[1:]
    batch = ChannelBatch.from_planes([list(image) for image in images], names)
    return batch._replace(planes=batch.planes.reshape(-1, 1, *size))


def self_normalised(images: Tensor) -> Tensor:
    """Scale 8-bit planes to mean 0 and deviation 1 as CHAMMI-75's code does, in double precision."""
    scaled = images.double() / 255
    variance = scaled.var((-2, -1), correction=0, keepdim=True)
    return (scaled - scaled.mean((-2, -1), keepdim=True)) / (variance + 1e-7).sqrt()

"""Names and tokens of Meta's transformers for cells: blocks in chunks, class tokens of several blocks."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from morphem.encoder import Encoder
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint
from morphem.zoo.seen import network_batch
from morphem.zoo.single_vit import Tensors, is_vit, network_of, split_prefixes

_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")


def is_chunked(checkpoint: Checkpoint, n_channels: Callable[[int], bool]) -> bool:
    """Whether a file holds a DINOv2 transformer with blocks in chunks, flat or as a teacher.

    Args:
        checkpoint: Any.
        n_channels: Whether a number of input channels fits.
    """
    theirs = split_prefixes(checkpoint.entry("teacher"), "module.backbone.", "backbone.", "")
    tensors, chunk = joined(theirs)
    return chunk > 0 and "blocks.0.ls1.gamma" in tensors and is_vit(tensors, n_channels)


def joined(tensors: Mapping[str, Tensor]) -> tuple[Tensors, int]:
    """Return tensors with blocks counted over the whole network, and how many blocks stood in a chunk (0: none did).

    Args:
        tensors: By the authors' names.
    """
    found: Tensors = {}
    chunks: dict[int, set[int]] = {}
    for name, value in tensors.items():
        match = _BLOCK.fullmatch(name)
        if match is None:
            found[name] = value
        else:
            chunks.setdefault(int(match[1]), set()).add(int(match[2]))
            found[f"blocks.{match[2]}.{match[3]}"] = value
    return found, max(map(len, chunks.values()), default=0)


def chunked(tensors: Mapping[str, Tensor], chunk: int) -> Tensors:
    """Undo `joined`.

    Args:
        tensors: With blocks counted over the whole network.
        chunk: Blocks in a chunk; 0 for none.
    """
    if not chunk:
        return dict(tensors)

    def rename(name: str) -> str:
        kind, _, rest = name.partition(".")
        return f"blocks.{int(rest.split('.')[0]) // chunk}.{rest}" if kind == "blocks" else name

    return {rename(name): value for name, value in tensors.items()}


@torch.no_grad()
def block_tokens(encoder: Encoder, images: Tensor, n_blocks: int) -> tuple[Tensor, Tensor]:
    """Return class tokens of the last blocks, (blocks, N, C', D), and mean patch tokens of the last, (N, C', D).

    C' is the number of channels where each goes alone, else 1.

    Args:
        encoder: Says how pixels are prepared.
        images: (N, C, H, W), in the order of the weights.
        n_blocks: At least 1.
    """
    strategy: Any = encoder.channels
    names = ["other"] * images.shape[1] if encoder.per_channel else list(strategy.channels)
    seen = network_batch(encoder, ChannelBatch.from_planes([list(image) for image in images], [names] * len(images)))
    planes = seen.planes if encoder.per_channel else seen.planes[strategy.ordered(seen), 0]
    network = network_of(encoder)
    layers = network.last_tokens(planes, n_blocks)
    shape = (len(images), -1, network.embed_dim)
    classes = torch.stack([tokens[:, 0].reshape(shape) for tokens in layers])
    return classes, layers[-1][:, network.n_prefix :].mean(1).reshape(shape)


def unit_rows(rows: Tensor) -> Tensor:
    """Scale rows to length 1, (N, F)."""
    lengths: Tensor = rows.norm(dim=1, keepdim=True)
    return rows / lengths

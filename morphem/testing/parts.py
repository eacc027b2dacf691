"""Checks of the parts of an encoder: backbones and channel strategies."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from morphem.backbones.base import Backbone
from morphem.channels.base import ChannelStrategy
from morphem.testing.batches import PANELS, dense_batch, permute_channels, take
from morphem.testing.contract import (
    attempt,
    check_class,
    check_copy,
    check_embedding,
    check_gradients,
    check_pure,
    rebuild,
    require,
    same,
)
from morphem.types import ChannelBatch


def build(cls: Any) -> Any:
    """Build a plug-in's smallest instance from a fixed seed, leaving the global generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return attempt(cls, "tiny() cannot be built", cls.tiny)


def check_backbone(cls: type[Backbone]) -> None:
    """Check that a backbone keeps its contract.

    Shapes at 16 and 32 px; no plane depends on another; the same numbers twice and without torch's global generator;
    its input is left alone; gradients reach every trained parameter; deep copies; save and load.

    Args:
        cls: The class; its `tiny()` is what is checked.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    check_class(cls, Backbone)
    backbone = build(cls)
    _check_embed_dim(cls, backbone)
    for size_px in (16, 32):
        _check_backbone_on(cls, backbone, dense_batch(size_px=size_px).planes)


def _check_backbone_on(cls: type, backbone: Backbone, planes: Tensor) -> None:
    backbone.eval()
    with torch.no_grad():
        kept = planes.clone()
        message = f"fails on planes of {planes.shape[-1]} px"
        features = attempt(cls, message, lambda: check_pure(cls, lambda: backbone(planes)))
        require(torch.equal(planes, kept), cls, "changes its input in place")
        check_embedding(cls, features, (len(planes), backbone.embed_dim))
        _check_alone(cls, features, lambda i: backbone(planes[i : i + 1]))
        _check_differs(cls, features)
        check_copy(cls, backbone, lambda module: module(planes))
        again = rebuild(cls, backbone)
        require(torch.equal(again(planes), features), cls, "gives other numbers after saving and loading")
    backbone.train()
    check_gradients(cls, backbone, lambda: backbone(planes))


def check_strategy(cls: type[ChannelStrategy], panels: Sequence[Sequence[str]] = PANELS) -> None:
    """Check that a channel strategy keeps its contract.

    Any number of channels; no image depends on its batch mates; channels reordered with their names change nothing;
    the same numbers twice; gradients; deep copies; save and load.

    Args:
        cls: The class; its `tiny()` is what is checked.
        panels: Channel types of the images to use; give others only where the strategy refuses unknown channels.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    check_class(cls, ChannelStrategy)
    require(isinstance(getattr(cls, "per_channel", None), bool), cls, "does not say `per_channel: ClassVar[bool]`")
    strategy = build(cls)
    _check_embed_dim(cls, strategy)
    batch = dense_batch(panels)
    strategy.eval()
    with torch.no_grad():
        kept = batch.planes.clone()
        features = attempt(cls, "fails on an ordinary batch", lambda: check_pure(cls, lambda: strategy(batch)))
        require(torch.equal(batch.planes, kept), cls, "changes its input in place")
        rows = batch.n_planes if strategy.per_channel else batch.n_images
        check_embedding(cls, features, (rows, strategy.embed_dim))
        _check_differs(cls, features)
        _check_images_alone(cls, strategy, batch, features)
        _check_channel_order(cls, strategy, batch, features)
        check_copy(cls, strategy, lambda module: module(batch))
        again = rebuild(cls, strategy)
        require(torch.equal(again(batch), features), cls, "gives other numbers after saving and loading")
    strategy.train()
    check_gradients(cls, strategy, lambda: strategy(batch))


def _check_embed_dim(cls: type, part: Any) -> None:
    size = getattr(part, "embed_dim", None)
    require(
        isinstance(size, int) and size > 0, cls, f"has embed_dim={size!r}; set it to a positive integer in __init__"
    )


def _check_differs(cls: type, features: Tensor) -> None:
    """Check that different pixels give different embeddings, as they would not where all input is ignored."""
    distance = torch.cdist(features, features) + torch.eye(len(features))
    require(bool((distance > 1e-7).all()), cls, "gives two different inputs the same embedding")


def _check_alone(cls: type, together: Tensor, alone: Callable[[int], Tensor]) -> None:
    for i in range(len(together)):
        require(
            same(alone(i)[0], together[i]),
            cls,
            f"gives plane {i} another embedding alone than among {len(together)} planes; "
            "nothing may depend on batch mates",
        )


def _check_images_alone(cls: type, strategy: ChannelStrategy, batch: ChannelBatch, together: Tensor) -> None:
    """Embed every image alone, and all of them in another order."""
    bounds = batch.offsets.tolist() if strategy.per_channel else list(range(batch.n_images + 1))
    for i in range(batch.n_images):
        alone = strategy(take(batch, [i]))
        require(
            same(alone, together[bounds[i] : bounds[i + 1]]),
            cls,
            f"gives image {i} ({bounds[i + 1] - bounds[i]} rows) another embedding alone than among {batch.n_images} "
            "images; nothing may depend on batch mates",
        )
    backwards = list(reversed(range(batch.n_images)))
    expected = torch.cat([together[bounds[i] : bounds[i + 1]] for i in backwards])
    require(same(strategy(take(batch, backwards)), expected), cls, "depends on the order of the images in a batch")


def _check_channel_order(cls: type, strategy: ChannelStrategy, batch: ChannelBatch, features: Tensor) -> None:
    """Turn the channels of every image round, together with their names."""
    turned, order = permute_channels(batch)
    expected = features[order] if strategy.per_channel else features
    require(
        same(strategy(turned), expected),
        cls,
        "gives other embeddings when channels are reordered together with their names; "
        "channels are addressed by name, not by position",
    )

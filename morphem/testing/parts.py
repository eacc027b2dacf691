"""Checks of the parts of an encoder: backbones and channel strategies."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from morphem.backbones.base import Backbone
from morphem.channels.base import ChannelStrategy
from morphem.channels.sequences import Sequences
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


def build(cls: Any, *, seed: int = 0) -> Any:
    """Build a plug-in's smallest instance from a fixed seed, leaving the global generator alone."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
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


def check_strategy(cls: type[ChannelStrategy], panels: Sequence[Sequence[str]] | None = None) -> None:
    """Check that a channel strategy keeps its contract.

    Any number of channels; no image depends on its batch mates; channels reordered with their names change nothing;
    the same numbers twice; gradients; deep copies; save and load. Where it is tokenised: tokens, targets and embeddings
    belong together.

    Args:
        cls: The class; its `tiny()` is what is checked.
        panels: Channel types of the images to use; those that the strategy states in `panels`, or images of one to
            five channels, where not given.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    check_class(cls, ChannelStrategy)
    require(isinstance(getattr(cls, "per_channel", None), bool), cls, "does not say `per_channel`, True or False")
    strategy = build(cls)
    _check_embed_dim(cls, strategy)
    batch = dense_batch(getattr(cls, "panels", PANELS) if panels is None else panels)
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
        if strategy.tokenised:
            _check_tokens(cls, strategy, batch, features)
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


def _check_tokens(cls: type, strategy: ChannelStrategy, batch: ChannelBatch, features: Tensor) -> None:
    """Turn the batch into tokens, and these into embeddings and targets."""
    parts = attempt(cls, "cannot turn an ordinary batch into sequences", lambda: strategy.sequences(batch))
    rows = torch.cat([part.rows for part in parts]) if parts else torch.zeros(0, dtype=torch.int64)
    each = torch.equal(rows.sort().values, torch.arange(len(features)))
    require(each, cls, f"has sequences for the rows {rows.tolist()} of {len(features)} embeddings; each has one")
    for part in parts:
        _check_part(cls, strategy, batch, part, features[part.rows])


def _check_part(cls: type, strategy: ChannelStrategy, batch: ChannelBatch, part: Sequences, embeddings: Tensor) -> None:
    shape, n_prefix = part.tokens.shape[:2], strategy.n_prefix
    for name in ("places", "channels", "patches"):
        found = tuple(getattr(part, name).shape[:2])
        require(found == shape, cls, f"has {name} of {found} for {tuple(shape)} tokens")
    n_patches = part.grid[0] * part.grid[1]
    in_grid = bool((part.patches >= 0).all() and (part.patches < n_patches).all())
    require(in_grid, cls, f"numbers patches beyond its grid of {part.grid}")
    encoded = attempt(cls, "cannot encode its own tokens", lambda: strategy.encode(part.tokens))
    wanted = (shape[0], n_prefix + shape[1], strategy.embed_dim)
    require(tuple(encoded.shape) == wanted, cls, f"encodes to {tuple(encoded.shape)} instead of {wanted}")
    message = "gives another class token from encode(tokens) than from the batch itself"
    require(same(encoded[:, 0], embeddings), cls, message)
    some = attempt(cls, "cannot encode some of its tokens", lambda: strategy.encode(part.tokens[:, ::2]))
    require(some.shape[1] == n_prefix + (shape[1] + 1) // 2, cls, f"encodes some tokens to {tuple(some.shape)}")
    alone = strategy.encode(part.tokens[:1])
    require(same(alone, encoded[:1]), cls, "encodes a sequence otherwise alone than among others")
    pixels = attempt(cls, "has no pixels for its tokens", lambda: strategy.pixels(batch, part))
    area = strategy.patch_size_px[0] * strategy.patch_size_px[1]
    n_channels = part.planes.shape[1] if bool((part.channels < 0).any()) else 1
    wanted = (*shape, n_channels * area)
    require(tuple(pixels.shape) == wanted, cls, f"gives pixels of {tuple(pixels.shape)} instead of {wanted}")

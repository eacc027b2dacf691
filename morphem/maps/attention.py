"""Where an embedding looks: attention of its tokens, read while the network runs, whatever network it is.

Every transformer of morphem attends through torch's `scaled_dot_product_attention`; while a recorder is on, the
queries and keys of each call are kept, and weights are computed from them.

Source: attention rollout, Abnar and Zuidema 2020, https://arxiv.org/abs/2005.00928; the maps of the last block are
those of Caron et al. 2021, https://arxiv.org/abs/2104.14294.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode

from morphem.channels.sequences import Sequences
from morphem.encoder import Encoder, evaluating
from morphem.errors import ConfigError, DataError
from morphem.types import ChannelBatch

Way = Literal["last", "rollout"]
WAYS: tuple[Way, ...] = get_args(Way)
Floats = NDArray[np.float32]
_PAIRS = 1 << 24  # of tokens whose weights are held at once, in all heads


class Attention(NamedTuple):
    """One call of attention, as far as its weights depend on it.

    Attributes:
        query: (B, heads, queries, d).
        key: (B, heads, tokens, d).
        scale: Of their products.
    """

    query: Tensor
    key: Tensor
    scale: float

    def weights(self, asking: slice) -> Tensor:
        """Return how some queries look at all tokens, (B, heads, asking, tokens); each row sums to 1."""
        return (self.query[:, :, asking] @ self.key.transpose(-2, -1) * self.scale).softmax(-1)

    def drawn(self, row: Tensor) -> Tensor:
        """Return what a mixture of tokens draws from all tokens, mean of heads, (B, tokens).

        The weights of all pairs may not fit into memory, so queries are taken some at a time.

        Args:
            row: Share of each token in the mixture, (B, queries).
        """
        total = torch.zeros(row.shape[0], self.key.shape[2], device=row.device)
        step = max(1, _PAIRS // (self.key.shape[0] * self.key.shape[1] * self.key.shape[2]))
        for first in range(0, row.shape[1], step):
            part = slice(first, first + step)
            if bool(row[:, part].any()):
                total += torch.einsum("bq,bhqt->bt", row[:, part], self.weights(part)) / self.key.shape[1]
        return total

    def by_head(self, row: Tensor) -> Tensor:
        """Return the same for each head, (B, heads, tokens)."""
        heads = [
            Attention(self.query[:, h : h + 1], self.key[:, h : h + 1], self.scale).drawn(row)
            for h in range(self.key.shape[1])
        ]
        return torch.stack(heads, dim=1)


class Recorder(TorchFunctionMode):
    """Keeps queries and keys of every call of `scaled_dot_product_attention` while it is on.

    Args:
        n_tokens: Only calls whose keys are so many tokens are kept.

    Attributes:
        calls: In order.
    """

    def __init__(self, n_tokens: int) -> None:
        super().__init__()
        self.n_tokens = n_tokens
        self.calls: list[Attention] = []

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let the call happen, and keep what its weights are made of."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and args[1].shape[-2] == self.n_tokens:
            if kwargs.get("attn_mask") is not None or kwargs.get("is_causal"):
                raise ConfigError("attention with a mask cannot be shown.")
            scale = kwargs.get("scale") or args[0].shape[-1] ** -0.5
            self.calls.append(Attention(args[0].float(), args[1].float(), scale))
        return func(*args, **kwargs)


class CropMaps(NamedTuple):
    """What the network does with one crop.

    Attributes:
        attention: How much each patch of each channel is looked at, times what it would be if all patches were looked
            at alike, (C, h, w). Where channels share a sequence, they share the attention.
        heads: The same for each head of the last block, (C, heads, h, w).
        tokens: Patch tokens after the last normalisation, (C, h, w, D).
        shares: Share of the attention that each channel gets, (C,), sum 1; None where every channel is embedded alone
            or all are cut into one patch.
    """

    attention: Floats
    heads: Floats
    tokens: Floats
    shares: Floats | None


@dataclass(frozen=True)
class _Looks:
    """Attention over the patches of some sequences: (B, T), (B, heads, T), and their tokens, (B, T, D)."""

    attention: Tensor
    heads: Tensor
    tokens: Tensor


def check_maps(encoder: Encoder, way: str) -> None:
    """Check that an encoder has attention and patch tokens.

    Raises:
        ConfigError: If it has none, or the way is unknown.
    """
    if way not in WAYS:
        raise ConfigError(f"attention='{way}' must be one of {', '.join(WAYS)}.")
    if not encoder.channels.tokenised:
        raise ConfigError(
            f"maps need patch tokens, which {type(encoder.channels).__name__} over this network does not give."
        )


@torch.no_grad()
def crop_maps(encoder: Encoder, crop: ChannelBatch, way: Way = "last") -> CropMaps:
    """Return where the embedding of a crop looks, and its patch tokens.

    Args:
        encoder: With patch tokens; see `check_maps`.
        crop: Ragged, one image, on the encoder's device.
        way: `last`: the last block; `rollout`: all blocks, each token being half itself and half what it attends to.

    Raises:
        ConfigError: If the encoder has no attention to show.
        DataError: If pixels are not what the encoder takes.
    """
    if crop.n_images != 1:
        raise DataError(f"maps are made crop by crop, not of {crop.n_images} at once.")
    with evaluating(encoder):
        ((_, dense),) = list(encoder._dense(encoder.normalizer(crop, encoder.dtype)))
        parts = [(part, _looks(encoder, part, way)) for part in encoder.channels.sequences(dense)]
    (grid,) = {part.grid for part, _ in parts}
    whole = bool((parts[0][0].channels < 0).any())  # a patch is cut from all channels at once
    n_maps = 1 if whole else crop.n_planes
    size, n_heads, width = grid[0] * grid[1], parts[0][1].heads.shape[1], parts[0][1].tokens.shape[2]
    attention, tokens = torch.zeros(n_maps, size), torch.zeros(n_maps, size, width)
    heads = torch.zeros(n_maps, n_heads, size)
    for part, looks in parts:
        planes = torch.zeros_like(part.channels) if whole else part.planes.gather(1, part.channels)
        places = planes.cpu(), part.patches.cpu()
        attention[places] = looks.attention.cpu()
        tokens[places] = looks.tokens.cpu()
        heads.transpose(1, 2)[places] = looks.heads.transpose(1, 2).cpu()
    alone = encoder.per_channel or whole
    shares = None if alone else (attention.sum(1) / attention.sum()).numpy()
    return CropMaps(
        attention.reshape(n_maps, *grid).numpy(),
        heads.reshape(n_maps, n_heads, *grid).numpy(),
        tokens.reshape(n_maps, *grid, width).numpy(),
        shares,
    )


def _looks(encoder: Encoder, part: Sequences, way: Way) -> _Looks:
    strategy, n_patches = encoder.channels, part.tokens.shape[1]
    recorder = Recorder(strategy.n_prefix + n_patches)
    with recorder:
        encoded = strategy.encode_at(part.tokens, part.coordinates)
    if not recorder.calls:
        raise ConfigError(f"{type(strategy).__name__} runs no attention that could be shown.")
    n_prefix, last = strategy.n_prefix, recorder.calls[-1]
    asking = torch.zeros(len(encoded), last.query.shape[2], device=encoded.device)
    asking[:, _asking(encoder, n_prefix)] = 1.0
    asking = asking / asking.sum(1, keepdim=True)
    heads = last.by_head(asking)  # (B, heads, n_prefix + T)
    seen = heads.mean(1) if way == "last" else _rollout(recorder.calls, asking)
    return _Looks(_times_even(seen[:, n_prefix:]), _times_even(heads[:, :, n_prefix:]), encoded[:, n_prefix:].float())


def _asking(encoder: Encoder, n_prefix: int) -> slice:
    """Which tokens become the embedding: the class token, or all patches where it is their mean."""
    strategy = encoder.channels
    pooling = getattr(strategy, "pooling", "class")
    if pooling == "class":
        pooling = getattr(getattr(strategy, "backbone", None), "pooling", "class")
    return slice(0, 1) if pooling == "class" else slice(n_prefix, None)


def _rollout(calls: list[Attention], asking: Tensor) -> Tensor:
    """Attention of the asking tokens, (B, tokens), through all blocks."""
    row = asking
    for call in reversed(calls):
        row = 0.5 * row + 0.5 * call.drawn(row)
    return row


def _times_even(seen: Tensor) -> Tensor:
    """Attention over patches against looking at all of them alike; the mean over the last axis becomes 1."""
    return seen / seen.mean(-1, keepdim=True)

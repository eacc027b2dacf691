"""Decoders of masked autoencoders: from the encoded visible tokens of an image to the pixels of all its patches.

Source: He et al. 2022, https://arxiv.org/abs/2111.06377 (shared); CA-MAE, Kraus et al. 2024,
https://arxiv.org/abs/2404.10242, mae_modules.py of recursionpharma/maes_microscopy (per channel); Campfire, Hurry et
al. 2025 (channel context); CHAMMI-75 at b84a4ec and ChA-MAEViT (the encoder's own positions and channel tokens again).
Differs from them: all linear layers have biases; positions are a function of the grid, so views of any size work.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple, get_args

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from morphem.backbones.blocks import NORM_EPS, block_mlp, transformer_blocks
from morphem.backbones.positions import sincos_positions
from morphem.errors import ConfigError, unknown_name

Identity = Literal["none", "places", "types", "context"]
ContextOver = Literal["sample", "batch", "global"]


@dataclass(frozen=True)
class DecoderRecipe:
    """How patches are reconstructed; the defaults are MAE's, which CHAMMI-75's bag of channels and Kim et al. share.

    Args:
        kind: `shared` runs one decoder over all tokens of a sequence; `per_channel`, CA-MAE's, lets the tokens of each
            channel look at all tokens of the image once, and then runs a decoder of its own for each channel type.
        identity: What tells the mask tokens of one place in two channels apart. `none` is for strategies that give
            each plane a sequence of its own or cut a token from all channels. `places` adds the encoder's own positions
            and channel embedding again, projected (CHAMMI-75's channel MAE, ChA-MAEViT); it tells channels apart where
            the encoder does. `types` adds a learned embedding of the channel type (CA-MAE). `context` adds a projection
            of the mean patch embedding of the channel type, hidden patches included, without gradient (Campfire), which
            works for types never seen before.
        channels: Channel types that have a decoder, for `per_channel`, or an embedding, for `types`; None is all of the
            vocabulary for `types`.
        context_over: What the mean of `context` is taken over: the `sample` itself, the `batch` of this device, or the
            `global` batch, as Campfire. The last two are the one place where batch mates have a say; they change
            reconstructions, never embeddings. In evaluation `global` looks at the batch of this device.
        width: Width of the decoder, a multiple of 4 and of `n_heads`. Published: 512, CHAMMI-75's channel MAE 384,
            CA-MAE 256 (OpenPhenom 512).
        depth: Blocks. Published: 8, CHAMMI-75's channel MAE 2, CA-MAE 2 for each channel, ChA-MAEViT 1 or 2.
        n_heads: Attention heads. Published: 16.

    Raises:
        ConfigError: If a value is out of its range, or set without effect.
    """

    kind: Literal["shared", "per_channel"] = "shared"
    identity: Identity = "none"
    channels: tuple[str, ...] | None = None
    context_over: ContextOver = "global"
    width: int = 512
    depth: int = 8
    n_heads: int = 16

    def __post_init__(self) -> None:
        if self.channels is not None:
            object.__setattr__(self, "channels", tuple(self.channels))  # a list, when it comes from a file
        choices = {"kind": ("shared", "per_channel"), "identity": get_args(Identity)}
        choices["context_over"] = get_args(ContextOver)
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"DecoderRecipe.{key}: {unknown_name('choice', str(getattr(self, key)), allowed)}")
        if self.n_heads < 1 or self.depth < 1 or self.width < 4 or self.width % 4 or self.width % self.n_heads:
            raise ConfigError(
                f"DecoderRecipe: width={self.width}, depth={self.depth}, n_heads={self.n_heads}; all must be at least "
                "1 and the width a multiple of 4 and of n_heads."
            )
        self._check_channels()
        if self.context_over != "global" and self.identity != "context":
            raise ConfigError(
                f"DecoderRecipe.context_over is set but has no effect with identity: {self.identity}; leave it out."
            )

    def _check_channels(self) -> None:
        if self.kind == "per_channel" and not self.channels:
            raise ConfigError(
                "DecoderRecipe.channels is empty; kind: per_channel needs the channel types that get a decoder, for "
                "example [nucleus, actin]."
            )
        if self.kind == "per_channel" and self.identity != "types":
            raise ConfigError(
                f"DecoderRecipe: kind: per_channel tells channels apart by type; identity: {self.identity} has no "
                "place there, set identity: types."
            )
        if self.kind == "shared" and self.channels is not None and self.identity != "types":
            raise ConfigError(
                f"DecoderRecipe.channels is set but has no effect with identity: {self.identity}; leave it out, or set "
                "identity: types."
            )
        if self.channels is not None and (not self.channels or len(set(self.channels)) < len(self.channels)):
            raise ConfigError(f"DecoderRecipe.channels is {list(self.channels)}; it must name each type once.")


class Canvas(NamedTuple):
    """What a decoder knows of B sequences of T tokens beside the encoded visible ones.

    Attributes:
        visible: Numbers of the visible tokens, (B, T_v), int64.
        channels: Column of `types` of each token, (B, T), int64; -1 where a token is cut from all channels.
        patches: Place of each token in the grid, (B, T), int64.
        grid: Patches along height and width.
        types: Number of the channel type of each plane, (B, C), int64.
        places: Position and channel identity as the encoder adds them, (B, T, D).
        context: Mean patch embedding of the channel type of each plane, (B, C, D), without gradient; None where not
            asked for.
    """

    visible: Tensor
    channels: Tensor
    patches: Tensor
    grid: tuple[int, int]
    types: Tensor
    places: Tensor
    context: Tensor | None = None


class _Entry(nn.Module):
    """What all decoders begin with: projection, mask tokens at the hidden places, positions, channel identity.

    Args:
        embed_dim: D of the encoder.
        n_types: Channel types with an embedding, where the identity is `types`.
        recipe: Width and identity.
    """

    def __init__(self, embed_dim: int, n_types: int, recipe: DecoderRecipe) -> None:
        super().__init__()
        self.identity = recipe.identity
        self.width = recipe.width
        self.project = nn.Linear(embed_dim, recipe.width)
        self.mask_token = nn.Parameter(torch.empty(recipe.width))
        nn.init.normal_(self.mask_token, std=0.02)
        if recipe.identity == "types":
            self.types = nn.Embedding(n_types, recipe.width)
            nn.init.normal_(self.types.weight, std=0.02)
        elif recipe.identity == "context":
            self.context = nn.Linear(embed_dim, recipe.width, bias=False)
        elif recipe.identity == "places":
            self.places = nn.Linear(embed_dim, recipe.width)

    def forward(self, encoded: Tensor, canvas: Canvas) -> tuple[Tensor, Tensor]:
        """Return the projected prefix tokens, (B, n_prefix, d), and all patch tokens, (B, T, d)."""
        x = self.project(encoded)
        n_prefix = encoded.shape[1] - canvas.visible.shape[1]
        count, length = canvas.patches.shape
        tokens = self.mask_token.to(x.dtype).expand(count, length, -1)
        index = canvas.visible[:, :, None].expand(-1, -1, self.width)
        tokens = tokens.scatter(1, index, x[:, n_prefix:])
        return x[:, :n_prefix], tokens + self.identities(canvas).to(x.dtype)

    def identities(self, canvas: Canvas) -> Tensor:
        """Return what tells tokens apart, (B, T, d)."""
        if self.identity == "places":
            return self.places(canvas.places)  # type: ignore[no-any-return]
        table = patch_positions(canvas.grid, self.width, canvas.places.device)
        positions = table[canvas.patches]
        if self.identity == "none":
            return positions
        planes: Tensor = self.types(canvas.types) if self.identity == "types" else self.context(canvas.context)
        index = canvas.channels[:, :, None].expand(-1, -1, self.width)
        return positions + planes.gather(1, index)  # from (B, C, d)


class SharedDecoder(nn.Module):
    """One transformer over the prefix tokens and all patch tokens of a sequence.

    Args:
        embed_dim: D of the encoder.
        n_pixels: X, pixels that a token stands for.
        n_types: Channel types with an embedding, where the identity is `types`.
        recipe: Its size and how it tells channels apart.
    """

    def __init__(self, embed_dim: int, n_pixels: int, n_types: int, recipe: DecoderRecipe) -> None:
        super().__init__()
        self.entry = _Entry(embed_dim, n_types, recipe)
        self.blocks = transformer_blocks(recipe.width, recipe.depth, recipe.n_heads)
        self.norm = nn.LayerNorm(recipe.width, eps=NORM_EPS)
        self.predict = nn.Linear(recipe.width, n_pixels)
        self.apply(_initialize)

    def forward(self, encoded: Tensor, canvas: Canvas) -> Tensor:
        """Predict the pixels of all tokens, (B, n_prefix + T_v, D) to (B, T, X)."""
        prefix, tokens = self.entry(encoded, canvas)
        x = self.blocks(torch.cat([prefix, tokens], dim=1))
        return self.predict(self.norm(x[:, prefix.shape[1] :]))  # type: ignore[no-any-return]


class PerChannelDecoder(nn.Module):
    """CA-MAE's decoder: the tokens of a channel look at all tokens of the image, then a decoder of their own follows.

    The prefix tokens end here: as in CA-MAE no pixel depends on the last state of the class token.

    Args:
        embed_dim: D of the encoder.
        n_pixels: X, pixels that a token stands for.
        n_types: Channel types, each of which gets a decoder.
        recipe: Size of each decoder.
    """

    CROSS_HEADS = 8

    def __init__(self, embed_dim: int, n_pixels: int, n_types: int, recipe: DecoderRecipe) -> None:
        super().__init__()
        width = recipe.width
        self.entry = _Entry(embed_dim, n_types, recipe)
        self.query_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.context_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.cross = CrossAttention(width, math.gcd(self.CROSS_HEADS, width))
        self.mlp_norm = nn.LayerNorm(width, eps=NORM_EPS)
        self.mlp = block_mlp(width)
        self.decoders = nn.ModuleList(transformer_blocks(width, recipe.depth, recipe.n_heads) for _ in range(n_types))
        self.predict = nn.Linear(width, n_pixels)
        self.apply(_initialize)

    def forward(self, encoded: Tensor, canvas: Canvas) -> Tensor:
        """Predict the pixels of all tokens, (B, n_prefix + T_v, D) to (B, T, X)."""
        _, tokens = self.entry(encoded, canvas)
        n_patches = canvas.grid[0] * canvas.grid[1]
        order = canvas.channels * n_patches + canvas.patches  # (B, T): place of each token, channel after channel
        index = order[:, :, None].expand_as(tokens)
        tokens = torch.empty_like(tokens).scatter(1, index, tokens)
        x = self.cross(self.query_norm(tokens), self.context_norm(tokens))
        x = x + self.mlp(self.mlp_norm(x))
        planes = x.reshape(-1, n_patches, x.shape[2])  # (B * C, N, d)
        types = canvas.types.flatten()  # (B * C,)
        result = torch.zeros_like(planes)
        for number, decoder in enumerate(self.decoders):
            members = (types == number).nonzero()[:, 0]
            if len(members):
                result = result.index_copy(0, members, decoder(planes[members]).to(result.dtype))
            elif self.training:  # a decoder without work still takes part, for DDP waits for every gradient
                result = result + 0.0 * sum(parameter.sum() for parameter in decoder.parameters())
        predicted: Tensor = self.predict(result).reshape(*canvas.patches.shape, -1)
        return predicted.gather(1, order[:, :, None].expand_as(predicted))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to a context.

    Args:
        width: Of both.
        n_heads: Divides the width.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.q = nn.Linear(width, width)
        self.kv = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """Attend, (B, T, d) to context (B, S, d), giving (B, T, d)."""
        count, _, width = queries.shape
        q = self.q(queries).reshape(count, -1, self.n_heads, width // self.n_heads).transpose(1, 2)
        kv = self.kv(context).reshape(count, -1, 2, self.n_heads, width // self.n_heads)
        key, value = kv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, h, S, d / h)
        seen = scaled_dot_product_attention(q, key, value)
        return self.out(seen.transpose(1, 2).flatten(2))  # type: ignore[no-any-return]


def _initialize(module: nn.Module) -> None:
    """Start linear layers as MAE does."""
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@lru_cache(maxsize=64)
def patch_positions(grid: tuple[int, int], width: int, device: torch.device) -> Tensor:
    """Return fixed sine and cosine positions of the patches of a grid, the column's before the row's as MAE has it.

    Args:
        grid: Patches along height h and width w.
        width: Divisible by 4.
        device: Of the result.

    Returns:
        (h * w, width), float32.
    """
    with torch.inference_mode(False), torch.no_grad():  # a cached inference tensor could not be used in training
        return sincos_positions(grid, width)[0].roll(width // 2, 1).to(device)


@torch.no_grad()
def channel_context(
    content: Tensor, types: Tensor, images: Tensor, n_types: int, over: ContextOver, *, gather: bool
) -> Tensor:
    """Return the mean patch embedding of the channel type of each plane, over one image or over a batch.

    Args:
        content: Mean patch embedding of each plane, (P, D); every plane has the same number of patches.
        types: Number of the channel type of each plane, (P,), int64.
        images: Number of the image of each plane, (P,), int64; looked at for `sample` alone.
        n_types: Channel types there can be.
        over: What the mean is taken over.
        gather: Whether the planes of all processes count, for `global`; all processes must then call this.

    Returns:
        (P, D), float32.
    """
    group = types if over != "sample" else images * n_types + types
    n_groups = n_types if over != "sample" else (int(images.max()) + 1) * n_types
    ones = content.new_ones(len(content), 1, dtype=torch.float32)
    table = torch.zeros(n_groups, content.shape[1] + 1, device=content.device)
    table.index_add_(0, group, torch.cat([content.float(), ones], dim=1))
    if over == "global" and gather and dist.is_available() and dist.is_initialized():
        dist.all_reduce(table)
    return table[group, :-1] / table[group, -1:]

"""Memory tokens and hybrid token fusion around any strategy that puts all channels of an image into one sequence.

Source: ChA-MAEViT, Pham et al. 2025, https://arxiv.org/abs/2503.19331, chaudatascience/cha_mae_vit at e1c900e; the
attention pooling is the MAB of the Set Transformer, Lee et al. 2019, https://arxiv.org/abs/1810.00825, without
normalisation, as there. Differs from it: what the tokens are made of, and what tells channels apart, is the inner
strategy's business; memory tokens have no position beside what they learn; methods see the fused token in the class
token's place, so that a decoder trains the fusion also without labels.
"""

from typing import Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.joint import JointChannels
from morphem.channels.sequences import Sequences
from morphem.errors import ConfigError
from morphem.types import ChannelBatch


class MemoryFusion(ChannelStrategy):
    """Give every image some learned memory tokens, and fuse the class token with what attention gathers from patches.

    Args:
        channels: Puts the channels of an image into one sequence; ChA-MAEViT's is `channel_attention`.
        n_memory: Memory tokens, at least 0. Published: 4 (8 for So2Sat's 18 channels).
        fusion: `add` adds the gathered patches to the class token; `gate` multiplies it with their sigmoid; `none`
            takes the class token as it is.
        n_heads: Attention heads of the gathering; 6 in ViT-S. Must divide D; only with a fusion.

    Raises:
        ConfigError: If a number is out of its range, a setting has no effect, or the inner strategy does not put the
            channels of an image into one sequence.
    """

    per_channel = False
    tokenised = True

    def __init__(
        self,
        channels: JointChannels,
        n_memory: int = 4,
        fusion: Literal["add", "gate", "none"] = "add",
        n_heads: int = 6,
    ) -> None:
        super().__init__()
        if not isinstance(channels, JointChannels):
            raise ConfigError(
                f"memory_fusion: {type(channels).__name__} does not put the channels of an image into one sequence of "
                "tokens; take one that does, for example channel_attention."
            )
        if fusion not in ("add", "gate", "none"):
            raise ConfigError(f"memory_fusion: fusion='{fusion}' must be one of add, gate, none.")
        if n_memory < 0:
            raise ConfigError(f"memory_fusion: n_memory={n_memory} must be at least 0.")
        if fusion == "none" and n_memory == 0:
            raise ConfigError("memory_fusion: does nothing with n_memory=0 and fusion='none'; leave it out.")
        if n_heads < 1 or channels.embed_dim % n_heads:
            raise ConfigError(f"memory_fusion: n_heads={n_heads} must divide the width {channels.embed_dim}.")
        self.channels = channels
        self.fusion = fusion
        self.embed_dim = channels.embed_dim
        self.patch_size_px = channels.patch_size_px
        self.needs_places = channels.needs_places
        self.n_memory = n_memory
        self.n_prefix = channels.n_prefix + n_memory
        if n_memory:
            self.memory = nn.Parameter(torch.empty(n_memory, self.embed_dim))
            nn.init.trunc_normal_(self.memory, std=0.02)
        if fusion != "none":
            self.gather = AttentionPool(self.embed_dim, n_heads)

    def select(self, batch: ChannelBatch) -> ChannelBatch:
        """Return the planes of a batch that a training step looks at, as the inner strategy says.

        Args:
            batch: As the loader yields it.
        """
        return self.channels.select(batch)

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every image of a dense, normalised batch: (N, D)."""
        sequences = self.sequences(batch)
        embeddings = torch.cat([self.encode(part.tokens, part.coordinates)[:, 0] for part in sequences])
        return embeddings[torch.cat([part.rows for part in sequences]).argsort()]

    def sequences(self, batch: ChannelBatch) -> list[Sequences]:
        """Turn every image into one sequence, as the inner strategy does.

        Args:
            batch: Dense and normalised.
        """
        return self.channels.sequences(batch)

    def encode(self, tokens: Tensor, places: Tensor | None = None) -> Tensor:
        """Run the network on memory and patch tokens, (B, T', D) to (B, n_prefix + T', D), the fused token first.

        Args:
            tokens: Any part or change of the tokens of `sequences`.
            places: Row and column of each token's patch, where the backbone needs them; memory tokens have none.
        """
        if self.n_memory:
            tokens = torch.cat([self.memory.to(tokens.dtype).expand(len(tokens), -1, -1), tokens], dim=1)
            places = None if places is None else pad(places, (0, 0, self.n_memory, 0))
        encoded = self.channels.encode(tokens, places)
        if self.fusion == "none":
            return encoded
        gathered = self.gather(encoded[:, self.n_prefix :])
        first = encoded[:, 0] + gathered if self.fusion == "add" else encoded[:, 0] * gathered.sigmoid()
        return torch.cat([first[:, None], encoded[:, 1:]], dim=1)

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works."""
        return cls(ChannelAttention.tiny(), n_memory=2, n_heads=2)


class AttentionPool(nn.Module):
    """What one learned query gathers from tokens by attention.

    Args:
        width: D.
        n_heads: Divides D.
    """

    def __init__(self, width: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.query = nn.Parameter(torch.empty(width))
        nn.init.trunc_normal_(self.query, std=0.02)
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.q, self.k, self.v, self.out):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            nn.init.zeros_(layer.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Gather, (B, T, D) to (B, D); scores are divided by the square root of D, not of the width of a head."""
        count, length, width = tokens.shape
        heads = (self.n_heads, width // self.n_heads)
        query = self.q(self.query).reshape(heads)
        key, value = (layer(tokens).reshape(count, length, *heads) for layer in (self.k, self.v))
        weights = (torch.einsum("hd,bthd->bht", query, key) / width**0.5).softmax(2)
        seen: Tensor = (query + torch.einsum("bht,bthd->bhd", weights, value)).flatten(1)
        return seen + self.out(seen).relu()  # type: ignore[no-any-return]

"""Gated attention over tokens: how SubCell makes one vector of all tokens of a transformer.

Source: Ilse et al. 2018, https://arxiv.org/abs/1802.04712, for the gate; SubCell, Gupta et al. 2024,
https://doi.org/10.1101/2024.12.06.627299, czi-ai/sub-cell-embed at a81b11c, for several heads and the GELU gate.
Differs from Ilse et al.: the gate is an exact GELU instead of a sigmoid.
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn.functional import gelu

from morphem.errors import ConfigError
from morphem.spec import Configurable


class GatedAttentionPooling(nn.Module, Configurable):
    """Weighted sums of tokens, one sum per head; the weights are a softmax over tokens of attention(tanh * gelu).

    Args:
        token_dim: D of the tokens.
        hidden_dim: Width of the two gates. Published: 512.
        n_heads: Sums, side by side in the result. Published: 2.

    Attributes:
        embed_dim: n_heads * D.

    Raises:
        ConfigError: If a number is below 1.
    """

    def __init__(self, token_dim: int = 768, hidden_dim: int = 512, n_heads: int = 2) -> None:
        super().__init__()
        for key, value in {"token_dim": token_dim, "hidden_dim": hidden_dim, "n_heads": n_heads}.items():
            if value < 1:
                raise ConfigError(f"gated attention pooling: {key}={value} must be at least 1.")
        self.token_dim = token_dim
        self.embed_dim = n_heads * token_dim
        self.tanh_gate = nn.Linear(token_dim, hidden_dim)
        self.gelu_gate = nn.Linear(token_dim, hidden_dim)
        self.attention = nn.Linear(hidden_dim, n_heads)
        self.attention.bias.requires_grad_(False)  # the softmax over tokens cancels it

    def forward(self, tokens: Tensor) -> Tensor:
        """Pool tokens, (B, T, D) to (B, n_heads * D), head after head."""
        return torch.bmm(self.weights(tokens), tokens).flatten(1)

    def weights(self, tokens: Tensor) -> Tensor:
        """Return how much each token counts, (B, T, D) to (B, n_heads, T); every row sums to 1."""
        gated = torch.tanh(self.tanh_gate(tokens)) * gelu(self.gelu_gate(tokens))  # (B, T, hidden)
        return self.attention(gated).transpose(1, 2).softmax(-1)  # type: ignore[no-any-return]

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works, for tokens of width 16."""
        return cls(token_dim=16, hidden_dim=4, n_heads=2)

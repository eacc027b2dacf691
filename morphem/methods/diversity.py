"""DiChaViT's diversity terms, for any method over any strategy whose sequences hold several channels.

Source: Pham and Plummer 2024, https://arxiv.org/abs/2405.16419, chaudatascience/diverse_channel_vit at 3ff783d; with
hidden patches as ChA-MAEViT, chaudatascience/cha_mae_vit at 51d869a. Published for training with labels; without labels
nobody offers them. Formulas and differences: `morphem.losses.diversity`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.joint import JointChannels
from morphem.channels.memory_fusion import MemoryFusion
from morphem.channels.sequences import Sequences
from morphem.errors import ConfigError
from morphem.losses.diversity import channel_confusion, token_likeness
from morphem.types import ChannelBatch


@dataclass(frozen=True)
class DiversityRecipe:
    """How much channels are kept apart; the defaults are those of DiChaViT on CHAMMI.

    Published (token weight, within, across; channel weight, temperature): CHAMMI 1, 0.5, 2; 0.1, 0.07. JUMP-CP 0.001,
    1, 4; 0.001, 0.07. ChA-MAEViT on CHAMMI 0.001, 0.5, 1; 0.0001, 0.1, on JUMP-CP 1e-6, 1, 4; 0.001, 5.

    Args:
        token_weight: Weight of the term of patch tokens, taken before position and channel identity are added, at
            least 0.
        within: In it, weight of the mean cosine similarity of two tokens of one channel, at least 0.
        across: In it, weight of the mean cosine similarity of tokens of two channels of an image, at least 0.
        channel_weight: Weight of the term that tells the embeddings of channel types apart by trained proxies, at
            least 0; above 0 only where the strategy has such embeddings (`channel_attention`, also in
            `memory_fusion`).
        channel_temperature: Of it, above 0.
        channel_among: Whether a type is told from the others of its `image`, as DiChaViT, or from all of the
            `vocabulary`, as ChA-MAEViT.

    Raises:
        ConfigError: If a value is out of its range or has no effect.
    """

    token_weight: float = 1.0
    within: float = 0.5
    across: float = 2.0
    channel_weight: float = 0.1
    channel_temperature: float = 0.07
    channel_among: Literal["image", "vocabulary"] = "image"

    def __post_init__(self) -> None:
        for key in ("token_weight", "within", "across", "channel_weight"):
            if not getattr(self, key) >= 0:
                raise ConfigError(f"DiversityRecipe.{key} is {getattr(self, key)}; it must be at least 0.")
        if not self.channel_temperature > 0:
            raise ConfigError(f"DiversityRecipe.channel_temperature is {self.channel_temperature}; it must be above 0.")
        if self.channel_among not in ("image", "vocabulary"):
            raise ConfigError(
                f"DiversityRecipe.channel_among is '{self.channel_among}'; it must be 'image' or 'vocabulary'."
            )
        if self.token_weight and not (self.within or self.across):
            raise ConfigError(
                "DiversityRecipe.token_weight has no effect with within: 0 and across: 0; set one of them, or "
                "token_weight: 0."
            )
        if not (self.token_weight or self.channel_weight):
            raise ConfigError("DiversityRecipe has no weight above 0; leave `diversity` out, or set one.")


class Diversity(NamedTuple):
    """The terms of some images, before weights.

    Attributes:
        within: Mean cosine similarity of two tokens of one channel, (B,).
        across: The same of two channels, (B,).
        channels: How badly channel types are told apart, (B,).
    """

    within: Tensor
    across: Tensor
    channels: Tensor


class ChannelDiversity(nn.Module):
    """The terms and the proxies of channel types.

    Args:
        strategy: Of the encoder that is trained.
        recipe: Weights.

    Raises:
        ConfigError: If the strategy's sequences have no tokens of several channels, or it has no embeddings of types.
    """

    def __init__(self, strategy: ChannelStrategy, recipe: DiversityRecipe) -> None:
        super().__init__()
        self.recipe = recipe
        name = type(strategy).__name__
        if not isinstance(strategy, JointChannels | MemoryFusion):
            raise ConfigError(
                f"diversity: the sequences of {name} have no tokens of several channels, so none can be kept apart; "
                "leave it out, or take channel_attention."
            )
        if recipe.channel_weight:
            table = typed(strategy)
            if table is None:
                raise ConfigError(
                    f"diversity: {name} has no embeddings of channel types that could be told apart; set "
                    "channel_weight: 0, or take channel_attention."
                )
            # Only directions count; the length says how fast a proxy turns (as there)
            self.proxies = nn.Parameter(torch.randn_like(table.channel_embedding) / 8)

    def forward(
        self, strategy: ChannelStrategy, batch: ChannelBatch, parts: Sequence[Sequences], seen: Sequence[Tensor | None]
    ) -> Diversity:
        """Judge the images of a batch.

        Args:
            strategy: As given to `__init__`.
            batch: Dense and normalised.
            parts: What `strategy.sequences` gave for it.
            seen: For each part which tokens the network sees, (B, T), bool; None for all of them.
        """
        rows = [self._judge(strategy, batch, part, mask) for part, mask in zip(parts, seen, strict=True)]
        return Diversity(*(torch.cat(values) for values in zip(*rows, strict=True)))

    def _judge(self, strategy: ChannelStrategy, batch: ChannelBatch, part: Sequences, seen: Tensor | None) -> Diversity:
        none = torch.zeros(len(part.rows), device=part.rows.device)
        within = across = channels = none
        if self.recipe.token_weight:
            raw = (part.tokens - part.places).float()
            within, across = token_likeness(raw, part.channels, part.planes.shape[1], seen)
        table = typed(strategy)
        if self.recipe.channel_weight and table is not None:
            n_types = len(self.proxies)
            types = table.types(batch)[part.planes]  # (B, C); from K on: types without an embedding of their own
            present = torch.zeros(len(types), n_types + 2, device=types.device, dtype=torch.bool)
            present = present.scatter(1, types, True)[:, :n_types]
            channels = channel_confusion(
                table.channel_embedding.float(),
                self.proxies.float(),
                present,
                self.recipe.channel_temperature,
                among_present=self.recipe.channel_among == "image",
            )
        return Diversity(within, across, channels)


def typed(strategy: ChannelStrategy) -> ChannelAttention | None:
    """Return the part of a strategy that has an embedding for each channel type, or None."""
    inner = strategy.channels if isinstance(strategy, MemoryFusion) else strategy
    return inner if isinstance(inner, ChannelAttention) else None


def weighted_diversity(terms: Diversity, recipe: DiversityRecipe) -> Tensor:
    """Return the loss of each image, (B,), from its terms."""
    tokens = recipe.within * terms.within + recipe.across * terms.across
    return recipe.token_weight * tokens + recipe.channel_weight * terms.channels

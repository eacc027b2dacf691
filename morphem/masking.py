"""Masks: which patch tokens of an image an encoder does not get to see.

Every draw is a function of the seed of the image and, where channels are masked on their own, of the channel type: a
mask does not change with the batch mates of an image or with the order of its channels.

Source: independent masks, He et al. 2022 (https://arxiv.org/abs/2111.06377); synchronised masks, Campfire (Hurry et al.
2025); flat masks, CA-MAE (Kraus et al. 2024, https://arxiv.org/abs/2404.10242) and CHAMMI-75 at b84a4ec;
whole channels, the dynamic channel-patch masking of ChA-MAEViT (Pham et al. 2025, https://arxiv.org/abs/2503.19331).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from morphem.channels.sequences import Sequences
from morphem.errors import ConfigError, unknown_name
from morphem.normalizers import plane_seeds
from morphem.rng import uniform
from morphem.types import ChannelBatch

Patches = Literal["independent", "synchronised", "flat"]


@dataclass(frozen=True)
class MaskRecipe:
    """How one kind of mask is drawn; the defaults are those of CHAMMI-75's bag-of-channels MAE.

    Args:
        patches: `independent` hides the same number of patches in every channel, each channel at its own places;
            `synchronised` hides the same places in all channels of an image; `flat` draws from all patches of all
            channels together, so that a channel may lose all or none; None hides whole channels only.
        ratio: Share of the patches that is hidden, above 0 and below 1; the number that stays is rounded down.
            Published: MAE, CHAMMI-75 and CA-MAE 0.75; Campfire 0.8; Kim et al. 0.5; ChA-MAEViT 0.75, or 0.25 together
            with whole channels. An image of one channel has no channel to lose: where `patches` is None this
            share of its patches is hidden.
        channels: Whether whole channels of an image are hidden as well: a number drawn evenly from 0 to C - 1 (from 1
            where `patches` is None), then that many of them. Not with `flat`.
        weight: Where a method has several kinds of masks, an image gets one of them with a probability proportional
            to this; above 0.

    Raises:
        ConfigError: If a value is out of its range, or nothing or everything could be hidden.
    """

    patches: Patches | None = "independent"
    ratio: float = 0.75
    channels: bool = False
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.patches is not None and self.patches not in get_args(Patches):
            raise ConfigError(f"MaskRecipe.patches: {unknown_name('choice', str(self.patches), get_args(Patches))}")
        if not 0 < self.ratio < 1:
            raise ConfigError(
                f"MaskRecipe.ratio is {self.ratio}; it must be above 0 and below 1: some is hidden and some is left."
            )
        if not (self.weight > 0 and math.isfinite(self.weight)):
            raise ConfigError(f"MaskRecipe.weight is {self.weight}; it must be above 0.")
        if self.patches is None and not self.channels:
            raise ConfigError("MaskRecipe hides nothing with patches: null and channels: false; set one of them.")
        if self.patches == "flat" and self.channels:
            raise ConfigError(
                "MaskRecipe: with patches: flat and channels: true an image could lose all it has; take patches: "
                "independent or synchronised, or channels: false."
            )

    def n_visible(self, n_patches: int) -> int:
        """Return how many of the patches of a channel stay visible.

        Args:
            n_patches: Patches of a channel.

        Raises:
            ConfigError: If none or all of them do.
        """
        count = math.floor(n_patches * (1.0 - self.ratio) + 1e-6)  # 10 * (1 - 0.9) is just below 1
        if not 0 < count < n_patches:
            raise ConfigError(
                f"MaskRecipe.ratio={self.ratio} of {n_patches} patches leaves {count} visible; at least one must be "
                f"hidden and at least one left: take a ratio from {1 / n_patches:.3g} to {1 - 1 / n_patches:.3g}, or "
                "larger views."
            )
        return count


def draw_masks(recipes: Sequence[MaskRecipe], images: Tensor, planes: Tensor, n_patches: int) -> Tensor:
    """Draw masks.

    Args:
        recipes: Kinds of masks; every image gets one of them.
        images: Seed of the image that each of B sequences comes from, (B,), int64.
        planes: Seeds of its planes, (B, C), int64.
        n_patches: N, patches of a plane.

    Returns:
        (B, C, N), True where a patch is hidden; in every sequence some are and some are not.

    Raises:
        ConfigError: If a recipe would hide nothing or everything.
    """
    masks = torch.stack([_draw(recipe, images, planes, n_patches) for recipe in recipes])  # (R, B, C, N)
    if len(recipes) == 1:
        return masks[0]
    shares = torch.tensor([recipe.weight for recipe in recipes], dtype=torch.float64).cumsum(0)
    bounds = (shares[:-1] / shares[-1]).to(images.device)
    kind = torch.bucketize(uniform(images, "mask/kind")[:, 0].double(), bounds, right=True)  # (B,)
    return masks[kind, torch.arange(len(images), device=images.device)]


def _draw(recipe: MaskRecipe, images: Tensor, planes: Tensor, n_patches: int) -> Tensor:
    """Draw the masks of one kind, (B, C, N)."""
    n_channels = planes.shape[1]
    only_channels = recipe.patches is None and n_channels > 1
    if only_channels:
        hidden = torch.zeros(*planes.shape, n_patches, dtype=torch.bool, device=planes.device)
    else:
        hidden = _hidden_patches(recipe, images, planes, recipe.n_visible(n_patches), n_patches)
    if recipe.channels and n_channels > 1:
        hidden = hidden | _hidden_channels(images, planes, 1 if only_channels else 0)[:, :, None]
    return hidden


def _hidden_patches(recipe: MaskRecipe, images: Tensor, planes: Tensor, n_visible: int, n_patches: int) -> Tensor:
    count, n_channels = planes.shape
    if recipe.patches == "synchronised":
        noise = uniform(images, "mask/synchronised", n_patches)  # (B, N)
        return _largest(noise, n_patches - n_visible)[:, None].expand(-1, n_channels, -1)
    noise = uniform(planes.flatten(), "mask/patches", n_patches)  # (B * C, N)
    if recipe.patches == "flat":
        hidden = _largest(noise.reshape(count, -1), n_channels * (n_patches - n_visible))
    else:
        hidden = _largest(noise, n_patches - n_visible)
    return hidden.reshape(count, n_channels, n_patches)


def _hidden_channels(images: Tensor, planes: Tensor, least: int) -> Tensor:
    """Draw whole channels, `least` to C - 1 of them, (B, C)."""
    choices = planes.shape[1] - least
    count = least + (uniform(images, "mask/channel count")[:, 0] * choices).long().clamp(max=choices - 1)  # (B,)
    noise = uniform(planes.flatten(), "mask/channels").reshape(planes.shape)
    rank = noise.argsort(dim=1, descending=True, stable=True).argsort(1)
    return rank.lt(count[:, None])


def _largest(noise: Tensor, count: int) -> Tensor:
    """Mark the `count` largest of each row, (B, N)."""
    order = noise.argsort(dim=1, descending=True, stable=True)
    return torch.zeros_like(noise, dtype=torch.bool).scatter_(1, order[:, :count], True)


def hidden_tokens(recipes: Sequence[MaskRecipe], batch: ChannelBatch, sequences: Sequences) -> Tensor:
    """Draw which tokens of sequences are hidden.

    Args:
        recipes: Kinds of masks.
        batch: The dense batch that the sequences were made of; its seeds are the only source of randomness.
        sequences: Tokens of single channels, or of all channels of an image at once.

    Returns:
        (B, T), True where a token is hidden.

    Raises:
        ConfigError: If a recipe would hide nothing or everything, or hides channels where tokens have none.
    """
    n_patches = sequences.grid[0] * sequences.grid[1]
    images = batch.seeds[batch.image_of_plane()[sequences.planes[:, 0]]]
    if sequences.planes.shape[1] > 1 and sequences.tokens.shape[1] == n_patches:  # a token is cut from all channels
        if any(recipe.channels for recipe in recipes):
            raise ConfigError("MaskRecipe.channels: no channel can be hidden where a token is cut from all of them.")
        masks = draw_masks(recipes, images, images[:, None], n_patches)
        return masks[:, 0].gather(1, sequences.patches)
    masks = draw_masks(recipes, images, plane_seeds(batch)[sequences.planes], n_patches)
    return masks.flatten(1).gather(1, sequences.channels * n_patches + sequences.patches)


class Split(NamedTuple):
    """Sequences of which equally many tokens are hidden.

    Attributes:
        members: Which sequences these are, (b,), int64.
        visible: Numbers of their visible tokens, (b, T_v), int64, ascending.
        hidden: Numbers of their hidden tokens, (b, T_h), int64, ascending.
    """

    members: Tensor
    visible: Tensor
    hidden: Tensor


def split_by_count(hidden: Tensor) -> list[Split]:
    """Group sequences by the number of their hidden tokens, so that none has to be padded.

    Args:
        hidden: (B, T), True where a token is hidden.
    """
    counts = hidden.sum(1)
    order = hidden.to(torch.int8).argsort(dim=1, stable=True)  # visible tokens first
    n_tokens = hidden.shape[1]
    groups = []
    for count in sorted(set(counts.tolist())):
        members = (counts == count).nonzero()[:, 0]
        groups.append(Split(members, order[members, : n_tokens - count], order[members, n_tokens - count :]))
    return groups

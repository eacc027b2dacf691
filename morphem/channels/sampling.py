"""Channel sampling: which channels of an image a training step looks at.

Source: hierarchical channel sampling, ChannelViT, Bao et al. 2024, https://arxiv.org/abs/2309.16108 (the number of
channels is drawn first, evenly, then which ones); diverse channel sampling, DiChaViT, Pham and Plummer 2024,
https://arxiv.org/abs/2405.16419 (after a first channel, those that resemble it least are likelier).
"""

from collections import Counter
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize

from morphem.errors import ConfigError
from morphem.rng import mix_tensor, uniform
from morphem.types import ChannelBatch

Sampling = Literal["none", "batch", "sample"]
_SAMPLINGS = ("none", "batch", "sample")
_LEAST = 2.0**-25  # half of the smallest step of a draw: keeps logarithms finite


def check_sampling(strategy: str, sampling: str) -> None:
    """Check that a way of sampling channels exists.

    Args:
        strategy: Short name of the strategy, for the message.
        sampling: What was asked for.

    Raises:
        ConfigError: If it does not.
    """
    if sampling not in _SAMPLINGS:
        raise ConfigError(f"{strategy}: sampling='{sampling}' must be one of {', '.join(_SAMPLINGS)}.")


def sampled_planes(
    batch: ChannelBatch, sampling: Sampling, types: Tensor, *, table: Tensor | None = None, temperature: float = 1.0
) -> Tensor | None:
    """Return the planes that a training step looks at, in rising order, (P',), int64; None for all of them.

    Args:
        batch: Any.
        sampling: `none` leaves out none, `batch` draws with one seed for all images, `sample` with that of each image.
        types: A number for the channel type of each plane, (P,), int64.
        table: See `sample_channels`.
        temperature: See `sample_channels`.
    """
    if sampling == "none":
        return None
    seeds = one_seed(batch.seeds) if sampling == "batch" else batch.seeds
    return sample_channels(batch.offsets, types, _repeats(batch), seeds, table=table, temperature=temperature)


def _repeats(batch: ChannelBatch) -> Tensor:
    """Return how many planes of the same type come before each plane in its image, (P,), int64."""
    result = []
    for first, last in pairwise(batch.offsets.tolist()):
        seen: Counter[str] = Counter()
        for name in batch.channel_types[first:last]:
            result.append(seen[name])
            seen[name] += 1
    return torch.tensor(result, device=batch.offsets.device)


def sample_channels(
    offsets: Tensor,
    types: Tensor,
    repeats: Tensor,
    seeds: Tensor,
    *,
    table: Tensor | None = None,
    temperature: float = 1.0,
) -> Tensor:
    """Draw channels of every image: first how many, from one to all, then which.

    A draw depends on the seed of the image and on the types of its channels, not on their order. Images with one seed
    and the same channels keep the same of them.

    Args:
        offsets: Of the planes of the images, (N + 1,), int64.
        types: Number of the channel type of each plane, (P,), int64.
        repeats: How many planes of this type come before it in its image, (P,), int64.
        seeds: Of the images, (N,), int64.
        table: What types look like, (K, D), to draw channels that differ from the first, which is always kept; without
            it all sets of one size are equally likely.
        temperature: With `table`: of the draw, above 0; a high one is as without.

    Returns:
        The planes that are kept, in rising order, (P',), int64.
    """
    counts = offsets.diff()
    images = torch.repeat_interleave(torch.arange(len(counts), device=counts.device), counts, output_size=len(types))
    wanted = 1 + (uniform(seeds, "channels/count")[:, 0] * counts).long().clamp(max=counts - 1)  # (N,)
    draws = uniform(mix_tensor(seeds[images], types, repeats), "channels/order")[:, 0].double()  # (P,)
    order = _ranks(draws, images, offsets)
    if table is not None:
        first = (order == 0).nonzero()[:, 0]  # (N,) the first channel of each image
        looks = normalize(table.detach().double(), dim=1)
        likeness = (looks[types] * looks[types[first]][images]).sum(1)  # (P,) cosines
        # The largest of logits plus Gumbel noise are a draw without replacement with softmax probabilities.
        again = uniform(mix_tensor(seeds[images], types, repeats), "channels/likeness")[:, 0].double()
        noise = -(-(again + _LEAST).log()).log()
        score = -((1 - likeness) / temperature + noise)
        score[first] = -torch.inf
        order = _ranks(score, images, offsets)
    return (order < wanted[images]).nonzero()[:, 0]


def one_seed(seeds: Tensor) -> Tensor:
    """Return one seed for all images of a batch, whatever their order, (N,)."""
    return mix_tensor(seeds, "channels/batch").sum().expand(len(seeds))


def _ranks(values: Tensor, images: Tensor, offsets: Tensor) -> Tensor:
    """Return the rank of each plane among those of its image, the smallest value first, (P,), int64."""
    by_value = values.argsort(stable=True)
    order = by_value[images[by_value].argsort(stable=True)]  # (P,) planes by image, then by value
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device) - offsets[images]
    return ranks

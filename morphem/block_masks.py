"""Block masks: rectangles of patches that a student does not get to see.

Every draw is a function of the seed of the image and, where channels are masked on their own, of the channel type: a
mask does not change with the batch mates of an image or with the order of its channels.

Source: Bao et al. 2022 (BEiT), https://arxiv.org/abs/2106.08254; dinov2/data/masking.py and collate.py of
facebookresearch/dinov2 at 05c66df.
Differs from DINOv2: whether an image is masked and how much of it is drawn for each image alone, where DINOv2 masks
exactly half of the images of a batch, at evenly spread ratios; a block may be as high or wide as the plane.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from morphem.channels.sequences import Sequences
from morphem.normalizers import plane_seeds
from morphem.rng import mix_tensor, uniform
from morphem.types import ChannelBatch

_TRIES = 24  # by then the hardest of 4,000 masks of half of 14 x 14 patches is 99 % full
_LEAST = 4  # patches in a block, where as many are still to be hidden
_ASPECTS = (0.3, 1 / 0.3)  # height / width of a block


def block_masks(seeds: Tensor, counts: Tensor, grid: tuple[int, int]) -> Tensor:
    """Hide rectangles until a number of patches is hidden, or the next ones would hide too many.

    Args:
        seeds: (B,), int64.
        counts: How many patches of each are to be hidden, at most; 0 for none, (B,), int64.
        grid: Patches along height and width.

    Returns:
        (B, h, w), True where a patch is hidden.
    """
    height, width = grid
    draws = uniform(seeds, "mask/blocks", 4 * _TRIES).reshape(len(seeds), _TRIES, 4)
    rows = torch.arange(height, device=seeds.device)[None, :, None]
    columns = torch.arange(width, device=seeds.device)[None, None, :]
    hidden = torch.zeros(len(seeds), height, width, dtype=torch.bool, device=seeds.device)
    low, high = (math.log(aspect) for aspect in _ASPECTS)
    for size, shape, down, right in draws.permute(1, 2, 0):  # (B,) each
        left_to_hide = counts - hidden.sum((1, 2))
        least = left_to_hide.clamp(max=_LEAST)
        area = least + size * (left_to_hide - least)
        aspect = (low + shape * (high - low)).exp()
        tall, wide = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        top, left = (down * (height - tall + 1)).long(), (right * (width - wide + 1)).long()
        top, left, tall, wide = (number[:, None, None] for number in (top, left, tall, wide))
        block = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        new = (block & ~hidden).sum((1, 2))
        fits = (tall <= height).flatten() & (wide <= width).flatten() & (new <= left_to_hide)
        hidden |= block & fits[:, None, None]
    return hidden


def hidden_in_blocks(
    batch: ChannelBatch, parts: Sequence[Sequences], probability: float, ratio: tuple[float, float], together: bool
) -> list[Tensor]:
    """Draw which tokens of sequences are hidden.

    Args:
        batch: The dense batch that the sequences were made of; its seeds are the only source of randomness.
        parts: Sequences of one grid, of tokens of single channels or of all channels of an image at once.
        probability: That anything of a sequence is hidden.
        ratio: Smallest and largest share of the patches of a plane that is hidden then; at least one patch.
        together: Whether all channels of an image lose the same patches, or each its own, equally many.

    Returns:
        For each part (B, T), True where a token is hidden.
    """
    height, width = parts[0].grid
    of_planes = plane_seeds(batch)
    seeds, counts = [], []
    for part in parts:
        planes = of_planes[part.planes]  # (B, C)
        whole = mix_tensor(planes.sum(1), "mask/whole")  # (B,), whatever the order of the channels
        chosen, share = uniform(whole, "mask/share", 2).unbind(1)
        count = ((ratio[0] + share * (ratio[1] - ratio[0])) * height * width).long().clamp(min=1)
        count = torch.where(chosen < probability, count, 0)
        seeds.append(whole[:, None] if together or _of_all_channels(part) else planes)
        counts.append(count[:, None].expand(seeds[-1].shape))
    # All parts in one call: a loop of small steps costs the same for few masks and for many
    joined = block_masks(
        torch.cat([s.flatten() for s in seeds]), torch.cat([c.flatten() for c in counts]), (height, width)
    )
    result = []
    for part, masks in zip(parts, torch.split(joined.flatten(1), [s.numel() for s in seeds]), strict=True):
        own = len(masks) > len(part.rows)
        channels = part.channels if own else torch.zeros_like(part.channels)
        result.append(masks.reshape(len(part.rows), -1).gather(1, channels * (height * width) + part.patches))
    return result


def _of_all_channels(part: Sequences) -> bool:
    """Whether each token is cut from all channels of its image."""
    return part.planes.shape[1] > 1 and part.tokens.shape[1] == part.grid[0] * part.grid[1]

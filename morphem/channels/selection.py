"""Leave planes out of a batch."""

import torch
from torch import Tensor

from morphem.types import ChannelBatch


def keep_planes(batch: ChannelBatch, planes: Tensor) -> ChannelBatch:
    """Return a batch of the same images with some of their planes.

    Args:
        batch: Ragged or dense.
        planes: Which planes, in rising order, at least one of each image, (P',), int64.
    """
    images = batch.image_of_plane()[planes]
    counts = torch.bincount(images, minlength=batch.n_images)
    if not batch.ragged:
        pixels = batch.planes[planes]
    else:
        kept = torch.zeros(batch.n_planes, dtype=torch.bool, device=planes.device).index_fill(0, planes, True)
        pixels = batch.planes[kept.repeat_interleave(batch.sizes.prod(1), output_size=len(batch.planes))]
    return batch._replace(
        planes=pixels,
        sizes=batch.sizes[planes],
        offsets=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
        channel_types=tuple(batch.channel_types[plane] for plane in planes.tolist()),
    )

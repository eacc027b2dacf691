"""What the network of an encoder sees of a batch of pixels, for replays of golden records."""

import torch

from morphem.encoder import Encoder
from morphem.types import ChannelBatch


@torch.no_grad()
def network_batch(encoder: Encoder, batch: ChannelBatch) -> ChannelBatch:
    """Return a batch normalised and resized as the encoder does, dense, in the encoder's precision.

    Args:
        encoder: Says what is done.
        batch: Ragged, pixels of its input domain; all planes of one size where the encoder does not resize.
    """
    ready = encoder.normalizer(batch, encoder.dtype)
    if encoder.geometry is not None:
        squares = encoder.geometry(ready)
        sizes = torch.full_like(ready.sizes, encoder.geometry.size_px)
        ready = ready._replace(planes=squares.reshape(-1), sizes=sizes)
    if encoder.after_resize is not None:
        ready = encoder.after_resize.apply_to(ready._replace(planes=ready.planes.clone()))
    height, width = ready.sizes[0].tolist()
    return ready._replace(planes=ready.planes.reshape(-1, 1, height, width))  # type: ignore[no-any-return]

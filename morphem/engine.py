"""How batches go through a network: whole on an accelerator, a few planes per thread on a CPU."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor

from morphem.types import ChannelBatch

Features = Callable[[ChannelBatch], Tensor]
_THREAD_PIXELS = 4 * 224 * 224  # that one thread embeds at once: the tokens of a ViT-S then fit the cache of a core


@contextmanager
def engine(features: Features, device: torch.device, side_px: int) -> Iterator[Features]:
    """Yield a function that does what `features` does, faster on a CPU; see `engines`.

    Args:
        features: Embeds a ragged batch, each row on its own; called from several threads.
        device: Where the batches are.
        side_px: Side of the planes that the network sees.
    """
    with engines([features], device, [side_px]) as (one,):
        yield one


@contextmanager
def engines(features: Sequence[Features], device: torch.device, sides_px: Sequence[int]) -> Iterator[list[Features]]:
    """Yield functions that do what `features` do, faster on a CPU.

    There, a few planes at a time stay in the cache, and a thread for each such group scales better than all threads
    on one matrix after the other. While the engines run, torch uses one thread per operation.

    Args:
        features: Each embeds a ragged batch, each row on its own; called from several threads.
        device: Where the batches are.
        sides_px: For each the side of the planes that its network sees.
    """
    if device.type != "cpu":
        yield list(features)
        return
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(n_threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield [
                _in_groups(pool, one, max(1, _THREAD_PIXELS // side**2))
                for one, side in zip(features, sides_px, strict=True)
            ]
    finally:
        torch.set_num_threads(n_threads)


def _in_groups(pool: ThreadPoolExecutor, features: Features, n_planes: int) -> Features:
    def run(batch: ChannelBatch) -> Tensor:
        return torch.cat(list(pool.map(features, split_crops(batch, n_planes))))

    return run


def split_crops(batch: ChannelBatch, n_planes: int) -> Iterator[ChannelBatch]:
    """Cut a ragged batch between crops into even parts of at most `n_planes` planes (or one crop, if that has more).

    Args:
        batch: Ragged.
        n_planes: At least 1.
    """
    crops = batch.n_images
    largest = max(1, n_planes // max(1, int(batch.offsets.diff().max())))
    parts = 1 if batch.n_planes <= n_planes else -(-crops // largest)
    bounds = [round(i * crops / parts) for i in range(parts + 1)]
    starts = torch.cat([batch.starts(), torch.tensor([len(batch.planes)])])
    for first, last in pairwise(bounds):
        a, b = int(batch.offsets[first]), int(batch.offsets[last])
        yield ChannelBatch(
            planes=batch.planes[int(starts[a]) : int(starts[b])],
            sizes=batch.sizes[a:b],
            offsets=batch.offsets[first : last + 1] - a,
            channel_types=batch.channel_types[a:b],
            keys=batch.keys[first:last],
            seeds=batch.seeds[first:last],
            boxes=batch.boxes[first:last],
            rows=batch.rows[first:last],
            labels=batch.labels[first:last],
        )

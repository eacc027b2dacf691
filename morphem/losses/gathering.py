"""Rows of all processes in one place, for losses that compare every row with every other."""

import torch
import torch.distributed as dist
from lightly.utils.dist import gather
from torch import Tensor
from torch.nn.functional import pad


def n_processes() -> int:
    """Return how many processes train together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def mean_over_rows(total: Tensor, n_rows: Tensor, joint: bool) -> Tensor:
    """Divide a sum over rows by their mean number per process, or by 1 where there is none.

    The mean over processes of the results, which DDP takes of gradients, is the mean over all rows.

    Args:
        total: Sum over the rows of this process, ().
        n_rows: How many these are, ().
        joint: Whether the rows of all processes count, which then all have to call this, or those of this one.
    """
    count = n_rows.to(total.dtype)
    if joint and dist.is_available() and dist.is_initialized():
        count = count.clone()
        dist.all_reduce(count)
        count = count / dist.get_world_size()
    return total / torch.where(count > 0, count, 1.0)


def gather_rows(rows: Tensor) -> tuple[Tensor, int]:
    """Join the rows of all processes, in the order of their ranks; gradients flow back to each.

    Every process has to call it, with rows of one width.

    Args:
        rows: Those of this process, (M, D); other processes may have other numbers of them, also none.

    Returns:
        All rows, (sum of M, D), and how many stand before those of this process.
    """
    if n_processes() == 1:
        return rows, 0
    mine = torch.tensor([len(rows)], device=rows.device)
    gathered = [torch.empty_like(mine) for _ in range(n_processes())]
    dist.all_gather(gathered, mine)
    counts: list[int] = torch.cat(gathered).tolist()
    # Processes exchange blocks of one height
    blocks = gather(pad(rows, (0, 0, 0, max(counts) - len(rows))).contiguous())
    joined = torch.cat([block[:count] for block, count in zip(blocks, counts, strict=True)])
    return joined, sum(counts[: dist.get_rank()])

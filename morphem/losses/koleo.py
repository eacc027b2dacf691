"""KoLeo: each row is pushed away from its nearest neighbour, over all processes.

Source: Sablayrolles et al. 2019, https://arxiv.org/abs/1806.03198; DINOv2, https://arxiv.org/abs/2304.07193.
Differs from DINOv2 and lightly's `KoLeoLoss`, whose numbers it gives in one process: there the neighbour is looked for
on one device only, so that the loss of a batch depends on how it is shared out.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, pairwise_distance

from morphem.losses.gathering import gather_rows, n_processes

_EPS = 1e-8


def koleo(rows: Tensor) -> Tensor:
    """Return the mean of -log of the distance to the nearest neighbour, (); 0 where there is no other row.

    The mean over processes of what they get is the mean over all rows.

    Args:
        rows: One view of the images of this process, (M, D), float32.
    """
    mine = normalize(rows, dim=1)
    everyone, start = gather_rows(mine)
    if len(everyone) < 2:
        return 0.0 * mine.sum()
    with torch.no_grad():
        likeness = mine @ everyone.T  # (M, sum of M)
        places = torch.arange(len(mine), device=mine.device)
        likeness[places, start + places] = -torch.inf
        neighbours = likeness.argmax(1)
    distances = pairwise_distance(mine, everyone[neighbours], eps=_EPS)
    total: Tensor = -(distances + _EPS).log().sum() * n_processes() / len(everyone)
    return total

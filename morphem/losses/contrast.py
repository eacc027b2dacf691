"""Contrast of two views: the loss of SimCLR over all rows of all processes, however many each of them has.

Source: Chen et al. 2020, "A simple framework for contrastive learning of visual representations" (NT-Xent),
https://arxiv.org/abs/2002.05709.
Differs from lightly 1.6 (`NTXentLoss`), whose numbers it gives where all processes have as many rows: with ragged
batches they have not, and a validation batch may hold one image more on one process than on another.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from morphem.losses.gathering import gather_rows, n_processes


class Contrast(NamedTuple):
    """What comparing two views gives.

    Attributes:
        loss: (), float32; its mean over processes is the mean over all rows of all processes.
        alignment: Mean cosine similarity of the two views of a row of this process, ().
        accuracy: Share of this process's rows whose nearest row of all is their own other view, ().
        n_rows: Rows of one view on all processes together.
    """

    loss: Tensor
    alignment: Tensor
    accuracy: Tensor
    n_rows: int


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Contrast:
    """Tell the other view of a row from all other rows of both views, on all processes.

    Args:
        first: Projections of the first view, (M, D), float32, not yet of length 1.
        second: Those of the second view, of the same rows.
        temperature: Above 0; similarities are divided by it.
    """
    n_rows = len(first)
    mine = normalize(torch.cat([first, second]), dim=1)  # (2M, D)
    everyone, start = gather_rows(mine)  # (sum of 2M, D)
    places = torch.arange(2 * n_rows, device=mine.device)
    partners = start + (places + n_rows) % max(2 * n_rows, 1)
    logits = mine @ everyone.T / temperature  # (2M, sum of 2M)
    itself = torch.zeros_like(logits, dtype=torch.bool)
    itself[places, start + places] = True
    logits = logits.masked_fill(itself, -torch.inf)
    # The mean over processes, which DDP takes of gradients, then is the mean over rows
    loss = cross_entropy(logits, partners, reduction="sum") * n_processes() / len(everyone)
    scores = logits.detach()
    alignment = temperature * scores[places, partners].mean()
    accuracy = (scores.argmax(1) == partners).float().mean()
    return Contrast(loss, alignment, accuracy, len(everyone) // 2)

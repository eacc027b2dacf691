"""Losses on labels: cross-entropy over classes, proxies, supervised contrast, triplets.

Rows without a label are left out. A loss over several processes is scaled so that its mean over them, which DDP takes
of gradients, is the mean over all their rows, however these are shared out.

Source: proxies, Teh et al. 2020 (ProxyNCA++), https://arxiv.org/abs/2004.01113, in the form of the CHAMMI baselines and
DiChaViT (squared distances of unit vectors over a temperature); supervised contrast, Khosla et al. 2020,
https://arxiv.org/abs/2004.11362, equation 2; triplets, Schroff et al. 2015 (FaceNet), https://arxiv.org/abs/1503.03832,
with the hardest rows of the batch as Hermans et al. 2017, https://arxiv.org/abs/1703.07737.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, pad

from morphem.losses.gathering import gather_rows, mean_over_rows


class LabelLoss(NamedTuple):
    """What a loss on labels gives.

    Attributes:
        loss: (), float32; 0 with a graph where no row counts.
        n_rows: Rows of this process that count, ().
    """

    loss: Tensor
    n_rows: Tensor


def class_loss(scores: Tensor, classes: Tensor, *, smoothing: float = 0.0, joint: bool = True) -> LabelLoss:
    """Cross-entropy between the softmax of scores and the classes of rows.

    Args:
        scores: (M, K), float32.
        classes: 0 to K - 1, or -1 for a row that is left out, (M,), int64.
        smoothing: Share of the target that is spread evenly over all classes, 0 to 1.
        joint: Whether the mean is over the rows of all processes, which then all have to call this, or of this one.
    """
    total = cross_entropy(scores, classes, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
    n_rows = (classes >= 0).sum()
    return LabelLoss(mean_over_rows(total, n_rows, joint), n_rows)


class ProxyScores(nn.Module):
    """Scores of classes by their proxies: minus the squared distance of unit vectors, over a temperature.

    Args:
        input_dim: D of the embeddings.
        n_classes: K; each class has one trained vector.
        temperature: Above 0. The CHAMMI baselines take 0.3, ChannelViT and DiChaViT on CHAMMI 0.07.
    """

    def __init__(self, input_dim: int, n_classes: int, temperature: float) -> None:
        super().__init__()
        self.temperature = temperature
        # Only directions count; the length says how fast a proxy turns
        self.proxies = nn.Parameter(torch.randn(n_classes, input_dim) / 8)

    def forward(self, embeddings: Tensor) -> Tensor:
        """Score embeddings, (M, D), against the classes, (M, K), at most 0."""
        cosine = normalize(embeddings, dim=1) @ normalize(self.proxies, dim=1).T
        return (2 * cosine - 2) / self.temperature


def supervised_contrast(projections: Tensor, classes: Tensor, temperature: float, *, joint: bool = True) -> LabelLoss:
    """Tell rows of the same class from all other labelled rows; a row without another of its class is only told from.

    Args:
        projections: (M, D), float32, not yet of length 1; all views of all images.
        classes: Class of each row, or -1 for a row that is left out altogether, (M,), int64.
        temperature: Above 0; similarities are divided by it.
        joint: Whether rows are compared over all processes, which then all have to call this.
    """
    mine, labels = normalize(projections[classes >= 0], dim=1), classes[classes >= 0]
    everyone, theirs, start = _gather(mine, labels, joint)
    places = torch.arange(len(mine), device=mine.device)
    itself = torch.zeros(len(mine), len(everyone), dtype=torch.bool, device=mine.device)
    itself[places, start + places] = True
    positive = (labels[:, None] == theirs) & ~itself
    logits = (mine @ everyone.T / temperature).masked_fill(itself, -torch.inf)
    n_positives = positive.sum(1)
    anchors = n_positives > 0
    log_share = logits[anchors].log_softmax(1).masked_fill(~positive[anchors], 0.0)
    total = (-log_share.sum(1) / n_positives[anchors]).sum() + 0.0 * projections.sum()  # a graph also without anchors
    return LabelLoss(mean_over_rows(total, anchors.sum(), joint), anchors.sum())


def _gather(rows: Tensor, labels: Tensor, joint: bool) -> tuple[Tensor, Tensor, int]:
    """Rows and labels of all processes, and how many stand before those of this one."""
    if not joint:
        return rows, labels, 0
    everyone, start = gather_rows(rows)
    return everyone, gather_rows(labels[:, None])[0][:, 0], start


def triplet_loss(embeddings: Tensor, classes: Tensor, margin: float) -> LabelLoss:
    """Pull each row nearer to the farthest row of its class than to the nearest row of any other, by a margin.

    Args:
        embeddings: (M, D), float32, not yet of length 1.
        classes: Class of each row, or -1 for a row that is left out, (M,), int64.
        margin: Above 0, in Euclidean distances between unit vectors (0 to 2). FaceNet takes 0.2.
    """
    rows, labels = normalize(embeddings[classes >= 0], dim=1), classes[classes >= 0]
    distances = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    same = labels[:, None] == labels
    positive = same & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
    anchors = positive.any(1) & (~same).any(1)
    # A further column, so that there is one where no row has a label
    farthest = pad(distances.masked_fill(~positive, 0.0), (0, 1))[anchors].amax(1)
    nearest = pad(distances.masked_fill(same, torch.inf), (0, 1), value=torch.inf)[anchors].amin(1)
    total = (farthest - nearest + margin).relu().sum() + 0.0 * embeddings.sum()
    return LabelLoss(total / anchors.sum().clamp(min=1), anchors.sum())


def group_means(rows: Tensor, classes: Tensor, groups: Tensor) -> tuple[Tensor, Tensor]:
    """Average the rows of a group that have one class.

    Args:
        rows: (M, D).
        classes: Class of each row, or -1 for a row that is left out, (M,), int64.
        groups: Number of each row's group, or -1 for a row that is a group of its own, (M,), int64.

    Returns:
        Means, (G, D), and their classes, (G,), in order of class and group.
    """
    alone = -1 - torch.arange(len(rows), device=rows.device)
    pairs = torch.stack([classes, torch.where(groups < 0, alone, groups)], 1)[classes >= 0]
    kept, group = torch.unique(pairs, dim=0, return_inverse=True)
    totals = rows.new_zeros(len(kept), rows.shape[1]).index_add(0, group, rows[classes >= 0])
    return totals / torch.bincount(group, minlength=len(kept))[:, None], kept[:, 0]

"""Diversity of channels: patch tokens of an image that look unlike, and channel embeddings that are told apart.

Source: DiChaViT, Pham and Plummer 2024, https://arxiv.org/abs/2405.16419, equations 1 to 3, and models/loss_fn.py in
chaudatascience/diverse_channel_vit at 7a31666; the tokens that count where some are hidden, and proxies of the whole
vocabulary, as ChA-MAEViT, models/loss_func.py in chaudatascience/cha_mae_vit at ed92926.
Differs from them: sums over pairs of tokens are taken from sums over tokens, so that the cost grows with the number of
tokens and not with its square; every image is judged by itself, so that images of different channels stand in one
batch and the mean over a batch does not depend on how it is shared out.
"""

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot


def token_likeness(
    tokens: Tensor, channels: Tensor, n_channels: int, seen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Mean cosine similarity of two tokens of an image: of one channel, and of two channels.

    Args:
        tokens: What patches look like, without position and channel identity, (B, T, D), float32.
        channels: Channel of each token, 0 to C - 1, (B, T), int64.
        n_channels: C.
        seen: Which tokens are compared with all others, (B, T), bool; all of them where not given.

    Returns:
        Means over pairs of different tokens of one channel, (B,), and over pairs of tokens of two channels, (B,); 0
        where an image has no such pair.
    """
    unit = normalize(tokens, dim=2)
    member = one_hot(channels, n_channels).to(unit.dtype).transpose(1, 2)  # (B, C, T)
    first = member if seen is None else member * seen[:, None].to(unit.dtype)
    sums, firsts = member @ unit, first @ unit  # (B, C, D)
    counts, n_firsts = member.sum(2), first.sum(2)  # (B, C)
    itself = (first.sum(1) * unit.square().sum(2)).sum(1)  # (B,) each of the first with itself
    inside = (firsts * sums).sum((1, 2))
    within = (inside - itself) / (n_firsts * (counts - 1)).sum(1).clamp(min=1)
    pairs_across = n_firsts.sum(1) * counts.sum(1) - (n_firsts * counts).sum(1)
    across = ((firsts.sum(1) * sums.sum(1)).sum(1) - inside) / pairs_across.clamp(min=1)
    return within, across


def channel_confusion(
    embeddings: Tensor, proxies: Tensor, present: Tensor, temperature: float, *, among_present: bool
) -> Tensor:
    """How badly the embedding of a channel type is told, by its proxy, from those of others.

    The scores are minus the squared distances of unit vectors over the temperature; the loss of a type is the
    cross-entropy of picking its own proxy.

    Args:
        embeddings: Of K channel types, (K, D), float32.
        proxies: One for each, (K, D), float32.
        present: Which types an image has, (N, K), bool.
        temperature: Above 0.
        among_present: Whether a type is told from the other types of the image alone (DiChaViT), or from all K
            (ChA-MAEViT).

    Returns:
        Mean over the types of each image, (N,); 0 where it has none.
    """
    scores = (2 * normalize(embeddings, dim=1) @ normalize(proxies, dim=1).T - 2) / temperature  # (K, K)
    if among_present:
        others = scores.expand(len(present), -1, -1).masked_fill(~present[:, None], -torch.inf)  # (N, K, K)
        # Rows of images without any type would be all minus infinity, which has no gradient
        others = others.masked_fill(~present.any(1)[:, None, None], 0.0)
        rest = others.logsumexp(2)  # (N, K)
    else:
        rest = scores.logsumexp(1).expand(len(present), -1)
    losses = torch.where(present, rest - scores.diagonal(), 0.0)
    return losses.sum(1) / present.sum(1).clamp(min=1)

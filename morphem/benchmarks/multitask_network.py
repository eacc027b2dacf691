"""A small network that learns many yes-or-no outcomes at once, of which each row has some.

torch is imported when it is trained; global random numbers are neither used nor changed.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Truth = NDArray[np.float64]
Doubles = NDArray[np.floating[Any]]


def predict_activities(
    profiles: Doubles,
    truth: Truth,
    stop: tuple[Doubles, Truth],
    asked: Doubles,
    *,
    n_hidden: int | None,
    seed: int,
    max_epochs: int,
    patience: int,
    batch_size: int = 64,
) -> NDArray[np.float64]:
    """Train on some rows, stop on others, and return the logits of the rows asked for, (T, A).

    The weights that did best on the rows to stop on are used. The loss is the mean over known outcomes of the cross
    entropy, in which actives and inactives of an assay weigh alike.

    Args:
        profiles: Scaled features, (M, F).
        truth: 0, 1, or NaN where not tested, (M, A).
        stop: Rows and outcomes that tell when to stop, (V, F) and (V, A).
        asked: (T, F).
        n_hidden: Width of two hidden layers; None: one layer in all.
        seed: Of weights, dropout and batches.
        max_epochs: At least 1.
        patience: Epochs without gain after which training stops.
        batch_size: Rows of a step.
    """
    import torch
    from torch import nn

    rows, known, positives = (torch.from_numpy(array) for array in _arrays(profiles, truth))
    judged, judged_known, judged_truth = (torch.from_numpy(array) for array in _arrays(*stop))
    share = torch.where(known > 0, positives, 0.0).sum(0) / known.sum(0).clamp(min=1.0)  # (A,)
    weights = torch.stack([0.5 / (1 - share).clamp(min=1e-3), 0.5 / share.clamp(min=1e-3)])  # (2, A)

    def loss_of(logits: torch.Tensor, tested: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        each = nn.functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
        weight = torch.where(wanted > 0, weights[1], weights[0]) * tested
        return (each * weight).sum() / weight.sum().clamp(min=1e-6)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _network(profiles.shape[1], truth.shape[1], n_hidden)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-2)
        best, best_epoch = float("inf"), 0
        best_weights = {name: value.clone() for name, value in network.state_dict().items()}
        for epoch in range(max_epochs):
            network.train()
            for batch in torch.split(torch.randperm(len(rows)), batch_size):
                loss = loss_of(network(rows[batch]), known[batch], positives[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
            network.eval()
            with torch.no_grad():
                value = float(loss_of(network(judged), judged_known, judged_truth))
            if value < best:
                best, best_epoch = value, epoch
                best_weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            elif epoch - best_epoch >= patience:
                break
        network.load_state_dict(best_weights)
        network.eval()
        with torch.no_grad():
            answer: NDArray[np.float64] = network(torch.from_numpy(np.asarray(asked, np.float32))).double().numpy()
        return answer


def _network(n_features: int, n_assays: int, n_hidden: int | None) -> Any:
    from torch import nn

    if n_hidden is None:
        return nn.Linear(n_features, n_assays)
    return nn.Sequential(
        nn.Linear(n_features, n_hidden), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(n_hidden, n_hidden), nn.ReLU(), nn.Dropout(0.2),
        nn.Linear(n_hidden, n_assays),
    )  # fmt: skip


def _arrays(profiles: Doubles, truth: Truth) -> tuple[NDArray[np.float32], ...]:
    """Return features, which outcomes are known, and which are active, all float32."""
    known = ~np.isnan(truth)
    return (
        np.ascontiguousarray(profiles, np.float32),
        known.astype(np.float32),
        np.nan_to_num(truth).astype(np.float32),
    )

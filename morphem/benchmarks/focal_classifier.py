"""The classifier of several labels of HPAv23's evaluation: two hidden layers, focal loss, the best epoch.

torch is imported when it is trained.

Source: CaicedoLab/CHAMMI-75 at b84a4ec, `benchmarks/HPAv23`; Lin et al. 2017, arXiv 1708.02002 (focal loss).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from morphem.errors import ConfigError, DataError

Bools = NDArray[np.bool_]
Floats = NDArray[np.float32]


def train_classifier(
    train: Floats,
    labels: Bools,
    valid: Floats,
    judge: Callable[[Floats], float],
    test: Floats,
    *,
    seed: int,
    max_epochs: int,
    batch_size: int,
    device: str = "cpu",
    patience: int = 20,
) -> Floats:
    """Train the published classifier of several labels and return what it says of the test rows.

    Global random numbers are neither used nor changed.

    Args:
        train: (M, F).
        labels: (M, K).
        valid: (V, F).
        judge: Score of the probabilities of `valid`, (V, K); the epoch of the highest is taken, the last of several.
        test: (T, F).
        seed: Of the weights, the batches and the dropout.
        max_epochs: At least 1.
        batch_size: At least 1.
        device: As torch names it.
        patience: Epochs without gain after which training stops.

    Returns:
        Probabilities, (T, K).

    Raises:
        ConfigError: If the device is unknown or not there.
        DataError: If no epoch gives a finite score.
    """
    import torch
    from torch import nn

    def tensor(values: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(values, np.float32)).to(device)

    _check_device(device)
    rows, wanted = tensor(train), tensor(labels)
    cuda = [torch.device(device)] if torch.device(device).type == "cuda" else []
    with torch.random.fork_rng(devices=cuda):
        torch.manual_seed(seed)
        network = nn.Sequential(
            nn.Linear(train.shape[1], 512),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(512, 256),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.Linear(256, labels.shape[1]),
        ).to(device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode="max", patience=4, factor=0.5)
        best, best_epoch, said = -np.inf, -1, np.zeros((len(test), labels.shape[1]), np.float32)
        for epoch in range(max_epochs):
            network.train()
            for batch in torch.split(torch.randperm(len(rows)).to(device), batch_size):
                loss = focal_loss(network(rows[batch]), wanted[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            network.eval()
            with torch.no_grad():
                score = judge(network(tensor(valid)).sigmoid().cpu().numpy())
                scheduler.step(score)
                if score >= best:
                    best, best_epoch = score, epoch
                    said = network(tensor(test)).sigmoid().cpu().numpy()
            if epoch - best_epoch >= patience:
                break
    if best_epoch < 0 or not np.isfinite(said).all():
        raise DataError(
            "the classifier gave no finite score on the validation split; are features of a huge scale among the "
            "columns? Standardise them (`morphem profile`) or leave them out."
        )
    return said


def focal_loss(scores: Any, labels: Any, alpha: float = 0.25, gamma: float = 2.0) -> Any:
    """Return the sigmoid focal loss of Lin et al. 2017, the mean over all entries.

    Args:
        scores: Before the sigmoid, (R, K), a torch tensor.
        labels: 0 or 1, (R, K).
        alpha: Weight of positives, 0 to 1; negatives weigh 1 - alpha.
        gamma: At least 0; 0 is weighted cross-entropy.
    """
    from torch.nn.functional import binary_cross_entropy_with_logits

    entropy = binary_cross_entropy_with_logits(scores, labels, reduction="none")
    right = scores.sigmoid() * labels + (1 - scores.sigmoid()) * (1 - labels)
    weight = alpha * labels + (1 - alpha) * (1 - labels)
    return (weight * (1 - right) ** gamma * entropy).mean()


def _check_device(device: str) -> None:
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as fault:
        reason = str(fault).splitlines()[0]
        raise ConfigError(f"device='{device}' cannot be used ({reason}); take cpu or a device that is here.") from fault

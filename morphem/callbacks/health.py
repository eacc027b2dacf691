"""Whether representations are healthy: signals that a loss does not show, and a warning when they collapse.

Sources: standard deviation of normalised embeddings, Chen and He 2021 (SimSiam), https://arxiv.org/abs/2011.10566;
effective rank, Roy and Vetterli 2007 and Garrido et al. 2023 (RankMe), https://arxiv.org/abs/2210.02885.
Differs from RankMe: embeddings are centred first, so that a large common component does not hide the rest.
"""

from typing import Any, NamedTuple

import lightning.pytorch as L
import torch
from lightning.fabric.utilities import rank_zero_warn
from torch import Tensor
from torch.nn.functional import normalize

from morphem.errors import MorphemError


def feature_std(embeddings: Tensor) -> Tensor:
    """Spread of L2-normalised embeddings over all directions, from 0 to about 1.

    The standard deviation per dimension, root mean square over dimensions, times sqrt(D): 0 where all embeddings point
    the same way, 1 where they point everywhere alike.

    Args:
        embeddings: (M, D), at least 2 rows.

    Returns:
        ().
    """
    spread: Tensor = normalize(embeddings.float(), dim=1).var(0, correction=0).sum().sqrt()
    return spread


def effective_rank(embeddings: Tensor) -> Tensor:
    """Exponential of the entropy of the singular values of centred embeddings: from 1 to min(M - 1, D).

    Args:
        embeddings: (M, D), at least 2 rows.

    Returns:
        ().
    """
    centred = embeddings.float() - embeddings.float().mean(0)
    values = torch.linalg.svdvals(centred)
    shares = values / values.sum().clamp_min(1e-30)
    rank: Tensor = torch.special.entr(shares).sum().exp()
    return rank


class Verdict(NamedTuple):
    """What looks wrong.

    Attributes:
        name: Kind of collapse.
        evidence: The signal, its value and the limit.
        remedy: The two most likely ones.
    """

    name: str
    evidence: str
    remedy: str


class Health(L.Callback):
    """Log signals of health every n steps, and warn once of each kind of collapse.

    Reads what `training_step` returns: `embedding`, (M, D), and of a method with a teacher `teacher_entropy`,
    `teacher_usage` (both shares of ln K) and `agreement`. Looks at the embeddings of the last `n_rows` images of the
    first process.

    Args:
        every_n_steps: Batches between two looks.
        n_rows: Embeddings that are looked at together.
        after_steps: Optimizer steps before which nothing is warned of: a fresh network looks collapsed.
        patience: Looks in a row that have to show a signal before it is warned of.
        min_std: Smallest healthy spread of normalised embeddings, 0 to 1.
        min_rank: Smallest healthy effective rank.
        max_entropy: Largest healthy entropy of the teacher's answers, as a share of ln K.
        min_usage: Smallest healthy entropy of the teacher's mean answer, as a share of ln K.
    """

    def __init__(
        self,
        every_n_steps: int = 50,
        n_rows: int = 1024,
        after_steps: int = 1000,
        patience: int = 3,
        min_std: float = 0.02,
        min_rank: float = 1.5,
        max_entropy: float = 0.999,
        min_usage: float = 0.01,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.n_rows = n_rows
        self.after_steps = after_steps
        self.patience = patience
        self.min_std = min_std
        self.min_rank = min_rank
        self.max_entropy = max_entropy
        self.min_usage = min_usage
        self.verdicts: list[Verdict] = []
        self._seen: list[Tensor] = []
        self._n_batches = 0
        self._in_a_row: dict[str, int] = {}

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect embeddings; look at them every `every_n_steps` batches.

        Raises:
            MorphemError: If the loss is not a number, or infinite.
        """
        self._n_batches += 1
        self._remember(outputs["embedding"])
        if self._n_batches % self.every_n_steps:
            return
        loss = float(outputs["loss"])
        if not torch.isfinite(torch.tensor(loss)):
            raise MorphemError(
                f"The loss is {loss} at step {trainer.global_step}, so the weights are lost; go on from an earlier "
                "checkpoint with a lower learning rate or a longer warm-up."
            )
        signals = self._signals(outputs)
        pl_module.log_dict({f"health/{name}": value for name, value in signals.items()})
        if trainer.global_step >= self.after_steps:
            self._judge(signals, trainer.global_step)

    def _remember(self, embedding: Tensor) -> None:
        """Keep the newest `n_rows` embeddings."""
        self._seen.append(embedding)
        while sum(map(len, self._seen[1:])) >= self.n_rows:
            self._seen.pop(0)

    def _signals(self, outputs: dict[str, Tensor]) -> dict[str, float]:
        rows = torch.cat(self._seen)[-self.n_rows :]
        signals = {}
        if len(rows) > 1:
            signals = {"feature_std": float(feature_std(rows)), "effective_rank": float(effective_rank(rows))}
        names = ("teacher_entropy", "teacher_usage", "agreement")
        return signals | {name: float(outputs[name]) for name in names if name in outputs}

    def _judge(self, signals: dict[str, float], step: int) -> None:
        found = {verdict.name: verdict for verdict in self.diagnose(signals)}
        self._in_a_row = {name: self._in_a_row.get(name, 0) + 1 for name in found}
        for name, verdict in found.items():
            if self._in_a_row[name] == self.patience and name not in {old.name for old in self.verdicts}:
                self.verdicts.append(verdict)
                rank_zero_warn(f"{name} at step {step}: {verdict.evidence}. Likely remedies: {verdict.remedy}.")

    def diagnose(self, signals: dict[str, float]) -> list[Verdict]:
        """Return what looks wrong in one look, as kinds of collapse.

        Args:
            signals: Values by name; those that are missing are not judged.
        """
        std, rank = signals.get("feature_std"), signals.get("effective_rank")
        entropy, usage = signals.get("teacher_entropy"), signals.get("teacher_usage")
        found = []
        if std is not None and std < self.min_std:
            evidence = f"all images get nearly one embedding (feature_std {std:.4f}, healthy from {self.min_std})"
            found.append(Verdict("Complete collapse", evidence, "a lower learning rate, a lower teacher temperature"))
        elif rank is not None and rank < self.min_rank:
            evidence = f"embeddings lie on a line (effective_rank {rank:.2f}, healthy from {self.min_rank})"
            found.append(Verdict("Dimensional collapse", evidence, "a larger batch, stronger augmentation"))
        if entropy is not None and entropy > self.max_entropy:
            evidence = (
                f"the teacher prefers no prototype (teacher_entropy {entropy:.4f} of ln K, healthy below "
                f"{self.max_entropy}), so the loss stays at ln K"
            )
            found.append(Verdict("Uniform teacher", evidence, "a lower teacher temperature, a lower center_momentum"))
        if usage is not None and usage < self.min_usage:
            evidence = (
                f"one prototype takes all images (teacher_usage {usage:.4f} of ln K, healthy from {self.min_usage})"
            )
            found.append(Verdict("One prototype", evidence, "a center_momentum below 1, a higher teacher temperature"))
        return found

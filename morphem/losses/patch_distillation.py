"""Distillation of hidden patches: the student says of a patch that it cannot see what the teacher says of it.

Source: Zhou et al. 2022 (iBOT), https://arxiv.org/abs/2111.07832; dinov2/loss/ibot_patch_loss.py of
facebookresearch/dinov2 at fc49f49.
Differs from lightly's `IBOTPatchLoss`: the centre waits for the optimizer's step and is the mean over all patches of
all processes, however many each of them hides; balanced targets are offered too.
"""

import torch
import torch.distributed as dist
from torch import Tensor, nn

from morphem.losses.gathering import n_processes

_TURNS = 3


class PatchDistillation(nn.Module):
    """Cross-entropy between the teacher's and the student's answers about hidden patches.

    Args:
        n_prototypes: K.
        student_temperature: Above 0.
        center_momentum: Share of the old centre that is kept at each step, 0 to 1.
        balanced: Whether targets are balanced over all patches of a batch (Sinkhorn and Knopp, three turns, as
            DINOv2), instead of centred by a moving mean.
    """

    def __init__(self, n_prototypes: int, student_temperature: float, center_momentum: float, balanced: bool) -> None:
        super().__init__()
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.balanced = balanced
        self.center: Tensor
        self.register_buffer("center", torch.zeros(n_prototypes))
        self._seen: Tensor | None = None  # (K + 1,) sum of the teacher's scores, and their number

    def forward(self, teacher: Tensor, student: Tensor, weights: Tensor, temperature: float) -> Tensor:
        """Return the weighted sum of cross-entropies, (); in training mode remember the scores for the centre.

        Args:
            teacher: Scores of the hidden patches, (M, K); M may be 0, also on one process only.
            student: The same of the student.
            weights: Weight of each patch, (M,).
            temperature: Of the teacher, above 0.
        """
        targets = self.targets(teacher, temperature)
        if self.training and not self.balanced:
            self._remember(teacher)
        logs = (student / self.student_temperature).log_softmax(1)
        return -((targets * logs).sum(1) * weights).sum()

    @torch.no_grad()
    def targets(self, scores: Tensor, temperature: float) -> Tensor:
        """Return the answers of the teacher, (M, K), each summing to 1, for its scores, (M, K)."""
        if not self.balanced:
            return ((scores - self.center) / temperature).softmax(1)
        logs = scores / temperature  # logarithms, so that no temperature is too low for single precision
        for _ in range(_TURNS):
            logs = (logs - _log_sum_over_patches(logs)).log_softmax(1)
        return logs.exp()

    @torch.no_grad()
    def _remember(self, scores: Tensor) -> None:
        seen = torch.cat([scores.sum(0), scores.new_tensor([len(scores)])])
        self._seen = seen if self._seen is None else self._seen + seen

    @torch.no_grad()
    def move_center(self) -> None:
        """Move the centre towards the mean of all scores since the last move, over all processes."""
        if self._seen is None:
            return
        if n_processes() > 1:
            dist.all_reduce(self._seen)
        count = self._seen[-1]
        share = torch.where(count > 0, 1.0 - self.center_momentum, 0.0)
        self.center += share * (self._seen[:-1] / count.clamp(min=1) - self.center)
        self._seen = None


def _log_sum_over_patches(logs: Tensor) -> Tensor:
    """Return the logarithm of the sum of exponentials over all patches of all processes, (M, K) to (K,)."""
    greatest = logs.amax(0) if len(logs) else logs.new_full(logs.shape[1:], -torch.inf)
    if n_processes() > 1:
        dist.all_reduce(greatest, op=dist.ReduceOp.MAX)
    total = (logs - greatest).exp().sum(0)
    if n_processes() > 1:
        dist.all_reduce(total)
    return greatest + total.log()

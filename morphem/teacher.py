"""Teachers: copies of a network that follow it as an exponential moving average.

Source: Tarvainen and Valpola 2017, "Mean teachers are better role models", https://arxiv.org/abs/1703.01780.
"""

from copy import deepcopy
from typing import TypeVar

import torch
from torch import Tensor, nn

from morphem.sharding import local

Network = TypeVar("Network", bound=nn.Module)


def make_teacher(student: Network) -> Network:
    """Copy a network, without gradients and in evaluation mode (no dropout, no stochastic depth).

    The caller keeps it in evaluation mode: `Module.train` on a parent would switch it back.

    Args:
        student: The network that the copy will follow; nothing is shared with it.
    """
    return deepcopy(student).requires_grad_(False).eval()


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Move the teacher's parameters towards the student's: t <- momentum * t + (1 - momentum) * s; copy buffers.

    Args:
        teacher: As `make_teacher` gave it.
        student: The network that it was copied from.
        momentum: 0 copies the student, 1 leaves the teacher where it is.
    """
    targets: list[Tensor] = [local(parameter) for parameter in teacher.parameters()]  # shares are cut in the same way
    sources: list[Tensor] = [local(parameter) for parameter in student.parameters()]
    if targets:
        torch._foreach_lerp_(targets, sources, 1.0 - momentum)
    for mine, theirs in zip(teacher.buffers(), student.buffers(), strict=True):
        mine.copy_(theirs)

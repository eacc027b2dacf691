"""A loss that is not a number stops the run, and says which term it came from."""

from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from morphem.errors import MorphemError


class FiniteCheck:
    """Looks at every loss, one step late: the device is never waited for while it has work.

    Where a loss is not finite in one process, all processes stop after the same step.
    """

    def __init__(self) -> None:
        self._names: list[str] = []
        self._flags: Tensor | None = None  # (1 + number of terms,), 1 where not finite; the last: in any process
        self._step = 0

    def note(self, step: int, loss: Tensor, terms: Mapping[str, Tensor]) -> None:
        """Remember which numbers of a step are not finite; `look` says so.

        Args:
            step: Optimizer steps taken before.
            loss: (), of this process.
            terms: What the step logs, by name, ().
        """
        numbers = {"loss": loss, **{name: value for name, value in terms.items() if torch.is_tensor(value)}}
        flags = torch.stack([~value.detach().isfinite().all() for value in numbers.values()]).float()
        flags = torch.cat([flags, flags[:1]])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(flags[-1:], op=dist.ReduceOp.MAX)
        self._names, self._flags, self._step = list(numbers), flags, step

    def look(self) -> None:
        """Look at what was noted last.

        Raises:
            MorphemError: If the loss was not finite in any process, with the terms that were not.
        """
        flags, self._flags = self._flags, None
        if flags is None:
            return
        *mine, anyone = flags.tolist()
        if not anyone:
            return
        faulty = [f"train/{name}" for name, flag in zip(self._names, mine, strict=True) if flag]
        where = f"not finite here: {', '.join(faulty)}" if faulty else "in another process"
        raise MorphemError(
            f"The loss is not a number at step {self._step} ({where}), so the weights are lost and no checkpoint is "
            "written any more; go on from the last one (--ckpt_path) with a lower learning rate or a longer warm-up."
        )

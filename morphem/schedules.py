"""Schedules: numbers as pure functions of the step, so that a resumed run has nothing to restore.

Source: `cosine_scheduler` in utils.py of facebookresearch/dino at 7c446df. Differs from it: functions of one step
instead of arrays over all steps.
"""

import math
from typing import NamedTuple


class Horizon(NamedTuple):
    """How long a run is, in optimizer steps.

    Attributes:
        steps_per_epoch: Optimizer steps in one epoch, at least 1.
        total_steps: Optimizer steps of the whole run, at least 1.
    """

    steps_per_epoch: int
    total_steps: int

    def steps(self, epochs: float) -> int:
        """Return the number of steps in a number of epochs, rounded."""
        return round(epochs * self.steps_per_epoch)


def cosine(step: int, total_steps: int, start: float, end: float) -> float:
    """Half a cosine from `start` to `end`.

    Args:
        step: Steps taken so far, 0 at the first.
        total_steps: Steps until `end` would be reached: the last step of the run, `total_steps - 1`, is just before it.
        start: Value at step 0.
        end: Value from step `total_steps` on.
    """
    progress = min(step / max(total_steps, 1), 1.0)
    return end + 0.5 * (start - end) * (1.0 + math.cos(math.pi * progress))


def linear(step: int, total_steps: int, start: float, end: float) -> float:
    """A straight line from `start` to `end`, which is reached at the last of `total_steps` steps.

    Args:
        step: Steps taken so far, 0 at the first.
        total_steps: Number of steps on the line; 0 gives `end` at once.
        start: Value at step 0 (where the line has more than one step, or step 0 is its only one).
        end: Value at step `total_steps - 1` and after.
    """
    if step >= total_steps:
        return end
    return start + (end - start) * (step / max(total_steps - 1, 1))


def warmup_cosine(step: int, total_steps: int, warmup_steps: int, peak: float, end: float, start: float = 0.0) -> float:
    """A line from `start` to `peak` over the warm-up, then half a cosine to `end`.

    The last step of the warm-up and the first step after it both have the peak value, as in DINO's code.

    Args:
        step: Steps taken so far, 0 at the first.
        total_steps: Steps of the whole run, warm-up included.
        warmup_steps: Steps of the warm-up; 0 for none.
        peak: Highest value.
        end: Value towards which the cosine falls.
        start: Value at step 0 of the warm-up.
    """
    if step < warmup_steps:
        return linear(step, warmup_steps, start, peak)
    return cosine(step - warmup_steps, total_steps - warmup_steps, peak, end)

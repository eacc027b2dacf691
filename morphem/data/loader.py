"""The batches of a stream in order, made by worker processes that look ahead; its state is an epoch and a step.

A worker is asked for the batch of a step, so which worker makes it, how many there are, and how they were started
change nothing. The position counts batches handed out, not batches looked ahead at, so a checkpoint that holds it
continues with the next unseen sample.
"""

import warnings
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch.utils.data import DataLoader

from morphem.data.stream import CropStream, Fault, Reading
from morphem.errors import ConfigError, DataError
from morphem.types import ChannelBatch

StartMethod = Literal["fork", "spawn", "forkserver"]

# A share of damaged samples above this stops a run once enough samples were read to tell.
_MAX_DAMAGED_SHARE = 0.01
_MIN_SAMPLES_FOR_SHARE = 1000


# What a position in an epoch is counted in, by its name in the state.
_POSITION_COUNTS = {
    "steps": "steps per epoch",
    "samples": "samples per epoch",
    "order": "checksum of data, query, balance and seed",
}


class DamageLog:
    """Counts samples that had to be skipped, warns of each one once, and stops the run when there are too many.

    Args:
        max_damaged: How many different samples may be damaged.

    Attributes:
        n_read: Samples read so far, damaged ones included.
        n_skipped: Samples skipped so far; one that is met again counts again.
        members: The different damaged samples, by shard and key.
    """

    def __init__(self, max_damaged: int) -> None:
        self.max_damaged = max_damaged
        self.n_read = 0
        self.n_skipped = 0
        self.members: set[str] = set()

    def add(self, reading: Reading) -> ChannelBatch:
        """Count what one step read, and return its batch.

        Raises:
            DataError: If there is too much damage, naming the last damaged sample and how many there were.
        """
        self.n_read += reading.n_samples
        for fault in reading.faults:
            self.n_skipped += 1
            if fault.member not in self.members:
                self.members.add(fault.member)
                warnings.warn(f"skipped a damaged sample, {fault.member}: {fault.reason}", stacklevel=3)
            self._check(fault)
        if reading.batch is None:
            raise DataError(
                f"{len(reading.faults)} samples in a row are damaged; the last: {reading.faults[-1].reason}"
            )
        return reading.batch

    def _check(self, fault: Fault) -> None:
        share = self.n_skipped / self.n_read
        if len(self.members) > self.max_damaged:
            limit = f"data.max_damaged={self.max_damaged}"
        elif self.n_read >= _MIN_SAMPLES_FOR_SHARE and share > _MAX_DAMAGED_SHARE:
            limit = f"{_MAX_DAMAGED_SHARE:.0%} of {self.n_read} samples"
        else:
            return
        raise DataError(
            f"{self.n_skipped} samples could not be read, which is more than {limit}; the last: {fault.reason} "
            "(`ShardSet.verify` names every bad file.)"
        )


class _Position:
    """Where a loader stands; iterates over the epoch and step of every batch that is left in its epoch.

    An object of its own, so that loader and workers make no circle of references: Python would then stop the workers
    at any later time, and possibly in a process that was forked meanwhile.
    """

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.epoch = 0
        self.next_step = 0

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch = self.epoch
        return ((epoch, step) for step in range(self.next_step, self.steps))

    def __len__(self) -> int:
        return self.steps


class StreamLoader:
    """Iterates over one epoch of a stream; Lightning saves its state in checkpoints and restores it.

    Each iteration is the next epoch, unless `set_epoch` or `load_state_dict` say otherwise.

    Args:
        stream: Makes the batches.
        num_workers: Processes that read and decode; 0 does it in this one.
        prefetch: Batches that each worker makes ahead.
        pin_memory: Copy batches to page-locked memory, which makes their transfer to a GPU faster.
        start_method: How workers are started; None is the platform's own way. Object stores need `spawn` or
            `forkserver`, because their clients keep threads.
        max_damaged: How many samples may be damaged before the run stops; more than 1 % of a thousand or more stop it
            too.
        fixed_epoch: Repeat epoch 0 for ever, so that validation is the same every time.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(
        self,
        stream: CropStream,
        *,
        num_workers: int = 0,
        prefetch: int = 2,
        pin_memory: bool = False,
        start_method: StartMethod | None = None,
        max_damaged: int = 100,
        fixed_epoch: bool = False,
    ) -> None:
        for name, value, least in (
            ("num_workers", num_workers, 0),
            ("prefetch", prefetch, 1),
            ("max_damaged", max_damaged, 0),
        ):
            if value < least:
                raise ConfigError(f"data.{name} is {value}; allowed are whole numbers from {least} up.")
        self.stream = stream
        self.damage = DamageLog(max_damaged)
        self.fixed_epoch = fixed_epoch
        self._position = _Position(stream.steps)
        self._begun = False
        self._readings = DataLoader(
            stream,
            batch_size=None,
            sampler=self._position,
            collate_fn=_as_is,
            num_workers=num_workers,
            prefetch_factor=prefetch if num_workers else None,
            persistent_workers=num_workers > 0,
            pin_memory=pin_memory,
            multiprocessing_context=start_method if num_workers else None,
            generator=torch.Generator(),  # the loader draws a seed for its workers; not from the global generator
        )

    @property
    def sampler(self) -> "StreamLoader":
        """This object: before each epoch Lightning calls `loader.sampler.set_epoch(epoch)`."""
        return self

    @property
    def batch_sampler(self) -> None:
        """Nothing; Lightning asks every loader that has a `sampler`."""
        return None

    def set_epoch(self, epoch: int) -> None:
        """Go to the start of an epoch; nothing happens if the loader is in that epoch already.

        Args:
            epoch: At least 0.
        """
        if epoch != self._position.epoch and not self.fixed_epoch:
            self._position.epoch, self._position.next_step, self._begun = epoch, 0, False

    def __len__(self) -> int:
        """Batches in an epoch, the same on every rank."""
        return self.stream.steps

    def __iter__(self) -> Iterator[ChannelBatch]:
        # A generator: nothing moves before the first batch is asked for. Lightning makes iterators that it never uses,
        # and does not run a loader of known length to its end, so the position moves on here and not at the end.
        if self._begun:
            self._position.epoch += 0 if self.fixed_epoch else 1
            self._position.next_step = 0
        self._begun = True
        for reading in self._readings:
            self._position.next_step += 1
            yield self.damage.add(reading)

    def close(self) -> None:
        """Stop the workers; the next iteration starts new ones."""
        # DataLoader has no public way. Left to Python, workers stop when the loader is collected, which a trainer's
        # circles of references put off until a collection that may run in a process forked meanwhile, and hang there.
        iterator, self._readings._iterator = self._readings._iterator, None
        if iterator is not None:
            iterator._shutdown_workers()  # type: ignore[attr-defined]

    def state_dict(self) -> dict[str, int]:
        """Return the position, and what it was counted in, as plain integers."""
        return {
            "epoch": self._position.epoch,
            "next_step": self._position.next_step,
            "steps": self.stream.steps,
            "samples": self.stream.samples,
            "order": self.stream.fingerprint,
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a saved position: the next iteration goes on with the next unseen sample.

        Args:
            state: From `state_dict`; of any rank, and any number of workers.

        Raises:
            ConfigError: If the position is in the middle of an epoch of other steps, which cannot be continued exactly.
        """
        now = self.state_dict()
        differences = [
            f"{what}: {state[name]} then, {now[name]} now"
            for name, what in _POSITION_COUNTS.items()
            if state[name] != now[name]
        ]
        if differences and 0 < state["next_step"] < state["steps"]:
            raise ConfigError(
                f"the checkpoint stands at step {state['next_step']} of epoch {state['epoch']}, which this run cannot "
                f"continue exactly ({'; '.join(differences)}); resume with the same data, seed and global batch size, "
                "or from a checkpoint at the end of an epoch."
            )
        at_end = state["next_step"] == state["steps"]
        self._position.epoch, self._begun = state["epoch"], False
        self._position.next_step = self.stream.steps if at_end else state["next_step"]


def _as_is(reading: Any) -> Any:
    return reading

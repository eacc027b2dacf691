"""Who makes the parts: this process, some processes here, or a Dask cluster. The parts are the same in any case."""

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphem.errors import ConfigError, DataError
from morphem.ingest.parts import Part, is_done, make_part
from morphem.ingest.prepare import Preparation

if TYPE_CHECKING:
    from morphem.cells.base import CellFinder
    from morphem.sources.base import Source

ALONE_SECONDS = 2.0
"""A study that this process can make in as many seconds is made before other processes would have started."""
MAX_DEATHS = 3
"""So many times in a row worker processes may be killed without one part being finished in between."""


@dataclass(frozen=True)
class Job:
    """What all parts of a study have in common.

    Attributes:
        folder: Where parts go; on a cluster all machines must see it under this path.
        source: Reads the images.
        preparation: How planes are stored.
        cells: Finds the cells; None keeps those that the source has.
    """

    folder: Path
    source: "Source"
    preparation: Preparation
    cells: "CellFinder | None"


class Crew:
    """Makes parts, in any order.

    Args:
        workers: Processes on this machine, 1 or more; with 1 this process does it all.
        dask: Address of a Dask scheduler (or its scheduler file), which then does it all; None for this machine.

    Raises:
        ConfigError: If `workers` is less than 1, both are given, or Dask is not installed.
        DataError: If there is no scheduler at the address.
    """

    def __init__(self, workers: int = 1, dask: str | None = None) -> None:
        if workers < 1:
            raise ConfigError(f"workers is {workers}; it must be 1 or more processes.")
        self.workers = workers
        self.dask = dask

    def make(self, job: Job, parts: Sequence[Part], tick: Callable[[int], None]) -> None:
        """Make those parts of a study that are missing.

        Args:
            job: The study.
            parts: All of them.
            tick: Called with a number of images that were done since the last call.

        Raises:
            DataError: If the disk is full, workers keep being killed, or they write where this process cannot see it.
        """
        missing = [part for part in parts if not is_done(job.folder, part)]
        if self.dask is not None:
            with _cluster(self.dask):
                self._share(job, missing, tick, n_jobs=-1)
        else:
            missing = self._make_alone(job, missing, tick)
            self._make_here(job, missing, tick)
        unseen = [part for part in missing if not is_done(job.folder, part)]
        if unseen:
            raise DataError(
                f"{len(unseen)} parts were made but are not in '{job.folder}'; the output must be a folder that all "
                "machines of the cluster share under one path."
            )

    def _make_alone(self, job: Job, missing: list[Part], tick: Callable[[int], None]) -> list[Part]:
        """Make parts in this process; return those that are worth being shared out."""
        start = time.monotonic()
        for done, part in enumerate(missing):
            if self.workers > 1 and len(missing) - done > 1 and time.monotonic() - start >= ALONE_SECONDS:
                return missing[done:]
            make_part(job.folder, part, job.source, job.preparation, job.cells, lambda: tick(1))
        return []

    def _make_here(self, job: Job, missing: list[Part], tick: Callable[[int], None]) -> None:
        """Make parts in processes on this machine; those of killed processes are made again."""
        from joblib.externals.loky.process_executor import BrokenProcessPool

        deaths = 0
        while missing:
            before = len(missing)
            try:
                self._share(job, missing, tick, n_jobs=self.workers)
                return
            except BrokenProcessPool as fault:
                missing = [part for part in missing if not is_done(job.folder, part)]
                deaths = deaths + 1 if len(missing) == before else 1
                if deaths >= MAX_DEATHS:
                    raise DataError(
                        f"worker processes were killed {deaths} times without finishing a part, most likely for want "
                        "of memory; run the same command again with fewer --workers."
                    ) from fault

    def _share(self, job: Job, missing: list[Part], tick: Callable[[int], None], n_jobs: int) -> None:
        """Hand out parts, a few more than there are processes at a time."""
        import joblib

        parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered", batch_size=1)
        finished: Iterable[Part] = parallel(_tasks(job, missing))
        for part in finished:
            tick(len(part.image_ids))


def _tasks(job: Job, parts: Sequence[Part]) -> Iterator[Any]:
    import joblib

    make = joblib.delayed(make_part)
    for part in parts:
        yield make(job.folder, part, job.source.only(part.image_ids), job.preparation, job.cells)


@contextmanager
def _cluster(address: str) -> Iterator[None]:
    """Let joblib use a Dask cluster.

    Raises:
        ConfigError: If Dask is not installed.
        DataError: If there is no scheduler, or its workers keep being killed.
    """
    import joblib

    try:
        from dask.distributed import Client, KilledWorker
    except ImportError as fault:
        raise ConfigError('--dask needs Dask; install it with: pip install "morphem[dask]".') from fault
    connect: Callable[..., Any] = Client
    with ExitStack() as stack:
        try:
            client = connect(scheduler_file=address) if os.path.isfile(address) else connect(address)
        except (OSError, ValueError) as fault:
            raise DataError(f"there is no Dask scheduler at '{address}': {fault}; check the address.") from fault
        stack.enter_context(client)
        stack.enter_context(joblib.parallel_config(backend=_backend(client)))
        try:
            yield
        except KilledWorker as fault:
            raise DataError(
                f"workers of the cluster at '{address}' were killed again and again by one part, most likely for "
                "want of memory; give them more of it, or fewer threads each, and run the same command again."
            ) from fault
        except TimeoutError as fault:
            raise DataError(f"the Dask scheduler at '{address}' has no worker; start some first.") from fault


def _backend(client: Any) -> Any:
    """Return joblib's Dask backend, which also tells when a task failed because its workers were killed.

    Joblib 1.6 notes that failure without a word to who waits for the result, and so waits for ever.
    """
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):  # type: ignore[misc]  # joblib has no types
        def submit(self, func: Any, callback: Callable[[Any], None]) -> "Future[Any]":
            future: Future[Any] = super().submit(func, callback)
            future.add_done_callback(lambda done: callback(done) if done.exception() else None)
            return future

        def retrieve_result_callback(self, out: Any) -> Any:
            return out.result() if isinstance(out, Future) else super().retrieve_result_callback(out)

    return Backend(client=client, wait_for_workers_timeout=60)

"""`embed` under a Lightning Trainer: its devices and processes, and the same rows by the same code.

`morphem embed` starts its processes with Fabric and waits for them at the beginning and the end; `Trainer.predict` does
the same with an `Embedder`. Both run the parts of one `EmbedJob`, so a job that was begun by one can be finished by the
other.
"""

from collections.abc import Iterator

import lightning.pytorch as L
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

from morphem.embed import share_of
from morphem.embed_job import EmbedJob, EmbedReport


class Embedder(L.LightningModule):
    """Makes a part of a job in every step: `Trainer(...).predict(Embedder(job))`.

    Args:
        job: The same on all processes. Its encoders are moved to the Trainer's device.
        overwrite: Replace outputs that exist, and drop the parts of another job.
        n_checks: Crops of each output that are compared with the slow reference before it appears; 0 for none.

    Attributes:
        reports: A report for each output, on rank 0, once `predict` is over.
    """

    def __init__(self, job: EmbedJob, *, overwrite: bool = False, n_checks: int = 4) -> None:
        super().__init__()
        self.encoders = nn.ModuleList([run.encoder for run in job.runs])
        self.job = job
        self.overwrite = overwrite
        self.n_checks = n_checks
        self.missing: list[int] = []
        self.reports: list[EmbedReport] | None = None

    def setup(self, stage: str) -> None:
        """Open the folder of parts and see which are missing, before any process makes one.

        Args:
            stage: `predict`.

        Raises:
            ConfigError: As `EmbedJob.open`.
        """
        if self.trainer.global_rank == 0:
            self.job.open(self.overwrite)
        self.trainer.strategy.barrier()
        self.missing = self.job.missing()
        self.trainer.strategy.barrier()

    def predict_dataloader(self) -> DataLoader[int]:
        """Return the numbers of the parts that this process makes."""
        mine = share_of(self.missing, self.trainer.global_rank, self.trainer.world_size)
        return DataLoader(_Parts(list(mine)), batch_size=None)

    def on_predict_start(self) -> None:
        """Compute where the Trainer does, and find out whether the encoders take the channels of the images."""
        for run in self.job.runs:
            run.device = self.device
        if self.trainer.global_rank == 0:
            for run in self.job.runs:
                run.check_panels()

    def predict_step(self, number: int, batch_idx: int) -> None:
        """Embed one part."""
        self.job.run([number])

    def on_predict_end(self) -> None:
        """Put the parts together, once every process has made its own.

        Raises:
            DataError: As `EmbedJob.close`.
        """
        self.trainer.strategy.barrier()
        if self.trainer.global_rank == 0:
            self.reports = self.job.close(self.missing, self.n_checks)
        self.trainer.strategy.barrier()


class _Parts(IterableDataset[int]):
    """Some numbers. Not a map-style data set, whose order a Trainer would share out once more."""

    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)

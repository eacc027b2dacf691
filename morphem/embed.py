"""The one path to features: shards in, a feature table out; used by probes, the command line and benchmarks."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from morphem import features
from morphem.aggregation import Level, average, check_level
from morphem.data.plan import Unit
from morphem.encoder import Encoder
from morphem.errors import ConfigError, DataError
from morphem.extraction import EmbedSettings, Extraction, Precision
from morphem.features import Combine, FeatureTable

_PART_PLANES = 2048  # planes between two saves of a resumable job: minutes of a CPU, a second of a GPU
_ROW = "Metadata_Row"


def extract(
    encoder: Encoder,
    root: str | Path,
    *,
    unit: Unit = "tile",
    tile_size_px: int | None = None,
    crop_size_px: int | None = None,
    combine: Combine = "concat",
    aggregate: Level | None = None,
    query: str | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    precision: Precision = "32-true",
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> FeatureTable:
    """Embed the crops of a shard set.

    No row depends on the others: not on batch size, order, workers or ranks. Neither the training mode of the encoder
    nor any global random state is changed.

    Args:
        encoder: Embeds the crops.
        root: Shards, as `morphem.data.shards.ShardSet` takes them.
        unit: What a row is: a `tile` of an image, a `cell`, or a whole `image`.
        tile_size_px: Side of a tile in pixels, with unit `tile` only; 224 where not given.
        crop_size_px: Side of a cell's crop in pixels, with unit `cell` only, and needed there.
        combine: `concat` gives C * D columns, `mean` D columns, `none` one row per channel plane.
        aggregate: Average rows to `cell`, `image` or `well`.
        query: Selects channel planes.
        batch_size: Planes that go through the network at once; no influence on the result.
        num_workers: Processes that read; 0 reads in this one.
        device: Where to compute; where the encoder is, if not given. The encoder is moved there.
        precision: `32-true`, `bf16-mixed` or `16-mixed`.
        rank: Which share of the images to take, 0 to world_size - 1.
        world_size: Number of shares. With more than one, a table carries `Metadata_Row`; see `merge`.
        progress: Show a bar, in images.

    Returns:
        Rows in shard order.

    Raises:
        ConfigError: If settings are unknown, clash or have no effect.
        DataError: If there is nothing to embed, a plane is damaged, or images differ in channels with `concat`.
    """
    settings = EmbedSettings(unit, tile_size_px, crop_size_px, combine, query, precision)
    if world_size > 1 and aggregate == "well":
        raise ConfigError(
            "aggregate='well' needs all images at once; embed with world_size > 1, merge, then aggregate."
        )
    if aggregate is not None:
        check_level(aggregate, unit)
    run = Extraction(encoder, root, settings, batch_size=batch_size, num_workers=num_workers, device=device)
    images = range(rank, run.plan.n_images, world_size)
    with run.bar(len(images), progress) as bar:
        table = run.table(images, bar)
    if aggregate is not None:
        return average([table], aggregate)
    if world_size > 1:
        rows = run.row_numbers(images)
        table = replace(table, metadata=table.metadata.assign(**{_ROW: rows}))
    return table


def merge(tables: Iterable[FeatureTable]) -> FeatureTable:
    """Join the shares of several ranks into the table that one rank would have made.

    Args:
        tables: What `extract` gave for every rank of a world of more than one.

    Raises:
        DataError: If a share is missing or there twice, or a table carries no row numbers.
    """
    table = features.concat(tables)
    if _ROW not in table.metadata:
        raise DataError(f"tables to be merged need {_ROW}, which extract() gives with world_size > 1.")
    numbers = table.metadata[_ROW].to_numpy()
    order = np.argsort(numbers, kind="stable")
    expected = table.provenance["rows"]
    if len(numbers) != expected or not np.array_equal(numbers[order], np.arange(expected)):
        raise DataError(f"the shares hold {len(numbers)} rows of {expected}, or some twice; give one table per rank.")
    metadata = table.metadata.drop(columns=_ROW).iloc[order].reset_index(drop=True)
    return replace(table, values=table.values[order], metadata=metadata)


@dataclass(frozen=True)
class EmbedReport:
    """What a job did.

    Attributes:
        path: The file that was written.
        n_rows: Rows in it.
        n_features: Features per row.
        n_images: Images that were embedded.
        n_empty_images: Images that gave no row, because they have no cells.
        n_resumed: Images whose features were left from an earlier run of the same job.
    """

    path: Path
    n_rows: int
    n_features: int
    n_images: int
    n_empty_images: int
    n_resumed: int


def embed_to_file(
    encoder: Encoder,
    root: str | Path,
    output: str | Path,
    settings: EmbedSettings | None = None,
    *,
    aggregate: Level | None = None,
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], object] = lambda: None,
    overwrite: bool = False,
    progress: bool = False,
) -> EmbedReport | None:
    """Embed a shard set into a file; a job that was killed goes on where it was when it is started again.

    Finished parts are kept beside the output, in `OUTPUT.parts`, until the file is whole. How many ranks share the
    work has no influence on the file, and may differ from run to run.

    Args:
        encoder: Embeds the crops.
        root: Shards.
        output: Ends in `.parquet` or `.h5ad`.
        settings: What determines the rows; whole-image tiles with `concat` where not given.
        aggregate: Average rows to `cell`, `image` or `well`.
        batch_size: Planes that go through the network at once.
        num_workers: Processes per rank that read.
        device: Where to compute; where the encoder is, if not given.
        rank: Number of this process.
        world_size: Number of processes, which all call this function.
        barrier: Waits for all processes.
        overwrite: Replace an output that exists, and drop the parts of another job.
        progress: Show a bar, in images, on rank 0.

    Returns:
        A report on rank 0, None on the others.

    Raises:
        ConfigError: If the output exists, or parts of another job do, or settings clash.
        DataError: If there is nothing to embed, a plane is damaged, a part is missing, or the disk is full.
    """
    settings = settings or EmbedSettings()
    if aggregate is not None:
        check_level(aggregate, settings.unit)
    job = _Job(
        Extraction(encoder, root, settings, batch_size=batch_size, num_workers=num_workers, device=device), output
    )
    if rank == 0:
        job.open(overwrite)
    barrier()
    missing = job.missing()
    barrier()  # nobody finishes a part before everybody has seen which are missing
    job.run(missing[rank::world_size], progress=progress and rank == 0)
    barrier()
    return job.close(aggregate, missing) if rank == 0 else None


class _Job:
    """The parts of an output: consecutive images, cut by their number of planes and nothing else."""

    def __init__(self, run: Extraction, output: str | Path) -> None:
        self.work = run
        self.output = Path(output)
        if self.output.suffix not in features.SUFFIXES:
            raise ConfigError(f"the output '{output}' must end in {' or '.join(features.SUFFIXES)}.")
        self.folder = self.output.with_name(self.output.name + ".parts")
        plan = run.plan
        planes = np.diff(plan.crop_starts) * np.diff(plan.plane_starts)
        part = (np.cumsum(planes) - planes) // _PART_PLANES
        bounds = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), plan.n_images]
        self.parts = [range(a, b) for a, b in pairwise(bounds)]
        self.digest = hashlib.sha256(json.dumps([run.provenance, _PART_PLANES], sort_keys=True).encode()).hexdigest()

    def _file(self, number: int) -> Path:
        return self.folder / f"part-{number:06d}.parquet"

    def open(self, overwrite: bool) -> None:
        """Make the folder of parts, or check that the one there belongs to the same job."""
        if self.output.exists() and not overwrite:
            raise ConfigError(f"{self.output} exists; choose another name, or allow it to be replaced (--overwrite).")
        record = self.folder / "job.json"
        try:
            if record.is_file() and json.loads(record.read_text()).get("digest") != self.digest:
                if not overwrite:
                    raise ConfigError(
                        f"{self.folder} holds parts of a job with another model, data or settings; repeat that job's "
                        "settings to finish it, or drop its parts (--overwrite)."
                    )
                shutil.rmtree(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            record.write_text(json.dumps({"digest": self.digest, **self.work.provenance}))
        except OSError as fault:
            raise DataError(
                f"cannot write {self.folder} ({fault}); free some space or choose another output."
            ) from fault

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not there yet."""
        return [number for number in range(len(self.parts)) if not self._file(number).is_file()]

    def run(self, numbers: Sequence[int], progress: bool) -> None:
        """Embed some parts, each into a file that appears when it is whole."""
        with self.work.bar(sum(len(self.parts[number]) for number in numbers), progress) as bar:
            for number in numbers:
                self.work.table(self.parts[number], bar).write(self._file(number))

    def close(self, aggregate: Level | None, embedded: Sequence[int]) -> EmbedReport:
        """Check that every row is there, write the output and drop the parts.

        Args:
            aggregate: Level to average to.
            embedded: Parts that all ranks made in this run; the others were there before.
        """
        self._check_parts()
        tables: Iterable[FeatureTable] = self._tables()
        if aggregate is not None:
            tables = [average(tables, aggregate)]
        n_rows = features.write(self.output, tables)
        if aggregate is None and n_rows != self.work.n_rows:
            self.output.unlink()
            raise DataError(f"{self.output} would have {n_rows} rows instead of {self.work.n_rows}; run it again.")
        shutil.rmtree(self.folder)
        plan = self.work.plan
        resumed = plan.n_images - sum(len(self.parts[number]) for number in embedded)
        return EmbedReport(self.output, n_rows, self.work.n_features, plan.n_images, plan.empty_images, resumed)

    def _check_parts(self) -> None:
        """Compare the rows of every part with the plan, by its footer alone."""
        for number, images in enumerate(self.parts):
            path, expected = self._file(number), self.work.count(images)
            try:
                found = pq.read_metadata(path).num_rows
            except (OSError, pa.ArrowInvalid) as fault:
                raise DataError(f"{path} is missing or damaged; delete it and run the same command again.") from fault
            if found != expected:
                raise DataError(f"{path} has {found} rows instead of {expected}; delete it and run the command again.")

    def _tables(self) -> Iterator[FeatureTable]:
        for number in range(len(self.parts)):
            yield features.read(self._file(number))

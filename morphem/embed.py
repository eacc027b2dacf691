"""The one path to features: shards in, a feature table out; used by probes, the command line and benchmarks."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from morphem import features
from morphem.aggregation import Level, MeanOver, average, check_level
from morphem.data.crops import Masking, Tiling, Unit
from morphem.data.emptiness import EmptyRule
from morphem.data.pixel_kinds import PixelKind
from morphem.embed_job import EmbedJob, EmbedReport, Target, parts_folder
from morphem.encoder import Encoder
from morphem.errors import ConfigError, DataError
from morphem.extraction import LEFT_OUT, EmbedSettings, Extraction, Precision
from morphem.features import Combine, FeatureTable

__all__ = ["EmbedJob", "EmbedReport", "EmbedSettings", "Target", "embed_to_file", "extract", "merge", "run_job"]

_ROW, _SHARE = "Metadata_Row", "share"
_N_CHECKS = 4


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
    tiling: Tiling = "cover",
    mask: Masking = "none",
    skip_empty: EmptyRule | None = None,
    pixels: PixelKind | None = None,
    mean_over: MeanOver = "rows",
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
        tiling: How tiles lie; see `EmbedSettings`, also for the next three.
        mask: What is outside of a cell.
        skip_empty: Which tiles are left out.
        pixels: What pixels stand for.
        mean_over: What a mean over a well is taken over: `rows` or `images`.
        rank: Which share of the images to take, 0 to world_size - 1.
        world_size: Number of shares. With more than one, a table carries `Metadata_Row`; see `merge`.
        progress: Show a bar, in images.

    Returns:
        Rows in shard order.

    Raises:
        ConfigError: If settings are unknown, clash or have no effect.
        DataError: If there is nothing to embed, a plane is damaged, or images differ in channels with `concat`.
    """
    settings = EmbedSettings(
        unit, tile_size_px, crop_size_px, combine, query, precision, tiling, mask, skip_empty, pixels
    )
    if world_size > 1 and aggregate == "well":
        raise ConfigError(
            "aggregate='well' needs all images at once; embed with world_size > 1, merge, then aggregate."
        )
    if aggregate is not None:
        check_level(aggregate, unit, mean_over)
    run = Extraction(encoder, root, settings, batch_size=batch_size, num_workers=num_workers, device=device)
    images = range(rank, run.plan.n_images, world_size)
    with run.bar(len(images), progress) as bar:
        table = run.table(images, bar)
    if aggregate is not None:
        return average([table], aggregate, mean_over)
    if world_size == 1:
        return table
    left_out = run.rows_of(np.asarray(table.provenance.get(LEFT_OUT, ()), np.int64))
    rows = np.setdiff1d(run.row_numbers(images), left_out)
    share = {**table.provenance, _SHARE: [rank, world_size]}
    return replace(table, metadata=table.metadata.assign(**{_ROW: rows}), provenance=share)


def merge(tables: Iterable[FeatureTable]) -> FeatureTable:
    """Join the shares of several ranks into the table that one rank would have made.

    Args:
        tables: What `extract` gave for every rank of a world of more than one.

    Raises:
        DataError: If a share is missing or there twice, or a table carries no row numbers.
    """
    shares = list(tables)
    table = features.concat(shares)
    if _ROW not in table.metadata:
        raise DataError(f"tables to be merged need {_ROW}, which extract() gives with world_size > 1.")
    numbers = table.metadata[_ROW].to_numpy()
    order = np.argsort(numbers, kind="stable")
    expected = table.provenance["rows"]
    left_out = sum(share.provenance.get("rows_left_out", 0) for share in shares)
    ranks = sorted(share.provenance[_SHARE][0] for share in shares)
    whole = ranks == list(range(table.provenance[_SHARE][1]))
    if not whole or len(numbers) + left_out != expected or len(np.unique(numbers)) < len(numbers):
        raise DataError(f"the shares hold {len(numbers)} rows of {expected}, or some twice; give one table per rank.")
    metadata = table.metadata.drop(columns=_ROW).iloc[order].reset_index(drop=True)
    provenance = {key: value for key, value in table.provenance.items() if key != _SHARE}
    if left_out:
        provenance["rows_left_out"] = left_out
        provenance[LEFT_OUT] = sorted(n for share in shares for n in share.provenance.get(LEFT_OUT, ()))
    return replace(table, values=table.values[order], metadata=metadata, provenance=provenance)


def embed_to_file(
    encoder: Encoder,
    root: str | Path,
    output: str | Path,
    settings: EmbedSettings | None = None,
    *,
    aggregate: Level | None = None,
    mean_over: MeanOver = "rows",
    batch_size: int = 64,
    num_workers: int = 0,
    device: torch.device | str | None = None,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], object] = lambda: None,
    overwrite: bool = False,
    progress: bool = False,
    n_checks: int = _N_CHECKS,
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
        mean_over: What a mean over a well is taken over: `rows` or `images`.
        batch_size: Planes that go through the network at once.
        num_workers: Processes per rank that read.
        device: Where to compute; where the encoder is, if not given.
        rank: Number of this process.
        world_size: Number of processes, which all call this function.
        barrier: Waits for all processes.
        overwrite: Replace an output that exists, and drop the parts of another job.
        progress: Show a bar, in images, on rank 0.
        n_checks: Crops that are compared with the slow reference before the file appears; 0 for none.

    Returns:
        A report on rank 0, None on the others.

    Raises:
        ConfigError: If the output exists, or parts of another job do, or settings clash.
        DataError: If there is nothing to embed, a plane is damaged, a part is missing, a row differs from the slow
            reference, or the disk is full.
    """
    settings = settings or EmbedSettings()
    if aggregate is not None:
        check_level(aggregate, settings.unit, mean_over)
    run = Extraction(encoder, root, settings, batch_size=batch_size, num_workers=num_workers, device=device)
    output = Path(output)
    job = EmbedJob([Target(run, output, aggregate, mean_over)], parts_folder(output))
    reports = run_job(
        job,
        rank=rank,
        world_size=world_size,
        barrier=barrier,
        overwrite=overwrite,
        progress=progress,
        n_checks=n_checks,
    )
    return reports[0] if reports is not None else None


def run_job(
    job: EmbedJob,
    *,
    rank: int = 0,
    world_size: int = 1,
    barrier: Callable[[], object] = lambda: None,
    overwrite: bool = False,
    progress: bool = False,
    n_checks: int = _N_CHECKS,
) -> list[EmbedReport] | None:
    """Do what is still to be done of a job.

    Args:
        job: The same on all ranks.
        rank: Number of this process.
        world_size: Number of processes, which all call this function.
        barrier: Waits for all processes.
        overwrite: Replace outputs that exist, and drop the parts of another job.
        progress: Show a bar, in images, on rank 0.
        n_checks: Crops of each output that are compared with the slow reference before it appears; 0 for none.

    Returns:
        A report for each output on rank 0, None on the others.

    Raises:
        ConfigError: As `EmbedJob.open`.
        DataError: As `EmbedJob.close`.
        MorphemError: If an encoder does not take the channels of an image.
    """
    if rank == 0:
        job.open(overwrite)
        for run in job.runs:
            run.check_panels()
    barrier()
    missing = job.missing()
    barrier()  # nobody finishes a part before everybody has seen which are missing
    job.run(share_of(missing, rank, world_size), progress=progress and rank == 0)
    barrier()
    return job.close(missing, n_checks) if rank == 0 else None


def share_of(numbers: Sequence[int], rank: int, world_size: int) -> Sequence[int]:
    """Return the parts that a process makes.

    Args:
        numbers: Of the parts that are missing.
        rank: Number of the process.
        world_size: Number of processes.
    """
    return numbers[rank::world_size]

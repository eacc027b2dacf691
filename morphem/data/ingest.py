"""Images to shards: clip and scale each plane to 8 bit, refuse what cannot be right, write, tell what was done."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from morphem.data.commit import finish_set
from morphem.data.record import ImageRecord, checked_rows
from morphem.data.schema import COLUMNS, UNKNOWN
from morphem.data.writer import ShardWriter, refuse_existing
from morphem.errors import DataError, MorphemError
from morphem.sources.base import Source

Clip = tuple[float, float] | None


@dataclass
class StudyReport:
    """What became of one study.

    Attributes:
        study: Its name.
        images: Images written.
        planes: Channel planes written.
        cells: Cells written.
        flat: Planes without signal between the clip limits, which became zeros.
        channel_types: Planes of each channel type.
        unknown: Planes whose value is `unknown`, by column.
        labels: Label columns of images and, with `cell: ` before them, of cells.
        remarks: What reading the images decided, with the number of images.
        failures: Name of each image that was left out, and why.
    """

    study: str
    images: int = 0
    planes: int = 0
    cells: int = 0
    flat: int = 0
    channel_types: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    labels: list[str] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)


@dataclass(frozen=True)
class IngestReport:
    """What `ingest` did.

    Attributes:
        root: Folder of the shard set.
        studies: One report for each study.
        n_bytes: Size of all shards in the set.
    """

    root: str
    studies: tuple[StudyReport, ...]
    n_bytes: int

    @property
    def n_failures(self) -> int:
        """Images that were left out."""
        return sum(len(study.failures) for study in self.studies)


class Scaled(NamedTuple):
    """A plane as it is stored.

    Attributes:
        plane: Pixels, (H, W), uint8.
        low: Value that became 0.
        high: Value that became 255.
        flat: Whether there was nothing between them.
    """

    plane: NDArray[np.uint8]
    low: float
    high: float
    flat: bool


def ingest(
    sources: Sequence[Source],
    output: str | Path,
    *,
    clip: Clip = (0.1, 99.9),
    overwrite: bool = False,
    max_failures: int = 10,
    progress: Callable[[str, int, int], None] | None = None,
) -> IngestReport:
    """Write the images of some studies into a shard set.

    Args:
        sources: One for each study.
        output: Folder of the shard set; studies are added to those that it has.
        clip: Percentiles of each plane that become 0 and 255; None keeps 8-bit planes as they are and refuses others.
            The default is that of CHAMMI-75.
        overwrite: Replace studies that the set has already.
        max_failures: Stop at this many images of a study that cannot be used.
        progress: Called with study, images done, and images in all.

    Raises:
        DataError: If a study exists already, two have one name, too many of its images fail, or the disk is full.
            Studies that were finished before stay in the set.
    """
    _check_settings(sources, output, clip, overwrite)
    reports: list[StudyReport] = []
    try:
        for source in sources:
            with ShardWriter(output, source.study, overwrite=overwrite) as writer:
                report = _ingest_study(source, writer, clip, max_failures, progress)
            reports.append(report)
    finally:
        manifest = finish_set(output) if reports else {"shards": []}
    return IngestReport(str(output), tuple(reports), sum(shard["bytes"] for shard in manifest["shards"]))


def _check_settings(sources: Sequence[Source], output: str | Path, clip: Clip, overwrite: bool) -> None:
    """Refuse before the first image what would be refused after the last one."""
    if clip is not None and not 0 <= clip[0] < clip[1] <= 100:
        raise DataError(f"clip is {clip}; it must be two rising percentiles from 0 to 100, for example 0.1,99.9.")
    studies = Counter(source.study for source in sources)
    for study, count in studies.items():
        if count > 1:
            raise DataError(f"{count} of the folders hold the study '{study}'; give each study a name of its own.")
        refuse_existing(Path(output), study, overwrite)


def _ingest_study(
    source: Source,
    writer: ShardWriter,
    clip: Clip,
    max_failures: int,
    progress: Callable[[str, int, int], None] | None,
) -> StudyReport:
    report = StudyReport(source.study)
    ids = source.image_ids()
    for done, image_id in enumerate(ids):
        if progress is not None:
            progress(source.study, done, len(ids))
        try:
            image, flat = prepare(source.load(image_id), clip)
            rows = checked_rows(image, source.study)
        except MorphemError as fault:
            report.failures.append((image_id, str(fault)))
            if len(report.failures) >= max_failures or len(report.failures) == len(ids):
                raise DataError(
                    f"study '{source.study}': {len(report.failures)} of {len(ids)} images cannot be used, so it was "
                    f"not written; the last one: {fault}"
                ) from fault
            continue
        writer.add(image)
        _count(report, image, rows, flat)
    if progress is not None:
        progress(source.study, len(ids), len(ids))
    return report


def prepare(image: ImageRecord, clip: Clip) -> tuple[ImageRecord, int]:
    """Scale all planes of an image to 8 bit, and refuse planes that are copies of each other.

    Args:
        image: As a source gives it.
        clip: Percentiles that become 0 and 255; None keeps 8-bit planes as they are.

    Returns:
        The image with uint8 planes and clip limits, and the number of its planes without signal.

    Raises:
        DataError: If a plane is not a grey image of finite numbers, or two channels have the same pixels.
    """
    scaled = [
        to_uint8(np.asarray(plane), clip, f"image '{image.image_id}', channel '{name}'")
        for plane, name in zip(image.planes, image.channel_names, strict=True)
    ]
    for i, plane in enumerate(image.planes):
        for j in range(i):
            if not scaled[i].flat and np.array_equal(plane, image.planes[j]):
                raise DataError(
                    f"image '{image.image_id}': channels '{image.channel_names[j]}' and '{image.channel_names[i]}' "
                    "have the same pixels; correct the sheet, or take one of them out."
                )
    limits = [(plane.low, plane.high) for plane in scaled]
    stored = replace(image, planes=[plane.plane for plane in scaled], clip_limits=limits)
    return stored, sum(plane.flat for plane in scaled)


def to_uint8(plane: NDArray[Any], clip: Clip, name: str = "plane") -> Scaled:
    """Clip a plane at two of its percentiles and scale what is between to 0..255, rounding to the nearest.

    Args:
        plane: Pixels, (H, W), any number type.
        clip: Percentiles, 0 to 100; None keeps uint8 as it is.
        name: What to call the plane in an error.

    Raises:
        DataError: If it is no grey image, holds NaN or infinity, or `clip` is None and it is not uint8.
    """
    if plane.ndim != 2 or not plane.size or plane.dtype.kind not in "buif":
        raise DataError(f"{name} is {plane.dtype} of shape {plane.shape}; a plane must be numbers of shape (H, W).")
    if plane.dtype.kind == "f" and not (finite := np.isfinite(plane)).all():
        raise DataError(f"{name} has {plane.size - int(finite.sum())} pixels that are NaN or infinite; replace them.")
    if clip is None:
        if plane.dtype != np.uint8:
            raise DataError(
                f"{name} is {plane.dtype}; without clipping only uint8 can be kept: pass --clip 0,100 to scale it."
            )
        return Scaled(np.ascontiguousarray(plane), 0.0, 255.0, bool(plane.min() == plane.max()))
    values = plane.astype(np.float64)
    low, high = (float(limit) for limit in np.percentile(values, clip))
    if not high > low:
        return Scaled(np.zeros(plane.shape, np.uint8), low, high, True)
    scaled = (np.clip(values, low, high) - low) * (255.0 / (high - low))
    return Scaled(np.rint(scaled).astype(np.uint8), low, high, False)


def _count(report: StudyReport, image: ImageRecord, rows: list[dict[str, Any]], flat: int) -> None:
    report.images += 1
    report.planes += len(rows)
    report.flat += flat
    report.cells += 0 if image.cells is None else len(image.cells)
    report.remarks.update(image.remarks)
    for row in rows:
        report.channel_types[row["imaging.channel_type"]] += 1
        report.unknown.update(column for column in COLUMNS if row[column] == UNKNOWN)
    labels = [
        *(name for name in rows[0] if name not in COLUMNS),
        *(f"cell: {name}" for name in image.cell_labels or {}),
    ]
    report.labels += [label for label in labels if label not in report.labels]

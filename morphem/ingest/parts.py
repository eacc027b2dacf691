"""Parts: a fixed list of images each, prepared once, by whichever process, and finished by one renaming.

A part is a folder with a tar of samples, the tables of its planes and cells, and a report. It is written beside its
name and renamed, so that it is whole or absent; made twice, it is the same and the second one is thrown away.
"""

import json
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq

from morphem.data import layout
from morphem.data.record import ImageRecord, checked_rows, labels_of
from morphem.data.writer import OpenShard
from morphem.errors import DataError, MorphemError
from morphem.ingest.lookalikes import StudyStatistics
from morphem.ingest.prepare import Preparation, prepare

if TYPE_CHECKING:
    from morphem.cells.base import CellFinder
    from morphem.sources.base import Source

TAR = "part.tar"
REPORT = "part.json"


@dataclass(frozen=True)
class Part:
    """Images that are prepared as one piece of work.

    Attributes:
        number: From 0, in the order of the study.
        image_ids: Their names, in order.
        keys: The sample key of each.
    """

    number: int
    image_ids: tuple[str, ...]
    keys: tuple[str, ...]

    @property
    def name(self) -> str:
        """Name of the part's folder."""
        return f"{self.number:06d}"


@dataclass
class PartReport:
    """What became of the images of a part.

    Attributes:
        failures: Name of each image that cannot be used, and why.
        remarks: What reading the images decided, by image; only images with remarks.
        labels: Label columns of images, in order of appearance.
        cell_labels: Label columns of cells, in order of appearance.
        statistics: Of the planes, as `StudyStatistics.to_json` gives them.
        n_bytes: Length of the tar; 0 where no image could be used.
        sha256: Of the tar, in hexadecimal.
    """

    failures: list[tuple[str, str]] = field(default_factory=list)
    remarks: dict[str, list[str]] = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    cell_labels: list[str] = field(default_factory=list)
    statistics: dict[str, Any] = field(default_factory=dict)
    n_bytes: int = 0
    sha256: str = ""


def split(image_ids: Sequence[str], prefix: str, size: int) -> list[Part]:
    """Cut a study into parts of `size` images, and give every image its sample key.

    Args:
        image_ids: In the order in which they are to be written.
        prefix: Of the study's keys, as `layout.file_prefix` gives it.
        size: Images in a part, 1 or more; the last part may have fewer.

    Raises:
        DataError: If two images have one name.
    """
    if len(set(image_ids)) < len(image_ids):
        name, count = Counter(image_ids).most_common(1)[0]
        raise DataError(f"study '{prefix}' has {count} images named '{name}'; names must be unique.")
    keys = _keys(image_ids, prefix)
    return [
        Part(number, tuple(image_ids[start : start + size]), tuple(keys[start : start + size]))
        for number, start in enumerate(range(0, len(image_ids), size))
    ]


def _keys(image_ids: Sequence[str], prefix: str) -> list[str]:
    taken: set[str] = set()
    keys = []
    for image_id in image_ids:
        keys.append(layout.sample_key(prefix, image_id, taken))
        taken.add(keys[-1])
    return keys


def is_done(folder: Path, part: Part) -> bool:
    """Whether a part is finished.

    Args:
        folder: Of all parts of the study.
        part: The one that is asked for.
    """
    return (folder / part.name).is_dir()


def make_part(
    folder: Path,
    part: Part,
    source: "Source",
    preparation: Preparation,
    cells: "CellFinder | None" = None,
    tick: Callable[[], None] | None = None,
) -> Part:
    """Prepare the images of a part and write them; a part that is there already is left alone.

    Args:
        folder: Of all parts of the study; must exist.
        part: Which images.
        source: Reads them.
        preparation: How planes are stored.
        cells: Finds the cells; None keeps those that the source has.
        tick: Called after each image.

    Returns:
        The part, once it is finished.

    Raises:
        DataError: If the folder cannot be written. An image that cannot be used is counted in the part's report.
    """
    if is_done(folder, part):
        return part
    with layout.writing(folder):
        scratch = Path(tempfile.mkdtemp(prefix=f".{part.name}-", dir=folder))
    try:
        _fill(scratch, part, source, preparation, cells, tick)
        _rename(scratch, folder / part.name)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return part


def _rename(scratch: Path, final: Path) -> None:
    """Give a part its name; the same one made by somebody else in the meantime stays."""
    with layout.writing(final):
        for path in sorted(scratch.iterdir()):
            with path.open("rb+") as file:
                layout.sync(file)
        try:
            os.rename(scratch, final)
        except OSError:
            if not final.is_dir():
                raise


def _fill(
    scratch: Path,
    part: Part,
    source: "Source",
    preparation: Preparation,
    cells: "CellFinder | None",
    tick: Callable[[], None] | None,
) -> None:
    report, statistics = PartReport(), StudyStatistics()
    shard: OpenShard | None = None
    try:
        for image_id, key in zip(part.image_ids, part.keys, strict=True):
            ready = _ready(source, image_id, preparation, cells, report)
            if ready is not None:
                image, rows = ready
                shard = shard or OpenShard(scratch / TAR)
                labels = labels_of(rows)
                shard.add(key, image, rows, labels)
                statistics.add(image)
                _note(report, image, labels)
            if tick is not None:
                tick()
        if shard is not None:
            entry = shard.close(source.study, report.labels, report.cell_labels)
            report.n_bytes, report.sha256 = entry["bytes"], entry["sha256"]
    except BaseException:
        if shard is not None:
            shard.abandon()
        raise
    report.statistics = statistics.to_json()
    layout.write_atomically(scratch / REPORT, json.dumps(vars(report)).encode())


def _ready(
    source: "Source", image_id: str, preparation: Preparation, cells: "CellFinder | None", report: PartReport
) -> tuple[ImageRecord, list[dict[str, Any]]] | None:
    """Return an image as it is written, with its rows; None, and a line in the report, where it cannot be used."""
    try:
        image = prepare(source.load(image_id), preparation, cells)
        if image.image_id != image_id:
            raise DataError(f"image '{image_id}' was asked for and the source gave '{image.image_id}'; correct it.")
        return image, checked_rows(image, source.study)
    except (MorphemError, OSError) as fault:
        report.failures.append((image_id, " ".join(str(fault).split())))
        return None
    except Exception as fault:  # a fault of the program, which says nothing about the image that met it
        fault.add_note(f"while reading image '{image_id}' of study '{source.study}'")
        raise


def _note(report: PartReport, image: ImageRecord, labels: list[str]) -> None:
    if image.remarks:
        report.remarks[image.image_id] = list(image.remarks)
    report.labels += [label for label in labels if label not in report.labels]
    report.cell_labels += [label for label in image.cell_labels or {} if label not in report.cell_labels]


def read_report(folder: Path, part: Part) -> PartReport:
    """Read the report of a finished part.

    Args:
        folder: Of all parts of the study.
        part: Which one.

    Raises:
        DataError: If it is missing or damaged.
    """
    path = folder / part.name / REPORT
    try:
        report = PartReport(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as fault:
        raise DataError(
            f"'{path}' cannot be read ({fault}); delete the folder '{path.parent}' and run the same command again."
        ) from fault
    report.failures = [(image_id, why) for image_id, why in report.failures]
    return report


def read_tables(folder: Path, part: Part) -> tuple[pa.Table, pa.Table | None]:
    """Read the planes and cells of a finished part that has samples; None where there are no cells.

    Args:
        folder: Of all parts of the study.
        part: Which one.
    """
    path = folder / part.name / TAR
    cells: pa.Table | None = None
    with suppress(FileNotFoundError):
        cells = pq.read_table(path.with_suffix(".cells.parquet"))
    return pq.read_table(path.with_suffix(".planes.parquet")), cells


def clear_scratch(folder: Path) -> None:
    """Delete what killed processes have left half-written.

    Args:
        folder: Of all parts of the study.
    """
    for path in folder.glob(".*-*"):
        shutil.rmtree(path, ignore_errors=True)

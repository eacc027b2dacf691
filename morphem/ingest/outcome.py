"""What became of the studies of one ingest: plain numbers and names that merge, print and go into JSON."""

from collections import Counter
from dataclasses import dataclass, field, fields
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute as pc

from morphem.data.schema import COLUMNS, UNKNOWN
from morphem.errors import DataError

WRITTEN, KEPT, REFUSED = "written", "kept", "refused"


@dataclass
class StudyReport:
    """What became of one study.

    Attributes:
        study: Its name.
        state: `written`; `kept`: the set has it already, made with the same settings from the same list of images, and
            it was left as it is; or `refused`: too many of its images cannot be used.
        images: Images written.
        planes: Channel planes written.
        cells: Cells written.
        flat: Planes without signal between the clip limits, which became zeros.
        n_found: Images that the source has.
        channel_types: Planes written of each channel type.
        plates: Images written of each plate.
        unknown: Planes whose value is `unknown`, by column of the schema.
        unrecognised: Names of stains and wells that were not recognised, with the number of planes.
        labels: Label columns of images and, with `cell: ` before them, of cells.
        remarks: What reading the images decided, with the number of images.
        failures: Name of each image that was left out, and why.
        lookalikes: Image, channel and sentence for each plane whose statistics look like another channel of its study.
        curation: For each step in order: `step`, `before`, `removed` and `after` (images).
        curated_away: For each step the names of the images that it removed.
        pictures: For each step `kept` and `dropped`: small JPEG pictures as data addresses.
    """

    study: str
    state: str = WRITTEN
    images: int = 0
    planes: int = 0
    cells: int = 0
    flat: int = 0
    n_found: int = 0
    channel_types: Counter[str] = field(default_factory=Counter)
    plates: Counter[str] = field(default_factory=Counter)
    unknown: Counter[str] = field(default_factory=Counter)
    unrecognised: Counter[str] = field(default_factory=Counter)
    labels: list[str] = field(default_factory=list)
    remarks: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[str, str]] = field(default_factory=list)
    lookalikes: list[tuple[str, str, str]] = field(default_factory=list)
    curation: list[dict[str, Any]] = field(default_factory=list)
    curated_away: dict[str, list[str]] = field(default_factory=dict)
    pictures: dict[str, dict[str, list[str]]] = field(default_factory=dict)

    def count(self, planes: pa.Table) -> None:
        """Add what the rows of written planes tell.

        Args:
            planes: Rows of metadata.parquet, those of an image one after the other.
        """
        if not planes.num_rows:
            return
        keys = planes["key"].to_numpy()
        first = pa.array([True, *(keys[1:] != keys[:-1])])
        self.images += sum(first.to_pylist())
        self.planes += planes.num_rows
        self.cells += pc.sum(planes.filter(first)["n_cells"]).as_py() or 0
        self.flat += int(pc.sum(planes["quality.flat"]).as_py() or 0)
        self.channel_types.update(_counted(planes["imaging.channel_type"]))
        self.plates.update(_counted(planes.filter(first)["experiment.plate"]))
        for column, kind in COLUMNS.items():
            if kind == "string" and (count := pc.sum(pc.equal(planes[column], UNKNOWN)).as_py()):
                self.unknown[column] += count

    def to_json(self) -> dict[str, Any]:
        """Return the report as dictionaries, lists, texts and numbers."""
        return {entry.name: _plain(getattr(self, entry.name)) for entry in fields(self)}

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Self:
        """Return the report that `to_json` described."""
        report = cls(data["study"])
        for entry in fields(cls):
            value = data.get(entry.name)
            if value is None:
                continue
            if isinstance(getattr(report, entry.name), Counter):
                value = Counter(value)
            elif entry.name in ("failures", "lookalikes"):
                value = [tuple(item) for item in value]
            setattr(report, entry.name, value)
        return report


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
        """Images that were left out because they could not be used."""
        return sum(len(study.failures) for study in self.studies)


class RefusedError(DataError):
    """Too many images of some studies cannot be used; the other studies are in the set.

    Args:
        message: One sentence for each study.
        report: What became of all studies.
    """

    def __init__(self, message: str, report: IngestReport) -> None:
        super().__init__(message)
        self.report = report

    def __reduce__(self) -> tuple[type["RefusedError"], tuple[str, IngestReport]]:
        return type(self), (str(self), self.report)


def _counted(column: pa.ChunkedArray) -> dict[str, int]:
    return {entry["values"]: entry["counts"] for entry in column.value_counts().to_pylist()}


def _plain(value: Any) -> Any:
    if isinstance(value, Counter):
        return dict(value)
    if isinstance(value, list):
        return [list(item) if isinstance(item, tuple) else item for item in value]
    return value

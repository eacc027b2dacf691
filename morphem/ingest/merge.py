"""Parts to shards: the samples of the kept images are copied, in order, as if one writer had written them all.

A part's tar is deleted as soon as all its samples lie in finished shards, so that a study needs the room of its shards
and one more, not twice. What is kept was decided and written down before the first shard; a merge that was killed
goes on after its last finished shard.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from morphem.data import layout
from morphem.data.writer import OpenShard
from morphem.errors import DataError
from morphem.ingest.outcome import StudyReport
from morphem.ingest.parts import TAR, Part, PartReport, read_report, read_tables

OUTCOME = "study.json"
DECISION = "decision.json"
_ENTRY = ".shard.json"


@dataclass(frozen=True)
class Merge:
    """One study on its way from parts to shards.

    Attributes:
        study: Its name.
        folder: Where shards and tables go, for `finish_set` to publish.
        parts_folder: Where the parts are.
        parts: All of them, in order.
        max_bytes: A shard is closed once it is at least this large.
        max_images: A shard holds at most this many images.
    """

    study: str
    folder: Path
    parts_folder: Path
    parts: Sequence[Part]
    max_bytes: int
    max_images: int

    def reports(self) -> Iterator[tuple[Part, PartReport]]:
        """Read the report of every part, in order."""
        for part in self.parts:
            yield part, read_report(self.parts_folder, part)

    def decide(self, kept: Sequence[str], report: StudyReport, made_by: str) -> None:
        """Write down what is to be merged; from here on the parts are no longer needed to find that out.

        Args:
            kept: Names of the images that are wanted.
            report: Of the study, before anything was written.
            made_by: Hash of all settings.

        Raises:
            DataError: If the disk is full.
        """
        decision = {"kept": list(kept), "report": report.to_json(), "made_by": made_by}
        layout.write_atomically(self.folder / DECISION, json.dumps(decision).encode())

    def decided(self) -> tuple[list[str], StudyReport, str] | None:
        """Return what `decide` wrote, or None where that was not reached."""
        path = self.folder / DECISION
        if not path.exists():
            return None
        decision = json.loads(path.read_text())
        return decision["kept"], StudyReport.from_json(decision["report"]), decision["made_by"]

    def run(self) -> StudyReport:
        """Write the shards that are missing, tables and, last, the manifest of the study; delete the parts on the way.

        Returns:
            The report of the study, with what was written counted.

        Raises:
            DataError: If no image is left, a part is damaged, or the disk is full.
        """
        decision = self.decided()
        assert decision is not None, "decide() comes first"
        names, report, made_by = decision
        kept = set(names)
        shards = self._finished_shards()
        labels, cell_labels = self._labels()
        opened: OpenShard | None = None
        written = sum(int(shard["images"]) for shard in shards)
        emptied = 0
        try:
            for sample in self._samples(kept, report, written):
                if opened is None:
                    opened = OpenShard(self.folder / layout.shard_name(layout.file_prefix(self.study), len(shards)))
                opened.copy(sample.data, sample.rows, sample.cells)
                written += 1
                if opened.n_bytes >= self.max_bytes or opened.n_images >= self.max_images:
                    shards.append(self._close(opened, labels, cell_labels))
                    opened = None
                    emptied = self._empty_parts(emptied, kept, written)
            if opened is not None:
                shards.append(self._close(opened, labels, cell_labels))
        except BaseException:
            if opened is not None:
                opened.abandon()
            raise
        if not shards:
            raise DataError(f"study '{self.study}' has no image that can be written; nothing was written.")
        report.labels = [*labels, *(f"cell: {label}" for label in cell_labels)]
        self._finish(report, shards, labels, cell_labels, made_by)
        return report

    def _close(self, shard: OpenShard, labels: list[str], cell_labels: list[str]) -> dict[str, Any]:
        """Finish a shard and write its entry of the manifest beside it, which says that it is finished."""
        entry = shard.close(self.study, labels, cell_labels)
        layout.write_atomically(shard.path.with_suffix(_ENTRY), json.dumps(entry).encode())
        return entry

    def _finished_shards(self) -> list[dict[str, Any]]:
        """Return the entries of the shards that a merge before this one finished; delete what it left half-done."""
        entries = [json.loads(path.read_text()) for path in sorted(self.folder.glob(f"*{_ENTRY}"))]
        named = {Path(entry["name"]).stem for entry in entries}
        for path in self.folder.iterdir():
            if path.suffix in (".tar", ".parquet", layout.PARTIAL) and path.name.split(".")[0] not in named:
                path.unlink()
        return entries

    def _empty_parts(self, first: int, kept: Set[str], written: int) -> int:
        """Delete the tars of parts all of whose kept images are written; return the number of such parts.

        Args:
            first: So many parts were emptied before.
            kept: Names of the images that are wanted.
            written: So many of them lie in finished shards.
        """
        held = 0
        for number, part in enumerate(self.parts):
            held += sum(name in kept for name in part.image_ids)
            if held > written:
                return number
            if number >= first:
                (self.parts_folder / part.name / TAR).unlink(missing_ok=True)
        return len(self.parts)

    def _labels(self) -> tuple[list[str], list[str]]:
        labels: dict[str, None] = {}
        cell_labels: dict[str, None] = {}
        for _, report in self.reports():
            labels |= dict.fromkeys(report.labels)
            cell_labels |= dict.fromkeys(report.cell_labels)
        return list(labels), list(cell_labels)

    def _samples(self, kept: Set[str], report: StudyReport, written: int) -> Iterator["Sample"]:
        """Yield the samples that are wanted, in order, without the first `written` of them; count them all."""
        position = 0
        for part, told in self.reports():
            if not told.n_bytes:
                continue
            planes, cells = read_tables(self.parts_folder, part)
            wanted = pa.array([name for name in part.image_ids if name in kept], pa.string())
            planes = planes.filter(pc.is_in(planes["imaging.multi_channel_id"], wanted))
            report.count(planes)
            report.remarks.update(r for name, remarks in told.remarks.items() if name in kept for r in remarks)
            count = pc.count_distinct(planes["key"]).as_py()
            if position + count > written:
                with (self.parts_folder / part.name / TAR).open("rb") as tar:
                    yield from islice(_cut(tar, planes, cells), max(0, written - position), None)
            position += count

    def _finish(
        self,
        report: StudyReport,
        shards: list[dict[str, Any]],
        labels: list[str],
        cell_labels: list[str],
        made_by: str,
    ) -> None:
        manifest = {
            "study": self.study,
            "prefix": layout.file_prefix(self.study),
            "labels": labels,
            "cell_labels": cell_labels,
            "shards": shards,
            "made_by": made_by,
        }
        layout.write_atomically(self.folder / OUTCOME, json.dumps(report.to_json()).encode())
        layout.write_atomically(self.folder / layout.MANIFEST, json.dumps(manifest).encode())
        shutil.rmtree(self.parts_folder)


class Sample(NamedTuple):
    """One image as it lies in a part.

    Attributes:
        data: All its members in the tar.
        rows: Its rows in the table of planes.
        cells: Its rows in the table of cells, or None.
    """

    data: bytes
    rows: list[dict[str, Any]]
    cells: pa.Table | None


def _cut(tar: BinaryIO, planes: pa.Table, cells: pa.Table | None) -> Iterator[Sample]:
    """Yield the samples of a part whose rows are given."""
    places = {} if cells is None else _runs(cells["key"].to_pylist())
    rows = planes.to_pylist()
    for key, (start, count) in _runs(planes["key"].to_pylist()).items():
        mine = rows[start : start + count]
        tar.seek(mine[0]["sample_offset"])
        data = tar.read(mine[0]["sample_nbytes"])
        if len(data) != mine[0]["sample_nbytes"]:
            raise DataError(f"'{tar.name}' is cut off; delete its folder and run the same command again.")
        found = places.get(key)
        yield Sample(data, mine, None if cells is None or found is None else cells.slice(*found))


def _runs(keys: Sequence[str]) -> Mapping[str, tuple[int, int]]:
    """Return start and length of each run of equal keys, in order."""
    runs: dict[str, tuple[int, int]] = {}
    for i, key in enumerate(keys):
        start, count = runs.get(key, (i, 0))
        runs[key] = (start, count + 1)
    return runs

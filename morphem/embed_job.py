"""A job of `embed`: parts of bounded size on disk, files that appear whole, and a check before they do."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from morphem import features
from morphem.aggregation import Level, MeanOver, average
from morphem.errors import ConfigError, DataError
from morphem.extraction import LEFT_OUT, Extraction, tables
from morphem.features import FeatureTable
from morphem.self_check import Checked, check_rows

_PART_PLANES = 2048  # planes between two saves of a resumable job: minutes of a CPU, a second of a GPU


@dataclass(frozen=True)
class Target:
    """One file that a job writes.

    Attributes:
        run: The encoder over the shards.
        output: Ends in `.parquet` or `.h5ad`.
        aggregate: Level to which rows are averaged, or None.
        mean_over: What a mean over a well is taken over; see `morphem.aggregation.average`.
    """

    run: Extraction
    output: Path
    aggregate: Level | None = None
    mean_over: MeanOver = "rows"


@dataclass(frozen=True)
class EmbedReport:
    """What a job did for one file.

    Attributes:
        path: The file that was written.
        n_rows: Rows in it.
        n_features: Features per row.
        n_images: Images that were embedded.
        n_empty_images: Images that gave no row, because they have no cells.
        n_resumed: Images whose features were left from an earlier run of the same job.
        n_left_out: Tiles that were left out for being empty.
        n_crops: Crops of all images, those included.
        remarks: What looks odd about the pixels, or their size.
        checked: What the comparison with the slow reference found; None where it was switched off.
    """

    path: Path
    n_rows: int
    n_features: int
    n_images: int
    n_empty_images: int
    n_resumed: int
    n_left_out: int = 0
    n_crops: int = 0
    remarks: tuple[str, ...] = ()
    checked: Checked | None = None


class EmbedJob:
    """The parts of some outputs: consecutive images, cut by their number of planes and nothing else.

    Args:
        targets: What is written; of the same shards and query, on one device.
        folder: Of the parts; made where it does not exist.

    Raises:
        ConfigError: If an output has another ending, or two have one name.
    """

    def __init__(self, targets: Sequence[Target], folder: Path) -> None:
        self.targets = list(targets)
        self.runs = [target.run for target in targets]
        self.folder = folder
        for target in targets:
            if target.output.suffix not in features.SUFFIXES:
                raise ConfigError(f"the output '{target.output}' must end in {' or '.join(features.SUFFIXES)}.")
        if len({target.output.resolve() for target in targets}) < len(targets):
            raise ConfigError("two models would write one file; give each an output of its own.")
        plan = self.runs[0].plan
        crops = np.sum([np.diff(run.plan.crop_starts) for run in self.runs], axis=0)
        planes = crops * np.diff(plan.plane_starts)
        part = (np.cumsum(planes) - planes) // _PART_PLANES
        bounds = [0, *(np.flatnonzero(np.diff(part)) + 1).tolist(), plan.n_images]
        self.parts = [range(a, b) for a, b in pairwise(bounds)]
        described = [run.provenance for run in self.runs]
        self.digest = hashlib.sha256(json.dumps([described, _PART_PLANES], sort_keys=True).encode()).hexdigest()

    def _file(self, number: int, target: int) -> Path:
        ending = "" if len(self.targets) == 1 else f".{target}"
        return self.folder / f"part-{number:06d}{ending}.parquet"

    def open(self, overwrite: bool) -> None:
        """Make the folder of parts, or check that the one there belongs to the same job.

        Args:
            overwrite: Replace outputs that exist, and drop the parts of another job.

        Raises:
            ConfigError: If an output exists, or parts of another job do.
            DataError: If the folder cannot be written.
        """
        for target in self.targets:
            refuse_existing(target.output, overwrite)
        record = self.folder / "job.json"
        try:
            if record.is_file() and json.loads(record.read_text()).get("digest") != self.digest:
                if not overwrite:
                    raise ConfigError(
                        f"{self.folder} holds parts of a job with another model, data or settings; repeat that job's "
                        "settings to finish it, or drop its parts (--overwrite)."
                    )
                for path in self.folder.glob("part-*.parquet"):
                    path.unlink()
            self.folder.mkdir(parents=True, exist_ok=True)
            content = {"digest": self.digest, "models": [run.provenance for run in self.runs]}
            record.write_text(json.dumps(content))
        except OSError as fault:
            raise DataError(
                f"cannot write {self.folder} ({fault}); free some space or choose another output."
            ) from fault

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not there yet."""
        places = range(len(self.targets))
        return [n for n in range(len(self.parts)) if not all(self._file(n, t).is_file() for t in places)]

    def run(self, numbers: Sequence[int], progress: bool = False) -> None:
        """Embed some parts, each into files that appear when they are whole.

        Args:
            numbers: Of the parts.
            progress: Show a bar, in images.
        """
        with self.runs[0].bar(sum(len(self.parts[number]) for number in numbers), progress) as bar:
            for number in numbers:
                for place, table in enumerate(tables(self.runs, self.parts[number], bar)):
                    table.write(self._file(number, place))

    def close(self, embedded: Sequence[int], n_checks: int) -> list[EmbedReport]:
        """Check that every row is there and right, write the outputs and drop the parts.

        Args:
            embedded: Parts that all ranks made in this run; the others were there before.
            n_checks: Rows of each output that are compared with the slow reference; 0 for none.

        Raises:
            DataError: If a row is missing, a part is damaged, or a row differs from the slow reference.
        """
        left_out = [self._check_parts(place) for place in range(len(self.targets))]
        checked = [self._compare(place, n_checks) for place in range(len(self.targets))]
        resumed = self.runs[0].plan.n_images - sum(len(self.parts[number]) for number in embedded)
        reports = [self._finish(place, resumed, left_out[place], checked[place]) for place in range(len(self.targets))]
        shutil.rmtree(self.folder)
        return reports

    def _finish(self, place: int, resumed: int, left_out: tuple[int, int], checked: Checked | None) -> EmbedReport:
        target, run = self.targets[place], self.runs[place]
        n_crops, n_left_out_rows = left_out
        said: dict[str, Any] = {
            "tiles_left_out": n_crops,
            "rows_left_out": n_left_out_rows,
            "self_check": checked.to_json() if checked is not None else None,
        }
        made: Iterable[FeatureTable] = self._tables(place, said)
        if target.aggregate is not None:
            made = [average(made, target.aggregate, target.mean_over)]
        n_rows = features.write(target.output, made)
        if target.aggregate is None and n_rows != run.n_rows - n_left_out_rows:
            target.output.unlink()
            raise DataError(
                f"{target.output} would have {n_rows} rows instead of {run.n_rows - n_left_out_rows}; run it again."
            )
        plan = run.plan
        return EmbedReport(
            path=target.output,
            n_rows=n_rows,
            n_features=run.n_features,
            n_images=plan.n_images,
            n_empty_images=plan.empty_images,
            n_resumed=resumed,
            n_left_out=n_crops,
            n_crops=plan.n_crops,
            remarks=run.remarks,
            checked=checked,
        )

    def _check_parts(self, place: int) -> tuple[int, int]:
        """Compare the rows of every part with the plan, by its footer alone; return crops and rows left out."""
        n_crops, n_rows = 0, 0
        for number, images in enumerate(self.parts):
            path, expected = self._file(number, place), self.runs[place].count(images)
            try:
                footer = pq.read_metadata(path)
                said = features.provenance_in(footer.metadata)
            except (OSError, pa.ArrowInvalid, ValueError) as fault:
                raise DataError(f"{path} is missing or damaged; delete it and run the same command again.") from fault
            left_out = int(said.get("rows_left_out", 0))
            if footer.num_rows + left_out != expected:
                raise DataError(
                    f"{path} has {footer.num_rows} rows instead of {expected - left_out}; delete it and run the "
                    "command again."
                )
            n_crops += len(said.get(LEFT_OUT, ()))
            n_rows += left_out
        return n_crops, n_rows

    def _tables(self, place: int, said: dict[str, Any]) -> Iterator[FeatureTable]:
        for number in range(len(self.parts)):
            table = features.read(self._file(number, place))
            kept = {key: value for key, value in table.provenance.items() if key != LEFT_OUT}
            yield replace(table, provenance={**kept, **said})

    def _compare(self, place: int, n_checks: int) -> Checked | None:
        """Compare rows of a few parts, from the first to the last, with the slow reference."""
        if not n_checks:
            return None
        numbers = [number for number in range(len(self.parts)) if self._rows(number, place)]
        if not numbers:
            return Checked.joined([])
        chosen = sorted({numbers[round(i * (len(numbers) - 1) / max(1, n_checks - 1))] for i in range(n_checks)})
        per_part = -(-n_checks // len(chosen))
        results = [check_rows(self.runs[place], features.read(self._file(n, place)), per_part) for n in chosen]
        return Checked.joined(results)

    def _rows(self, number: int, place: int) -> int:
        return int(pq.read_metadata(self._file(number, place)).num_rows)


def refuse_existing(output: Path, overwrite: bool) -> None:
    """Check that an output may be written.

    Raises:
        ConfigError: If it exists and may not be replaced.
    """
    if output.exists() and not overwrite:
        raise ConfigError(f"{output} exists; choose another name, or allow it to be replaced (--overwrite).")


def parts_folder(output: Path) -> Path:
    """Return where the parts of a job lie until its output is whole."""
    return output.with_name(output.name + ".parts")

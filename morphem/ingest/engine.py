"""Studies to shards: plan, make the parts that are missing, select, merge, publish; killed anywhere, it goes on there.

What is on disk decides what is still to be done: `plan.json` says what the parts are, a part's folder that it is
finished, the manifest in the study's folder that it is merged, and the manifest of the set that it is published.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from morphem.data import layout
from morphem.data.commit import discard, finish_set
from morphem.data.writer import refuse_existing
from morphem.errors import DataError
from morphem.ingest.choose import IMAGE, pictures_of, select_planned, select_prepared
from morphem.ingest.lock import locked
from morphem.ingest.lookalikes import StudyStatistics, flag_swapped
from morphem.ingest.merge import OUTCOME, Merge
from morphem.ingest.outcome import KEPT, REFUSED, WRITTEN, IngestReport, RefusedError, StudyReport
from morphem.ingest.parts import clear_scratch, split
from morphem.ingest.settings import IngestSettings, differences, fingerprint, hash_of, part_size, settings_of_merge
from morphem.ingest.workers import Crew, Job

if TYPE_CHECKING:
    from morphem.curation.selection import Selection
    from morphem.sources.base import Source

PLAN = "plan.json"
REFUSAL = "refused.json"

Progress = Callable[[str, int, int], None]


def ingest(
    sources: Sequence["Source"],
    output: str | Path,
    settings: IngestSettings | None = None,
    *,
    workers: int = 1,
    dask: str | None = None,
    progress: Progress | None = None,
) -> IngestReport:
    """Write the images of some studies into a shard set.

    A run that was killed goes on where it stopped when it is started again with the same settings. The shards do not
    depend on that, nor on the number of workers: they are the same to the byte.

    Args:
        sources: One for each study.
        output: Folder of the shard set; studies are added to those that it has.
        settings: How images are prepared and selected; the defaults where not given.
        workers: Processes on this machine, 1 or more.
        dask: Address of a Dask scheduler whose workers prepare the images instead; they must see `output`.
        progress: Called with study, images done, and images in all.

    Raises:
        ConfigError: If a setting is wrong.
        DataError: If a study exists already, two have one name, another run writes into `output`, an earlier one had
            other settings, or the disk is full.
        RefusedError: If too many images of some studies cannot be used; the other studies are in the set.
    """
    settings = settings or IngestSettings()
    if "://" in str(output):
        raise DataError(f"shards are written to a local folder, not to '{output}'; write and copy them.")
    root, crew = Path(os.path.abspath(output)), Crew(workers, dask)
    _check_names(sources, settings)
    with locked(root):
        clear_scratch(root / layout.INCOMING)
        reports = tuple(_Study(root, source, settings, crew, progress).run() for source in sources)
        written = any(report.state == WRITTEN for report in reports)
        manifest = finish_set(root) if written or (root / layout.MANIFEST).exists() else {"shards": []}
    report = IngestReport(str(output), reports, sum(shard["bytes"] for shard in manifest["shards"]))
    refused = [_refusal(study, settings) for study in reports if study.state == REFUSED]
    if refused:
        raise RefusedError(" ".join(refused), report)
    return report


def _check_names(sources: Sequence["Source"], settings: IngestSettings) -> None:
    """Refuse before the first image what would be refused after the last one."""
    prefixes: dict[str, str] = {}
    for study, count in Counter(source.study for source in sources).items():
        if count > 1:
            raise DataError(f"{count} of the folders hold the study '{study}'; give each study a name of its own.")
        other = prefixes.setdefault(layout.file_prefix(study), study)
        if other != study:
            raise DataError(f"the files of the studies '{other}' and '{study}' would have the same names; rename one.")
    if settings.recipe is not None:
        settings.recipe.check_studies(source.study for source in sources)


def _refusal(report: StudyReport, settings: IngestSettings) -> str:
    image_id, why = report.failures[0]
    share = len(report.failures) / report.n_found
    return (
        f"study '{report.study}': {len(report.failures)} of {report.n_found} images cannot be used, more than "
        f"{100 * settings.max_bad:.3g} %, so it was not written; the first is '{image_id}': {why} Correct them and run "
        f"the same command again, or accept it with --max-bad {min(100, share * 100 + 0.1):.1f}%."
    )


@dataclass
class _Study:
    """One study on its way into the set."""

    root: Path
    source: "Source"
    settings: IngestSettings
    crew: Crew
    progress: Progress | None

    def run(self) -> StudyReport:
        """Do all that is still to be done, and return what became of it."""
        study, settings = self.source.study, self.settings
        table = self.source.table()
        selection = select_planned(settings.recipe, study, table)
        table = table[table[IMAGE].isin(set(selection.kept))] if selection.removed else table
        described = fingerprint(self.source, table, settings)
        made_by = hash_of(described | settings_of_merge(settings))
        self.folder = self.root / layout.INCOMING / layout.file_prefix(study)
        if not settings.overwrite and _made_by(self.root, study) == made_by:
            self._tick(len(selection.kept), len(selection.kept))
            return StudyReport(study, KEPT, n_found=selection.n_found)
        refuse_existing(self.root, study, settings.overwrite)
        size = self._open_plan(described, part_size(table, len(selection.kept), settings.part_images))
        if (self.folder / layout.MANIFEST).exists():
            return self._merged_before(made_by)
        parts = split(selection.kept, layout.file_prefix(study), size)
        merge = Merge(
            study,
            self.folder,
            self.folder / f"parts-{hash_of(described)[:12]}",
            parts,
            settings.max_shard_bytes,
            settings.max_shard_images,
        )
        decision = merge.decided()
        if decision is None:
            self._prepare(merge)
            return self._conclude(merge, selection, made_by)
        self._check_same(decision[2], made_by)
        self._tick(len(selection.kept), len(selection.kept))
        return merge.run()

    def _open_plan(self, described: dict[str, str], size: int) -> int:
        """Go on with the plan of an earlier run, or make a new one; return the number of images in a part."""
        path = self.folder / PLAN
        if path.exists() and not self.settings.restart:
            plan: dict[str, Any] = json.loads(path.read_text())
            differs = differences(plan["fingerprint"], described)
            if differs:
                raise DataError(
                    f"an earlier run has left study '{self.source.study}' half-done in '{self.root}' with another "
                    f"{differs}; repeat its command to go on, or pass --restart to throw its work away."
                )
            return int(plan["part_images"])
        with layout.writing(self.folder):
            if self.folder.exists():  # left over from a run that this one is not to go on with
                discard(self.folder)
            (self.folder / f"parts-{hash_of(described)[:12]}").mkdir(parents=True)
        plan = {"fingerprint": described, "part_images": size}
        layout.write_atomically(path, json.dumps(plan, indent=1).encode())
        return size

    def _merged_before(self, made_by: str) -> StudyReport:
        """Return the report of a study that was merged by a run that was killed before it could publish it."""
        self._check_same(json.loads((self.folder / layout.MANIFEST).read_text()).get("made_by"), made_by)
        report = StudyReport.from_json(json.loads((self.folder / OUTCOME).read_text()))
        self._tick(report.n_found, report.n_found)
        return report

    def _check_same(self, before: str | None, made_by: str) -> None:
        """Refuse to go on with shards that were made with another recipe or shard size."""
        if before != made_by:
            raise DataError(
                f"an earlier run has finished study '{self.source.study}' with another recipe or shard size, but not "
                "published it; repeat its command to publish it, or pass --restart to throw its work away."
            )

    def _prepare(self, merge: Merge) -> None:
        """Make the parts that are missing."""
        merge.parts_folder.mkdir(exist_ok=True)
        clear_scratch(merge.parts_folder)
        if (self.folder / REFUSAL).exists():  # its images may have been corrected since
            for part, report in [*merge.reports()]:
                if report.failures:
                    discard(merge.parts_folder / part.name)
            (self.folder / REFUSAL).unlink()
        total = sum(len(part.image_ids) for part in merge.parts)
        done = sum(len(part.image_ids) for part in merge.parts if (merge.parts_folder / part.name).exists())
        self._tick(done, total)

        def tick(count: int) -> None:
            nonlocal done
            done += count
            self._tick(done, total)

        job = Job(merge.parts_folder, self.source, self.settings.preparation, self.settings.cells)
        self.crew.make(job, merge.parts, tick)

    def _conclude(self, merge: Merge, selection: "Selection", made_by: str) -> StudyReport:
        """Count, select by pixels, and merge; or refuse the study."""
        source, settings = self.source, self.settings
        report = StudyReport(source.study, n_found=selection.n_found + len(source.problems))
        report.failures += source.problems
        report.remarks.update(source.remarks)
        report.unrecognised.update(source.unrecognised)
        statistics = StudyStatistics()
        n_tried = len(source.problems) + len(selection.kept)
        for _, told in merge.reports():
            report.failures += told.failures
            statistics.merge(StudyStatistics.from_json(told.statistics))
        n_bad = len(report.failures)
        if n_bad > settings.max_bad * n_tried or n_bad == n_tried:
            report.state = REFUSED
            layout.write_atomically(self.folder / REFUSAL, json.dumps(report.to_json()).encode())
            return report
        report.lookalikes = [(found.image_id, found.channel, found.sentence) for found in flag_swapped(statistics)]
        bad = {image_id for image_id, _ in report.failures}
        kept = {image_id for image_id in selection.kept if image_id not in bad}
        if settings.recipe is not None:
            selection = self._curate(merge, selection, report)
            kept &= set(selection.kept)
        merge.decide([name for name in selection.kept if name in kept], report, made_by)
        return merge.run()

    def _curate(self, merge: Merge, selection: "Selection", report: StudyReport) -> "Selection":
        """Run the steps on pixels, and tell what all steps did."""
        recipe = self.settings.recipe
        assert recipe is not None
        if recipe.after_pixels.steps:
            selection = selection.then(select_prepared(recipe, merge, self.settings.features_from))
        report.curation = selection.rows
        report.curated_away = selection.removed
        report.remarks.update(selection.remarks)
        if self.settings.pictures:
            report.pictures = pictures_of(self.source, selection, recipe.seed)
        return selection

    def _tick(self, done: int, total: int) -> None:
        if self.progress is not None:
            self.progress(self.source.study, done, total)


def _made_by(root: Path, study: str) -> str | None:
    """Hash of the settings with which the set's version of a study was made, if it says so."""
    path = root / layout.MANIFEST
    if not path.exists():
        return None
    made_by: str | None = json.loads(path.read_text())["studies"].get(study, {}).get("made_by")
    return made_by

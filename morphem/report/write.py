"""Write report.html and report.json beside the shards."""

import json
from collections.abc import Sequence
from pathlib import Path

from morphem.data import layout
from morphem.data.commit import software_version
from morphem.data.shards import ShardSet
from morphem.errors import DataError
from morphem.ingest.outcome import KEPT, REFUSED, WRITTEN, StudyReport
from morphem.report.contact import MAX_PICTURES
from morphem.report.facts import StudyFacts, from_the_set, study_facts, totals
from morphem.report.page import page

HTML = "report.html"
JSON = "report.json"
FORMAT = 1
_PICTURES_IN_ALL = 480


def write_report(root: Path, studies: Sequence[StudyReport]) -> Path:
    """Write `report.html` and `report.json` for a shard set.

    The same set and the same reports give the same bytes. What `report.json` says of studies that were ingested
    earlier and are still in the set is kept.

    Args:
        root: Folder of the set; without a finished set in it, the page tells of refused studies alone.
        studies: What became of the studies of this run; refused ones are listed as not written.

    Returns:
        Path of the page.

    Raises:
        DataError: If the set is damaged, `report.json` is not a report, or the disk is full.
    """
    root = Path(root)
    refused = [report for report in studies if report.state == REFUSED]
    reports = {report.study: report for report in _earlier(root / JSON)}
    for report in studies:
        if report.state == WRITTEN:
            reports[report.study] = report
        elif report.state == KEPT:  # nothing was read again: the earlier report knows more
            reports.setdefault(report.study, report)
    facts: list[StudyFacts] = []
    n_bytes = 0
    if (root / layout.MANIFEST).exists() or not refused:
        shards = ShardSet(root)
        n_bytes = sum(shard["bytes"] for shard in shards.manifest["shards"])
        n_pictures = max(6, min(MAX_PICTURES, _PICTURES_IN_ALL // max(1, len(shards.studies))))
        present = [reports.get(study) or from_the_set(shards, study) for study in shards.studies]
        facts = [study_facts(shards, report, n_pictures) for report in present]
    content = {
        "format": FORMAT,
        "software": software_version(),
        "set": {"studies": len(facts), **totals(facts), "bytes": n_bytes},
        "studies": [study.report.to_json() for study in facts],
        "not_written": [report.to_json() for report in refused],
    }
    layout.write_atomically(
        root / JSON, (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode("utf-8", "replace")
    )
    html = page(root.resolve().name, software_version(), n_bytes, facts, [StudyFacts(report) for report in refused])
    layout.write_atomically(root / HTML, html.encode("utf-8", "replace"))
    return root / HTML


def _earlier(path: Path) -> list[StudyReport]:
    """Reports of the studies that earlier runs wrote."""
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_bytes())
        if content["format"] != FORMAT:
            raise ValueError(f"it has format {content['format']}, this version reads {FORMAT}")
        return [StudyReport.from_json(study) for study in content["studies"]]
    except (OSError, ValueError, KeyError, TypeError) as fault:
        raise DataError(
            f"'{path}' cannot be read as an earlier report ({fault}); move it away, and the report is made anew."
        ) from fault

"""Writing the report: what is kept, what is new, what cannot be read."""

import json
from pathlib import Path

import pytest

from morphem.data.commit import finish_set
from morphem.data.writer import ShardWriter
from morphem.errors import DataError
from morphem.ingest.outcome import KEPT, REFUSED, StudyReport
from morphem.report import write_report
from tests.small_shards import image, write


def _add(root: Path, study: str) -> None:
    one = image("i")
    with ShardWriter(root, study) as writer:
        writer.add(type(one)(**{**one.__dict__, "rows": [{**row, "experiment.study": study} for row in one.rows]}))
    finish_set(root)


def _failures(root: Path) -> dict[str, list[list[str]]]:
    content = json.loads((root / "report.json").read_text())
    return {study["study"]: study["failures"] for study in content["studies"]}


def test_reports_of_earlier_runs_stay(tmp_path: Path) -> None:
    write(tmp_path, [image("i")])
    write_report(tmp_path, [StudyReport("study", failures=[("a", "why")])])
    _add(tmp_path, "second")
    path = write_report(tmp_path, [StudyReport("second", failures=[("b", "because")])])
    assert _failures(tmp_path) == {"study": [["a", "why"]], "second": [["b", "because"]]}
    assert "why" in path.read_text()


def test_a_study_that_is_ingested_again_has_its_new_report(tmp_path: Path) -> None:
    write(tmp_path, [image("i")])
    write_report(tmp_path, [StudyReport("study", failures=[("a", "why")])])
    write_report(tmp_path, [StudyReport("study")])
    assert _failures(tmp_path) == {"study": []}


def test_a_study_that_was_left_as_it_is_keeps_its_report(tmp_path: Path) -> None:
    write(tmp_path, [image("i")])
    write_report(tmp_path, [StudyReport("study", failures=[("a", "why")])])
    write_report(tmp_path, [StudyReport("study", state=KEPT)])
    assert _failures(tmp_path) == {"study": [["a", "why"]]}


def test_a_study_without_any_report_is_shown_from_its_rows(tmp_path: Path) -> None:
    write(tmp_path, [image("i"), image("j")])
    write_report(tmp_path, [])
    study = json.loads((tmp_path / "report.json").read_text())["studies"][0]
    assert (study["study"], study["images"], study["planes"]) == ("study", 2, 6)
    assert study["channel_types"] == {"nucleus": 2, "actin": 2, "mitochondria": 2}


def test_a_refused_study_is_told_and_does_not_replace_what_the_set_holds(tmp_path: Path) -> None:
    write(tmp_path, [image("i")])
    write_report(tmp_path, [StudyReport("study")])
    path = write_report(
        tmp_path, [StudyReport("study", state=REFUSED, n_found=2, failures=[("a", "'x.tif' is empty")])]
    )
    assert _failures(tmp_path) == {"study": []}
    assert "not written" in path.read_text()
    assert "&#x27;x.tif&#x27; is empty" in path.read_text()


def test_refused_studies_have_a_page_before_there_is_a_set(tmp_path: Path) -> None:
    path = write_report(tmp_path, [StudyReport("study", state=REFUSED, n_found=1, failures=[("a", "broken")])])
    assert "not written" in path.read_text()


def test_the_same_set_gives_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path, [image(f"i{k}", cells=k) for k in range(5)])
    first = write_report(tmp_path, [StudyReport("study")]).read_bytes()
    told = (tmp_path / "report.json").read_bytes()
    assert write_report(tmp_path, []).read_bytes() == first
    assert (tmp_path / "report.json").read_bytes() == told


def test_a_study_whose_name_has_quotes_is_found(tmp_path: Path) -> None:
    _add(tmp_path, 'it\'s "odd" \\ <b>')
    html = write_report(tmp_path, []).read_text()
    assert "it&#x27;s &quot;odd&quot; \\ &lt;b&gt;" in html


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 99, "studies": []}', '{"format": 1, "studies": [{}]}'])
def test_a_file_that_is_no_report_is_refused_with_the_remedy(tmp_path: Path, text: str) -> None:
    write(tmp_path, [image("i")])
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(DataError, match=r"report\.json' cannot be read as an earlier report.*move it away"):
        write_report(tmp_path, [])


def test_no_set_and_no_refusal_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a finished shard set"):
        write_report(tmp_path, [])


@pytest.mark.slow
def test_real_studies_have_a_page_of_bounded_size(real_data: Path, tmp_path: Path) -> None:
    from morphem.ingest import ingest
    from morphem.sources.sheet import SheetSource

    report = ingest([SheetSource(str(real_data / name)) for name in ("nf1-schwann", "bbbc016-transfluor")], tmp_path)
    path = write_report(tmp_path, report.studies)
    assert 50_000 < path.stat().st_size < 1_500_000
    assert path.read_text().count("data:image/jpeg") == 5 + 3 + 24

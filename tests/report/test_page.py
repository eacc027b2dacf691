"""The page: safe, self-contained, complete."""

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from morphem.data.layout import QUALITY_COLUMNS
from morphem.data.shards import ShardSet
from morphem.ingest.outcome import REFUSED, StudyReport
from morphem.report.facts import StudyFacts, study_facts
from morphem.report.markup import MAX_NAMED, folded, table
from morphem.report.page import page
from tests.small_shards import image, write

VOID = {"meta", "img", "br"}


class Outline(HTMLParser):
    """Collects text, and refuses tags that are not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def _read(html: str) -> Outline:
    outline = Outline()
    outline.feed(html)
    assert outline.open == []
    return outline


def _facts(root: Path, report: StudyReport | None = None) -> StudyFacts:
    return study_facts(ShardSet(root), report or StudyReport("study"), 24)


@pytest.fixture
def small(tmp_path: Path) -> Path:
    wells = ("A01", "A02", "B01", "B02")
    write(tmp_path, [image(f"{well}-{k}", well=well, cells=k, seed=k) for well in wells for k in range(2)])
    return tmp_path


def test_the_page_is_closed_in_order_and_asks_for_nothing_from_elsewhere(small: Path) -> None:
    html = page("set", "1.0", 10, [_facts(small)], [])
    outline = _read(html)
    addresses = [value for _, name, value in outline.attributes if name in ("src", "href")]
    assert addresses
    assert all(value.startswith(("data:image/jpeg;base64,", "#")) for value in addresses)
    assert "<script" not in html
    assert "url(" not in html
    assert "@import" not in html


def test_every_link_has_its_place(small: Path) -> None:
    outline = _read(page("set", "1.0", 10, [_facts(small)], [StudyFacts(StudyReport("other", state=REFUSED))]))
    places = {value for _, name, value in outline.attributes if name == "id"}
    assert {value[1:] for _, name, value in outline.attributes if name == "href"} == places


def test_names_are_text_and_never_markup(small: Path) -> None:
    evil = "<script>alert('1')</script>\" onload=\"x"
    report = StudyReport("study", failures=[(evil, evil)], lookalikes=[(evil, evil, evil)], labels=[evil])
    report.unrecognised.update({evil: 1})
    report.remarks.update({evil: 1})
    report.curation = [{"step": evil, "before": 1, "removed": 1, "after": 0}]
    report.curated_away = {evil: [evil]}
    report.pictures = {evil: {"kept": [evil, "data:image/svg+xml,<svg>"], "dropped": ["data:image/jpeg;base64,AA"]}}
    html = page(evil, "1.0", 10, [_facts(small, report)], [StudyFacts(StudyReport(evil, failures=[(evil, evil)]))])
    outline = _read(html)
    assert "<script" not in html
    assert "svg+xml" not in html
    assert not [name for _, name, _ in outline.attributes if name.startswith("on")]
    assert evil in "".join(outline.text)


def test_names_of_images_wells_and_channels_are_text_too(tmp_path: Path) -> None:
    evil = "\"><script>'&"
    one = image(evil, ("nucleus",), well="A01", **{"experiment.plate": evil, "experiment.reagent": evil})
    write(tmp_path, [type(one)(**{**one.__dict__, "channel_names": [evil]})])
    html = page("set", "1.0", 10, [_facts(tmp_path)], [])
    assert "<script" not in html
    assert ("img", "alt", evil) in _read(html).attributes


def test_what_was_odd_comes_before_everything_else(small: Path) -> None:
    report = StudyReport("study", n_found=9, failures=[("A03-1", "'a b.tif' is cut off")])
    html = page("set", "1.0", 10, [_facts(small, report)], [])
    assert html.index("1 of 9 images left out") < html.index("<h2>Studies")
    assert "'a b.tif' is cut off" in "".join(_read(html).text)


def test_a_set_without_oddities_says_so(tmp_path: Path) -> None:
    write(tmp_path, [image("a", well="A01"), image("b", well="A02")])
    assert "Nothing odd was found" in page("set", "1.0", 10, [_facts(tmp_path)], [])


def test_wells_with_fewer_images_and_images_without_cells_are_named(tmp_path: Path) -> None:
    write(
        tmp_path,
        [
            *(image(f"{w}-{k}", well=w, cells=1) for w in ("A01", "A02") for k in range(2)),
            image("x", well="A03", cells=0),
        ],
    )
    odd = dict(_facts(tmp_path).odd)
    assert odd["1 well with fewer images than most wells of the plate"] == ["P1 · A03: 1 of 2"]
    assert odd["1 image in which no cell was found"] == ["x"]


def test_cells_are_a_dash_where_nobody_looked_for_them(tmp_path: Path) -> None:
    write(tmp_path, [image("a")])
    facts = _facts(tmp_path)
    assert facts.cells is None
    assert "<td class=n>–</td>" in page("set", "1.0", 10, [facts], [])


def test_values_per_well_are_the_plain_means_of_its_images(tmp_path: Path) -> None:
    images = [image(f"i{k}", ("nucleus",), well=f"A0{1 + k % 2}", cells=k, seed=k) for k in range(6)]
    quality = [[{"quality.mean": 10.0 * k}] for k in range(6)]
    images = [type(one)(**{**one.__dict__, "quality": values}) for one, values in zip(images, quality, strict=True)]
    write(tmp_path, images)
    wells = {measure.title: measure.plates["P1"] for measure in _facts(tmp_path).wells}
    assert wells["Cells"] == {"A01": (0 + 2 + 4) / 3, "A02": (1 + 3 + 5) / 3}
    assert wells["Mean intensity: nucleus"] == {"A01": 20.0, "A02": 30.0}


def test_an_older_set_without_quality_columns_says_what_is_left_out(small: Path) -> None:
    facts = _facts(small)
    assert "quality.mean" in QUALITY_COLUMNS
    assert [measure.title for measure in facts.wells] == ["Cells"]
    assert any("were not measured" in note for note in facts.notes)


def test_flat_planes_are_named_by_file_and_channel(tmp_path: Path) -> None:
    one = image("i", ("nucleus", "actin"))
    rows = [{**row, "storage.path": f"a b/{k}.tif"} for k, row in enumerate(one.rows)]
    quality = [{"quality.flat": 0.0}, {"quality.flat": 1.0, "quality.saturated": 1.0}]
    write(tmp_path, [type(one)(**{**one.__dict__, "rows": rows, "quality": quality})])
    odd = _facts(tmp_path).odd
    assert odd == [("1 plane without signal between the clip limits, stored as zeros", ["a b/1.tif (actin)"])]


def test_long_lists_are_cut_and_counted() -> None:
    text = folded("many", [f"n{k}" for k in range(MAX_NAMED + 7)])
    assert text.count("<li>") == MAX_NAMED + 1
    assert "and 7 more" in text


def test_numbers_stand_on_the_right_and_have_commas() -> None:
    html = table(("name", "n"), [("a", 1234567), ("b", None)])
    assert re.findall(r"<td class=n>([^<]*)", html) == ["1,234,567", "–"]
    assert html.count("class=n>") == 3


def test_the_curation_table_lists_the_steps_in_order(small: Path) -> None:
    report = StudyReport("study")
    report.curation = [
        {"step": "central_z_planes", "before": 100, "removed": 60, "after": 40},
        {"step": "intensity", "before": 40, "removed": 32, "after": 8},
    ]
    report.curated_away = {"intensity": ["dark one"]}
    text = "|".join(_read(page("set", "1.0", 10, [_facts(small, report)], [])).text)
    assert text.index("central_z_planes|100|60|40") < text.index("intensity|40|32|8") < text.index("dark one")


def test_pictures_are_shown_of_steps_that_dropped_something(small: Path) -> None:
    report = StudyReport("study")
    report.curation = [{"step": name, "before": 8, "removed": 0, "after": 8} for name in ("idle", "busy")]
    jpeg = "data:image/jpeg;base64,"
    report.pictures = {
        "idle": {"kept": [jpeg + "AAAA"], "dropped": []},
        "busy": {"kept": [jpeg + "BBBB"], "dropped": [jpeg + "CCCC"]},
    }
    html = page("set", "1.0", 10, [_facts(small, report)], [])
    assert "AAAA" not in html.partition("<h3>Curation")[2]
    assert html.index("BBBB") < html.index("images that busy dropped") < html.index("CCCC")

"""docs/zoo.md says what the records say; `python -m morphem.zoo.page docs/zoo.md` writes it anew."""

from pathlib import Path

import pytest

from morphem.errors import ConfigError
from morphem.zoo import page, tables, verify
from morphem.zoo.golden import read_golden
from tests.zoo.test_golden_records import NAMES
from tests.zoo.tiny_family import Tiny

PAGE = Path(__file__).parents[2] / "docs" / "zoo.md"


def test_the_generated_parts_of_the_page_are_true() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert page.filled(text, page.sections()) == text, "run: python -m morphem.zoo.page docs/zoo.md"


def test_the_page_says_of_every_golden_record_what_it_proves(golden: Path) -> None:
    text = PAGE.read_text(encoding="utf-8").split("<!-- golden: generated -->")[1].split("<!-- end -->")[0]
    for name in NAMES:
        record = read_golden(golden / f"{name}.json")
        family, _ = verify.family_of(record)
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{record.name}` | `{family}` | ")]
        assert "WRONG" not in row
        n_outputs = sum(len(case["outputs"]) for case in record.cases.values())
        n_compared, n_double = row.split(" | ")[2].rstrip(")").split(" (")
        n_left = 0 if row.endswith("| nothing |") else row.split(" | ")[-1].count("`") // 2
        assert int(n_compared) - int(n_double) + n_left >= n_outputs


def test_a_page_without_a_place_is_refused() -> None:
    with pytest.raises(ConfigError, match="no place for the part 'records'"):
        page.filled("# A page", {"records": "x"})


def test_parts_are_put_in_their_places_and_nothing_else_changes() -> None:
    text = "a\n<!-- x: generated -->\n\nold\n\n<!-- end -->\nb\n"
    assert page.filled(text, {"x": "new | \\1"}) == "a\n<!-- x: generated -->\n\nnew | \\1\n\n<!-- end -->\nb\n"


def test_meanings_of_options_are_read_off_the_docstring() -> None:
    assert tables.meanings_of(Tiny) == {"scale": "What the features are multiplied with, in words of nobody."}

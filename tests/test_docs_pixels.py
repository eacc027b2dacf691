"""The blocks of docs/pixels.md run, one after another, and print what they say."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "pixels.md"


def test_every_block_runs_and_prints_what_its_comment_says(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    assert len(blocks) == 4
    names: dict[str, object] = {}
    for block in blocks:
        exec(block, names)
    expected = [line.rpartition("#")[2].strip() for block in blocks for line in block.splitlines() if "print(" in line]
    assert capsys.readouterr().out.split() == expected


def test_every_step_that_there_is_stands_on_the_page() -> None:
    import morphem.pixel_steps as steps

    text = PAGE.read_text(encoding="utf-8")
    assert [name for name in steps.__all__ if f"`{name}(" not in text] == []


def test_domains_are_those_of_the_records() -> None:
    from morphem.zoo.catalogue import entries

    rows = {
        line.split("|")[1].strip(" `"): line for line in PAGE.read_text(encoding="utf-8").splitlines() if "|" in line
    }
    named = {"morphem": "MorphEm", "unidino": "uniDINO", "kim-dino-vits16": "Kim", "cell-dino-cp-vits8": "Cell-DINO"}
    for record, words in named.items():
        assert words in rows[entries()[record].record.input_domain]

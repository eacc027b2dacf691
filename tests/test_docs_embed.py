"""What docs/embed.md says of options is true of the commands."""

import re
from pathlib import Path

from morphem.cli import embed, ingest, maps

TEXT = (Path(__file__).parents[1] / "docs" / "embed.md").read_text(encoding="utf-8")
SAID_BY_HELP = {
    "--help",
    "--query",
    "--revision",
    "--family",
    "--fact",
    "--accept-license",
    "--empty-channel",
    "--clip",
    "--bit-depth",
    "--image-workers",
    "--batch-size",
    "--num-workers",
    "--accelerator",
    "--precision",
    "--no-self-check",
    "--output",
    "--tile-size-px",
}
ELSEWHERE = {"--config", "--ckpt_path"}  # of `morphem predict`


def test_every_option_in_the_text_exists() -> None:
    known = {
        option
        for parser in (embed.parser(), maps.parser(), ingest._parser())
        for action in parser._actions
        for option in action.option_strings
    }
    named = set(re.findall(r"--[a-z][a-z_-]*", TEXT))
    assert len(named) > 20
    assert named <= known | ELSEWHERE


def test_every_option_of_what_is_cut_and_read_is_explained() -> None:
    for action in embed.parser()._actions:
        option = action.option_strings[-1]
        if option not in SAID_BY_HELP:
            assert option in TEXT, option


def test_the_words_of_choices_are_those_of_the_command() -> None:
    for action in embed.parser()._actions:
        if action.dest in {"tiling", "skip_empty", "mask", "pixels", "unit", "mean_over"}:
            for word in action.choices or ():
                assert re.search(rf"`[^`]*\b{word}\b[^`]*`", TEXT), (action.dest, word)

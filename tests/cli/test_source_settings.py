from collections.abc import Sequence
from typing import Any, Literal

import pytest

from morphem.cli.source_settings import read_settings, read_value
from morphem.errors import ConfigError
from morphem.sources.sheet import SheetSource
from tests.ingest.studies import NamedStudy


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("a,b", str, "a,b"),
        (r"(?P<well>\w+), 1", str | None, r"(?P<well>\w+), 1"),
        ("12", int, 12),
        ("12", int | str, 12),
        ("0.5", float | None, 0.5),
        ("yes", bool, True),
        ("False", bool, False),
        ("max", Literal["max", "none"] | None, "max"),
        ("a, b", Sequence[str] | None, ["a", "b"]),
        ("1,2", tuple[int, ...], (1, 2)),
        ("5", Any, "5"),
    ],
)
def test_a_text_becomes_what_the_setting_is_declared_as(text: str, kind: Any, value: object) -> None:
    read = read_value(text, kind, "--set x")
    assert read == value
    assert type(read) is type(value)


@pytest.mark.parametrize(
    ("text", "kind"), [("x", int), ("maybe", bool), ("min", Literal["max"]), ("1,a", tuple[int, ...])]
)
def test_a_text_that_is_no_such_value_is_refused(text: str, kind: Any) -> None:
    with pytest.raises(ConfigError, match=f"--set x={text}: this is no "):
        read_value(text, kind, "--set x")


def test_names_of_channels_go_only_to_sources_that_take_them() -> None:
    assert read_settings(SheetSource, {"study": "a"}, {"w1": "rna"}) == {"study": "a", "channel_aliases": {"w1": "rna"}}
    with pytest.raises(ConfigError, match="NamedStudy takes no names of channels"):
        read_settings(NamedStudy, {}, {"w1": "rna"})

"""Plug-ins that are right but for one thing, registered as a package would."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from morphem import registry
from tests.conformance import odd_parts


@pytest.fixture
def odd_plugins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Register some odd parts: as parts of a registered package, all others can then be rebuilt from specs too."""
    info = tmp_path / "odd_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: odd-plugins\nVersion: 1.0\n")
    targets = {
        "good_backbone": "Good",
        "function": "function",
        "Camel": "Camel",
        "alias": "Random",
        "random": "Random",
        "bad_backbone": "Undocumented",
    }
    lines = [f"{name} = {odd_parts.__name__}:{target}" for name, target in targets.items()]
    (info / "entry_points.txt").write_text("\n".join(["[morphem.backbones]", *lines, ""]))
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.refresh()
    yield
    monkeypatch.undo()
    registry.refresh()

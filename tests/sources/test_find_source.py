from pathlib import Path

import pytest

from morphem import registry
from morphem.errors import DataError
from morphem.readers.files import Files
from morphem.sources import find_source
from morphem.sources.base import Source
from morphem.sources.loaddata import LoadDataSource
from morphem.sources.sheet import SheetSource


class Other(SheetSource):
    """Knows every layout, as well as SheetSource."""

    @classmethod
    def recognises(cls, files: Files) -> bool:
        return True


class Better(Other):
    priority = 1


def register(monkeypatch: pytest.MonkeyPatch, **sources: type[Source]) -> None:
    class Fake:
        def __init__(self, name: str) -> None:
            self.name = name

        def load(self) -> type[Source]:
            return sources[self.name]

    monkeypatch.setattr(registry, "plugins", lambda group: tuple(map(Fake, sources)))


def test_the_layout_of_a_location_tells_its_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    register(monkeypatch, sheet=SheetSource, loaddata=LoadDataSource)
    for cls in (SheetSource, LoadDataSource):
        folder = tmp_path / cls.__name__
        folder.mkdir()
        cls.tiny(folder)
        assert find_source(str(folder)) is cls
    assert find_source(str(folder / "load_data.csv")) is LoadDataSource


def test_of_several_sources_the_one_of_highest_priority_reads_and_a_tie_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SheetSource.tiny(tmp_path)
    register(monkeypatch, sheet=SheetSource, better=Better, other=Other)
    assert find_source(str(tmp_path)) is Better
    register(monkeypatch, sheet=SheetSource, other=Other)
    with pytest.raises(DataError, match="can be read by sheet and by other; say which with --source"):
        find_source(str(tmp_path))


def test_a_layout_that_nobody_knows_is_refused_with_the_known_sources(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, sheet=SheetSource, loaddata=LoadDataSource)
    (tmp_path / "notes.txt").touch()
    with pytest.raises(DataError, match=r"the layout of no known source \(sheet, loaddata\); write a metadata\.csv"):
        find_source(str(tmp_path))
    with pytest.raises(DataError, match="There is no folder"):
        find_source(str(tmp_path / "gone"))

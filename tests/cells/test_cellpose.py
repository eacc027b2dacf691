import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from morphem.cells.cellpose import CellposeCells, _network
from morphem.errors import ConfigError
from tests.cells.images import discs, record

PRESENT = importlib.util.find_spec("cellpose") is not None


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """A module with the interface of cellpose 4 that marks one cell and keeps what it was asked."""

    class Model:
        def __init__(self, gpu: bool = False, pretrained_model: str = "cpsam_v2") -> None:
            self.gpu = False
            fake.built.append((gpu, pretrained_model))

        def eval(self, x: Any, **settings: Any) -> tuple[Any, list[Any], list[Any]]:
            fake.asked.append((x, settings))
            masks = np.zeros(x.shape[:2], np.uint16)
            masks[3:6, 10:15] = 1
            return masks, [], []

    fake: Any = ModuleType("cellpose.models")
    fake.built, fake.asked, fake.MODEL_NAMES, fake.CellposeModel = [], [], ["cpsam_v2", "cpdino"], Model
    monkeypatch.setitem(sys.modules, "cellpose", ModuleType("cellpose"))
    monkeypatch.setitem(sys.modules, "cellpose.models", fake)
    _network.cache_clear()
    yield fake
    _network.cache_clear()


def test_the_network_gets_the_channels_together_and_the_settings(package: Any) -> None:
    planes = [np.full((20, 30), value, np.uint16) for value in (1, 2, 3)]
    image = record(planes, ["actin", "nucleus", "rna"])
    finder = CellposeCells(
        channels=("cell body", "actin", "DAPI"), diameter_px=25, min_area_px=9, cellprob_threshold=-1
    )
    cells = finder.find(image)
    assert cells is not None
    assert cells.centres.tolist() == [[12, 4]]
    (pixels, settings), built = package.asked[0], package.built
    assert pixels.shape == (20, 30, 2)
    assert pixels.dtype == np.float32
    assert pixels[0, 0].tolist() == [1, 2]
    assert settings == {
        "channel_axis": -1,
        "batch_size": 8,
        "diameter": 25,
        "flow_threshold": 0.4,
        "cellprob_threshold": -1,
        "min_size": 9,
    }
    finder.find(image)
    assert built == [(False, "cpsam_v2")]  # loaded once


def test_an_unknown_network_is_refused_where_cellpose_would_take_another(package: Any) -> None:
    with pytest.raises(ConfigError, match="No network of cellpose 'cyto3'"):
        CellposeCells(model="cyto3").segment([np.zeros((8, 8))])


def test_a_missing_graphics_card_is_said(package: Any) -> None:
    with pytest.raises(ConfigError, match="sees no graphics card"):
        CellposeCells(gpu=True).segment([np.zeros((8, 8))])


def test_a_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cellpose.models", None)
    _network.cache_clear()
    with pytest.raises(ConfigError, match=r"pip install 'morphem\[cellpose\]'"):
        CellposeCells().segment([np.zeros((8, 8))])


@pytest.mark.parametrize("channels", [(), ("rna", "actin", "nucleus", "protein")])
def test_one_to_three_channels_are_seen_together(channels: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="1 to 3 channels"):
        CellposeCells(channels=channels)


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.skipif(not PRESENT, reason="needs cellpose (pip install 'morphem[cellpose]'), which fetches its network")
def test_cellpose_itself_finds_discs() -> None:
    centres = [(30, 30), (90, 40), (60, 90)]
    cells = CellposeCells(diameter_px=24).find(record([discs(centres, 12)], ["nucleus"]))
    assert cells is not None
    assert len(cells.centres) == len(centres)

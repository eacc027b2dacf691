"""A zoo of one small family, in the place of the registered ones."""

from pathlib import Path

import pytest
from huggingface_hub import constants

from morphem.zoo import catalogue
from tests.zoo.tiny_family import Tiny


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of morphem and of the hub; gives the folder of the zoo in it."""
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "zoo"


@pytest.fixture
def tiny_zoo(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small family alone is registered; gives the folder where files put by hand are found."""
    monkeypatch.setattr(catalogue, "families", lambda: {"tiny": Tiny})
    monkeypatch.setattr(catalogue, "family", lambda name: {"tiny": Tiny}[name])
    return own_cache

"""A checkpoint appears whole or not at all."""

import errno
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from morphem.checkpoints import AtomicCheckpointIO
from morphem.errors import WeightsError


def test_a_checkpoint_comes_back(tmp_path: Path) -> None:
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(3)}, tmp_path / "new" / "last.ckpt")
    assert torch.load(tmp_path / "new/last.ckpt", weights_only=True)["x"].sum() == 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_full_disk_keeps_the_last_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    AtomicCheckpointIO().save_checkpoint({"x": 1}, tmp_path / "last.ckpt")

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, step, full)
    with pytest.raises(WeightsError, match=r"last\.ckpt could not be written \(No space left on device\)"):
        AtomicCheckpointIO().save_checkpoint({"x": 2}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True) == {"x": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_failed_write_of_torch_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(WeightsError, match="could not be written"):
        AtomicCheckpointIO().save_checkpoint({"x": 2}, tmp_path / "last.ckpt")
    assert not list(tmp_path.iterdir())

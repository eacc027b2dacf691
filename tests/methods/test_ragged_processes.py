"""Two processes with different numbers of planes or hidden patches learn what one does from the same global batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.methods.ragged_processes import METHODS, STEPS

ROOT = Path(__file__).resolve().parents[2]


def _run(name: str, n_processes: int, folder: Path) -> list[dict[str, Any]]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.methods.ragged_processes", name, str(n_processes), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(n_processes)]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(METHODS))
def test_two_processes_learn_what_one_does(tmp_path: Path, name: str) -> None:
    (alone,) = _run(name, 1, tmp_path / "one")
    first, second = _run(name, 2, tmp_path / "two")
    assert len(alone["losses"]) == STEPS
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-6, msg=key)

"""Two processes with different numbers of planes reconstruct what one does from the same global batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]


def _run(n_processes: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.methods.mae_processes", str(n_processes), str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {
        kind: [torch.load(folder / f"{kind}-{rank}.pt", weights_only=True) for rank in range(n_processes)]
        for kind in ("types", "context", "per_channel")
    }


@pytest.mark.slow
def test_two_processes_reconstruct_what_one_does(tmp_path: Path) -> None:
    one, two = _run(1, tmp_path / "one"), _run(2, tmp_path / "two")
    for kind, (alone,) in one.items():
        first, second = two[kind]
        assert len(alone["losses"]) == 4
        assert first["losses"] == second["losses"], kind
        assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5), kind
        for key, value in alone["state"].items():
            assert torch.equal(first["state"][key], second["state"][key]), (kind, key)
            torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-6, msg=f"{kind} {key}")

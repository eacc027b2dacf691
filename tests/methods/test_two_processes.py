"""Two processes learn what one learns from the same global batch."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from morphem import features
from tests.callbacks.labelled_shards import write_labelled

ROOT = Path(__file__).resolve().parents[2]


def _start(n_processes: int, folder: Path, shards: str, signal_to: int = -1) -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    arguments = [str(n_processes), str(folder), shards, str(signal_to)]
    command = [sys.executable, "-m", "tests.methods.two_processes", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def _run(n_processes: int, folder: Path, shards: str) -> list[dict[str, Any]]:
    done = _start(n_processes, folder, shards)
    assert done.returncode == 0, done.stderr[-3000:]
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in range(n_processes)]


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    shards = write_labelled(tmp_path / "shards", n_wells=7)
    (alone,) = _run(1, tmp_path / "one", shards)
    first, second = _run(2, tmp_path / "two", shards)
    assert alone["steps"] == first["steps"] == second["steps"] == 6
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for key, value in alone["state"].items():
        assert torch.equal(first["state"][key], second["state"][key]), key
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-6, msg=key)
    assert first["scores"] == second["scores"] == alone["scores"]
    tables = [features.read(tmp_path / name / "features.parquet") for name in ("one", "two")]
    assert tables[0].metadata.equals(tables[1].metadata)
    assert abs(tables[0].values - tables[1].values).max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_signal_to_one_process_stops_both_after_the_same_step(tmp_path: Path, rank: int) -> None:
    shards = write_labelled(tmp_path / "shards")
    done = _start(2, tmp_path / "run", shards, signal_to=rank)
    assert done.returncode == 130, done.stderr[-3000:]
    assert "Stopped after step 3." in done.stdout
    assert "Traceback" not in done.stderr
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "interrupted.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 3

"""A run that is killed at any step and resumed ends with the weights of one that was never killed."""

import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow


def _fit(config: str, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "morphem", "fit", "--config", config, *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def _weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    weights: dict[str, torch.Tensor] = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    return weights


def _wait_for_step(folder: Path, step: int, process: subprocess.Popen[str]) -> None:
    """Wait until a checkpoint of at least this step is complete."""
    deadline = time.monotonic() + 180
    while time.monotonic() < deadline and process.poll() is None:
        steps = [int(path.stem.removeprefix("step")) for path in folder.glob("step*.ckpt")]
        if steps and max(steps) >= step and (folder / "last.ckpt").exists():
            return
        time.sleep(0.01)
    output = process.communicate()[0] if process.poll() is not None else ""
    raise AssertionError(f"no checkpoint of step {step}: {output}")


@pytest.mark.parametrize("workers", [0, 2])
def test_kill_minus_nine_and_resume_gives_the_same_weights(
    tmp_path: Path, tiny_run: Callable[..., str], workers: int
) -> None:
    config = tiny_run(workers=workers)
    whole = _fit(config, "--trainer.logger.init_args.name", "whole")
    assert whole.wait() == 0, whole.communicate()[0]
    expected = _weights(tmp_path / "runs/whole/version_0/checkpoints/last.ckpt")

    killed = _fit(config, "--trainer.logger.init_args.name", "killed")
    folder = tmp_path / "runs/killed/version_0/checkpoints"
    _wait_for_step(folder, random.Random().randint(1, 9), killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    resumed = _fit(config, "--trainer.logger.init_args.name", "resumed", "--ckpt_path", str(folder / "last.ckpt"))
    assert resumed.wait() == 0, resumed.communicate()[0]
    found = _weights(tmp_path / "runs/resumed/version_0/checkpoints/last.ckpt")
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


def test_ctrl_c_leaves_a_checkpoint_that_resumes(tmp_path: Path, tiny_run: Callable[..., str]) -> None:
    config = tiny_run(**{"max_epochs: 2": "max_epochs: 40"})
    process = _fit(config)
    folder = tmp_path / "runs/run/version_0/checkpoints"
    _wait_for_step(folder, 2, process)
    process.send_signal(signal.SIGINT)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 130, output
    assert "Traceback" not in output
    assert "--ckpt_path" in output
    checkpoint = torch.load(folder / "interrupted.ckpt", weights_only=True, map_location="cpu")
    step = checkpoint["global_step"]
    more = ["--trainer.max_steps", str(step + 2), "--resume_override", "[trainer.max_steps]"]
    again = _fit(config, "--ckpt_path", str(folder / "interrupted.ckpt"), *more)
    assert again.wait() == 0, again.communicate()[0]

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from morphem import features
from morphem.cli import main
from morphem.encoder import Encoder
from tests import small_shards


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The command without its output."""
    folder = tmp_path_factory.mktemp("embed")
    images = [small_shards.image(f"i{k}", size=(40, 48), well=f"A0{k % 2 + 1}") for k in range(4)]
    torch.manual_seed(0)
    Encoder.tiny().save_pretrained(folder / "model")
    root = small_shards.write(folder / "shards", images)
    return ["embed", "--model", str(folder / "model"), "--data", root, "--tile-size-px", "16", "--accelerator", "cpu"]


def test_the_command_writes_a_table_and_says_so(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "f.parquet"
    assert main([*words, "--output", str(output)]) == 0
    assert len(features.read(output)) == 4 * 9
    printed = capsys.readouterr().out
    assert f"{output}: 36 rows (one per tile) x 48 features" in printed
    assert "next" in printed


def test_wells_are_said_to_be_wells(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*words, "--output", str(tmp_path / "f.parquet"), "--aggregate", "well", "--combine", "mean"]) == 0
    assert "2 rows (one per well) x 16 features" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["--model", "nothing"], "'nothing' is neither a file, a folder nor a hub id"),
        (["--data", "gone"], "gone"),
        (["--output", "f.csv"], "must end in .parquet or .h5ad"),
        (["--unit", "image"], "tile_size_px=16 has no effect with unit='image'"),
        (["--query", "experiment.wel == 'A01'"], "experiment.well"),
    ],
)
def test_a_mistake_is_one_sentence_and_a_failing_exit_code(
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    changes: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*words, "--output", "f.parquet", *changes]) != 0
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "f.parquet").exists()


def test_help_answers_without_torch() -> None:
    code = "import sys, morphem.cli.embed as e; e.parser().format_help(); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_two_processes_write_what_one_writes(words: list[str], tmp_path: Path) -> None:
    for devices in ("1", "2"):
        command = [sys.executable, "-m", "morphem", *words, "--devices", devices, "--output", str(tmp_path / devices)]
        command[-1] += ".parquet"
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
    one, two = (features.read(tmp_path / f"{devices}.parquet") for devices in ("1", "2"))
    np.testing.assert_array_equal(one.values, two.values)
    assert one.metadata.equals(two.metadata)

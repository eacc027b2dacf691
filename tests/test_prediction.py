import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from morphem import features
from morphem.embed import extract
from morphem.encoder import Encoder
from tests import small_shards

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """An encoder and shards of five images of different sizes."""
    folder = tmp_path_factory.mktemp("predict")
    torch.manual_seed(0)
    Encoder.tiny().save_pretrained(folder / "model")
    sizes = [(40, 48), (16, 20), (70, 33), (40, 48), (12, 12)]
    images = [small_shards.image(f"i{k}", size=size) for k, size in enumerate(sizes)]
    return str(folder / "model"), small_shards.write(folder / "shards", images)


def _predict(n_processes: int, inputs: tuple[str, str], output: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-m", "tests.embed_processes", str(n_processes), *inputs, str(output)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_a_trainer_writes_the_rows_that_embed_gives(inputs: tuple[str, str], tmp_path: Path) -> None:
    told = _predict(1, inputs, tmp_path / "one.parquet")
    table = features.read(tmp_path / "one.parquet")
    expected = extract(Encoder.from_pretrained(inputs[0]), inputs[1], tile_size_px=16)
    np.testing.assert_allclose(table.values, expected.values, atol=2e-6)
    assert table.metadata["Metadata_Key"].tolist() == expected.metadata["Metadata_Key"].tolist()
    assert "rows 36 checked 4" in told


@pytest.mark.slow
def test_two_processes_under_a_trainer_write_what_one_writes(inputs: tuple[str, str], tmp_path: Path) -> None:
    told = _predict(2, inputs, tmp_path / "two.parquet")
    table = features.read(tmp_path / "two.parquet")
    expected = extract(Encoder.from_pretrained(inputs[0]), inputs[1], tile_size_px=16)
    np.testing.assert_allclose(table.values, expected.values, atol=2e-6)
    assert table.metadata["Metadata_Key"].tolist() == expected.metadata["Metadata_Key"].tolist()
    assert "rows 36 checked 4 parts 4" in told
    assert [path.name for path in tmp_path.iterdir()] == ["two.parquet"]

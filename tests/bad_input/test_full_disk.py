"""A disk that is full while shards, features or checkpoints are written."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.bad_input.cases import RAMP, embed, study

FULL_DISK = """
import errno, os, shutil, sys
full, n_free = {folder!r}, {n_free}
def refuse(real):
    def call(*args, **kwargs):
        target = args[-1]
        path = os.readlink(f"/proc/self/fd/{{target}}") if isinstance(target, int) else str(target)
        global n_free
        n_free -= path.startswith(full)
        if n_free < 0:
            raise OSError(errno.ENOSPC, "No space left on device", path)
        return real(*args, **kwargs)
    return call
os.fsync, shutil.move = refuse(os.fsync), refuse(shutil.move)  # what ends the writing of every file
from morphem.cli import main
sys.exit(main({words!r}))
"""


def on_a_full_disk(folder: Path, words: list[object], n_free: int = 0) -> tuple[int, str]:
    """Run a command where nothing more fits on the disk after `n_free` files."""
    code = FULL_DISK.format(folder=str(folder), n_free=n_free, words=[str(word) for word in words])
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.rpartition("morphem: error: ")[2]


@pytest.mark.slow
def test_a_disk_full_while_shards_are_written(tmp_path):
    folder = study(tmp_path / "study", RAMP)
    code, sentence = on_a_full_disk(tmp_path, ["ingest", folder, "--output", tmp_path / "out"])
    assert code == 1
    assert "disk is full" in sentence or "No space left" in sentence
    assert not list((tmp_path / "out").glob("*.tar"))
    assert not (tmp_path / "out" / "manifest.json").exists()


@pytest.mark.slow
def test_a_disk_full_while_features_are_written_keeps_the_older_file(tmp_path, encoder, shards):
    (tmp_path / "out.parquet").write_text("older")
    words = embed(encoder, shards, "--overwrite")
    code, sentence = on_a_full_disk(tmp_path, words)
    assert code == 1
    assert "disk is full" in sentence or "No space left" in sentence
    assert (tmp_path / "out.parquet").read_text() == "older"


@pytest.mark.slow
def test_a_disk_full_while_a_checkpoint_is_written_keeps_the_one_before(tmp_path, shards, tiny_run):
    config = tiny_run(root=str(shards), **{"save_last: true": "save_top_k: -1"})
    (tmp_path / "runs").mkdir()
    code, sentence = on_a_full_disk(tmp_path / "runs", ["fit", "--config", config], n_free=4)
    assert code == 1, sentence
    assert "No space left" in sentence
    kept = sorted((tmp_path / "runs").rglob("*.ckpt"))
    assert kept
    for file in kept:
        assert torch.load(file, weights_only=True)["global_step"] > 0

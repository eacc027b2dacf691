"""Weights cut into shares over two processes learn what whole ones learn, resume, and become one exported encoder."""

import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import morphem
from morphem import features, registry
from morphem.cli.resume import load_settings
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.sharded_checkpoints import is_sharded_checkpoint, read_meta, read_sharded
from morphem.testing.batches import tiny_batch
from tests.callbacks.labelled_shards import write_labelled

ROOT = Path(__file__).resolve().parents[2]
pytestmark = pytest.mark.slow


def start(method: str, strategy: str, folder: Path, shards: str, resume: str = "-") -> subprocess.CompletedProcess[str]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    arguments = [method, strategy, str(folder), shards, resume, "6"]
    command = [sys.executable, "-m", "tests.methods.sharded_processes", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)


def run(method: str, strategy: str, folder: Path, shards: str, resume: str = "-") -> list[dict[str, Any]]:
    done = start(method, strategy, folder, shards, resume)
    assert done.returncode == 0, done.stderr[-3000:]
    ranks = range(1 if strategy == "one" else 2)
    return [torch.load(folder / f"result-{rank}.pt", weights_only=True) for rank in ranks]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_labelled(tmp_path_factory.mktemp("labelled") / "shards", n_wells=7)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, shards: str) -> dict[str, Path]:
    """DINO, six steps: in one process, and sharded over two with either form of checkpoints."""
    folder = tmp_path_factory.mktemp("runs")
    found = {strategy: folder / strategy for strategy in ("one", "fsdp", "fsdp_whole")}
    for strategy, place in found.items():
        run("dino", strategy, place, shards)
    return found


def results(folder: Path) -> list[dict[str, Any]]:
    return [torch.load(file, weights_only=True) for file in sorted(folder.glob("result-*.pt"))]


def assert_same_run(first: dict[str, Any], second: dict[str, Any], steps: slice = slice(None)) -> None:
    assert first["losses"] == pytest.approx(second["losses"][steps], rel=1e-5)
    for key, value in second["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-6, msg=key)


def test_shares_learn_what_whole_weights_learn(runs: dict[str, Path]) -> None:
    (alone,) = results(runs["one"])
    for strategy in ("fsdp", "fsdp_whole"):
        for of_rank in results(runs[strategy]):
            assert of_rank["sharded"]
            assert_same_run(of_rank, alone)
            assert of_rank["score"] == alone["score"]


def test_each_process_holds_half_of_all_weights(runs: dict[str, Path]) -> None:
    (alone,), (first, second) = results(runs["one"]), results(runs["fsdp"])
    assert first["held"] + second["held"] == alone["held"]
    assert max(first["held"], second["held"]) < 0.55 * alone["held"]


def test_the_exported_encoder_and_its_features_are_those_of_one_process(runs: dict[str, Path]) -> None:
    alone, shared = (Encoder.from_pretrained(runs[name] / "encoder") for name in ("one", "fsdp"))
    torch.testing.assert_close(shared.features(tiny_batch()), alone.features(tiny_batch()), rtol=1e-4, atol=1e-5)
    tables = [features.read(runs[name] / "features.parquet") for name in ("one", "fsdp")]
    assert tables[0].metadata.equals(tables[1].metadata)
    assert abs(tables[0].values - tables[1].values).max() < 1e-4


def test_a_sharded_checkpoint_becomes_one_encoder(runs: dict[str, Path]) -> None:
    folder = runs["fsdp"] / "step=6.ckpt"
    assert is_sharded_checkpoint(folder)
    assert not is_sharded_checkpoint(runs["fsdp_whole"] / "step=6.ckpt")
    exported = Encoder.from_pretrained(runs["fsdp"] / "encoder").state_dict()
    for checkpoint in (folder, runs["fsdp_whole"] / "step=6.ckpt"):
        loaded = morphem.load(checkpoint).state_dict()
        assert set(loaded) == set(exported)
        for key, value in exported.items():
            torch.testing.assert_close(loaded[key], value, rtol=1e-5, atol=1e-6, msg=key)


def test_a_sharded_checkpoint_names_the_method_and_not_torchs_class_of_it(runs: dict[str, Path]) -> None:
    assert read_meta(runs["fsdp"] / "step=6.ckpt")["morphem"]["spec"]["name"] == "dino"
    whole = torch.load(runs["fsdp_whole"] / "step=6.ckpt", weights_only=True)
    assert whole["morphem"]["spec"]["name"] == "dino"


@pytest.mark.parametrize("strategy", ["fsdp", "fsdp_whole"])
def test_a_sharded_run_goes_on_where_it_stopped(
    runs: dict[str, Path], shards: str, tmp_path: Path, strategy: str
) -> None:
    (alone,) = results(runs["one"])
    resumed = run("dino", strategy, tmp_path / "resumed", shards, str(runs[strategy] / "step=3.ckpt"))
    for of_rank in resumed:
        assert_same_run(of_rank, alone, slice(3, 6))


def test_a_run_in_one_process_goes_on_from_whole_checkpoints_of_two(
    runs: dict[str, Path], shards: str, tmp_path: Path
) -> None:
    (resumed,) = run("dino", "one", tmp_path / "resumed", shards, str(runs["fsdp_whole"] / "step=3.ckpt"))
    assert_same_run(resumed, results(runs["one"])[0], slice(3, 6))


OTHERS = [name for name in ("simclr", "mae") if name in registry.names("methods")]


@pytest.mark.parametrize("method", OTHERS)
def test_other_methods_learn_from_shares_and_from_copies_what_one_process_learns(
    shards: str, tmp_path: Path, method: str
) -> None:
    (alone,) = run(method, "one", tmp_path / "one", shards)
    for strategy in ("ddp", "fsdp"):
        for of_rank in run(method, strategy, tmp_path / strategy, shards):
            assert_same_run(of_rank, alone)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_faulty_loss_in_one_process_stops_both_and_the_last_checkpoint_is_good(
    shards: str, tmp_path: Path, strategy: str
) -> None:
    done = start("faulty_in_one", strategy, tmp_path / "run", shards)
    assert done.returncode != 0
    assert "The loss is not a number at step 4" in done.stderr
    assert [path.name for path in (tmp_path / "run").glob("*.ckpt")] == ["step=3.ckpt"]


class Harmful:
    """Would run a command when unpickled."""

    def __reduce__(self) -> Any:
        return os.system, ("true",)


@pytest.mark.parametrize("name", [".metadata", "meta.pt"])
def test_a_sharded_checkpoint_that_would_run_code_is_refused(runs: dict[str, Path], tmp_path: Path, name: str) -> None:
    folder = tmp_path / "step=6.ckpt"
    shutil.copytree(runs["fsdp"] / "step=6.ckpt", folder)
    if name == ".metadata":
        (folder / name).write_bytes(pickle.dumps(Harmful()))
    else:
        torch.save({"x": Harmful()}, folder / name)
    for read in (read_meta, read_sharded, load_settings, morphem.load):
        with pytest.raises(WeightsError, match="holds more than"):
            read(folder)


def test_a_damaged_sharded_checkpoint_is_named(runs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "step=6.ckpt"
    shutil.copytree(runs["fsdp"] / "step=6.ckpt", folder)
    (folder / "__1_0.distcp").unlink()
    with pytest.raises(WeightsError, match="is damaged"):
        morphem.load(folder)

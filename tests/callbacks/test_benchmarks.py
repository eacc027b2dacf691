"""Benchmarks while training goes on: logged, kept, usable for choosing a checkpoint, the same on all processes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from morphem import registry
from morphem.benchmarks.runner import score_model
from morphem.callbacks import Benchmarks
from morphem.cli import main
from morphem.errors import ConfigError, DataError
from morphem.testing.benchmark_data import tiny_recipe, tiny_settings, write_tiny_shards
from tests.benchmarks.names import NAMES
from tests.tiny_fit import fit, tiny_dino

ROOT = Path(__file__).parents[2]


def _shards(folder: Path, name: str) -> str:
    cls = registry.get("benchmarks", name)
    return str(write_tiny_shards(cls, cls.tiny(0, 1.0), folder / name))


def _callback(folder: Path, *names: str, **settings: Any) -> Benchmarks:
    classes = {name: registry.get("benchmarks", name) for name in names}
    return Benchmarks(
        str(folder),
        names=list(names),
        settings={name: tiny_settings(cls) for name, cls in classes.items()},
        recipe={name: tiny_recipe(cls) for name, cls in classes.items()},
        **settings,
    )


@pytest.fixture(scope="module")
def generic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards")
    _shards(folder, "generic")
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_runs_while_training_goes_on(name: str, tmp_path: Path) -> None:
    _shards(tmp_path, name)
    callback = _callback(tmp_path, name)
    trainer = fit(tiny_dino(), callback, folder=tmp_path / "run")
    headline = f"benchmark/{name}/{callback.benchmarks[name].headline}"
    assert headline in callback.latest
    assert float(trainer.callback_metrics[headline]) == pytest.approx(callback.latest[headline], abs=1e-6)
    record = json.loads(next((tmp_path / "run" / "benchmarks").glob(f"{name}-step*.json")).read_text())
    assert record["scores"][record["headline"]] == callback.latest[headline]


def test_the_score_is_that_of_the_command_on_the_exported_encoder(generic: Path, tmp_path: Path) -> None:
    method = tiny_dino()
    callback = _callback(generic, "generic")
    fit(method, callback, folder=tmp_path)
    cls = registry.get("benchmarks", "generic")
    alone = score_model(
        "generic", method.exported_encoder(), generic / "generic", tiny_settings(cls), cache=tmp_path / "cache",
        recipe=tiny_recipe(cls),
    )  # fmt: skip
    for name, value in alone.score.values.items():
        assert callback.latest[f"benchmark/generic/{name}"] == pytest.approx(value, abs=1e-6)


def test_scores_come_every_n_epochs_and_at_the_end(generic: Path, tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = _callback(generic, "generic", every_n_epochs=2, at_start=True)
    fit(tiny_dino(), callback, folder=tmp_path, max_epochs=3, logger=logger)
    files = sorted(path.name for path in (Path(logger.log_dir) / "benchmarks").iterdir())
    assert files == [f"generic-step{step:08d}.json" for step in (0, 4, 6)]
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert "benchmark/generic/linear_probe/before" in text


def test_training_does_not_notice_the_benchmarks(generic: Path, tmp_path: Path) -> None:
    weights = []
    for callbacks in ([], [_callback(generic, "generic", at_start=True)]):
        torch.manual_seed(3)
        method = tiny_dino()
        fit(method, *callbacks, folder=tmp_path, max_epochs=2)
        weights.append(torch.cat([value.flatten() for value in method.state_dict().values()]))
    assert torch.equal(*weights)


def test_a_checkpoint_is_chosen_by_a_benchmark(generic: Path, tmp_path: Path) -> None:
    best = ModelCheckpoint(tmp_path / "best", monitor="benchmark/generic/knn", mode="max", save_top_k=1)
    callback = _callback(generic, "generic")
    fit(tiny_dino(), callback, best, folder=tmp_path, max_epochs=3, enable_checkpointing=True)
    assert Path(best.best_model_path).is_file()
    kept = [
        json.loads(path.read_text())["scores"]["knn"] for path in (tmp_path / "benchmarks").glob("generic-step*.json")
    ]
    assert float(best.best_model_score) == pytest.approx(max(kept))


def test_a_benchmark_runs_through_the_command_line(
    generic: Path, tiny_run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cls = registry.get("benchmarks", "generic")
    config = yaml.safe_load(Path(tiny_run()).read_text())
    config["trainer"].setdefault("callbacks", [])
    config["trainer"]["callbacks"] += [
        {
            "class_path": "Benchmarks",
            "init_args": {
                "data": str(generic),
                "names": ["generic"],
                "settings": {"generic": tiny_settings(cls)},
                "recipe": {"generic": tiny_recipe(cls)},
            },
        },
        {
            "class_path": "ModelCheckpoint",
            "init_args": {"monitor": "benchmark/generic/linear_probe", "mode": "max", "filename": "best"},
        },
    ]
    path = tmp_path / "with_benchmarks.yaml"
    path.write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(path)]) == 0, capsys.readouterr().err
    assert list(tmp_path.rglob("benchmarks/generic-step*.json"))
    assert list(tmp_path.rglob("best*.ckpt"))


def _processes(n_processes: int, folder: Path, shards: Path, label: str) -> list[Any]:
    folder.mkdir()
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    module = "tests.callbacks.benchmark_processes"
    command = [sys.executable, "-m", module, str(n_processes), str(folder), str(shards), label]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(n_processes)]


@pytest.mark.slow
def test_two_processes_share_the_features_and_get_the_scores_of_one(generic: Path, tmp_path: Path) -> None:
    (alone,) = _processes(1, tmp_path / "one", generic, "label")
    first, second = _processes(2, tmp_path / "two", generic, "label")
    assert first == second
    assert first == pytest.approx(alone, abs=1e-6)


@pytest.mark.slow
def test_a_score_that_fails_on_the_first_process_stops_all_with_the_same_sentence(
    generic: Path, tmp_path: Path
) -> None:
    answers = _processes(2, tmp_path / "two", generic, "Study")
    assert answers[0] == answers[1]
    assert "the label 'Study' needs two classes" in answers[0]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "epochs": ({"every_n_epochs": 0}, "every_n_epochs=0 has to be 1 or more"),
    "name": ({"names": ["generc"]}, "No benchmark 'generc'; did you mean 'generic'"),
    "folder": ({"names": ["rbc_mc"]}, "there is no folder .*rbc_mc' with the data of 'rbc_mc'"),
    "settings": ({"names": ["generic"], "settings": {"jumpcp1": {}}}, "settings: No benchmark of this run 'jumpcp1'"),
    "setting": ({"names": ["generic"], "settings": {"generic": {"labl": 1}}}, "did you mean 'label'"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_settings_are_refused_when_the_callback_is_built(name: str, generic: Path) -> None:
    settings, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        Benchmarks(str(generic), **settings)


def test_a_missing_column_is_refused_before_the_first_step(generic: Path, tmp_path: Path) -> None:
    settings = {"generic": {"label": "treatment"}}
    callback = Benchmarks(str(generic), settings=settings, recipe={"generic": {"tile_size_px": 32}})
    with pytest.raises(DataError, match="lacks the label 'treatment'"):
        fit(tiny_dino(), callback, folder=tmp_path)
    assert callback.latest == {}


def test_the_folder_without_any_benchmark_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no folder of the name of a benchmark"):
        Benchmarks(str(tmp_path))

"""Health: its numbers, no false alarm, and an alarm for every planted collapse."""

import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor

from morphem.callbacks import Health
from morphem.callbacks.health import effective_rank, feature_std
from morphem.errors import MorphemError
from tests.references import collapse
from tests.tiny_fit import fit, tiny_dino


@pytest.mark.parametrize(("rows", "dim"), [(8, 3), (50, 16), (10, 40)])
@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_signals_are_the_plain_formulas(rows: int, dim: int, offset: float) -> None:
    embeddings = np.random.default_rng(0).normal(size=(rows, dim)) * np.geomspace(1, 0.01, dim) + offset
    tensor = torch.from_numpy(embeddings)
    assert float(feature_std(tensor)) == pytest.approx(collapse.feature_std(embeddings), rel=1e-4)
    assert float(effective_rank(tensor)) == pytest.approx(collapse.effective_rank(embeddings), rel=1e-2)


def test_signals_at_their_ends() -> None:
    assert float(feature_std(torch.ones(10, 4))) == pytest.approx(0.0, abs=1e-6)
    isotropic = torch.randn(5000, 64, generator=torch.Generator().manual_seed(0))
    assert float(feature_std(isotropic)) == pytest.approx(1.0, rel=0.01)
    assert float(effective_rank(isotropic)) == pytest.approx(64, rel=0.02)
    assert float(effective_rank(torch.arange(10.0)[:, None] * torch.ones(1, 8))) == pytest.approx(1.0, rel=1e-3)


class _Faulty(L.Callback):
    """Overwrites what a step returned, as a fault in a method would."""

    def __init__(self, **planted: Tensor) -> None:
        self.planted = planted

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
        outputs.update(self.planted)


_LINE = torch.arange(6.0)[:, None] * torch.ones(6, 16)
HEALTHY = {"teacher_entropy": torch.tensor(0.5), "teacher_usage": torch.tensor(0.5)}
PLANTED: dict[str, dict[str, Tensor]] = {
    "Complete collapse": {"embedding": torch.ones(19, 16)},
    "Dimensional collapse": {"embedding": _LINE - 2.5},
    "Uniform teacher": {"teacher_entropy": torch.tensor(0.99999)},
    "One prototype": {"teacher_usage": torch.tensor(0.0)},
}


@pytest.mark.parametrize("name", PLANTED)
def test_each_planted_collapse_is_named_once(tmp_path: Path, name: str) -> None:
    health = Health(every_n_steps=1, after_steps=2, patience=2, n_rows=12)
    with pytest.warns(UserWarning, match=name) as caught:
        fit(tiny_dino(), _Faulty(**{**HEALTHY, **PLANTED[name]}), health, folder=tmp_path, max_epochs=5)
    assert [verdict.name for verdict in health.verdicts] == [name]
    assert len([w for w in caught if name in str(w.message)]) == 1


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_raises_no_alarm(tmp_path: Path, seed: int) -> None:
    torch.manual_seed(seed)
    health = Health(every_n_steps=1, after_steps=10, patience=2)
    fit(tiny_dino(drop_path_rate=0.1), health, folder=tmp_path, max_epochs=15)
    assert health.verdicts == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault",
    [
        {"center_momentum": 1.0, "teacher_temperature": 0.02, "lr": 3e-2},  # nothing keeps one prototype from winning
        {"teacher_temperature": 5.0},  # a teacher too soft to prefer anything
    ],
)
def test_faults_in_a_real_run_are_noticed(tmp_path: Path, fault: dict[str, float]) -> None:
    torch.manual_seed(0)
    health = Health(every_n_steps=5, after_steps=20, patience=2)
    with pytest.warns(UserWarning, match="Likely remedies"):
        fit(tiny_dino(**fault), health, folder=tmp_path, max_epochs=150)


def test_nothing_is_warned_of_before_its_time(tmp_path: Path) -> None:
    health = Health(every_n_steps=1, after_steps=100, patience=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", module="lightning")
        fit(tiny_dino(), _Faulty(**PLANTED["Uniform teacher"]), health, folder=tmp_path)
    assert health.verdicts == []


def test_one_bad_look_is_forgiven() -> None:
    health = Health(patience=2)
    bad, good = {"teacher_entropy": 1.0}, {"teacher_entropy": 0.5}
    for signals in (bad, good, bad, good):
        health._judge(signals, 5000)
    assert health.verdicts == []


def test_a_loss_that_is_not_a_number_stops_the_run(tmp_path: Path) -> None:
    with pytest.raises(MorphemError, match=r"loss is nan at step 1, .*earlier checkpoint"):
        fit(tiny_dino(), _Faulty(loss=torch.tensor(torch.nan)), Health(every_n_steps=1), folder=tmp_path)


def test_the_signals_are_logged(tmp_path: Path) -> None:
    trainer = fit(tiny_dino(), Health(every_n_steps=1), folder=tmp_path)
    names = {"feature_std", "effective_rank", "teacher_entropy", "teacher_usage", "agreement"}
    assert {f"health/{name}" for name in names} <= set(trainer.callback_metrics)

"""Throughput: the share of waiting is the true one, and the advice comes once."""

import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest

from morphem.callbacks import Throughput
from morphem.methods.dino import DINO
from morphem.testing.training import TinyData, TinyLoader
from morphem.types import ChannelBatch
from tests.tiny_fit import fit, tiny_dino


class _SlowLoader(TinyLoader):
    def __init__(self, n_batches: int, seconds: float) -> None:
        super().__init__(n_batches)
        self.seconds = seconds

    def __iter__(self) -> Iterator[ChannelBatch]:
        for batch in super().__iter__():
            time.sleep(self.seconds)
            yield batch


class _SlowData(TinyData):
    def __init__(self, n_batches: int, seconds: float) -> None:
        super().__init__(n_batches)
        self.seconds = seconds

    def train_dataloader(self) -> TinyLoader:
        return _SlowLoader(self.n_batches, self.seconds)


class _SlowStep(L.Callback):
    """Makes a step take a known time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_before_zero_grad(self, *_: Any) -> None:
        time.sleep(self.seconds)


@pytest.mark.parametrize(("wait", "work"), [(0.07, 0.07), (0.0, 0.1)])
def test_the_share_of_waiting_is_the_true_one(tmp_path: Path, wait: float, work: float) -> None:
    throughput = Throughput(every_n_steps=4, warn_share=1.0, n_skipped=2)
    callbacks = [_SlowStep(work), throughput]
    start = time.perf_counter()
    trainer = fit(tiny_dino(), *callbacks, folder=tmp_path, data=_SlowData(8, wait))
    step = (time.perf_counter() - start) / 8
    share = float(trainer.callback_metrics["throughput/data_wait"])
    assert share == pytest.approx(wait / step, abs=0.12)
    speed = float(trainer.callback_metrics["throughput/images_per_second"])
    assert 6 / (step * 1.5) < speed < 6 / (wait + work)


def test_waiting_for_data_is_warned_of_once_with_the_remedy(tmp_path: Path) -> None:
    throughput = Throughput(every_n_steps=2, n_skipped=1)
    with pytest.warns(UserWarning, match=r"waits for data .*data\.num_workers") as caught:
        fit(tiny_dino(), throughput, folder=tmp_path, data=_SlowData(8, 0.1))
    assert len([w for w in caught if "waits for data" in str(w.message)]) == 1


def test_other_callbacks_and_validation_count_as_no_waiting(tmp_path: Path) -> None:
    class Dawdling(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            time.sleep(0.05)

        def on_validation_start(self, *_: Any) -> None:
            time.sleep(0.05)

    throughput = Throughput(every_n_steps=4, n_skipped=1)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="Training waits")
        schedule = {"n_batches": 10, "limit_val_batches": 1, "val_check_interval": 3}
        trainer = fit(tiny_dino(), throughput, Dawdling(), folder=tmp_path, **schedule)
    assert float(trainer.callback_metrics["throughput/data_wait"]) < 0.2


def test_every_method_says_when_its_step_was_over(tmp_path: Path) -> None:
    method: DINO = tiny_dino()
    before = method.step_ended_at
    fit(method, folder=tmp_path)
    assert method.step_ended_at > before

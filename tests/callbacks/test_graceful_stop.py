"""A signal stops a run after its step, and the checkpoint that it leaves resumes."""

import os
import signal
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from morphem.callbacks import GracefulStop
from morphem.data.module import ShardData
from tests.tiny_fit import fit, tiny_dino

SIGNALS = [signal.SIGINT, signal.SIGTERM]


class SignalAt(L.Callback):
    """Sends this process a signal before a batch's step; several, if asked to."""

    def __init__(self, batch: int, number: signal.Signals = signal.SIGINT, times: int = 1) -> None:
        self.batch, self.number, self.times, self.seen = batch, number, times, 0

    def on_train_batch_start(self, *_: Any) -> None:
        self.seen += 1
        if self.seen == self.batch:
            for _i in range(self.times):
                os.kill(os.getpid(), self.number)


def _data(batch_size: int = 20) -> ShardData:
    return ShardData("sample://tiny", batch_size, num_workers=0)


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.parametrize("batch", [1, 2, 3, 5])
def test_a_signal_leaves_a_checkpoint_that_resumes_bit_for_bit(
    tmp_path: Path, sample_cache: Path, capsys: pytest.CaptureFixture[str], number: signal.Signals, batch: int
) -> None:
    torch.manual_seed(0)
    whole = tiny_dino(drop_path_rate=0.3)
    fit(whole, folder=tmp_path, data=_data(), max_epochs=2)
    torch.manual_seed(0)
    stop = GracefulStop(str(tmp_path / "saved"))
    with pytest.raises(SystemExit) as left:
        fit(tiny_dino(drop_path_rate=0.3), SignalAt(batch, number), stop, folder=tmp_path, data=_data(), max_epochs=2)
    assert left.value.code == 130
    assert stop.stopped
    assert stop.path == tmp_path / "saved" / "interrupted.ckpt"
    assert [path.name for path in (tmp_path / "saved").iterdir()] == ["interrupted.ckpt"]
    printed = capsys.readouterr().out
    assert f"Stopped after step {batch}. To go on, repeat the command with --ckpt_path {stop.path}" in printed
    resumed = tiny_dino(drop_path_rate=0.3)
    trainer = fit(resumed, folder=tmp_path, data=_data(), max_epochs=2, ckpt_path=stop.path)
    assert trainer.global_step == 6
    theirs = resumed.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in whole.state_dict().items())


def test_no_gradient_is_lost_where_batches_are_accumulated(tmp_path: Path, sample_cache: Path) -> None:
    stop = GracefulStop(str(tmp_path))
    with pytest.raises(SystemExit):
        fit(tiny_dino(), SignalAt(4), stop, folder=tmp_path, data=_data(10), accumulate_grad_batches=3)
    checkpoint = torch.load(tmp_path / "interrupted.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2  # the signal came in the first batch of the second step


def test_a_second_signal_stops_at_once(tmp_path: Path) -> None:
    stop = GracefulStop(str(tmp_path))
    previous = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit) as left:
            fit(tiny_dino(), SignalAt(1, times=2), stop, folder=tmp_path)
        assert left.value.code == 1  # Lightning's own way out of a KeyboardInterrupt
    finally:
        signal.signal(signal.SIGINT, previous)  # Lightning leaves it ignored
    assert not stop.stopped
    assert not list(tmp_path.glob("*.ckpt*"))


def test_the_signals_are_given_back(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    fit(tiny_dino(), GracefulStop(), folder=tmp_path)
    assert [signal.getsignal(number) for number in SIGNALS] == before
    with pytest.raises(SystemExit):
        fit(tiny_dino(), SignalAt(1), GracefulStop(), folder=tmp_path)
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_a_run_without_signal_is_not_stopped(tmp_path: Path) -> None:
    stop = GracefulStop()
    trainer = fit(tiny_dino(), stop, folder=tmp_path)
    assert trainer.global_step == 2
    assert not stop.stopped
    assert stop.path is None


def test_the_checkpoint_lies_with_the_others(tmp_path: Path) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    stop, others = GracefulStop(), ModelCheckpoint(tmp_path / "others")
    with pytest.raises(SystemExit):
        fit(tiny_dino(), SignalAt(1), stop, others, folder=tmp_path, enable_checkpointing=True)
    assert stop.path == tmp_path / "others" / "interrupted.ckpt"


def test_a_worker_of_the_loader_leaves_a_signal_alone() -> None:
    stop = GracefulStop()
    stop._pid = os.getpid() + 1
    stop._receive(signal.SIGINT, None)
    assert stop._received == 0

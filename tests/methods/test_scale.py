"""Accumulated batches, mixed precision, and what a loss that is not a number leaves behind."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from morphem import registry, rng
from morphem.errors import MorphemError
from morphem.methods.base import Method
from morphem.methods.cha_mae import ChaMAE
from morphem.methods.dino import DINO
from morphem.methods.dinov2 import DINOv2
from morphem.methods.finetune import Finetune
from morphem.methods.finite import FiniteCheck
from morphem.methods.mae import MAE
from morphem.methods.proxy import Proxy
from morphem.methods.simclr import SimCLR
from morphem.methods.supcon import SupCon
from morphem.methods.supervised import Supervised
from morphem.spec import from_spec, to_spec
from morphem.testing.batches import take, tiny_batch
from morphem.types import ChannelBatch, StepOutput
from tests.tiny_fit import fit, tiny_dino


class Parts(L.LightningDataModule):
    """The same batches of eight images whole, or in two halves."""

    def __init__(self, n_parts: int) -> None:
        super().__init__()
        self.n_parts = n_parts
        self.batch_size = 8 // n_parts
        self.classes = {"label": ["first", "second"]}

    def train_dataloader(self) -> "Parts":
        return self

    def __len__(self) -> int:
        return 4 * self.n_parts

    def __iter__(self) -> Iterator[ChannelBatch]:
        for step in range(4):
            batch = tiny_batch([("nucleus",)] * 8, [(40, 48)], seed=step)
            labels = torch.arange(8)[:, None] % 2  # each image has one: parts have as many rows
            batch = batch._replace(seeds=rng.mix_tensor(batch.seeds, "parts"), labels=labels)
            for part in range(self.n_parts):
                yield take(batch, range(part * self.batch_size, (part + 1) * self.batch_size))


def _dinov2() -> DINOv2:
    spec = to_spec(DINOv2.tiny())
    spec["init_args"]["koleo_weight"] = 0.0  # it looks for neighbours in the batch
    method: DINOv2 = from_spec(spec)
    return method


PROMISING = {
    "dino": tiny_dino,
    "dinov2": _dinov2,
    "mae": MAE.tiny,
    "cha_mae": ChaMAE.tiny,
    "supervised": Supervised.tiny,
    "proxy": Proxy.tiny,
    "finetune": Finetune.tiny,
}
"""Methods whose loss is a mean over rows, so that gradients of parts of a batch add up to those of the whole."""


def _trained_in_parts(build: Callable[[], Method], n_parts: int, folder: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    method = build()
    object.__setattr__(method.recipe, "eps", 1e-3)  # rounding noise in gradients of zero moves nothing
    fit(method, folder=folder, data=Parts(n_parts), accumulate_grad_batches=n_parts)
    return method.state_dict()


@pytest.mark.parametrize("name", PROMISING)
def test_accumulated_halves_train_what_the_whole_batch_trains(name: str, tmp_path: Path) -> None:
    whole, halves = (_trained_in_parts(PROMISING[name], n_parts, tmp_path) for n_parts in (1, 2))
    for key, value in whole.items():
        torch.testing.assert_close(halves[key], value, rtol=1e-4, atol=2e-6, msg=key)


@pytest.mark.parametrize("build", [SimCLR.tiny, SupCon.tiny], ids=["simclr", "supcon"])
def test_accumulated_halves_give_a_contrast_less_to_tell_apart(build: Callable[[], Method], tmp_path: Path) -> None:
    whole, halves = (_trained_in_parts(build, n_parts, tmp_path) for n_parts in (1, 2))
    assert max(float((halves[key] - value).abs().max()) for key, value in whole.items()) > 1e-3


def test_every_method_is_known_to_add_up_or_not_to() -> None:
    assert {*PROMISING, "simclr", "supcon"} == {
        plugin.name for plugin in registry.plugins("methods") if plugin.package == "morphem"
    }


def test_bf16_ends_near_float32(tmp_path: Path) -> None:
    trained = []
    for precision in ("32-true", "bf16-mixed"):
        torch.manual_seed(0)
        method = tiny_dino()
        fit(method, folder=tmp_path, data=Parts(1), precision=precision)
        assert {parameter.dtype for parameter in method.parameters()} == {torch.float32}
        trained.append(method.exported_encoder().features(tiny_batch()))
    torch.testing.assert_close(trained[1], trained[0], rtol=0.0, atol=0.1)
    assert not torch.equal(trained[1], trained[0])


class Faulty(DINO):
    """Its loss, and the term it comes from, are not a number from a step on."""

    faulty_from = 3

    def step(self, views: list[ChannelBatch]) -> StepOutput:
        output = super().step(views)
        if self.training and self.global_step >= self.faulty_from:
            nan = output.loss * torch.nan
            return output._replace(loss=nan, logs={**output.logs, "spread": nan.detach()})
        return output


def _checkpoints(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=1)


def test_a_loss_that_is_not_a_number_stops_the_run_and_names_the_term(tmp_path: Path) -> None:
    with pytest.raises(MorphemError, match=r"not a number at step 3 \(not finite here: train/loss, train/spread\)"):
        fit(Faulty.tiny(), folder=tmp_path, n_batches=8)


def test_the_last_good_checkpoint_stays(tmp_path: Path) -> None:
    with pytest.raises(MorphemError, match="go on from the last one"):
        fit(Faulty.tiny(), _checkpoints(tmp_path), folder=tmp_path, n_batches=8, enable_checkpointing=True)
    (kept,) = tmp_path.glob("*.ckpt")
    checkpoint = torch.load(kept, weights_only=True)
    assert checkpoint["global_step"] == 3
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point())


def test_a_faulty_last_step_is_found_at_the_end_of_the_run(tmp_path: Path) -> None:
    with pytest.raises(MorphemError, match="step 3"):
        fit(Faulty.tiny(), folder=tmp_path, n_batches=4)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite_is_found_once(value: float) -> None:
    check = FiniteCheck()
    check.look()
    check.note(7, torch.tensor(value), {"fine": torch.tensor(1.0), "bad": torch.tensor([1.0, value])})
    with pytest.raises(MorphemError, match=r"at step 7 \(not finite here: train/loss, train/bad\)"):
        check.look()
    check.look()


def test_a_term_that_the_loss_does_not_use_may_be_infinite() -> None:
    check = FiniteCheck()
    check.note(0, torch.tensor(1.0), {"ratio": torch.tensor(torch.inf)})
    check.look()
    check.note(1, torch.tensor(torch.inf), {"ratio": torch.tensor(torch.inf)})
    with pytest.raises(MorphemError, match="at step 1"):
        check.look()


class Poison(L.Callback):
    """Writes a NaN into the weights after two steps, as an overflow would."""

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == 2:
            with torch.no_grad():
                next(pl_module.encoder.parameters()).fill_(torch.nan)


def test_lost_weights_are_found_at_the_next_step(tmp_path: Path) -> None:
    with pytest.raises(MorphemError, match="not a number at step 2"):
        fit(tiny_dino(), Poison(), folder=tmp_path, n_batches=6)

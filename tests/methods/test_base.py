"""What every method shares, shown on DINO."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from morphem.channels.base import ChannelStrategy
from morphem.data.module import ShardData
from morphem.errors import ConfigError, WeightsError
from morphem.methods.dino import DINO
from morphem.spec import from_spec
from morphem.testing.batches import tiny_batch
from morphem.testing.training import TinyData
from tests.tiny_fit import fit, tiny_dino


class SaveAt(L.Callback):
    """Saves a checkpoint after one optimizer step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)


class Rates(L.Callback):
    """Notes what the optimizer used at every step."""

    def __init__(self) -> None:
        self.seen: list[tuple[float, float, float]] = []

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        decayed, exempt = optimizer.param_groups
        self.seen.append((decayed["lr"], decayed["weight_decay"], exempt["weight_decay"]))


def _seeded(**changes: Any) -> DINO:
    torch.manual_seed(0)
    return tiny_dino(**changes)


@pytest.mark.parametrize("step", [1, 3, 4, 6, 8])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_stop_and_resume_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, sample_cache: Path, step: int, accumulate: int
) -> None:
    path = tmp_path / "middle.ckpt"
    batch_size = 20 // accumulate  # 60 planes: 3 steps an epoch
    settings: dict[str, Any] = {"folder": tmp_path, "max_epochs": 3, "accumulate_grad_batches": accumulate}
    whole = _seeded(drop_path_rate=0.3, warmup_epochs=1)
    fit(whole, SaveAt(step, path), data=ShardData("sample://tiny", batch_size, num_workers=0), **settings)
    resumed = tiny_dino(drop_path_rate=0.3, warmup_epochs=1)
    torch.manual_seed(99)
    data = ShardData("sample://tiny", batch_size, num_workers=0)
    trainer = fit(resumed, ckpt_path=path, data=data, **settings)
    assert trainer.global_step == 9
    theirs = resumed.state_dict()
    assert [key for key, value in whole.state_dict().items() if not torch.equal(value, theirs[key])] == []


class _Asking(DINO):
    """Asks for the length of the run where Lightning then forgets the state of the loader."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches == 6
        return super().configure_optimizers()


def test_a_method_that_asks_for_the_length_of_the_run_early_resumes_exactly(tmp_path: Path, sample_cache: Path) -> None:
    path, states = tmp_path / "middle.ckpt", []
    for callbacks, resume in (([SaveAt(2, path)], None), ([], path)):
        torch.manual_seed(0)
        method = _Asking.tiny()
        data = ShardData("sample://tiny", 20, num_workers=0)
        trainer = fit(method, *callbacks, folder=tmp_path, data=data, max_epochs=2, ckpt_path=resume)
        assert trainer.global_step == 6
        states.append(method.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_another_seed_trains_other_weights(tmp_path: Path) -> None:
    first, second = (_seeded(drop_path_rate=0.5, seed=seed) for seed in (0, 1))
    for method in (first, second):
        fit(method, folder=tmp_path)
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_what_others_draw_from_torchs_generator_does_not_matter(tmp_path: Path) -> None:
    class Drawing(L.Callback):
        def on_train_batch_end(self, *_: Any) -> None:
            torch.rand(17)

    plain, disturbed = (_seeded(drop_path_rate=0.5) for _ in range(2))
    fit(plain, folder=tmp_path)
    fit(disturbed, Drawing(), folder=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), disturbed.parameters(), strict=True))


def test_the_rates_of_every_step_are_the_schedules(tmp_path: Path) -> None:
    method, rates = tiny_dino(lr=1e-2, warmup_epochs=1, min_lr=1e-5), Rates()
    fit(method, rates, folder=tmp_path, max_epochs=3, n_batches=4)
    seen = rates.seen[1:]  # gradients are first cleared before the first step
    assert method.horizon == (4, 12)
    assert [lr for lr, _, _ in seen[:5]] == pytest.approx([0.0, 1e-2 / 3, 2e-2 / 3, 1e-2, 1e-2])
    assert seen[0][1] == pytest.approx(0.04)
    assert [decay for _, decay, _ in seen] == sorted(decay for _, decay, _ in seen)
    assert {exempt for _, _, exempt in seen} == {0.0}


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 4), (2, 2), (3, 2)])
def test_schedules_count_optimizer_steps(tmp_path: Path, accumulate: int, steps: int) -> None:
    method = tiny_dino()
    trainer = fit(method, folder=tmp_path, n_batches=4, accumulate_grad_batches=accumulate)
    assert trainer.global_step == steps
    assert method.horizon == (steps, steps)


def test_the_learning_rate_scales_with_the_global_batch(tmp_path: Path) -> None:
    method = tiny_dino(lr=1e-3, lr_per_images=3)
    fit(method, folder=tmp_path, n_batches=4, accumulate_grad_batches=2)
    assert method._peak_lr == pytest.approx(1e-3 * (6 * 2) / 3)  # 6 images per batch, 2 batches per step


def test_an_unknown_batch_size_is_refused(tmp_path: Path) -> None:
    data = TinyData(2)
    del data.batch_size
    with pytest.raises(ConfigError, match="lr_per_images"):
        fit(tiny_dino(lr_per_images=256), folder=tmp_path, data=data)


def test_a_run_without_end_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.max_epochs"):
        fit(tiny_dino(), folder=tmp_path, max_epochs=-1)


def test_two_kinds_of_clipping_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clip_per_tensor"):
        fit(tiny_dino(), folder=tmp_path, gradient_clip_val=1.0)


def test_the_trainers_clipping_works_where_that_of_the_recipe_is_off(tmp_path: Path) -> None:
    trainer = fit(tiny_dino(clip_per_tensor=None), folder=tmp_path, gradient_clip_val=1.0)
    assert trainer.global_step == 2


def test_a_run_that_ends_within_the_warmup_is_warned_of(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="warm-up"):
        fit(tiny_dino(warmup_epochs=10), folder=tmp_path)


def test_a_checkpoint_is_plain_data_and_rebuilds_the_exported_encoder(tmp_path: Path) -> None:
    method = tiny_dino()
    trainer = fit(method, folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    checkpoint = torch.load(tmp_path / "end.ckpt", weights_only=True)
    about = checkpoint["morphem"]
    again = from_spec(about["spec"])
    prefix = about["exported"]
    encoder = again.exported_encoder()
    weights = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    encoder.load_state_dict({key.removeprefix(prefix): value for key, value in weights.items()})
    assert torch.equal(encoder.features(tiny_batch()), method.teacher_encoder.features(tiny_batch()))


def test_a_checkpoint_of_another_architecture_is_refused_in_one_sentence(tmp_path: Path) -> None:
    trainer = fit(tiny_dino(), folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match=r"another architecture: \d+ of \d+ tensors differ, first 'head\.") as caught:
        fit(tiny_dino(n_prototypes=64), folder=tmp_path, ckpt_path=tmp_path / "other.ckpt", max_epochs=2)
    assert "\n" not in str(caught.value)


def test_a_method_refuses_a_strategy_with_its_reason() -> None:
    class Picky(DINO):
        @classmethod
        def compatible(cls, strategy: ChannelStrategy) -> str | None:
            return "it wants one embedding per image." if strategy.per_channel else None

    with pytest.raises(ConfigError, match="Picky does not work with BagOfChannels: it wants one embedding per image"):
        Picky.tiny()


def test_predict_gives_the_features_of_the_exported_encoder() -> None:
    method, batch = tiny_dino(), tiny_batch()
    assert torch.equal(method.predict_step(batch, 0), method.teacher_encoder.features(batch))


def test_views_are_made_in_float32_under_autocast() -> None:
    method, batch = tiny_dino(), tiny_batch()
    with torch.autocast("cpu", torch.bfloat16):
        views = method.make_views(batch)
    for mine, plain in zip(views, method.make_views(batch), strict=True):
        assert torch.equal(mine.planes, plain.planes)
        assert mine.planes.dtype == torch.float32

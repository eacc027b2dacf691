"""DINO: its loss against the formula, and what makes it DINO against what it does in a run."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import Tensor

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.dino import DINO, CenteredLoss
from morphem.normalizers import SelfNormalize
from morphem.testing.batches import tiny_batch
from morphem.testing.training import TinyData
from tests.references import dino_formulas
from tests.tiny_fit import fit, tiny_dino


class Watch(L.Callback):
    """Keeps copies of tensors of every batch."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.seen: list[dict[str, Tensor]] = []
        self.steps: list[int] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_batch_end(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        state = pl_module.state_dict()
        self.seen.append({key: value.clone() for key, value in state.items() if key.startswith(self.names)})
        self.steps.append(trainer.global_step)

    def moved(self, batch: int) -> bool:
        """Whether anything moved in batch 1, 2, ..."""
        return any(not torch.equal(value, self.seen[batch - 1][key]) for key, value in self.seen[batch].items())


@pytest.mark.parametrize("n_global", [1, 2, 3])
@pytest.mark.parametrize("n_local", [1, 4])
@pytest.mark.parametrize(("rows", "prototypes"), [(1, 2), (5, 16)])
@pytest.mark.parametrize(("tau_t", "tau_s"), [(0.04, 0.1), (0.07, 0.1), (1.0, 0.5)])
def test_loss_and_centre_are_the_papers(
    n_global: int, n_local: int, rows: int, prototypes: int, tau_t: float, tau_s: float
) -> None:
    generator = torch.Generator().manual_seed(7)
    student = torch.randn(n_global + n_local, rows, prototypes, generator=generator)
    teacher = torch.randn(n_global, rows, prototypes, generator=generator) / 4
    center = torch.randn(prototypes, generator=generator) / 4
    loss = CenteredLoss(prototypes, student_temperature=tau_s, center_momentum=0.9)
    loss.center.copy_(center.view(1, 1, -1))
    found = loss(list(teacher), list(student), teacher_temp=tau_t)
    loss.move_center()
    t, s, c = (x.double().numpy() for x in (teacher, student, center))
    assert float(found) == pytest.approx(dino_formulas.dino_loss(t, s, c, tau_t, tau_s), rel=1e-5, abs=1e-6)
    moved = torch.from_numpy(dino_formulas.moved_center(t, c, 0.9)).float()
    torch.testing.assert_close(loss.center.flatten(), moved, rtol=1e-5, atol=1e-6)


def test_no_gradient_flows_into_the_teacher() -> None:
    method = tiny_dino()
    method.train()
    method.step(method.make_views(tiny_batch())).loss.backward()
    assert all(parameter.grad is None for parameter in method.teacher_encoder.parameters())
    assert all(parameter.grad is None for parameter in method.teacher_head.parameters())
    frozen = {"head.last_layer.parametrizations.weight.original0"}
    without = {name for name, p in method.named_parameters() if p.grad is None and not name.startswith("teacher_")}
    assert without == frozen


def test_teacher_shares_no_storage_with_the_student() -> None:
    method = tiny_dino()
    students = {p.untyped_storage().data_ptr() for part in (method.encoder, method.head) for p in part.parameters()}
    teachers = [p for part in (method.teacher_encoder, method.teacher_head) for p in part.parameters()]
    assert teachers
    assert not students & {p.untyped_storage().data_ptr() for p in teachers}


def test_the_teacher_has_no_stochastic_depth() -> None:
    method = tiny_dino(drop_path_rate=0.9)
    method.train()
    assert method.encoder.training
    assert not any(module.training for module in method.teacher_encoder.modules())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_teacher_moves_only_after_an_optimizer_step(tmp_path: Path, accumulate: int) -> None:
    watch = Watch("teacher_")
    fit(tiny_dino(), watch, folder=tmp_path, n_batches=6, accumulate_grad_batches=accumulate)
    stepped = [after > before for before, after in zip(watch.steps, watch.steps[1:], strict=False)]
    assert sum(stepped) == 6 // accumulate
    # At the first step of a run without warm-up the student moves, and so the teacher does at every step
    assert [watch.moved(batch) for batch in range(1, 7)] == stepped


def test_the_teacher_is_the_moving_average_of_the_student(tmp_path: Path) -> None:
    watch = Watch("teacher_", "encoder", "head")
    method = tiny_dino(teacher_momentum=0.9, teacher_momentum_end=0.5, freeze_last_layer_epochs=0)
    fit(method, watch, folder=tmp_path, n_batches=4)
    for step, (before, after) in enumerate(zip(watch.seen, watch.seen[1:], strict=False)):
        momentum = method.momentum_at(step)
        for key in (key for key in after if not key.startswith("teacher_")):
            expected = momentum * before[f"teacher_{key}"] + (1 - momentum) * after[key]
            torch.testing.assert_close(after[f"teacher_{key}"], expected)


def test_accumulating_moves_the_centre_by_the_mean_of_all_batches() -> None:
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(2, rows, 8, generator=generator) for rows in (3, 5)]
    apart, joined = (CenteredLoss(8, 0.1, 0.9) for _ in range(2))
    for batch in batches:
        apart(list(batch), list(batch), teacher_temp=0.04)
        assert not apart.center.any()
    joined(list(torch.cat(batches, 1)), list(torch.cat(batches, 1)), teacher_temp=0.04)
    apart.move_center()
    joined.move_center()
    torch.testing.assert_close(apart.center, joined.center)


def test_validation_moves_nothing_and_is_repeatable() -> None:
    method = tiny_dino(drop_path_rate=0.5).eval()
    before = {key: value.clone() for key, value in method.state_dict().items()}
    first, second = (float(method.step(method.make_views(tiny_batch())).loss.detach()) for _ in range(2))
    method.loss.move_center()
    assert first == second
    assert all(torch.equal(value, before[key]) for key, value in method.state_dict().items())


def test_validation_in_a_run_does_not_change_what_is_learnt(tmp_path: Path) -> None:
    plain, watched = (_seeded(drop_path_rate=0.5) for _ in range(2))
    fit(plain, folder=tmp_path, max_epochs=2)
    fit(watched, folder=tmp_path, max_epochs=2, limit_val_batches=1, val_check_interval=1)
    theirs = watched.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in plain.state_dict().items())


def _seeded(**changes: Any) -> DINO:
    torch.manual_seed(0)
    return tiny_dino(**changes)


def test_the_last_layer_stands_still_in_the_first_epoch(tmp_path: Path) -> None:
    watch = Watch("head.last_layer")
    fit(tiny_dino(freeze_last_layer_epochs=1), watch, folder=tmp_path, max_epochs=2)
    assert [watch.moved(batch) for batch in (1, 2, 3, 4)] == [False, False, True, True]


def test_gradients_are_clipped_per_tensor_in_a_run(tmp_path: Path) -> None:
    class Norms(L.Callback):
        norms: tuple[float, ...] = ()

        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            self.norms += tuple(float(p.grad.norm()) for p in pl_module.parameters() if p.grad is not None)

    clipped, free = Norms(), Norms()
    fit(_seeded(clip_per_tensor=1e-3), clipped, folder=tmp_path, max_epochs=2)
    fit(_seeded(clip_per_tensor=None), free, folder=tmp_path, max_epochs=2)
    assert max(clipped.norms) <= 1e-3 * (1 + 1e-5)
    assert max(free.norms) > 1e-2
    # Of the norm over all tensors not even two could be at the limit
    assert sum(norm > 0.99e-3 for norm in clipped.norms) > len(clipped.norms) / 2


def test_the_teachers_temperature_is_warmed_up_per_step(tmp_path: Path) -> None:
    method = tiny_dino(teacher_temperature_start=0.04, teacher_temperature=0.07, teacher_temperature_warmup_epochs=2)
    fit(method, folder=tmp_path, n_batches=2, max_epochs=3)
    assert [method.temperature_at(step) for step in range(5)] == pytest.approx([0.04, 0.05, 0.06, 0.07, 0.07])
    assert tiny_dino().temperature_at(0) == 0.04


@pytest.mark.parametrize(("export", "key"), [("teacher", "teacher_encoder."), ("student", "encoder.")])
def test_the_exported_encoder_is_the_one_asked_for(export: str, key: str) -> None:
    method = tiny_dino(export=export)
    assert method.exported_encoder_key == key
    assert method.exported_encoder() is (method.teacher_encoder if export == "teacher" else method.encoder)


def test_signals_tell_a_uniform_teacher_from_one_prototype() -> None:
    method = tiny_dino()
    uniform = method._signals(torch.zeros(6, 32), 0.04)
    assert float(uniform["teacher_entropy"]) == pytest.approx(1.0)
    single = method._signals(torch.eye(32)[[3] * 6] * 100, 0.04)
    assert float(single["teacher_usage"]) == pytest.approx(0.0, abs=1e-6)
    spread = method._signals(torch.eye(32) * 100, 0.04)
    assert float(spread["teacher_entropy"]) == pytest.approx(0.0, abs=1e-6)
    assert float(spread["teacher_usage"]) == pytest.approx(1.0)


def test_bf16_trains_with_a_loss_in_float32(tmp_path: Path) -> None:
    class Loss(L.Callback):
        dtypes: set[torch.dtype] = set()  # noqa: RUF012

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, *_: Any) -> None:
            assert outputs["loss"].isfinite()
            self.dtypes.add(outputs["loss"].dtype)

    fit(tiny_dino(), seen := Loss(), folder=tmp_path, precision="bf16-mixed")
    assert seen.dtypes == {torch.float32}


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_weights_in_half_precision_are_refused(tmp_path: Path, precision: str) -> None:
    with pytest.raises(ConfigError, match="bf16-mixed"):
        fit(tiny_dino(), folder=tmp_path, precision=precision)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"teacher_momentum": 1.5}, "teacher_momentum"),
        ({"center_momentum": -0.1}, "center_momentum"),
        ({"student_temperature": 0.0}, "student_temperature"),
        ({"teacher_temperature": -1.0}, "teacher_temperature"),
        ({"teacher_temperature_start": 0.04}, "teacher_temperature_warmup_epochs"),
        ({"teacher_temperature_warmup_epochs": 3.0}, "teacher_temperature_start"),
        ({"export": "both"}, "export"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        tiny_dino(**changes)


def _with_views(*recipes: ViewRecipe) -> DINO:
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32)
    return DINO(encoder, MultiCrop(list(recipes)), n_prototypes=8)


def test_a_single_view_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 2 views"):
        _with_views(ViewRecipe(count=1, size_px=32))


def test_dropping_channels_is_refused_where_each_plane_is_embedded_alone() -> None:
    with pytest.raises(ConfigError, match="channel_drop"):
        _with_views(ViewRecipe(count=2, size_px=32, channel_drop=0.5))


def test_images_of_any_channel_count_train_together(tmp_path: Path) -> None:
    trainer = fit(tiny_dino(), folder=tmp_path, data=TinyData(2))
    assert trainer.global_step == 2


def test_the_method_keeps_its_contract() -> None:
    from morphem.testing import check_method

    check_method(DINO)

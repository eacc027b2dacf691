"""DINOv2: its loss against the formulas, what student and teacher see, what moves when, and its contract."""

from collections import defaultdict
from pathlib import Path
from typing import Any, Literal

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from torch import Tensor

from morphem.block_masks import hidden_in_blocks
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_attention import ChannelAttention
from morphem.data.module import ShardData
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.dinov2 import DINOv2
from morphem.normalizers import SelfNormalize
from morphem.testing import check_method
from morphem.testing.batches import tiny_batch
from morphem.testing.pairs import check_pair
from morphem.types import ChannelBatch
from tests.methods.test_base import SaveAt
from tests.references import dino_formulas
from tests.references import patch_distillation as plain
from tests.tiny_fit import fit


def _attention(sampling: Literal["none", "batch", "sample"] = "none") -> ChannelAttention:
    tiny = ChannelAttention.tiny()
    return ChannelAttention(tiny.backbone, tiny.vocabulary.names, sampling=sampling)


def _dinov2(strategy: Any = None, **changes: Any) -> DINOv2:
    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "n_prototypes": 24,
        "head_hidden_dim": 16,
        "head_bottleneck_dim": 8,
        "lr": 1e-3,
        "lr_per_images": None,
        "warmup_epochs": 0,
        **changes,
    }
    encoder = Encoder(strategy or BagOfChannels.tiny(), SelfNormalize(), input_size_px=32)
    method = DINOv2(encoder, MultiCrop.tiny(), **settings)
    with torch.no_grad():  # a teacher of its own, so that taking one for the other shows
        for parameter in [*method.teacher_encoder.parameters(), *method.teacher_head.parameters()]:
            parameter.mul_(1.1)
        method.mask_token.normal_(generator=torch.Generator().manual_seed(3))
    return method


@pytest.mark.slow
def test_the_method_keeps_its_contract() -> None:
    check_method(DINOv2)


@pytest.mark.slow
def test_it_trains_several_channels_in_one_sequence() -> None:
    assert check_pair(DINOv2, ChannelAttention) is None


class _Reference:
    """What a step should give, plane by plane or image by image, with float64 formulas on the networks' outputs."""

    def __init__(self, method: DINOv2, views: list[ChannelBatch]) -> None:
        self.student: list[Tensor] = []  # (M, K) for each view
        self.teacher: list[Tensor] = []
        self.patches: dict[str, list[Tensor]] = defaultdict(list)  # (m, K) for each row of each global view
        self.embeddings: list[Tensor] = []
        for number, view in enumerate(views):
            if number < 2:
                self._global(method, view)
            else:
                self.student.append(method.head(method.encoder(view)))

    def _global(self, method: DINOv2, view: ChannelBatch) -> None:
        rows: dict[int, tuple[Tensor, Tensor]] = {}
        students, teachers = method.encoder.channels, method.teacher_encoder.channels
        parts = students.sequences(view)
        masks = hidden_in_blocks(
            view, parts, method.mask_probability, method.mask_ratio, method.mask_channels == "together"
        )
        for mine, theirs, hidden in zip(parts, teachers.sequences(view), masks, strict=True):
            for i, row in enumerate(mine.rows.tolist()):
                tokens = mine.tokens[i].clone()
                for t in hidden[i].nonzero()[:, 0]:
                    tokens[t] = method.mask_token[0] + mine.places[i, t]
                out, seen = students.encode(tokens[None])[0], teachers.encode(theirs.tokens[i : i + 1])[0]
                rows[row] = out[0], seen[0]
                heads = method.patch_head or method.head, method.teacher_patch_head or method.teacher_head
                self.patches["student"].append(heads[0](out[1:][hidden[i]]))
                self.patches["teacher"].append(heads[1](seen[1:][hidden[i]]))
        images = torch.stack([rows[row][0] for row in sorted(rows)])
        self.embeddings.append(images)
        self.student.append(method.head(images))
        self.teacher.append(method.teacher_head(torch.stack([rows[row][1] for row in sorted(rows)])))


def _numpy(rows: list[Tensor]) -> list[np.ndarray[Any, np.dtype[np.float64]]]:
    return [part.detach().double().numpy() for part in rows]


@pytest.mark.parametrize("strategy", ["bag", "attention"])
@pytest.mark.parametrize(
    "changes", [{}, {"patch_head": "own", "n_patch_prototypes": 12}, {"mask_channels": "together"}]
)
def test_the_loss_is_the_sum_of_the_papers_three(strategy: str, changes: dict[str, Any]) -> None:
    method = _dinov2(_attention() if strategy == "attention" else None, **changes).eval()
    method.loss.center.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    method.patch_loss.center.normal_(std=0.1, generator=torch.Generator().manual_seed(2))
    views = method.make_views(tiny_batch())
    output = method.step(views)
    reference = _Reference(method, views)
    images = dino_formulas.dino_loss(
        np.stack(_numpy(reference.teacher)),
        np.stack(_numpy(reference.student)),
        method.loss.center.flatten().double().numpy(),
        0.07,
        0.1,
    )
    patches = plain.patch_loss(
        _numpy(reference.patches["teacher"]),
        _numpy(reference.patches["student"]),
        method.patch_loss.center.double().numpy(),
        0.07,
        0.1,
    )
    spread = sum(plain.koleo(rows) for rows in _numpy(reference.embeddings))
    assert float(output.logs["loss_images"]) == pytest.approx(images, rel=1e-4)
    assert float(output.logs["loss_patches"]) == pytest.approx(patches, rel=1e-4)
    assert float(output.logs["loss_koleo"]) == pytest.approx(spread, rel=1e-3)
    assert float(output.loss.detach()) == pytest.approx(images + patches + 0.1 * spread, rel=1e-4)
    assert patches > 0


@pytest.mark.parametrize("sampling", ["batch", "sample"])
def test_a_student_that_samples_channels_is_compared_with_the_teacher_s_same_patches(
    sampling: Literal["batch", "sample"],
) -> None:
    method = _dinov2(_attention(sampling), mask_probability=1.0).train()
    whole = ChannelBatch.cat(method.make_views(tiny_batch())[:2])
    _, seen = method._student(whole)
    _, found = method._teacher(whole, seen.places)
    n_patches = 16
    wanted = {}
    for part in method.teacher_encoder.channels.sequences(whole):
        tokens = method.teacher_encoder.channels.encode(part.tokens)[:, 1:]
        for i, row in enumerate(part.rows.tolist()):
            for t, (channel, patch) in enumerate(zip(part.channels[i].tolist(), part.patches[i].tolist(), strict=True)):
                wanted[row, int(part.planes[i, channel]), patch] = tokens[i, t]
    assert 0 < len(seen.places) < len(wanted)
    for place, token in zip(seen.places.tolist(), found, strict=True):
        row, rest = divmod(place, whole.n_planes * n_patches)
        torch.testing.assert_close(token, wanted[row, *divmod(rest, n_patches)])
    assert method.step(method.make_views(tiny_batch())).loss.isfinite()


def test_a_teacher_that_leaves_out_patches_is_refused() -> None:
    method = _dinov2().train()
    whole = ChannelBatch.cat(method.make_views(tiny_batch())[:2])
    _, seen = method._student(whole)
    with pytest.raises(ConfigError, match="patches that the teacher has not"):
        method._teacher(whole, seen.places + whole.n_planes**2 * 16)


def test_hidden_patches_do_not_reach_the_student() -> None:
    method = _dinov2(mask_probability=1.0).train()
    whole = ChannelBatch.cat(method.make_views(tiny_batch())[:2])
    (hidden,) = hidden_in_blocks(
        whole, method.encoder.channels.sequences(whole), 1.0, method.mask_ratio, together=False
    )
    planes = whole.planes.clone().unfold(2, 8, 8).unfold(3, 8, 8)  # (P, 1, h, w, 8, 8)
    planes = torch.where(hidden.reshape(-1, 1, 4, 4, 1, 1), 5.0, planes).permute(0, 1, 2, 4, 3, 5)
    changed = whole._replace(planes=planes.reshape(whole.planes.shape))
    assert not torch.equal(changed.planes, whole.planes)
    images, seen = method._student(whole)
    again, seen_again = method._student(changed)
    torch.testing.assert_close(again, images)
    torch.testing.assert_close(seen_again.tokens, seen.tokens)
    assert not torch.allclose(method._teacher(changed, seen.places)[0], method._teacher(whole, seen.places)[0])


@pytest.mark.parametrize("patch_head", ["shared", "own"])
def test_gradients_reach_all_of_the_student_and_nothing_of_the_teacher(patch_head: str) -> None:
    method = _dinov2(patch_head=patch_head).train()
    method.step(method.make_views(tiny_batch())).loss.backward()
    missing = {name for name, p in method.named_parameters() if p.grad is None and not name.startswith("teacher_")}
    assert all(name.endswith("last_layer.parametrizations.weight.original0") for name in missing)
    assert all(p.grad is None for name, p in method.named_parameters() if name.startswith("teacher_"))


def test_a_batch_without_hidden_patches_still_reaches_every_parameter() -> None:
    method = _dinov2(mask_probability=1e-9, patch_head="own").train()
    output = method.step(method.make_views(tiny_batch()))
    output.loss.backward()
    assert float(output.logs["loss_patches"]) == 0.0
    assert method.mask_token.grad is not None
    assert all(p.grad is not None for p in method.patch_head.layers.parameters())


class _Watch(L.Callback):
    """Notes which parts moved at every batch."""

    def __init__(self, *names: str) -> None:
        self.names = names
        self.before: dict[str, Tensor] = {}
        self.moved: list[set[str]] = []

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        self.before = {key: value.clone() for key, value in pl_module.state_dict().items()}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        changed = [key for key, value in pl_module.state_dict().items() if not torch.equal(value, self.before[key])]
        self.moved.append({name for name in self.names if any(key.startswith(name) for key in changed)})


def test_centres_and_teachers_move_with_the_optimizer_s_step_alone(tmp_path: Path) -> None:
    names = ("teacher_encoder", "teacher_head", "teacher_patch_head", "patch_loss.center", "loss.center", "mask_token")
    watch = _Watch(*names)
    method = _dinov2(patch_head="own")
    fit(method, watch, folder=tmp_path, n_batches=4, accumulate_grad_batches=2)
    assert watch.moved == [set(), set(names), set(), set(names)]


def test_the_last_layers_stand_still_in_the_first_epoch(tmp_path: Path) -> None:
    watch = _Watch("head.last_layer", "patch_head.last_layer")
    fit(_dinov2(patch_head="own"), watch, folder=tmp_path, n_batches=1, max_epochs=2)
    assert watch.moved == [set(), {"head.last_layer", "patch_head.last_layer"}]


def test_early_layers_learn_slowly_and_keep_their_share_after_resuming(tmp_path: Path) -> None:
    class Rates(L.Callback):
        def __init__(self) -> None:
            self.seen: set[float] = set()

        def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
            if trainer.global_step:
                self.seen = {group["lr"] / pl_module.lr_at(trainer.global_step - 1) for group in optimizer.param_groups}

    shares = [1.0, 0.9, 0.9**2, 0.9**3, 0.2 * 0.9**3]
    first, again = Rates(), Rates()
    trainer = fit(_dinov2(), first, folder=tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    fit(_dinov2(), again, folder=tmp_path, max_epochs=2, ckpt_path=tmp_path / "end.ckpt")
    for rates in (first, again):
        assert sorted(rates.seen, reverse=True) == pytest.approx(shares)


@pytest.mark.parametrize("centering", ["mean", "sinkhorn_knopp"])
@pytest.mark.parametrize("step", [1, 4])
def test_stop_and_resume_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, sample_cache: Path, step: int, centering: str
) -> None:
    path = tmp_path / "middle.ckpt"
    states = []
    for callbacks, resume in (([SaveAt(step, path)], None), ([], path)):
        method = _dinov2(patch_head="own", centering=centering)
        data = ShardData("sample://tiny", 20, num_workers=0)
        trainer = fit(method, *callbacks, folder=tmp_path, data=data, max_epochs=2, ckpt_path=resume)
        assert trainer.global_step == 6
        states.append(method.state_dict())
        torch.manual_seed(99)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_two_global_views_alone_are_enough() -> None:
    method = DINOv2(_dinov2().encoder, MultiCrop([ViewRecipe(count=2, size_px=32)]), n_prototypes=8).train()
    assert method.step(method.make_views(tiny_batch())).loss.isfinite()


def test_bf16_trains_with_a_loss_in_float32(tmp_path: Path) -> None:
    method = _dinov2()
    fit(method, folder=tmp_path, precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16):
        assert method.step(method.make_views(tiny_batch())).loss.dtype == torch.float32


def test_the_defaults_are_the_published_ones() -> None:
    method = DINOv2(Encoder.tiny(), MultiCrop.tiny())
    recipe = method.recipe
    assert (recipe.lr, recipe.lr_per_images, recipe.min_lr, recipe.warmup_epochs) == (5e-4, 1024, 1e-6, 20.0)
    assert (recipe.weight_decay, recipe.weight_decay_end, recipe.clip_per_tensor) == (0.04, 0.2, 3.0)
    assert (method.mask_probability, method.mask_ratio, method.koleo_weight) == (0.5, (0.1, 0.5), 0.1)
    assert (method.teacher_temperature_start, method.teacher_temperature, method.teacher_momentum) == (
        0.04,
        0.07,
        0.996,
    )
    assert method.patch_head is None


class _NoTokens(BagOfChannels):
    """A strategy that embeds, but has no tokens to hide."""

    def __init__(self, backbone: Any) -> None:
        super().__init__(backbone)
        self.tokenised = False


def test_a_strategy_without_patch_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="DINOv2 does not work with _NoTokens: dinov2 predicts hidden patches"):
        _dinov2(_NoTokens(BagOfChannels.tiny().backbone))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"patch_weight": 0.0}, "patch_weight=0"),
        ({"koleo_weight": -1.0}, "koleo_weight=-1"),
        ({"mask_probability": 0.0}, "mask_probability=0"),
        ({"mask_probability": 1.5}, r"mask_probability=1\.5"),
        ({"mask_ratio": (0.0, 0.5)}, "mask_ratio"),
        ({"mask_ratio": (0.5, 0.1)}, "mask_ratio"),
        ({"mask_ratio": (0.5, 1.0)}, "mask_ratio"),
        ({"mask_channels": "alike"}, "mask_channels='alike'"),
        ({"patch_head": "both"}, "patch_head='both'"),
        ({"n_patch_prototypes": 8}, "n_patch_prototypes=8 has no effect"),
        ({"centering": "none"}, "centering='none'"),
        ({"layer_decay": 2.0}, "layer_decay=2"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        _dinov2(**changes)

"""SimCLR: what it contrasts, what it refuses, and its contract."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.module import ShardData
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.base import Method
from morphem.methods.simclr import SimCLR
from morphem.normalizers import SelfNormalize
from morphem.testing import check_method
from morphem.testing.batches import take, tiny_batch
from morphem.types import ChannelBatch
from tests.methods.test_base import SaveAt
from tests.references import nt_xent as plain
from tests.tiny_fit import fit


def _simclr(*recipes: ViewRecipe, **changes: Any) -> SimCLR:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"head_hidden_dim": 16, "head_output_dim": 8, "lr": 1e-3, "warmup_epochs": 0, **changes}
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32)
    return SimCLR(encoder, MultiCrop(list(recipes) or [ViewRecipe(count=2, size_px=16)]), **settings)


class PerImage(BagOfChannels):
    """One embedding per image: the mean over its planes."""

    per_channel = False

    def forward(self, batch: ChannelBatch) -> torch.Tensor:
        planes = super().forward(batch)
        return torch.stack([part.mean(0) for part in planes.split(batch.offsets.diff().tolist())])


@pytest.mark.slow
def test_the_method_keeps_its_contract() -> None:
    check_method(SimCLR)


@pytest.mark.parametrize("head_layers", [0, 2, 3])
def test_the_loss_is_that_of_the_projections_of_all_planes(head_layers: int) -> None:
    method = _simclr(head_layers=head_layers).train()
    views = method.make_views(tiny_batch())
    output = method.step(views)
    first, second = (method.head(method.encoder(view)).detach().double().numpy() for view in views)
    assert float(output.loss.detach()) == pytest.approx(plain.nt_xent(first, second, 0.1), rel=1e-4)
    assert len(first) == views[0].n_planes
    assert output.logs.keys() == {"alignment", "contrast_accuracy"}


def test_images_are_contrasted_where_the_strategy_embeds_images() -> None:
    method = _simclr()
    encoder = Encoder(PerImage(method.encoder.channels.backbone), SelfNormalize(), input_size_px=32)
    method = SimCLR(encoder, method.views, head_hidden_dim=16, head_output_dim=8)
    batch = tiny_batch()
    views = method.make_views(batch)
    first, second = (method.head(encoder(view)).detach().double().numpy() for view in views)
    assert len(first) == batch.n_images
    assert float(method.step(views).loss.detach()) == pytest.approx(plain.nt_xent(first, second, 0.1), rel=1e-4)
    with pytest.raises(ConfigError, match="the global batch holds one image"):
        method.train().step(method.make_views(take(batch, [0])))


def test_views_with_other_channels_are_compared_where_the_strategy_embeds_images() -> None:
    encoder = Encoder(PerImage(_simclr().encoder.channels.backbone), SelfNormalize(), input_size_px=32)
    views = MultiCrop([ViewRecipe(count=2, size_px=16, channel_drop=1.0)])
    method = SimCLR(encoder, views, head_hidden_dim=16, head_output_dim=8).train()
    assert method.step(method.make_views(tiny_batch())).loss.isfinite()


def test_one_image_in_a_batch_is_refused_in_training_and_counts_nothing_in_validation() -> None:
    method, batch = _simclr(), take(tiny_batch(), [1])
    with pytest.raises(ConfigError, match=r"nothing to tell it from; raise data\.batch_size") as caught:
        method.train().step(method.make_views(batch))
    assert "\n" not in str(caught.value)
    assert float(method.eval().step(method.make_views(batch)).loss.detach()) == 0.0


def test_the_planes_of_one_image_are_told_apart() -> None:
    method = _simclr().train()
    assert float(method.step(method.make_views(take(tiny_batch(), [0]))).loss.detach()) > 0


@pytest.mark.parametrize("recipes", [[(1, 16)], [(3, 16)], [(2, 16), (1, 16)]])
def test_anything_but_two_views_is_refused(recipes: list[tuple[int, int]]) -> None:
    with pytest.raises(ConfigError, match=r"two views of an image, but views\.recipes makes \d"):
        _simclr(*(ViewRecipe(count=count, size_px=size) for count, size in recipes))


def test_two_recipes_of_one_view_each_are_two_views() -> None:
    method = _simclr(ViewRecipe(count=1, size_px=16), ViewRecipe(count=1, size_px=32)).train()
    assert method.step(method.make_views(tiny_batch())).loss.isfinite()


def test_dropping_channels_is_refused_where_each_plane_is_embedded_alone() -> None:
    with pytest.raises(ConfigError, match="channel_drop"):
        _simclr(ViewRecipe(count=2, size_px=16, channel_drop=0.5))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"temperature": 0.0}, "temperature=0"),
        ({"head_layers": 1}, "head_layers=1"),
        ({"head_layers": -1}, "head_layers=-1"),
        ({"head_hidden_dim": 0}, "head_hidden_dim=0"),
        ({"head_output_dim": 0}, "head_output_dim=0"),
        ({"head_layers": 0, "head_batch_norm": True}, "head_batch_norm has no effect"),
        ({"lr": -1.0}, "lr"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        _simclr(**changes)


def test_the_head_s_statistics_have_to_be_shared_by_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Method, "on_train_start", lambda self: None)
    monkeypatch.setattr(SimCLR, "trainer", SimpleNamespace(world_size=2))
    _simclr().on_train_start()
    method = _simclr(head_batch_norm=True)
    with pytest.raises(ConfigError, match=r"on 2 devices needs trainer\.sync_batchnorm=true"):
        method.on_train_start()
    method.head = nn.SyncBatchNorm.convert_sync_batchnorm(method.head)
    method.on_train_start()


def test_the_defaults_are_the_published_ones() -> None:
    recipe = SimCLR(_simclr().encoder, MultiCrop([ViewRecipe(count=2, size_px=16)])).recipe
    assert (recipe.lr, recipe.lr_per_images, recipe.min_lr, recipe.warmup_epochs) == (5e-5, None, 0.0, 10.0)
    assert (recipe.betas, recipe.clip_per_tensor) == ((0.9, 0.95), None)


def test_the_head_is_not_exported() -> None:
    method = _simclr()
    assert method.exported_encoder() is method.encoder
    assert not any("head" in key for key in method.encoder.state_dict())


@pytest.mark.parametrize("head_batch_norm", [False, True])
@pytest.mark.parametrize("step", [1, 3, 4])
def test_stop_and_resume_gives_the_same_weights_bit_for_bit(
    tmp_path: Path, sample_cache: Path, step: int, head_batch_norm: bool
) -> None:
    path = tmp_path / "middle.ckpt"
    states = []
    for callbacks, resume in (([SaveAt(step, path)], None), ([], path)):
        method = _simclr(head_batch_norm=head_batch_norm, warmup_epochs=1)
        data = ShardData("sample://tiny", 20, num_workers=0)
        trainer = fit(method, *callbacks, folder=tmp_path, data=data, max_epochs=2, ckpt_path=resume)
        assert trainer.global_step == 6
        states.append(method.state_dict())
        torch.manual_seed(99)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_bf16_trains_with_a_loss_in_float32(tmp_path: Path) -> None:
    method = _simclr()
    fit(method, folder=tmp_path, precision="bf16-mixed")
    with torch.autocast("cpu", torch.bfloat16):
        assert method.step(method.make_views(tiny_batch())).loss.dtype == torch.float32

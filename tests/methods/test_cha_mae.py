"""ChA-MAE: what labels add to a masked autoencoder, and what it refuses."""

from typing import Any

import pytest
import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.memory_fusion import MemoryFusion
from morphem.channels.slot_attention import SlotAttention
from morphem.data.view_recipe import ViewRecipe
from morphem.data.views import MultiCrop
from morphem.decoders import DecoderRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.losses.reconstruction import LossRecipe
from morphem.masking import MaskRecipe, hidden_tokens
from morphem.methods.cha_mae import ChaMAE, channel_aware_decoder
from morphem.methods.mae import MAE
from morphem.normalizers import SelfNormalize
from morphem.testing.batches import tiny_batch
from morphem.testing.methods import check_learning, check_method, check_resume, check_step, check_validation


def _method(strategy: ChannelStrategy | None = None, **changes: Any) -> ChaMAE:
    torch.manual_seed(0)
    encoder = Encoder(strategy or MemoryFusion.tiny(), SelfNormalize(), input_size_px=32)
    views = MultiCrop([ViewRecipe(count=1, size_px=32, area=(0.9, 1.0))])
    return ChaMAE(encoder, views, **{"classes": ["first", "second"], **changes})


def test_the_defaults_are_the_published_ones() -> None:
    method = _method()
    assert method.masks == (MaskRecipe("independent", 0.75), MaskRecipe(None, 0.75, channels=True))
    assert method.decoder_recipe == DecoderRecipe(identity="places", width=16, depth=2, n_heads=16)
    assert method.loss == LossRecipe(normalize_patches=True, pixel_weight=0.99, fourier_weight=0.01)
    assert (method.label_weight, method.temperature, method.recipe.lr) == (0.01, 0.11, 4e-4)


@pytest.mark.parametrize(("width", "n_heads"), [(384, 16), (192, 16), (36, 12)])
def test_the_default_decoder_has_up_to_sixteen_heads(width: int, n_heads: int) -> None:
    assert channel_aware_decoder(width).n_heads == n_heads


def test_loss_is_reconstructions_share_and_that_of_labels() -> None:
    method = _method(label_weight=0.25).eval()
    views = method.make_views(tiny_batch())
    with torch.no_grad():
        output = method.step(views)
        reconstruction, (embedding,), _ = method.reconstruct(views)
        labels = views[0].labels[:, 0]
        known = labels >= 0
        distances = torch.cdist(
            torch.nn.functional.normalize(embedding[known].double(), dim=1),
            torch.nn.functional.normalize(method.head.proxies.double(), dim=1),
        )
        told = torch.nn.functional.cross_entropy(-distances.square() / 0.11, labels[known])
    assert not known.all()
    assert float(output.logs["classes"]) == pytest.approx(float(told), rel=1e-4)
    assert float(output.loss) == pytest.approx(0.75 * float(reconstruction) + 0.25 * float(told), rel=1e-5)
    assert float(output.logs["unlabelled"]) == 1
    assert float(output.logs["counted"]) == 5


def test_reconstruction_alone_is_that_of_mae() -> None:
    method = _method().eval()
    twin = MAE(method.encoder, method.views, list(method.masks), method.decoder_recipe, method.loss).eval()
    twin.decoder.load_state_dict(method.decoder.state_dict())
    views = method.make_views(tiny_batch())
    with torch.no_grad():
        assert torch.equal(method.step(views).logs["reconstruction"], twin.step(views).loss)


def test_images_without_any_label_still_train_the_reconstruction() -> None:
    method = _method()
    batch = tiny_batch()
    views = method.make_views(batch._replace(labels=torch.full_like(batch.labels, -1)))
    output = method.step(views)
    output.loss.backward()
    assert float(output.logs["classes"]) == 0
    assert float(output.loss.detach()) == pytest.approx(0.99 * float(output.logs["reconstruction"]), rel=1e-6)
    assert method.decoder.predict.weight.grad.abs().sum() > 0


def test_labels_are_told_from_what_is_visible_and_train_the_fusion() -> None:
    method = _method()
    views = method.make_views(tiny_batch())
    _, (embedding,), _ = method.reconstruct(views)
    embedding.square().sum().backward()
    assert method.encoder.channels.gather.query.grad.abs().sum() > 0
    assert method.encoder.channels.memory.grad.abs().sum() > 0


def test_about_half_of_the_images_lose_whole_channels() -> None:
    method = _method(ChannelAttention.tiny())
    batch = tiny_batch([("nucleus", "actin", "rna")] * 60, [(40, 40)])
    view = method.make_views(batch)[0]
    (part,) = method.encoder.channels.sequences(view)
    whole = hidden_tokens(method.masks, view, part).unflatten(1, (3, 16)).all(2).any(1)
    assert 18 <= int(whole.sum()) <= 42


@pytest.mark.parametrize(
    ("strategy", "settings", "message"),
    [
        (BagOfChannels, {}, "ChaMAE does not work with BagOfChannels: .* so no channel can be hidden; take mae"),
        (FixedChannels, {}, "ChaMAE does not work with FixedChannels"),
        (ChannelAgnostic, {}, "places has no effect over ChannelAgnostic"),
        (MemoryFusion, {"label_weight": 0.0}, "without labels take mae"),
        (MemoryFusion, {"label_weight": 1.0}, "above 0 and below 1"),
        (MemoryFusion, {"temperature": 0.0}, "temperature=0.0 has to be above 0"),
        (MemoryFusion, {"head": "mlp"}, "head='mlp' is not known"),
        (MemoryFusion, {"classes": ["one"]}, "cha_mae: .* has one class alone"),
        (MemoryFusion, {"masks": [MaskRecipe(ratio=0.99)]}, "leaves 0 visible"),
    ],
)
def test_settings_without_sense_are_refused(
    strategy: type[ChannelStrategy], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        _method(strategy.tiny(), **settings)


@pytest.mark.slow
def test_cha_mae_keeps_the_contract() -> None:
    check_method(ChaMAE)


@pytest.mark.slow
def test_the_published_decoder_and_the_linear_head_keep_the_contract(monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"head": "linear", "temperature": 5.0, "lr": 3e-3, "warmup_epochs": 0}
    both = [MaskRecipe(ratio=0.25, channels=True)]
    monkeypatch.setattr(ChaMAE, "tiny", lambda: _method(masks=both, label_weight=0.3, **settings))
    check_method(ChaMAE)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [ChannelAttention, ChannelAgnostic, SlotAttention])
def test_cha_mae_keeps_the_contract_over_other_strategies(strategy: type[ChannelStrategy]) -> None:
    check_step(ChaMAE, strategy)
    check_validation(ChaMAE, strategy)
    check_learning(ChaMAE, 30, strategy)
    check_resume(ChaMAE, strategy)

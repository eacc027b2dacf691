"""MAE: its loss against the formula, what the encoder gets to see, and what it refuses."""

from typing import Any

import pytest
import torch
from torch import Tensor

from morphem.backbones.class_token import ClassTokenBlock
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.memory_fusion import MemoryFusion
from morphem.channels.sequences import Sequences
from morphem.channels.slot_attention import SlotAttention
from morphem.data.view_recipe import ViewRecipe
from morphem.data.views import MultiCrop
from morphem.decoders import DecoderRecipe
from morphem.errors import ChannelError, ConfigError
from morphem.losses.reconstruction import LossRecipe
from morphem.masking import MaskRecipe, hidden_tokens
from morphem.methods.mae import MAE
from morphem.spec import from_spec, to_spec
from morphem.testing.batches import take, tiny_batch
from morphem.testing.methods import check_learning, check_method, check_resume, check_step, check_validation
from morphem.types import ChannelBatch
from tests.methods.tiny_mae import SMALL, TYPES, tiny_mae
from tests.references import masked_autoencoder as plain

CONTEXT = DecoderRecipe(identity="context", **SMALL)
PER_CHANNEL = DecoderRecipe(kind="per_channel", identity="types", channels=TYPES, **SMALL)
NONE = DecoderRecipe(**SMALL)


class Spy:
    """Keeps what the encoder was given and what the decoder made of it."""

    def __init__(self, method: MAE, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[Tensor] = []
        self.predicted: list[Tensor] = []
        strategy = method.encoder.channels
        encode = strategy.encode

        def watched(tokens: Tensor) -> Tensor:
            self.seen.append(tokens.detach())
            return encode(tokens)

        monkeypatch.setattr(strategy, "encode", watched)
        method.decoder.register_forward_hook(lambda module, arguments, output: self.predicted.append(output.detach()))


def _view(method: MAE, batch: ChannelBatch | None = None) -> ChannelBatch:
    return method.make_views(batch or tiny_batch())[0]


def _parts(method: MAE, view: ChannelBatch) -> list[tuple[Sequences, Tensor, Tensor]]:
    """Sequences, their pixels and which are hidden, as the step sees them."""
    strategy = method.encoder.channels
    parts = strategy.sequences(view)
    return [(part, strategy.pixels(view, part), hidden_tokens(method.masks, view, part)) for part in parts]


@pytest.mark.parametrize("loss", [LossRecipe(), LossRecipe(over="all", normalize_patches=True, fourier_weight=0.25)])
@pytest.mark.parametrize(
    ("strategy", "decoder"),
    [(BagOfChannels, NONE), (ChannelAttention, CONTEXT), (FixedChannels, NONE)],
)
def test_loss_is_the_mean_over_judged_patches_of_the_batch(
    strategy: type[ChannelStrategy], decoder: DecoderRecipe, loss: LossRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = tiny_mae(strategy.tiny(), decoder=decoder, loss=loss).eval()
    view = _view(method, tiny_batch(getattr(strategy, "panels", (("nucleus", "actin"), ("rna",), ("r", "g", "b")))))
    spy = Spy(method, monkeypatch)
    with torch.no_grad():
        found = float(method.step([view]).loss)
        pixels, magnitudes, counts = [], [], []
        for predicted, (part, target, hidden) in zip(spy.predicted, _parts(method, view), strict=True):
            p, t = predicted.double().numpy(), target.double().numpy()
            if loss.normalize_patches:
                t = plain.np.array([[plain.normalized(patch) for patch in row] for row in t])
            judged = (hidden if loss.over == "hidden" else torch.ones_like(hidden)).numpy()
            pixels.append(plain.pixel_loss(p, t, judged))
            magnitudes.append(plain.magnitude_loss(p, t, judged, (8, 8)) if loss.fourier_weight else 0.0)
            counts.append(judged.sum())
            assert part.tokens.shape[:2] == judged.shape
    total = sum(counts)
    mean = [sum(c * x for c, x in zip(counts, values, strict=True)) / total for values in (pixels, magnitudes)]
    assert found == pytest.approx(mean[0] + loss.fourier_weight * mean[1], rel=1e-5)


@pytest.mark.parametrize("masks", [[MaskRecipe()], [MaskRecipe("flat")], [MaskRecipe(None, channels=True)]])
def test_no_pixel_of_a_hidden_patch_reaches_the_encoder_or_a_prediction(
    masks: list[MaskRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    method = tiny_mae(masks=masks).eval()
    view = _view(method)
    other = view._replace(planes=view.planes.clone())
    for part, _, hidden in _parts(method, view):
        for b, t in hidden.nonzero().tolist():
            plane = int(part.planes[b, part.channels[b, t]])
            y, x = divmod(int(part.patches[b, t]), part.grid[1])
            other.planes[plane, 0, 8 * y : 8 * y + 8, 8 * x : 8 * x + 8] += 5.0
    assert (other.planes != view.planes).float().mean() > 0.3
    spy = Spy(method, monkeypatch)
    with torch.no_grad():
        first, second = method.step([view]), method.step([other])
    half = len(spy.seen) // 2
    for name in ("seen", "predicted"):
        values = getattr(spy, name)
        assert all(torch.equal(a, b) for a, b in zip(values[:half], values[half:], strict=True)), name
    assert torch.equal(first.embedding, second.embedding)
    assert second.loss > first.loss + 1.0


def test_three_quarters_of_the_patches_never_enter_the_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    method = tiny_mae()
    spy = Spy(method, monkeypatch)
    view = _view(method)
    method.step([view])
    assert sum(tokens.shape[0] * tokens.shape[1] for tokens in spy.seen) == view.n_planes * 16 // 4


@pytest.mark.parametrize("decoder", [DecoderRecipe(identity="types", **SMALL), PER_CHANNEL])
def test_an_image_is_reconstructed_alone_as_among_others(decoder: DecoderRecipe) -> None:
    method = tiny_mae(masks=[MaskRecipe(), MaskRecipe(None, channels=True)], decoder=decoder).eval()
    view = _view(method)
    with torch.no_grad():
        together = method.step([view])
        total, count = 0.0, 0
        for image in range(view.n_images):
            alone = take(view, [image])
            output = method.step([alone])
            hidden = sum(int(hidden.sum()) for _, _, hidden in _parts(method, alone))
            torch.testing.assert_close(output.embedding[0], together.embedding[image], atol=1e-5, rtol=1e-5)
            total, count = total + hidden * float(output.loss), count + hidden
    assert float(together.loss) == pytest.approx(total / count, rel=1e-5)


def test_batch_mates_count_in_the_context_of_the_batch_and_nowhere_else() -> None:
    sample = DecoderRecipe(identity="context", context_over="sample", **SMALL)
    for decoder, alike in ((CONTEXT, False), (sample, True)):
        method = tiny_mae(decoder=decoder).eval()
        view = _view(method, tiny_batch([("nucleus", "actin"), ("nucleus",)]))
        with torch.no_grad():
            together, first, second = (method.step([x]) for x in (view, take(view, [0]), take(view, [1])))
        mean = (24 * float(first.loss) + 12 * float(second.loss)) / 36
        assert (abs(float(together.loss) - mean) < 1e-6) == alike
        torch.testing.assert_close(together.embedding[0], first.embedding[0], atol=1e-5, rtol=1e-5)


def test_several_views_are_averaged() -> None:
    method = tiny_mae(n_views=3).eval()
    views = method.make_views(tiny_batch())
    with torch.no_grad():
        losses = [float(method.step([view]).loss) for view in views]
        assert float(method.step(views).loss) == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert len({round(loss, 6) for loss in losses}) == 3


def test_views_of_an_image_are_masked_at_different_places() -> None:
    method = tiny_mae(BagOfChannels.tiny(), decoder=NONE, n_views=2)
    first, second = (_parts(method, view)[0][2] for view in method.make_views(tiny_batch()))
    assert (first != second).any(1).float().mean() > 0.9


def test_one_plane_of_each_image_is_reconstructed_where_the_bag_draws_one() -> None:
    strategy = BagOfChannels.tiny()
    strategy.planes = "one"
    method = tiny_mae(strategy, decoder=NONE)
    batch = tiny_batch()
    output = method.step(method.make_views(strategy.select(batch)))
    assert len(output.embedding) == batch.n_images


def test_other_terms_are_logged_by_name() -> None:
    loss = LossRecipe(fourier_weight=0.01, low_pass_weight=0.1, high_pass_weight=0.2)
    output = tiny_mae(loss=loss).step([_view(tiny_mae(loss=loss))])
    logs = output.logs
    assert list(logs) == ["pixels", "fourier", "low_pass", "high_pass"]
    expected = logs["pixels"] + 0.01 * logs["fourier"] + 0.1 * logs["low_pass"] + 0.2 * logs["high_pass"]
    torch.testing.assert_close(output.loss.detach(), expected)


def test_the_encoder_runs_whole_blocks_because_patches_are_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The class token alone, which use and DINO compute, would leave the decoder nothing."""
    asked: list[bool] = []
    forward = ClassTokenBlock.forward

    def watched(self: Any, *arguments: Any, first_only: bool = False, **further: Any) -> Tensor:
        asked.append(first_only)
        return forward(self, *arguments, first_only=first_only, **further)

    monkeypatch.setattr(ClassTokenBlock, "forward", watched)
    method = tiny_mae()
    method.step([_view(method)])
    assert asked
    assert not any(asked)


def test_settings_survive_the_spec() -> None:
    method = tiny_mae(
        masks=[MaskRecipe("flat", 0.5), MaskRecipe(None, channels=True, weight=2.0)],
        decoder=PER_CHANNEL,
        loss=LossRecipe(normalize_patches=True, fourier_weight=0.01),
    )
    again = from_spec(to_spec(method))
    assert (again.masks, again.decoder_recipe, again.loss) == (method.masks, method.decoder_recipe, method.loss)
    assert list(again.state_dict()) == list(method.state_dict())


@pytest.mark.parametrize(
    ("strategy", "settings", "message"),
    [
        (BagOfChannels, {"masks": []}, "masks is empty"),
        (BagOfChannels, {"masks": [MaskRecipe(ratio=0.99)]}, r"ratio=0\.99 of 16 patches leaves 0 visible"),
        (BagOfChannels, {"masks": [MaskRecipe(None, channels=True)]}, "have no meaning over BagOfChannels"),
        (FixedChannels, {"masks": [MaskRecipe(channels=True)]}, "have no meaning over FixedChannels"),
        (BagOfChannels, {"size_px": 36}, "views of 36 px .* do not divide into patches of 8 x 8"),
        (ChannelAttention, {}, "over ChannelAttention decoder.identity: none"),
        (FixedChannels, {"decoder": DecoderRecipe(identity="types", **SMALL)}, "has no meaning over FixedChannels"),
        (
            ChannelAgnostic,
            {"decoder": DecoderRecipe(identity="places", **SMALL)},
            "places has no effect over ChannelAgnostic",
        ),
        (BagOfChannels, {"lr": -1.0}, "lr=-1.0 has to be above 0"),
    ],
)
def test_settings_without_sense_are_refused(
    strategy: type[ChannelStrategy], settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_mae(strategy.tiny(), **{"decoder": NONE, **settings})


def test_channel_drop_is_refused_where_planes_stand_alone() -> None:
    encoder = tiny_mae(BagOfChannels.tiny(), decoder=NONE).encoder
    with pytest.raises(ConfigError, match="channel_drop has no meaning"):
        MAE(encoder, MultiCrop([ViewRecipe(count=1, size_px=32, channel_drop=0.5)]))


def test_a_strategy_without_tokens_is_refused() -> None:
    strategy = BagOfChannels.tiny()
    strategy.tokenised = False
    with pytest.raises(ConfigError, match="MAE does not work with BagOfChannels: it gives no patch tokens"):
        tiny_mae(strategy, decoder=NONE)


def test_a_channel_type_without_decoder_is_refused_by_name() -> None:
    method = tiny_mae(decoder=DecoderRecipe(identity="types", channels=("nucleus",), **SMALL))
    with pytest.raises(ChannelError, match="'actin' is not among those of the decoder"):
        method.step([_view(method)])


@pytest.mark.slow
def test_mae_keeps_the_contract() -> None:
    check_method(MAE)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", [ChannelAttention, FixedChannels, ChannelAgnostic, SlotAttention, MemoryFusion])
def test_mae_keeps_the_contract_over_other_strategies(strategy: type[ChannelStrategy]) -> None:
    check_step(MAE, strategy)
    check_validation(MAE, strategy)
    check_learning(MAE, 30, strategy)
    check_resume(MAE, strategy)


SCHEMES: dict[str, dict[str, Any]] = {
    "campfire": {
        "masks": [MaskRecipe("synchronised", 0.8)],
        "decoder": CONTEXT,
        "loss": LossRecipe(over="all", low_pass_weight=0.5, low_pass_cutoff=0.3, high_pass_weight=0.5),
    },
    "ca_mae": {
        "masks": [MaskRecipe("flat")],
        "decoder": PER_CHANNEL,
        "loss": LossRecipe(pixel_weight=0.99, fourier_weight=0.01),
    },
    "dynamic masks, encoder's places": {
        "masks": [MaskRecipe(), MaskRecipe(None, channels=True), MaskRecipe(ratio=0.25, channels=True)],
        "decoder": DecoderRecipe(identity="places", **SMALL),
        "loss": LossRecipe(normalize_patches=True, pixel_weight=0.99, fourier_weight=0.01),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_published_schemes_keep_the_contract(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MAE, "tiny", lambda: tiny_mae(**SCHEMES[scheme], lr=3e-3))
    check_method(MAE)

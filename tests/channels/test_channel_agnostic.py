from pathlib import Path

import pytest
import torch

from morphem.backbones.parallel import ParallelTransformer
from morphem.backbones.vit import VisionTransformer
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.selection import keep_planes
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.normalizers import SelfNormalize
from morphem.testing import check_encoder, check_strategy, dense_batch
from morphem.testing.batches import take
from tests.channels import golden_networks
from tests.channels.odd_backbones import Averages
from tests.references import golden as golden_cases

PANELS = [["nucleus", "actin", "rna"], ["nucleus"], ["r", "g", "b"]]
POOLINGS = ["class", "mean", "mean_norm"]


def _tiny(pooling: str = "class", sampling: str = "none") -> ChannelAgnostic:
    torch.manual_seed(0)
    return ChannelAgnostic(VisionTransformer.tiny(), pooling, sampling).eval()  # type: ignore[arg-type]


def test_the_contract_is_kept() -> None:
    check_strategy(ChannelAgnostic)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_an_encoder_of_it_is_pure(pooling: str) -> None:
    check_encoder(Encoder(_tiny(pooling), SelfNormalize(), input_size_px=16).eval())


@pytest.mark.parametrize("case", ["three_channels", "five_channels", "one_channel", "permuted"])
def test_the_encoder_of_campfire_gives_what_its_authors_code_gives(golden: Path, case: str) -> None:
    tensors = golden_cases.tensors(golden, "campfire")
    weights = golden_networks.load(golden / "campfire.ckpt")["state_dict"]
    own = {key: value for key, value in weights.items() if key.startswith("encoder.")}
    shape = golden_networks.backbone(own, 16, "encoder.")
    backbone = VisionTransformer(
        "vit_tiny_patch16_224",
        patch_size_px=14,
        image_size_px=112,
        embed_dim=shape.embed_dim,
        depth=len(shape.network.blocks),
        n_heads=16,
        positions="sincos",
    )
    strategy = ChannelAgnostic(backbone, pooling="mean_norm")
    computed = strategy.backbone.network.pos_embed.clone()
    strategy.load_state_dict(golden_networks.network_keys(own, "encoder."))
    torch.testing.assert_close(computed, strategy.backbone.network.pos_embed, atol=1e-6, rtol=0)
    images = tensors["five_channels.images" if case == "permuted" else f"{case}.images"].double()
    images = images[:, [3, 1, 4, 0, 2]] if case == "permuted" else images
    images = (images - images.mean((2, 3), keepdim=True)) / images.std((2, 3), correction=0, keepdim=True)
    batch = golden_networks.dense(list(images), [["other"] * images.shape[1]] * len(images))
    with torch.no_grad():
        result = strategy.eval().double()(batch)
    torch.testing.assert_close(result, tensors[f"{case}.features_f64"], atol=1e-6, rtol=0)


def test_names_of_channels_make_no_difference() -> None:
    strategy, batch = _tiny(), dense_batch(PANELS)
    renamed = batch._replace(channel_types=("other",) * 7)
    assert torch.equal(strategy(batch), strategy(renamed))


def test_all_channels_have_the_same_places() -> None:
    part = _tiny().sequences(dense_batch(PANELS))[1]
    assert part.places.shape == (2, 48, 16)
    assert torch.equal(part.places[:, :16], part.places[:, 16:32])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_first_encoded_token_is_the_embedding(pooling: str) -> None:
    strategy, batch = _tiny(pooling), dense_batch(PANELS)
    embeddings = strategy(batch)
    for part in strategy.sequences(batch):
        encoded = strategy.encode(part.tokens)
        torch.testing.assert_close(encoded[:, 0], embeddings[part.rows], atol=1e-5, rtol=0)
        assert encoded.shape[1] == 1 + part.tokens.shape[1]


def test_the_mean_is_over_the_patch_tokens_alone() -> None:
    strategy, batch = _tiny("mean"), dense_batch([["nucleus", "actin"]])
    tokens = strategy.backbone.encode(strategy.sequences(batch)[0].tokens)
    torch.testing.assert_close(strategy(batch), tokens[:, 1:].mean(1), atol=1e-6, rtol=0)


def test_every_pooling_gives_another_embedding() -> None:
    batch = dense_batch(PANELS)
    class_token, mean, _ = (_tiny(pooling)(batch) for pooling in POOLINGS)
    assert not torch.allclose(class_token, mean, atol=1e-2)
    strategy = _tiny("mean_norm")
    torch.nn.init.constant_(strategy.backbone.network.norm.weight, 2.0)
    plain = ChannelAgnostic(strategy.backbone, "mean").eval()
    assert not torch.allclose(strategy(batch), plain(batch), atol=1e-2)


def test_sampling_leaves_channels_out_in_training_only() -> None:
    strategy, batch = _tiny(sampling="batch"), dense_batch([["nucleus", "actin", "rna", "r"]] * 5)
    assert [part.planes.shape for part in strategy.sequences(batch)] == [(5, 4)]
    strategy.train()
    counts = {strategy.sequences(batch._replace(seeds=batch.seeds + seed))[0].planes.shape[1] for seed in range(20)}
    assert counts == {1, 2, 3, 4}


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"pooling": "max"}, "pooling='max' must be one of"), ({"sampling": "all"}, "sampling='all' must be one of")],
)
def test_a_setting_that_does_not_exist_is_refused(settings: dict[str, str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _tiny(**settings)


def test_a_backbone_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="Averages gives no patch tokens"):
        ChannelAgnostic(Averages())  # type: ignore[arg-type]


def _parallel(**settings) -> ChannelAgnostic:
    torch.manual_seed(0)
    return ChannelAgnostic(ParallelTransformer.tiny(), **settings).eval()


def test_channelwise_gives_every_plane_the_mean_of_its_own_tokens_in_their_order() -> None:
    batch = dense_batch(PANELS)
    whole, each = _parallel(pooling="mean"), _parallel(pooling="channelwise")
    assert each.per_channel
    assert not each.tokenised
    planes = each(batch)
    assert planes.shape == (7, 16)
    means = torch.stack([part.mean(0) for part in planes.split(batch.offsets.diff().tolist())])
    torch.testing.assert_close(means, whole(batch), atol=1e-6, rtol=0)
    turned = take(batch, [2, 0, 1])
    torch.testing.assert_close(each(turned), planes[[4, 5, 6, 0, 1, 2, 3]], atol=1e-6, rtol=0)


def test_an_encoder_with_channelwise_features_is_pure() -> None:
    check_encoder(Encoder(_parallel(pooling="channelwise"), SelfNormalize(), input_size_px=16).eval())


def test_a_plane_alone_has_another_channelwise_feature_than_among_others() -> None:
    strategy, batch = _parallel(pooling="channelwise"), dense_batch([["nucleus", "actin"]])
    alone = strategy(keep_planes(batch, torch.tensor([0])))
    assert not torch.allclose(alone, strategy(batch)[:1], atol=1e-3)


def test_cut_positions_go_on_from_channel_to_channel_and_change_nothing_at_the_trained_size() -> None:
    cut, right = _parallel(cut_positions=True), _parallel()
    table = cut.backbone.patch_positions((2, 2))[0]
    small = dense_batch([["nucleus", "actin"]], size_px=8)  # one patch each
    torch.testing.assert_close(cut.sequences(small)[0].places[0], table[:2])
    trained = dense_batch([["nucleus", "actin"]], size_px=16)
    torch.testing.assert_close(cut(trained), right(trained))
    torch.testing.assert_close(right.sequences(small)[0].places[0, 0], right.sequences(small)[0].places[0, 1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "channelwise", "sampling": "batch"}, "pooling='channelwise' embeds every plane"),
        ({"cut_positions": True}, "cut_positions=true needs the backbone parallel_vit"),
    ],
)
def test_settings_without_effect_are_refused(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ChannelAgnostic(VisionTransformer.tiny(), **settings)

import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.joint import buckets
from morphem.encoder import Encoder
from morphem.errors import ChannelError, ConfigError
from morphem.normalizers import SelfNormalize
from morphem.testing import check_encoder, check_strategy, dense_batch
from morphem.testing.batches import take
from morphem.types import ChannelBatch
from tests.channels.odd_backbones import Averages

PANELS = [["nucleus", "actin", "rna"], ["nucleus"], ["rna", "actin", "nucleus"], ["r", "g", "b", "actin", "rna"]]


def _tiny(**settings) -> ChannelAttention:
    torch.manual_seed(0)
    return ChannelAttention(VisionTransformer.tiny(), ["nucleus", "actin", "rna", "r", "g", "b"], **settings).eval()


def test_the_contract_is_kept() -> None:
    check_strategy(ChannelAttention)


def test_as_part_of_an_encoder_too() -> None:
    check_encoder(Encoder(ChannelAttention.tiny(), SelfNormalize(), input_size_px=16).eval())


def test_images_of_one_channel_count_stand_together_without_padding() -> None:
    sequences = _tiny().sequences(dense_batch(PANELS))
    assert [part.tokens.shape[:2] for part in sequences] == [(1, 16), (2, 48), (1, 80)]
    assert [part.rows.tolist() for part in sequences] == [[1], [0, 2], [3]]
    assert sequences[1].planes.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert sum(part.tokens.shape[:2].numel() for part in sequences) == 16 * 12


def test_buckets_name_the_planes_of_their_images() -> None:
    first, second = buckets(torch.tensor([2, 1, 2]))
    assert (first.rows.tolist(), first.kept.tolist()) == ([1], [[2]])
    assert (second.rows.tolist(), second.kept.tolist()) == ([0, 2], [[0, 1], [3, 4]])


def test_a_token_is_projected_pixels_plus_position_plus_the_embedding_of_its_type() -> None:
    strategy, batch = _tiny(), dense_batch(PANELS)
    part = strategy.sequences(batch)[2]
    token = 2 * 16 + 5  # channel 2 ('b'), patch 5
    assert (part.channels[0, token], part.patches[0, token]) == (2, 5)
    projection = strategy.backbone.network.patch_embed.proj
    pixels = batch.planes[9, 0, 8:16, 8:16]
    expected = (
        projection.weight.flatten(1) @ pixels.flatten()
        + projection.bias
        + strategy.backbone.patch_positions((4, 4))[0, 5]
        + strategy.channel_embedding[5]
    )
    torch.testing.assert_close(part.tokens[0, token], expected, atol=1e-5, rtol=0)
    assert torch.equal(strategy.pixels(batch, part)[0, token], pixels.flatten())


def test_planes_of_one_type_share_their_embedding() -> None:
    part = _tiny().sequences(dense_batch([["actin", "actin"]]))[0]
    assert torch.equal(part.places[0, :16], part.places[0, 16:])


def test_the_same_pixels_under_another_name_give_another_embedding() -> None:
    strategy, batch = _tiny(), dense_batch([["actin", "rna"]])
    assert not torch.allclose(strategy(batch), strategy(batch._replace(channel_types=("actin", "nucleus"))), atol=1e-3)


def test_rows_of_the_table_are_orthonormal_at_first() -> None:
    table = _tiny().channel_embedding.detach()
    torch.testing.assert_close(table @ table.T, torch.eye(6), atol=1e-5, rtol=0)


def test_normal_rows_have_a_standard_deviation_of_a_fiftieth() -> None:
    names = ["nucleus", "actin", "rna", "r", "g", "b"]
    wide = VisionTransformer("vit_tiny_patch16_224", depth=1)
    assert 0.017 < ChannelAttention(wide, names, embedding_init="normal").channel_embedding.std() < 0.023


@pytest.mark.parametrize(("unknown", "row"), [("zero", None), ("mean", slice(None)), ("nearest", slice(0, 1))])
def test_an_unknown_type_gets_what_the_policy_says(unknown: str, row: slice | None) -> None:
    strategy, batch = _tiny(unknown=unknown), dense_batch([["nucleoli"]])
    position = strategy.backbone.patch_positions((4, 4))
    added = strategy.sequences(batch)[0].places - position
    table = strategy.channel_embedding
    expected = torch.zeros(16) if row is None else table[row].mean(0)
    torch.testing.assert_close(added[0], expected.expand(16, -1), atol=1e-6, rtol=0)


def test_an_unknown_type_is_refused_in_training_and_by_default() -> None:
    batch = dense_batch([["nucleoli"]])
    with pytest.raises(ChannelError, match="'nucleoli' is not in the vocabulary"):
        _tiny()(batch)
    with pytest.raises(ChannelError, match="'nucleoli' is not in the vocabulary"):
        _tiny(unknown="zero").train()(batch)


def test_sampling_leaves_channels_out_in_training_only() -> None:
    strategy, batch = _tiny(sampling="sample"), dense_batch([["nucleus", "actin", "rna", "r"]] * 30)
    assert {part.planes.shape[1] for part in strategy.sequences(batch)} == {4}
    parts = strategy.train().sequences(batch)
    assert [part.planes.shape[1] for part in parts] == [1, 2, 3, 4]
    assert torch.equal(torch.cat([part.rows for part in parts]).sort().values, torch.arange(30))
    image_of_plane = batch.image_of_plane()
    for part in parts:
        assert torch.equal(image_of_plane[part.planes], part.rows[:, None].expand_as(part.planes))
        assert strategy.pixels(batch, part).shape == (*part.tokens.shape[:2], 64)


def test_sampling_by_image_does_not_depend_on_batch_mates() -> None:
    strategy, batch = _tiny(sampling="sample").train(), dense_batch([["nucleus", "actin", "rna", "r"]] * 5)
    together = strategy(batch)
    torch.testing.assert_close(strategy(take(batch, [3]))[0], together[3], atol=1e-5, rtol=0)


def test_sampling_by_batch_keeps_the_same_channels_of_every_image() -> None:
    strategy, batch = _tiny(sampling="batch").train(), dense_batch([["nucleus", "actin", "rna", "r"]] * 5)
    numbers = set()
    for seed in range(12):
        (part,) = strategy.sequences(batch._replace(seeds=batch.seeds + seed))
        numbers.add(part.planes.shape[1])
        assert len({tuple(row) for row in (part.planes % 4).tolist()}) == 1
    assert len(numbers) > 1


def test_diverse_sampling_looks_at_the_table() -> None:
    strategy = _tiny(sampling="sample", diversity_temperature=0.01).train()
    with torch.no_grad():  # the first two types look alike, the third does not
        strategy.channel_embedding[1] = strategy.channel_embedding[0]
    batch = dense_batch([["nucleus", "actin", "rna"]] * 60)
    pairs = [set((part.planes % 3)[i].tolist()) for part in strategy.sequences(batch) for i in range(len(part.rows))]
    pairs = [pair for pair in pairs if len(pair) == 2]
    assert len(pairs) > 5
    assert {0, 1} not in pairs


def test_gradients_reach_the_table_while_channels_are_left_out() -> None:
    strategy = _tiny(sampling="sample", diversity_temperature=0.1).train()
    strategy(dense_batch(PANELS)).pow(2).sum().backward()
    assert (strategy.channel_embedding.grad.abs().sum(1) > 0).sum() >= 3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampling": "some"}, "sampling='some' must be one of none, batch, sample"),
        ({"unknown": "guess"}, "unknown='guess'"),
        ({"embedding_init": "ones"}, "embedding_init='ones'"),
        ({"diversity_temperature": 0.1}, "no effect without channel sampling"),
        ({"sampling": "batch", "diversity_temperature": 0.0}, "must be above 0"),
    ],
)
def test_a_setting_without_meaning_is_refused(settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        _tiny(**settings)


def test_a_backbone_without_tokens_is_refused() -> None:
    with pytest.raises(ConfigError, match="Averages gives no patch tokens"):
        ChannelAttention(Averages(), ["nucleus"])  # type: ignore[arg-type]


def test_fixed_positions_cannot_be_nudged() -> None:
    backbone = VisionTransformer("vit_tiny_patch16_224", depth=1, positions="sincos")
    with pytest.raises(ConfigError, match="needs the backbone vit with learned positions"):
        ChannelAttention(backbone, ["nucleus"], nudged_positions=True)


OWN = {"Mito": "mitochondria", "CP nucleus": "CP nucleus", "HPA nucleus": "HPA nucleus"}


def test_names_of_the_authors_aliases_and_numbers_are_understood() -> None:
    strategy = ChannelAttention(VisionTransformer.tiny(), ["mito", "CP nucleus", "HPA nucleus"], own_names=OWN)
    named = [strategy.resolve(name) for name in ("Mito", "mitotracker", "CP nucleus", 2, "0")]
    assert named == ["mitochondria", "mitochondria", "CP nucleus", "HPA nucleus", "mitochondria"]
    assert strategy.types(dense_batch([named[1:4]])).tolist() == [0, 1, 2]


def test_a_name_that_nobody_knows_and_a_number_behind_the_last_are_refused() -> None:
    strategy = ChannelAttention(VisionTransformer.tiny(), ["mito", "CP nucleus", "HPA nucleus"], own_names=OWN)
    with pytest.raises(ChannelError, match="No channel of this encoder 'CP nucleos'; did you mean 'CP nucleus'"):
        strategy.resolve("CP nucleos")
    with pytest.raises(ChannelError, match=r"there is no channel 3: this encoder numbers them 0 to 2"):
        strategy.resolve(3)


def test_an_encoder_without_a_vocabulary_takes_no_numbers() -> None:
    with pytest.raises(ChannelError, match="channel 3 is a number, and this encoder numbers no channels"):
        BagOfChannels.tiny().resolve(3)


def test_a_name_of_the_authors_that_leads_nowhere_is_refused() -> None:
    with pytest.raises(ChannelError, match="own_names: 'Mito' stands for 'mitochondria', but"):
        ChannelAttention(VisionTransformer.tiny(), ["rna"], own_names={"Mito": "mitochondria"})


def test_accidental_positions_lay_the_trained_grid_over_all_channels_where_they_have_as_many_patches() -> None:
    strategy = _tiny(nudged_positions=True, accidental_positions=True)  # trained on 2 x 2 patches
    four = dense_batch([["nucleus", "actin", "rna", "r"]], size_px=8)
    part = strategy.sequences(four)[0]
    added = part.places[0] - strategy.channel_embedding[[0, 1, 2, 3]]
    torch.testing.assert_close(added, strategy.backbone.network.pos_embed[0, 1:])
    two = dense_batch([["nucleus", "actin"]], size_px=8)
    torch.testing.assert_close(strategy(two), _tiny(nudged_positions=True)(two))


def test_padding_is_empty_planes_without_an_embedding_that_smaller_images_see() -> None:
    plain, padded = _tiny(unknown="zero"), _tiny(padded_channels=2, padding_seen=True)
    batch = dense_batch([["actin"], ["rna", "actin", "r"]])
    two = dense_batch([["actin", "mitochondria"]])  # with unknown: zero, mitochondria has no embedding
    two = two._replace(planes=torch.cat([batch.planes[:1], torch.zeros_like(batch.planes[:1])]))
    torch.testing.assert_close(padded(batch)[:1], plain(two), atol=1e-6, rtol=0)
    torch.testing.assert_close(padded(batch)[1:], plain(batch)[1:], atol=1e-6, rtol=0)
    assert not torch.allclose(padded(batch)[:1], plain(batch)[:1], atol=1e-3)


def test_masked_padding_changes_the_positions_of_smaller_images_alone() -> None:
    batch = dense_batch([["actin"], ["rna", "actin"]], size_px=16)  # the trained size of this backbone
    plain, padded = _tiny(nudged_positions=True), _tiny(nudged_positions=True, padded_channels=2)
    stored = plain.sequences(batch)[0].places[0] - plain.channel_embedding[1]
    resampled = plain.sequences(batch)[1].places[0, :4] - plain.channel_embedding[2]
    one, two = padded.sequences(batch)
    torch.testing.assert_close(one.places[0] - padded.channel_embedding[1], resampled)
    torch.testing.assert_close(two.tokens, plain.sequences(batch)[1].tokens)
    assert not torch.allclose(stored, resampled, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"padded_channels": 0}, "padded_channels=0 must be at least 1"),
        ({"padding_seen": True}, "padding_seen=true has no effect without padded_channels"),
        ({"accidental_positions": True}, "accidental_positions=true needs nudged_positions=true"),
    ],
)
def test_compatibility_settings_without_effect_are_refused(settings, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _tiny(**settings)


def test_what_repeats_the_padding_of_others_is_not_trained() -> None:
    strategy = _tiny(padded_channels=2, padding_seen=True)
    batch = ChannelBatch.from_planes([[torch.zeros(16, 16, dtype=torch.uint8)]], [["nucleus"]])
    with pytest.raises(ConfigError, match=r"padding_seen=true repeats .* train with padding_seen=false"):
        strategy.select(batch)
    assert _tiny().select(batch) is batch

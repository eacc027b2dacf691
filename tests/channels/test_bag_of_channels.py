import pytest
import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.errors import ConfigError
from morphem.testing import check_strategy, dense_batch, tiny_batch
from morphem.types import ChannelBatch
from tests.channels.odd_backbones import Averages

_PANELS = [["nucleus", "actin"], ["nucleus"], ["r", "g", "b"]]


def _batch(counts: list[int]) -> ChannelBatch:
    generator = torch.Generator().manual_seed(0)
    images = [
        [torch.randint(0, 256, (16, 16), generator=generator, dtype=torch.uint8) for _ in range(c)] for c in counts
    ]
    batch = ChannelBatch.from_planes(images, [["nucleus", "actin", "er"][:c] for c in counts])
    return batch._replace(planes=batch.planes.float().reshape(-1, 1, 16, 16) / 255)


def test_the_contract_is_kept() -> None:
    check_strategy(BagOfChannels)


def test_every_plane_gets_an_embedding_in_the_order_of_the_planes() -> None:
    strategy, batch = BagOfChannels.tiny().eval(), _batch([2, 1, 3])
    result = strategy(batch)
    assert result.shape == (6, strategy.embed_dim)
    alone = torch.cat([strategy.backbone(plane[None]) for plane in batch.planes])
    torch.testing.assert_close(result, alone, atol=1e-6, rtol=0)


def test_what_a_plane_shows_makes_no_difference() -> None:
    strategy, batch = BagOfChannels.tiny().eval(), _batch([2])
    assert torch.equal(strategy(batch), strategy(batch._replace(channel_types=("actin", "nucleus"))))


def test_the_class_token_of_all_tokens_is_the_embedding() -> None:
    strategy, batch = BagOfChannels.tiny().eval(), dense_batch(_PANELS)
    (sequences,) = strategy.sequences(batch)
    encoded = strategy.encode(sequences.tokens)
    assert encoded.shape == (6, 1 + 16, strategy.embed_dim)
    assert sequences.rows.tolist() == list(range(6))
    torch.testing.assert_close(encoded[:, 0], strategy(batch), atol=1e-5, rtol=0)


def test_tokens_without_their_places_are_projected_pixels() -> None:
    strategy, batch = BagOfChannels.tiny().eval(), dense_batch(_PANELS)
    (sequences,) = strategy.sequences(batch)
    projection = strategy.backbone.network.patch_embed.proj
    weight, bias = projection.weight.flatten(1), projection.bias
    expected = strategy.pixels(batch, sequences) @ weight.T + bias
    torch.testing.assert_close(sequences.tokens - sequences.places, expected, atol=1e-5, rtol=0)


def test_the_pixels_of_tokens_are_those_of_their_planes_also_for_some_of_them() -> None:
    strategy, batch = BagOfChannels.tiny(), dense_batch(_PANELS)
    (sequences,) = strategy.sequences(batch)
    some = sequences._replace(channels=sequences.channels[:, 5:7], patches=sequences.patches[:, 5:7])
    pixels = strategy.pixels(batch, some)
    assert torch.equal(pixels[4, 1], batch.planes[4, 0, 8:16, 16:24].flatten())
    assert pixels.shape == (6, 2, 64)


def test_the_order_of_tokens_does_not_matter_to_the_class_token() -> None:
    strategy, batch = BagOfChannels.tiny().eval(), dense_batch(_PANELS)
    (sequences,) = strategy.sequences(batch)
    turned = strategy.encode(sequences.tokens.flip(1))
    torch.testing.assert_close(turned[:, 0], strategy(batch), atol=1e-5, rtol=0)


def test_one_plane_per_image_is_drawn_with_the_seed_of_the_image() -> None:
    strategy = BagOfChannels(BagOfChannels.tiny().backbone, planes="one")
    batch = tiny_batch([["r", "g", "b"]] * 40)
    chosen = strategy.select(batch)
    assert chosen.n_planes == chosen.n_images == 40
    assert set(chosen.channel_types) == {"r", "g", "b"}
    assert strategy.select(batch).channel_types == chosen.channel_types
    assert strategy.select(batch._replace(seeds=batch.seeds + 1)).channel_types != chosen.channel_types


def test_all_planes_are_used_where_nothing_else_is_asked() -> None:
    batch = tiny_batch()
    assert BagOfChannels.tiny().select(batch) is batch


def test_in_use_every_plane_is_embedded_also_where_training_draws_one() -> None:
    strategy, batch = BagOfChannels(BagOfChannels.tiny().backbone, planes="one").eval(), dense_batch(_PANELS)
    assert strategy(batch).shape == (6, strategy.embed_dim)


def test_another_choice_of_planes_is_refused() -> None:
    with pytest.raises(ConfigError, match="planes='two' must be 'all' or 'one'"):
        BagOfChannels(Averages(), planes="two")  # type: ignore[arg-type]


def test_a_backbone_without_tokens_embeds_but_gives_no_sequences() -> None:
    strategy, batch = BagOfChannels(Averages()), dense_batch(_PANELS)
    assert not strategy.tokenised
    assert strategy(batch).shape == (6, 1)
    with pytest.raises(ConfigError, match="Averages gives no patch tokens"):
        strategy.sequences(batch)
    with pytest.raises(ConfigError, match="Averages gives no patch tokens"):
        strategy.encode(torch.zeros(1, 1, 1))

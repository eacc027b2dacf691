"""Rotary positions reach the network through every strategy and method: tokens are turned by where they came from."""

import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.memory_fusion import MemoryFusion
from morphem.channels.slot_attention import SlotAttention
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.dinov2 import DINOv2
from morphem.methods.mae import MAE
from morphem.normalizers import SelfNormalize
from morphem.testing import dense_batch, train
from morphem.testing.methods import panels_of

TYPES = ["nucleus", "actin", "mitochondria", "rna", "bright-field", "r", "g", "b", "endoplasmic reticulum"]


def vit(rotary: str = "axial") -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        "vit_tiny_patch16_224", patch_size_px=8, image_size_px=16, embed_dim=16, depth=2, n_heads=2,
        positions="sincos", rotary=rotary,
    )  # fmt: skip


STRATEGIES = {
    "bag_of_channels": lambda: BagOfChannels(vit()),
    "channel_attention": lambda: ChannelAttention(vit(), TYPES),
    "channel_agnostic": lambda: ChannelAgnostic(vit(), pooling="mean_norm"),
    "slot_attention": lambda: SlotAttention(vit(), n_slots=5),
    "fixed_channels": lambda: FixedChannels(vit(), ["nucleus", "actin", "mitochondria"]),
    "memory_fusion": lambda: MemoryFusion(ChannelAttention(vit(), TYPES), n_memory=2, n_heads=2),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_embedding_is_the_first_of_the_encoded_tokens_told_their_places(name: str) -> None:
    strategy = STRATEGIES[name]().eval()
    batch = dense_batch(panels_of(type(strategy)), 32)
    embeddings = strategy(batch)
    for part in strategy.sequences(batch):
        first = strategy.encode_at(part.tokens, part.coordinates)[:, 0]
        torch.testing.assert_close(embeddings[part.rows], first, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", STRATEGIES)
def test_places_count_and_the_order_of_tokens_does_not(name: str) -> None:
    strategy = STRATEGIES[name]().eval()
    part = strategy.sequences(dense_batch(panels_of(type(strategy)), 32))[0]
    encoded = strategy.encode_at(part.tokens, part.coordinates)
    turned = strategy.encode_at(part.tokens, part.coordinates.flip(1))
    assert float((turned - encoded).detach().abs().max()) > 1e-5
    n = strategy.n_prefix
    both = strategy.encode_at(part.tokens.flip(1), part.coordinates.flip(1))
    torch.testing.assert_close(both[:, :n], encoded[:, :n], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(both[:, n:], encoded[:, n:].flip(1), rtol=1e-4, atol=1e-5)


def test_a_rotary_network_that_is_not_told_places_says_so() -> None:
    strategy = STRATEGIES["channel_attention"]()
    part = strategy.sequences(dense_batch([("nucleus",)], 32))[0]
    with pytest.raises(ConfigError, match="needs the place of every token"):
        strategy.encode(part.tokens)


@pytest.mark.parametrize("method", [MAE, DINOv2], ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("name", ["channel_agnostic", "channel_attention"])
def test_methods_that_hide_patches_train_rotary_networks(name: str, method: type) -> None:
    torch.manual_seed(0)
    trained = method.tiny(Encoder(STRATEGIES[name](), SelfNormalize(), input_size_px=32))
    trace = train(trained, epochs=2)
    assert all(loss == loss for loss in trace.losses)
    assert trace.reached >= {
        key for key, value in trained.named_parameters() if value.requires_grad and "last" not in key
    }

"""Memory tokens and hybrid token fusion: what enters the network, what comes out, and what is refused."""

from typing import Any

import pytest
import torch
from torch import Tensor

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.memory_fusion import AttentionPool, MemoryFusion
from morphem.errors import ConfigError
from morphem.testing import check_strategy
from morphem.testing.batches import dense_batch, take
from tests.references import masked_autoencoder as plain


def _strategy(**changes: Any) -> MemoryFusion:
    torch.manual_seed(0)
    return MemoryFusion(ChannelAttention.tiny(), **{"n_memory": 3, "n_heads": 2, **changes}).eval()


def test_memory_fusion_keeps_the_contract() -> None:
    check_strategy(MemoryFusion)


@pytest.mark.parametrize("fusion", ["gate", "none"])
def test_every_fusion_keeps_the_contract(fusion: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MemoryFusion, "tiny", lambda: _strategy(fusion=fusion))
    check_strategy(MemoryFusion)


def test_gathering_is_the_formula() -> None:
    torch.manual_seed(1)
    pool = AttentionPool(8, 2).double()
    for parameter in pool.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = torch.randn(3, 5, 8).double()
    weights = {name: value.numpy() for name, value in pool.state_dict().items()}
    with torch.no_grad():
        found = pool(tokens)
    for row in range(3):
        expected = torch.from_numpy(plain.attention_pool(tokens[row].numpy(), weights, 2))
        torch.testing.assert_close(found[row], expected)


@pytest.mark.parametrize("fusion", ["add", "gate", "none"])
def test_the_class_token_is_fused_with_what_patches_give_and_the_rest_stays(fusion: str) -> None:
    strategy = _strategy(fusion=fusion)
    tokens = strategy.sequences(take(dense_batch(), [0]))[0].tokens
    with torch.no_grad():
        inner = strategy.channels.encode(torch.cat([strategy.memory[None], tokens], dim=1))
        found = strategy.encode(tokens)
        assert strategy.n_prefix == 4
        assert found.shape == (1, 4 + tokens.shape[1], 16)
        assert torch.equal(found[:, 1:], inner[:, 1:])
        first = inner[:, 0]
        if fusion != "none":
            gathered = strategy.gather(inner[:, 4:])
            first = first + gathered if fusion == "add" else first * torch.sigmoid(gathered)
        torch.testing.assert_close(found[:, 0], first)


def test_memory_tokens_change_the_embedding() -> None:
    strategy = _strategy()
    batch = dense_batch()
    with torch.no_grad():
        before = strategy(batch)
        torch.nn.init.normal_(strategy.memory)
        assert ((strategy(batch) - before).abs().amax(1) > 1e-3).all()


def test_without_memory_only_the_first_token_differs_from_the_inner_strategy() -> None:
    strategy = _strategy(n_memory=0)
    tokens = strategy.sequences(take(dense_batch(), [0]))[0].tokens
    with torch.no_grad():
        found, inner = strategy.encode(tokens), strategy.channels.encode(tokens)
    assert torch.equal(found[:, 1:], inner[:, 1:])
    assert not torch.equal(found[:, 0], inner[:, 0])


def test_images_of_any_channel_count_stand_in_one_batch_over_any_joint_strategy() -> None:
    strategy = MemoryFusion(ChannelAgnostic.tiny(), n_heads=2).eval()
    batch = dense_batch()
    with torch.no_grad():
        together: Tensor = strategy(batch)
        for image in range(batch.n_images):
            torch.testing.assert_close(strategy(take(batch, [image]))[0], together[image], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"channels": BagOfChannels.tiny()}, "BagOfChannels does not put the channels of an image into one sequence"),
        ({"channels": FixedChannels.tiny()}, "FixedChannels does not put the channels"),
        ({"channels": VisionTransformer.tiny()}, "VisionTransformer does not put the channels"),
        ({"fusion": "sum"}, "must be one of add, gate, none"),
        ({"n_memory": -1}, "n_memory=-1 must be at least 0"),
        ({"n_memory": 0, "fusion": "none"}, "does nothing with n_memory=0"),
        ({"n_heads": 5}, "n_heads=5 must divide the width 16"),
    ],
)
def test_settings_without_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MemoryFusion(**{"channels": ChannelAttention.tiny(), "n_heads": 2, **settings})

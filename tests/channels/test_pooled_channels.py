import pytest
import torch

from morphem.backbones.gated_pooling import GatedAttentionPooling
from morphem.backbones.vit import VisionTransformer
from morphem.channels.pooled_channels import PairedChannels, PooledChannels
from morphem.errors import ChannelError, ConfigError
from morphem.testing import check_strategy
from morphem.testing.batches import dense_batch


@pytest.mark.parametrize("cls", [PooledChannels, PairedChannels])
def test_the_contract_is_kept(cls: type[PooledChannels]) -> None:
    check_strategy(cls)


def test_the_embedding_is_pooled_from_all_tokens() -> None:
    torch.manual_seed(0)
    strategy = PooledChannels.tiny().eval()
    batch = dense_batch(PooledChannels.panels[:1])
    with torch.no_grad():
        tokens, weights = strategy.tokens(batch), strategy.attention(batch)  # (1, T, D), (1, heads, T)
        assert tokens.shape[1] == 1 + (batch.planes.shape[-1] // 8) ** 2
        torch.testing.assert_close(strategy(batch), (weights @ tokens).flatten(1))


def test_pairs_stand_side_by_side_in_the_order_of_the_partners() -> None:
    torch.manual_seed(0)
    paired = PairedChannels.tiny().eval()
    two = PooledChannels(VisionTransformer.tiny(), ["nucleus", "mitochondria"], GatedAttentionPooling.tiny()).eval()
    two.load_state_dict(paired.state_dict())
    batch = dense_batch([["actin", "nucleus", "mitochondria"]])
    alone = batch._replace(
        planes=batch.planes[1:],
        sizes=batch.sizes[1:],
        offsets=torch.tensor([0, 2]),
        channel_types=batch.channel_types[1:],
    )
    with torch.no_grad():
        torch.testing.assert_close(paired(batch)[:, two.embed_dim :], two(alone))


def test_an_image_without_a_partner_is_refused() -> None:
    with pytest.raises(ChannelError, match="takes exactly nucleus, actin, mitochondria"):
        PairedChannels.tiny()(dense_batch([["nucleus", "actin"]]))


def test_an_anchor_without_partners_is_refused() -> None:
    with pytest.raises(ChannelError, match="'dna' has no partner"):
        PairedChannels(VisionTransformer.tiny(), "dna", [], GatedAttentionPooling.tiny())


def test_a_pooling_of_another_width_is_refused() -> None:
    with pytest.raises(ConfigError, match="takes tokens of width 8, but those of the backbone have 16"):
        PooledChannels(VisionTransformer.tiny(), ["nucleus"], GatedAttentionPooling(8, 4, 2))

import numpy as np
import pytest
import torch

from morphem.backbones.residual_cnn import ResidualCNN
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError, DataError
from morphem.maps.attention import check_maps, crop_maps
from morphem.normalizers import SelfNormalize
from morphem.types import ChannelBatch
from tests.references import attention as plain

PANEL = ("nucleus", "actin", "rna")


def _vit(**settings: object) -> VisionTransformer:
    torch.manual_seed(0)
    network = VisionTransformer(
        "vit_tiny_patch16_224", patch_size_px=8, image_size_px=32, embed_dim=16, depth=3, n_heads=2, **settings
    )
    for parameter in network.parameters():  # so that attention is far from even
        parameter.data += 0.3 * torch.randn_like(parameter)
    return network.eval()


def _crop(panel: tuple[str, ...] = PANEL, size: tuple[int, int] = (32, 32)) -> ChannelBatch:
    generator = torch.Generator().manual_seed(1)
    planes = [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for _ in panel]
    return ChannelBatch.from_planes([planes], [panel])


def _plain_blocks(network: VisionTransformer, tokens: torch.Tensor) -> list[list[list[list[float]]]]:
    """Attention of every block and head of one sequence, by loops over the network's own queries and keys."""
    blocks, inputs = [], []
    hooks = [block.attn.register_forward_hook(lambda *a: inputs.append(a)) for block in network.network.blocks]
    network.encode(tokens)
    for hook in hooks:
        hook.remove()
    for module, (x, *_), _ in inputs:
        qkv = module.qkv(x)[0].double().reshape(x.shape[1], 3, module.num_heads, -1)
        heads = [plain.weights(qkv[:, 0, h].tolist(), qkv[:, 1, h].tolist()) for h in range(module.num_heads)]
        blocks.append(heads)
    return blocks


@torch.no_grad()
def test_maps_of_a_bag_are_the_attention_of_each_plane_by_plain_loops() -> None:
    network = _vit()
    encoder = Encoder(BagOfChannels(network), SelfNormalize(), input_size_px=None).eval()
    maps = {way: crop_maps(encoder, _crop(), way) for way in ("last", "rollout")}
    dense = encoder.normalizer(_crop()).planes.reshape(3, 1, 32, 32)
    for channel in range(3):
        tokens = network.patches(dense[channel : channel + 1]) + network.patch_positions((4, 4))
        blocks = _plain_blocks(network, tokens)
        means = [np.mean(heads, axis=0).tolist() for heads in blocks]
        last, through = np.array(means[-1][0][1:]), np.array(plain.rollout(means)[1:])
        np.testing.assert_allclose(maps["last"].attention[channel].ravel(), last / last.mean(), rtol=1e-4)
        np.testing.assert_allclose(maps["rollout"].attention[channel].ravel(), through / through.mean(), rtol=1e-4)
        head = np.array(blocks[-1][1][0][1:])
        np.testing.assert_allclose(maps["last"].heads[channel, 1].ravel(), head / head.mean(), rtol=1e-4)
    assert maps["last"].shares is None
    assert maps["last"].attention.std() > 0.05


@torch.no_grad()
def test_tokens_are_those_of_the_network() -> None:
    network = _vit()
    encoder = Encoder(BagOfChannels(network), SelfNormalize(), input_size_px=None).eval()
    dense = encoder.normalizer(_crop()).planes.reshape(3, 1, 32, 32)
    expected = network.tokens(dense)[:, 1:].reshape(3, 4, 4, 16)
    np.testing.assert_allclose(crop_maps(encoder, _crop()).tokens, expected, atol=1e-5)


def _joint(**settings: object) -> Encoder:
    network = _vit()
    strategy = ChannelAttention(network, list(PANEL))
    strategy.channel_embedding.data.normal_(generator=torch.Generator().manual_seed(3))
    return Encoder(strategy, SelfNormalize(), input_size_px=None).eval()


def test_shares_of_channels_follow_their_names() -> None:
    encoder, crop = _joint(), _crop()
    maps = crop_maps(encoder, crop)
    order = [2, 0, 1]
    planes = crop.planes.reshape(3, 32, 32)[order]
    again = crop_maps(encoder, ChannelBatch.from_planes([list(planes)], [[PANEL[i] for i in order]]))
    np.testing.assert_allclose(maps.shares.sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(again.shares, maps.shares[order], atol=1e-5)
    np.testing.assert_allclose(again.attention, maps.attention[order], atol=1e-4)
    np.testing.assert_allclose(maps.attention.mean(), 1, rtol=1e-5)


@torch.no_grad()
def test_a_channel_whose_keys_answer_the_class_token_gets_the_largest_share() -> None:
    encoder = _joint()
    last = encoder.channels.backbone.network.blocks[-1].attn
    for target in range(3):
        change = encoder.channels.channel_embedding.detach().clone()
        encoder.channels.channel_embedding.data[target] += 3.0  # moves all keys of this channel alike
        shares = dict.fromkeys((1, -1))
        for sign in shares:
            last.qkv.weight.data[:16] *= sign  # turns the class token's queries around
            last.qkv.bias.data[:16] *= sign
            shares[sign] = crop_maps(encoder, _crop()).shares
            last.qkv.weight.data[:16] *= sign
            last.qkv.bias.data[:16] *= sign
        encoder.channels.channel_embedding.data = change
        assert max(shares[1][target], shares[-1][target]) > 1 / 3
        assert min(shares[1][target], shares[-1][target]) < 1 / 3


def test_where_the_embedding_is_a_mean_all_patches_ask() -> None:
    encoder = Encoder(ChannelAgnostic(_vit(), pooling="mean"), SelfNormalize(), input_size_px=None).eval()
    by_class = Encoder(ChannelAgnostic(_vit()), SelfNormalize(), input_size_px=None).eval()
    mean, one = crop_maps(encoder, _crop()), crop_maps(by_class, _crop())
    assert not np.allclose(mean.attention, one.attention, atol=1e-3)
    np.testing.assert_allclose(mean.shares.sum(), 1, rtol=1e-5)


def test_patches_of_all_channels_have_one_map() -> None:
    torch.manual_seed(0)
    network = _vit(in_channels=1)
    strategy = FixedChannels(network, list(PANEL))
    maps = crop_maps(Encoder(strategy, SelfNormalize(), input_size_px=None).eval(), _crop())
    assert maps.attention.shape == (1, 4, 4)
    assert maps.shares is None


def test_what_has_no_tokens_is_refused() -> None:
    without = Encoder(BagOfChannels(ResidualCNN.tiny()), SelfNormalize())
    with pytest.raises(ConfigError, match="maps need patch tokens, which BagOfChannels over this"):
        check_maps(without, "last")
    with pytest.raises(ConfigError, match="attention='first' must be one of last, rollout"):
        check_maps(_joint(), "first")
    two = ChannelBatch.cat([_crop(), _crop()])
    with pytest.raises(DataError, match="crop by crop, not of 2"):
        crop_maps(_joint(), two)

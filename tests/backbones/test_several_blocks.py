import pytest
import torch

from morphem.backbones.post_norm import PostNormTransformer
from morphem.backbones.several_blocks import SeveralBlocks
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.fixed_channels import FixedChannels
from morphem.errors import ConfigError
from morphem.spec import from_spec, to_spec
from morphem.testing.batches import dense_batch


def _network() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        "vit_tiny_patch16_224", patch_size_px=8, image_size_px=16, embed_dim=16, depth=3, n_heads=2, registers=1
    ).eval()


def test_class_tokens_of_the_last_blocks_come_oldest_first_and_the_mean_patch_last() -> None:
    network, planes = _network(), torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        found = SeveralBlocks(network, n_blocks=2, mean_patch=True)(planes)
        x, outputs = network.embedded(planes), []
        for block in network.network.blocks:
            x = block(x)
            outputs.append(network.network.norm(x))
        expected = torch.cat([outputs[1][:, 0], outputs[2][:, 0], outputs[2][:, 2:].mean(1)], dim=1)
    torch.testing.assert_close(found, expected)
    assert found.shape == (2, 3 * 16)


def test_one_block_without_patches_is_the_network_itself() -> None:
    network, planes = _network(), torch.randn(2, 1, 16, 24)
    with torch.no_grad():
        torch.testing.assert_close(SeveralBlocks(network, 1, False)(planes), network(planes), atol=1e-5, rtol=0)


def test_strategies_take_it_and_say_that_it_gives_no_tokens() -> None:
    bag = BagOfChannels(SeveralBlocks(_network(), 2))
    assert not bag.tokenised
    fixed = FixedChannels(SeveralBlocks(_network(), 2), ["nucleus", "actin"])
    assert not fixed.tokenised
    batch = dense_batch([("actin", "nucleus")], size_px=16)
    assert fixed(batch).shape == (1, 3 * 16)
    with pytest.raises(ConfigError, match="SeveralBlocks gives no patch tokens"):
        fixed.sequences(batch)


def test_it_is_built_again_from_its_spec() -> None:
    one = SeveralBlocks(_network(), 2)
    again = from_spec(to_spec(one))
    again.load_state_dict(one.state_dict())
    planes = torch.randn(1, 1, 16, 16)
    assert torch.equal(again.eval()(planes), one.eval()(planes))


def test_more_blocks_than_there_are_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_blocks=4 must be from 1 to the depth of the network, 3"):
        SeveralBlocks(_network(), 4)


def test_another_backbone_is_refused() -> None:
    with pytest.raises(ConfigError, match="needs the backbone vit, not PostNormTransformer"):
        SeveralBlocks(PostNormTransformer.tiny(), 1)  # type: ignore[arg-type]

import pytest
import torch
from timm.models.vision_transformer import Block, ParallelThingsBlock
from torch import nn

from morphem.backbones.class_token import ClassTokenBlock, cut_last_block
from morphem.backbones.vit import VisionTransformer


def _block(**settings) -> Block:
    torch.manual_seed(0)
    block = Block(16, 2, **settings)
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    return block.eval()


@pytest.mark.parametrize(
    "settings",
    [{"qkv_bias": True}, {"qkv_bias": False}, {"qk_norm": True, "init_values": 0.1}, {"scale_attn_norm": True}],
)
def test_the_first_token_is_that_of_the_whole_block(settings):
    block = _block(**settings)
    x = torch.randn(3, 7, 16)
    whole = block(x)
    blocks = nn.Sequential(block)
    assert cut_last_block(blocks)
    torch.testing.assert_close(blocks[0](x, first_only=True), whole[:, :1], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(blocks[0](x), whole)


def test_gradients_are_those_of_the_whole_block():
    x = torch.randn(3, 7, 16)
    whole, cut = _block(qkv_bias=True), _block(qkv_bias=True)
    cut_last_block(nn.Sequential(cut))
    whole(x)[:, 0].pow(2).sum().backward()
    cut(x, first_only=True).pow(2).sum().backward()
    for (name, mine), theirs in zip(cut.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-5, msg=name)


def test_stochastic_depth_draws_the_same_planes():
    x = torch.randn(64, 5, 16)
    block = _block(drop_path=0.5).train()
    torch.manual_seed(1)
    whole = block(x)[:, :1]
    cut_last_block(nn.Sequential(block))
    torch.manual_seed(1)
    torch.testing.assert_close(block(x, first_only=True), whole, rtol=1e-5, atol=1e-6)


def test_a_block_of_another_kind_is_left_alone():
    blocks = nn.Sequential(ParallelThingsBlock(16, 2))
    assert not cut_last_block(blocks)
    assert type(blocks[0]) is ParallelThingsBlock


def test_the_embedding_is_the_class_token_of_all_tokens():
    torch.manual_seed(0)
    backbone = VisionTransformer.tiny().eval()
    planes = torch.randn(2, 1, 32, 24)
    assert isinstance(backbone.network.blocks[-1], ClassTokenBlock)
    torch.testing.assert_close(backbone(planes), backbone.tokens(planes)[:, 0], rtol=1e-5, atol=1e-6)

import pytest
import torch
from torch import nn

from morphem.backbones.post_norm import PostNormBlock, PostNormTransformer
from morphem.errors import ConfigError, DataError
from morphem.spec import from_spec, to_spec
from morphem.testing import check_backbone


def test_the_contract_is_kept() -> None:
    check_backbone(PostNormTransformer)


def test_attention_is_that_of_torch() -> None:
    torch.manual_seed(0)
    block, theirs = PostNormBlock(16, 4, 8).double(), nn.MultiheadAttention(16, 4, batch_first=True).double()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = block.qkv.weight.data, block.qkv.bias.data
    theirs.out_proj.weight.data, theirs.out_proj.bias.data = block.proj.weight.data, block.proj.bias.data
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    torch.testing.assert_close(block._attend(x), theirs(x, x, x)[0])


def test_sums_are_normalised_after_each_part() -> None:
    block = PostNormBlock(16, 4, 8)
    out = block(100 * torch.randn(2, 5, 16))
    torch.testing.assert_close(out.mean(2), torch.zeros(2, 5), atol=1e-4, rtol=0)
    torch.testing.assert_close(out.var(2, correction=0), torch.ones(2, 5), atol=1e-2, rtol=0)


def test_any_tokens_can_be_encoded() -> None:
    backbone = PostNormTransformer.tiny().eval()
    tokens = torch.randn(3, 7, 16)
    encoded = backbone.encode(tokens)
    assert encoded.shape == (3, 8, 16)
    torch.testing.assert_close(backbone.class_token(tokens), encoded[:, 0])


def test_the_number_of_heads_changes_the_numbers_although_the_weights_fit() -> None:
    one, two = (PostNormTransformer(8, 16, 16, 1, n_heads, 8).eval() for n_heads in (4, 2))
    two.load_state_dict(one.state_dict())
    nn.init.normal_(one.blocks[0].qkv.weight, std=1.0)
    two.blocks[0].qkv.weight.data.copy_(one.blocks[0].qkv.weight.data)
    nn.init.normal_(one.blocks[0].proj.weight, std=1.0)
    two.blocks[0].proj.weight.data.copy_(one.blocks[0].proj.weight.data)
    planes = torch.randn(1, 1, 16, 16)
    assert not torch.allclose(one(planes), two(planes), atol=1e-3)


def test_sides_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(DataError, match="20 x 16 pixels do not divide into patches of 8 x 8"):
        PostNormTransformer.tiny()(torch.zeros(1, 1, 20, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"embed_dim": 16, "n_heads": 3}, "n_heads=3 must divide embed_dim=16"),
        ({"patch_size_px": 15}, "patch_size_px=15 image_size_px=224"),
        ({"final_norm_eps": 0.0}, "final_norm_eps=0.0 must be above 0"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PostNormTransformer(**settings)


def test_it_is_built_again_from_its_spec() -> None:
    backbone = PostNormTransformer.tiny()
    again = from_spec(to_spec(backbone)).eval()
    again.load_state_dict(backbone.state_dict())
    planes = torch.randn(2, 1, 32, 32)
    assert torch.equal(again(planes), backbone.eval()(planes))

import pytest
import torch
from torch import Tensor

from morphem.backbones.parallel import ParallelBlock, ParallelTransformer
from morphem.errors import ConfigError, DataError
from morphem.spec import from_spec, to_spec
from morphem.testing import check_backbone
from tests.references.parallel_block import parallel_block


def _random(block: ParallelBlock) -> ParallelBlock:
    torch.manual_seed(0)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return block.double()


def test_the_contract_is_kept() -> None:
    check_backbone(ParallelTransformer)


@pytest.mark.parametrize("shifted", [True, False])
def test_a_block_is_what_the_formula_says(shifted: bool) -> None:
    block = _random(ParallelBlock(8, 2, 16, 1.0, "shifted" if shifted else "hidden"))
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    weights: dict[str, Tensor] = dict(block.state_dict())
    torch.testing.assert_close(block(x), parallel_block(x, weights, n_heads=2, shifted=shifted), atol=1e-10, rtol=0)


def test_where_the_bias_goes_changes_the_numbers_although_the_weights_fit() -> None:
    one, two = (_random(ParallelBlock(8, 2, 16, 1.0, place)) for place in ("shifted", "hidden"))
    two.load_state_dict(one.state_dict())
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    assert not torch.allclose(one(x), two(x), atol=1e-2)


def test_positions_of_other_grids_are_computed_and_those_of_the_trained_one_stored() -> None:
    backbone = ParallelTransformer.tiny()
    backbone.position_table += 1.0
    other = ParallelTransformer(8, 32, 16, 1, 2)
    torch.testing.assert_close(backbone.patch_positions((4, 4)), other.patch_positions((4, 4)))
    torch.testing.assert_close(backbone.patch_positions((2, 2)), backbone.position_table[:, 1:])


def test_any_tokens_can_be_encoded() -> None:
    backbone = ParallelTransformer.tiny().eval()
    tokens = torch.randn(3, 7, 16)
    encoded = backbone.encode(tokens)
    assert encoded.shape == (3, 8, 16)
    torch.testing.assert_close(backbone.class_token(tokens), encoded[:, 0])


def test_sides_that_patches_do_not_divide_are_refused() -> None:
    with pytest.raises(DataError, match="20 x 16 pixels do not divide into patches of 8 x 8"):
        ParallelTransformer.tiny()(torch.zeros(1, 1, 20, 16))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"embed_dim": 16, "n_heads": 3}, "n_heads=3 must divide embed_dim=16"),
        ({"patch_size_px": 15}, "patch_size_px=15 image_size_px=256"),
        ({"mlp_bias": "left"}, "mlp_bias='left' must be shifted or hidden"),
    ],
)
def test_numbers_that_do_not_go_together_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ParallelTransformer(**settings)


def test_it_is_built_again_from_its_spec() -> None:
    backbone = ParallelTransformer.tiny()
    again = from_spec(to_spec(backbone)).eval()
    again.load_state_dict(backbone.state_dict())
    planes = torch.randn(2, 1, 32, 32)
    assert torch.equal(again(planes), backbone.eval()(planes))

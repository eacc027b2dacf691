import copy

import numpy as np
import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.errors import ConfigError, DataError
from morphem.spec import from_spec, to_spec
from tests.references import dino_positions, sincos


@pytest.fixture(scope="module")
def small() -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer("vit_tiny_patch16_224", embed_dim=24, depth=2, n_heads=3).eval()


@pytest.mark.parametrize("grid", [(6, 6), (8, 5), (7, 28), (14, 7), (16, 16), (24, 24)])
def test_positions_are_resampled_as_dino_does(small: VisionTransformer, grid: tuple[int, int]) -> None:
    table = small.network.pos_embed.detach()
    expected = dino_positions.resampled(table, 14, grid)
    torch.testing.assert_close(small.positions(grid).detach(), expected, atol=1e-6, rtol=0)


def test_positions_of_the_trained_square_are_left_alone(small: VisionTransformer) -> None:
    assert small.positions((14, 14)) is small.network.pos_embed


def test_a_rectangle_with_as_many_patches_is_resampled_all_the_same(small: VisionTransformer) -> None:
    assert not torch.equal(small.positions((7, 28)), small.network.pos_embed)


def test_gradients_reach_the_position_table_through_the_resampling(small: VisionTransformer) -> None:
    network = copy.deepcopy(small)
    network(torch.randn(1, 1, 96, 96)).sum().backward()
    assert network.network.pos_embed.grad.abs().sum() > 0


def test_positions_seen_first_in_inference_mode_can_be_trained_afterwards() -> None:
    network = VisionTransformer.tiny()
    with torch.inference_mode():
        network(torch.zeros(1, 1, 40, 24))
    network(torch.zeros(1, 1, 40, 24)).sum().backward()
    assert network.network.pos_embed.grad is not None


def test_the_output_is_the_class_token_after_the_last_norm(small: VisionTransformer) -> None:
    planes = torch.randn(2, 1, 32, 48)
    tokens = small.tokens(planes)
    assert tokens.shape == (2, 1 + 2 * 3, 24)
    assert torch.allclose(small(planes), tokens[:, 0], atol=1e-6)


def test_at_the_trained_size_the_numbers_are_those_of_timm(small: VisionTransformer) -> None:
    planes = torch.randn(2, 1, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(small(planes), small.network(planes), atol=1e-5, rtol=0)


def test_the_class_token_starts_with_a_standard_deviation_of_a_fiftieth() -> None:
    torch.manual_seed(0)
    deviation = VisionTransformer("vit_tiny_patch16_224", depth=1).network.cls_token.std()
    assert 0.015 < deviation < 0.025


def test_drop_path_rises_to_the_rate_that_was_asked_for() -> None:
    network = VisionTransformer("vit_tiny_patch16_224", drop_path_rate=0.2, depth=3)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in network.network.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


def test_sides_that_patches_do_not_divide_are_refused_with_the_size(small: VisionTransformer) -> None:
    with pytest.raises(DataError, match=r"100 x 96 pixels do not divide into patches of 16 x 16"):
        small(torch.zeros(1, 1, 100, 96))


def test_an_unknown_network_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match="did you mean 'vit_small_patch16_224'"):
        VisionTransformer("vit_smal_patch16_224")


@pytest.mark.parametrize("name", ["resnet18", "test_vit2", "vit_medium_patch16_gap_256"])
def test_a_network_without_a_class_token_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        VisionTransformer(name)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match="num_heads"):
        VisionTransformer("vit_tiny_patch16_224", embed_dim=24, n_heads=5)


def test_a_drop_path_rate_of_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="drop_path_rate"):
        VisionTransformer(drop_path_rate=1.0)


def test_the_test_network_of_timm_works() -> None:
    assert VisionTransformer("test_vit")(torch.zeros(1, 1, 32, 32)).shape == (1, 64)


def test_a_backbone_is_built_again_from_its_spec(small: VisionTransformer) -> None:
    again = from_spec(to_spec(small))
    assert [(k, v.shape) for k, v in again.state_dict().items()] == [
        (k, v.shape) for k, v in small.state_dict().items()
    ]


def test_a_deep_copy_shares_no_weight(small: VisionTransformer) -> None:
    theirs = {tensor.data_ptr() for tensor in copy.deepcopy(small).state_dict().values()}
    assert not theirs & {tensor.data_ptr() for tensor in small.state_dict().values()}


def test_any_tokens_can_be_encoded_and_their_class_token_computed_alone(small: VisionTransformer) -> None:
    tokens = torch.randn(2, 5, 24)
    encoded = small.encode(tokens)
    assert encoded.shape == (2, 1 + 5, 24)
    torch.testing.assert_close(small.class_token(tokens), encoded[:, 0], atol=1e-5, rtol=0)


def test_patches_with_their_positions_are_what_the_whole_network_starts_from(small: VisionTransformer) -> None:
    planes = torch.randn(2, 1, 32, 48)
    tokens = small.patches(planes) + small.patch_positions((2, 3))
    assert torch.equal(small.encode(tokens), small.tokens(planes))
    assert torch.equal(small.embedded(planes)[:, 1:], tokens)


def test_on_request_the_positions_of_the_trained_square_are_resampled_too(small: VisionTransformer) -> None:
    table = small.network.pos_embed.detach()
    resampled = small.patch_positions((14, 14), resample_trained=True).detach()
    torch.testing.assert_close(resampled, dino_positions.resampled(table, 14, (14, 14))[:, 1:], atol=1e-6, rtol=0)
    assert not torch.allclose(resampled, table[:, 1:], atol=1e-6)


def _fixed() -> VisionTransformer:
    return VisionTransformer(
        "vit_tiny_patch16_224", patch_size_px=8, image_size_px=32, embed_dim=24, depth=1, n_heads=2, positions="sincos"
    )


def test_fixed_positions_of_another_grid_are_computed_for_it() -> None:
    np.testing.assert_allclose(_fixed().patch_positions((3, 5))[0].numpy(), sincos.positions(3, 5, 24), atol=1e-6)


def test_fixed_positions_are_saved_and_not_trained() -> None:
    network = _fixed()
    assert "network.pos_embed" in network.state_dict()
    assert "network.pos_embed" not in dict(network.named_parameters())
    assert (network.network.pos_embed[:, 0] == 0).all()


def test_fixed_positions_of_the_trained_grid_are_those_that_were_loaded() -> None:
    network = _fixed()
    table = torch.randn_like(network.network.pos_embed)
    network.load_state_dict({**network.state_dict(), "network.pos_embed": table})
    assert torch.equal(network.patch_positions((4, 4)), table[:, 1:])


def test_fixed_positions_need_a_width_that_four_divides() -> None:
    with pytest.raises(ConfigError, match="needs an embed_dim that 4 divides, not 18"):
        VisionTransformer("vit_tiny_patch16_224", embed_dim=18, depth=1, n_heads=2, positions="sincos")


def test_other_positions_are_refused() -> None:
    with pytest.raises(ConfigError, match="positions='rotary' must be"):
        VisionTransformer("vit_tiny_patch16_224", depth=1, positions="rotary")  # type: ignore[arg-type]


def _tiny(**settings: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        "vit_tiny_patch16_224",
        patch_size_px=8,
        image_size_px=32,
        embed_dim=24,
        depth=3,
        n_heads=2,
        **settings,  # type: ignore[arg-type]
    ).eval()


def test_registers_stand_behind_the_class_token_without_a_position() -> None:
    network, planes = _tiny(registers=4), torch.randn(2, 1, 32, 32)
    assert network.n_prefix == 5
    assert network.network.pos_embed.shape == (1, 1 + 16, 24)
    embedded = network.embedded(planes)
    assert torch.equal(embedded[:, 1:5], network.network.reg_token.expand(2, -1, -1))
    with torch.no_grad():
        torch.testing.assert_close(network(planes), network.tokens(planes)[:, 0], atol=1e-5, rtol=0)


def test_registers_change_the_embedding() -> None:
    network, planes = _tiny(registers=2), torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        before = network(planes)
        network.network.reg_token += torch.randn_like(network.network.reg_token)
        assert not torch.allclose(network(planes), before, atol=1e-4)


def test_layer_scale_multiplies_both_branches_of_every_block() -> None:
    network, planes = _tiny(layer_scale=0.5), torch.randn(1, 1, 32, 32)
    keys = [key for key in network.state_dict() if key.endswith("gamma")]
    assert len(keys) == 2 * 3
    with torch.no_grad():
        for block in network.network.blocks:
            block.ls1.gamma.zero_()
            block.ls2.gamma.zero_()
        expected = network.network.norm(network.embedded(planes))
        torch.testing.assert_close(network.tokens(planes), expected, atol=1e-6, rtol=0)


def test_the_mean_of_the_patches_can_be_the_embedding() -> None:
    network, planes = _tiny(pooling="mean", registers=2), torch.randn(2, 1, 24, 40)
    with torch.no_grad():
        tokens = network.tokens(planes)
        expected = torch.stack([image[3:].double().mean(0) for image in tokens]).float()
        torch.testing.assert_close(network(planes), expected, atol=1e-6, rtol=0)
        entering = network.patches(planes) + network.patch_positions((3, 5))
        torch.testing.assert_close(network.encode(entering)[:, 0], expected, atol=1e-6, rtol=0)


def test_without_a_final_norm_tokens_are_those_of_the_last_block() -> None:
    network = _tiny(pooling="mean", final_norm=False)
    assert not [key for key in network.state_dict() if key.startswith("network.norm")]
    x = network.embedded(planes := torch.randn(1, 1, 32, 32))
    with torch.no_grad():
        torch.testing.assert_close(network(planes), network.network.blocks(x)[:, 1:].mean(1), atol=1e-6, rtol=0)


def test_queries_keys_and_values_can_do_without_a_bias() -> None:
    assert not [key for key in _tiny(qkv_bias=False).state_dict() if key.endswith("qkv.bias")]


def test_epsilon_reaches_every_normalisation() -> None:
    network = _tiny(layer_norm_eps=1e-3)
    found = {m.eps for m in network.modules() if isinstance(m, torch.nn.LayerNorm)}
    assert found == {1e-3}


def test_tokens_of_several_blocks_come_oldest_first_and_normalised() -> None:
    network, planes = _tiny(), torch.randn(1, 1, 32, 32)
    with torch.no_grad():
        x, expected = network.embedded(planes), []
        for block in network.network.blocks:
            x = block(x)
            expected.append(network.network.norm(x))
        for found, wanted in zip(network.last_tokens(planes, 2), expected[1:], strict=True):
            torch.testing.assert_close(found, wanted)


def test_several_planes_can_enter_together() -> None:
    network = _tiny(in_channels=3)
    assert network(torch.randn(2, 3, 32, 32)).shape == (2, 24)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(2, 3), (4, 4), (7, 5)])
def test_positions_can_be_resampled_to_the_exact_size(antialias: bool, grid: tuple[int, int]) -> None:
    network = _tiny(position_offset=0.0, position_antialias=antialias)
    table = network.network.pos_embed.detach()
    patches = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    expected = torch.nn.functional.interpolate(patches, grid, mode="bicubic", antialias=antialias)
    found = network.patch_positions(grid).detach()
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("grid", [(2, 3), (4, 4), (7, 5)])
def test_positions_are_resampled_by_a_factor_with_an_offset(antialias: bool, grid: tuple[int, int]) -> None:
    network = _tiny(position_offset=0.3, position_antialias=antialias)
    table = network.network.pos_embed.detach()
    patches = table[:, 1:].reshape(1, 4, 4, -1).permute(0, 3, 1, 2)
    factor = ((grid[0] + 0.3) / 4, (grid[1] + 0.3) / 4)
    expected = torch.nn.functional.interpolate(patches, scale_factor=factor, mode="bicubic", antialias=antialias)
    assert expected.shape[-2:] == grid
    found = network.patch_positions(grid, resample_trained=True).detach()
    torch.testing.assert_close(found, expected.flatten(2).transpose(1, 2), atol=1e-6, rtol=0)


def test_fixed_positions_can_have_the_column_first() -> None:
    network = _tiny(positions="sincos_columns")
    rows_first = sincos.positions(3, 5, 24)
    expected = np.concatenate([rows_first[:, 12:], rows_first[:, :12]], axis=1)
    np.testing.assert_allclose(network.patch_positions((3, 5))[0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "max"}, "pooling='max' must be 'class' or 'mean'"),
        ({"rotary": "spiral"}, "rotary='spiral' must be 'none', 'axial' or 'mixed'"),
        ({"rotation": "cosine"}, "rotation and rotary_base have no effect"),
        ({"registers": -1}, "registers=-1 at least 0"),
        ({"layer_scale": 0.0}, "layer_scale=0.0 must be above 0"),
        ({"layer_norm_eps": 0.0}, "layer_norm_eps=0.0"),
        ({"position_offset": -0.1}, "position_offset=-0.1 must be at least 0"),
        ({"positions": "sincos", "position_offset": 0.0}, "no effect with positions='sincos'"),
        ({"rotary": "axial", "rotary_base": 1.0}, "rotary_base=1.0 must be above 1"),
    ],
)
def test_settings_that_clash_or_do_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _tiny(**settings)


def test_a_network_with_everything_is_built_again_from_its_spec() -> None:
    network = _tiny(
        registers=2, layer_scale=0.1, qkv_bias=False, layer_norm_eps=1e-5, pooling="mean", rotary="mixed", in_channels=2
    )
    again = from_spec(to_spec(network))
    again.load_state_dict(network.state_dict())
    images = torch.randn(1, 2, 16, 24)
    assert torch.equal(again.eval()(images), network(images))

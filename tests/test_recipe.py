import json

import numpy as np
import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.fixed_channels import FixedChannels
from morphem.data.crops import CropRule
from morphem.data.emptiness import EmptyRule
from morphem.encoder import Encoder
from morphem.errors import ChannelError, ConfigError, DataError
from morphem.normalizers import SelfNormalize
from morphem.recipe import Recipe
from morphem.spec import from_spec, to_spec

PANEL = ["nucleus", "actin"]
TILES = Recipe(CropRule("tile", 16, tiling="grid"))
NOT_BLANK = Recipe(CropRule("tile", 16, tiling="grid", skip_empty=EmptyRule(threshold="zero", least_share=0.5)))


def _encoder(recipe: Recipe | None = None) -> Encoder:
    torch.manual_seed(0)
    return Encoder(BagOfChannels(VisionTransformer.tiny()), SelfNormalize(), input_size_px=None, recipe=recipe).eval()


def _images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)


def test_a_row_is_the_mean_over_the_tiles_of_its_image() -> None:
    images = _images(2, 2, 40, 50)
    table = _encoder(TILES).embed(images, PANEL)
    assert table.metadata["Metadata_Tiles"].tolist() == [6, 6]
    for row, image in zip(table.values, images, strict=True):
        tiles = [image[:, y : y + 16, x : x + 16] for y in (0, 16) for x in (0, 16, 32)]
        each = np.concatenate([_encoder().embed(tile, PANEL).values for tile in tiles])
        np.testing.assert_allclose(row, each.astype(np.float64).mean(0), atol=1e-5)


@pytest.mark.parametrize("combine", ["concat", "mean", "none"])
def test_channels_permuted_with_their_names_change_nothing(combine: str) -> None:
    images = _images(2, 2, 40, 50)
    straight = _encoder(NOT_BLANK).embed(images, PANEL, combine=combine)  # type: ignore[arg-type]
    permuted = _encoder(NOT_BLANK).embed(images[:, ::-1], PANEL[::-1], combine=combine)  # type: ignore[arg-type]
    np.testing.assert_allclose(permuted.values, straight.values, atol=1e-6)


def test_images_keep_their_own_tiles_among_others() -> None:
    images = [_images(2, 40, 50), _images(2, 16, 16), _images(2, 33, 70)]
    together = _encoder(TILES).embed(images, PANEL)
    alone = np.concatenate([_encoder(TILES).embed(image, PANEL).values for image in images])
    np.testing.assert_allclose(together.values, alone, atol=1e-5)
    assert together.metadata["Metadata_Tiles"].tolist() == [6, 1, 8]


def test_empty_tiles_are_left_out_by_the_channel_that_the_rule_names() -> None:
    image = _images(2, 32, 32)
    image[0, :16, :16] = 0  # the nucleus channel of the first tile
    kept = _encoder(NOT_BLANK).embed(image, PANEL)
    assert kept.metadata["Metadata_Tiles"].tolist() == [3]
    tiles = [image[:, y : y + 16, x : x + 16] for y, x in ((0, 16), (16, 0), (16, 16))]
    expected = np.concatenate([_encoder().embed(tile, PANEL).values for tile in tiles]).mean(0)
    np.testing.assert_allclose(kept.values[0], expected, atol=1e-5)


def test_the_order_of_planes_does_not_decide_what_is_empty_where_there_is_no_nucleus() -> None:
    image = _images(2, 32, 32)
    image[1, :16, :16] = 0  # the actin channel of the first tile; actin comes before rna
    names = ["rna", "actin"]
    straight = _encoder(NOT_BLANK).embed(image, names)
    permuted = _encoder(NOT_BLANK).embed(image[::-1], names[::-1])
    assert straight.metadata["Metadata_Tiles"].tolist() == permuted.metadata["Metadata_Tiles"].tolist() == [3]
    np.testing.assert_allclose(permuted.values, straight.values, atol=1e-6)


def test_the_middle_tile_is_kept_where_all_are_empty() -> None:
    image = _images(2, 32, 32)
    image[0] = 0
    table = _encoder(NOT_BLANK).embed(image, PANEL)
    assert table.metadata["Metadata_Tiles"].tolist() == [1]
    np.testing.assert_allclose(table.values, _encoder().embed(image[:, 16:, :16], PANEL).values, atol=1e-6)


def test_an_image_that_keeps_no_tile_is_refused_with_its_name() -> None:
    rule = EmptyRule(threshold="zero", least_share=0.5, keep_middle=False)
    recipe = Recipe(CropRule("tile", 16, tiling="grid", skip_empty=rule))
    image = _images(2, 32, 32)
    image[0] = 0
    with pytest.raises(DataError, match="image 'w1' keeps no tile"):
        _encoder(recipe).embed(image, PANEL, key="w1")


def test_images_without_the_channel_of_the_rule_are_refused() -> None:
    recipe = Recipe(CropRule("tile", 16, skip_empty=EmptyRule("rna")))
    with pytest.raises(ChannelError, match="looks at channel 'rna' to tell empty tiles, but these images show nucleus"):
        _encoder(recipe).embed(_images(2, 32, 32), PANEL)


def test_another_recipe_can_be_asked_for_and_is_told_in_the_table() -> None:
    image = _images(2, 32, 32)
    whole = _encoder(TILES).embed(image, PANEL, recipe=Recipe())
    np.testing.assert_allclose(whole.values, _encoder().embed(image, PANEL).values, atol=1e-6)
    assert "Metadata_Tiles" not in whole.metadata
    assert whole.provenance["recipe"]["crops"]["unit"] == "image"
    assert _encoder(TILES).embed(image, PANEL).provenance["recipe"]["crops"]["tile_size_px"] == 16


def test_rows_can_have_length_1_after_channels_were_combined() -> None:
    images = _images(3, 2, 16, 16)
    plain, unit = _encoder().embed(images, PANEL).values, _encoder(Recipe(unit_length=True)).embed(images, PANEL).values
    np.testing.assert_allclose(unit, plain / np.linalg.norm(plain, axis=1, keepdims=True), atol=1e-6)


def test_an_encoder_of_whole_images_averages_tiles_too() -> None:
    torch.manual_seed(0)
    strategy = FixedChannels(VisionTransformer.tiny(), PANEL)
    encoder = Encoder(strategy, SelfNormalize(), input_size_px=None, recipe=TILES).eval()
    image = _images(2, 16, 48)
    each = np.concatenate([encoder.embed(image[:, :, x : x + 16], PANEL).values for x in (0, 16, 32)])
    np.testing.assert_allclose(encoder.embed(image, PANEL).values[0], each.mean(0), atol=1e-5)


def test_a_recipe_is_saved_with_its_encoder() -> None:
    spec = json.loads(json.dumps(to_spec(_encoder(NOT_BLANK))))
    assert from_spec(spec).recipe == NOT_BLANK


def test_a_table_of_provenance_is_plain_data() -> None:
    provenance = _encoder(NOT_BLANK).embed(_images(2, 32, 32), PANEL).provenance
    assert json.loads(json.dumps(provenance)) == provenance


def test_recipes_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="cells are asked for where images are embedded"):
        Recipe(CropRule("cell", crop_size_px=16))
    with pytest.raises(ConfigError, match="unit_length belongs to rows of whole images"):
        Recipe(CropRule("tile", 16), unit_length=True)

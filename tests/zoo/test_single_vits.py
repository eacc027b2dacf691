"""Families of one vision transformer: the authors' numbers, full key lists, and what must hold for every encoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphem.errors import ChannelError, ConfigError, WeightsError
from morphem.recipe import Recipe
from morphem.zoo.base import Checkpoint, Pretrained
from morphem.zoo.cadino import CellDINO, ChannelAdaptiveDINO
from morphem.zoo.cadino_records import ATLAS, CELL_PAINTING
from morphem.zoo.chammi75 import DINOBagOfChannels, MAEBagOfChannels, SimCLRBagOfChannels
from morphem.zoo.kim import KimDINO, KimMAE, KimSimCLR
from morphem.zoo.single_vit import network_of
from morphem.zoo.unidino import UniDINO
from tests.references.replays import Fixture, differences

FAMILIES: dict[str, type[Pretrained]] = {
    "morphem_hub": DINOBagOfChannels,
    "morphem_train": DINOBagOfChannels,
    "chammi75_mae_boc": MAEBagOfChannels,
    "chammi75_simclr_boc": SimCLRBagOfChannels,
    "unidino": UniDINO,
    "kim_dino": KimDINO,
    "kim_mae_small": KimMAE,
    "kim_mae_base": KimMAE,
    "kim_simclr": KimSimCLR,
    "cadino": ChannelAdaptiveDINO,
    "celldino_cp": CellDINO,
    "celldino_hpa": CellDINO,
}
CLASSES = sorted(set(FAMILIES.values()), key=lambda cls: cls.__name__)
BAGS = [name for name in FAMILIES if not name.startswith(("kim", "celldino"))]
FIXED = [name for name in FAMILIES if name.startswith(("kim", "celldino"))]


def _family(fixture: Fixture, name: str) -> Pretrained:
    family = FAMILIES[name].from_golden(fixture.record)
    assert family is not None
    return family


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_output_is_what_the_authors_code_gives(golden: Path, name: str, dtype: torch.dtype) -> None:
    fixture = Fixture(golden, name)
    found = list(differences(fixture, _family(fixture, name), dtype))
    assert found
    wrong = [entry for entry in found if entry[2] is None or not entry[2] <= entry[3]]
    assert not wrong


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_is_recognised_by_its_own_family_and_no_other(golden: Path, name: str) -> None:
    checkpoint = Fixture(golden, name).checkpoint
    assert [cls for cls in CLASSES if cls.recognises(checkpoint)] == [FAMILIES[name]]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_is_of_one_family(golden: Path, name: str) -> None:
    record = json.loads((golden / f"{name}.json").read_text())
    assert [cls for cls in CLASSES if cls.from_golden(record) is not None] == [FAMILIES[name]]


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_go_back_to_the_authors_names_and_in_again_bit_for_bit(golden: Path, name: str) -> None:
    fixture = Fixture(golden, name)
    family = _family(fixture, name)
    encoder = family.convert(fixture.checkpoint)
    theirs = family.to_authors(encoder)
    again = family.convert(Checkpoint(theirs, Path("again")))
    assert family.to_authors(again).keys() == theirs.keys()
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in encoder.state_dict().items())
    own = _flat(fixture.checkpoint.content)
    for key, value in theirs.items():
        assert any(torch.equal(value, tensor) for known, tensor in own if known.endswith(key)), key


def _flat(content: Any) -> list[tuple[str, torch.Tensor]]:
    if not isinstance(content, dict):
        return []
    found = [(key, value) for key, value in content.items() if isinstance(value, torch.Tensor)]
    return found + [entry for value in content.values() for entry in _flat(value)]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_missing_tensor_is_refused_with_its_name(golden: Path, name: str) -> None:
    fixture = Fixture(golden, name)
    family = _family(fixture, name)
    theirs = family.to_authors(family.convert(fixture.checkpoint))
    lost = next(key for key in theirs if key.endswith("attn.proj.bias"))
    with pytest.raises(WeightsError, match=r"1 missing \(blocks\.0\.attn\.proj\.bias\)"):
        family.convert(Checkpoint({key: value for key, value in theirs.items() if key != lost}, Path("x")))
    with pytest.raises(WeightsError, match=r"1 unexpected \(something\.else\)"):
        family.convert(Checkpoint({**theirs, "something.else": torch.zeros(1)}, Path("x")))


# published sizes: which fixture's list, which variant, what shapes cannot show
FULL_SIZES = [
    ("morphem_hub", "vit_small_16_hub", {"n_heads": 6}),
    ("morphem_train", "student_vit_small_16", {"n_heads": 6}),
    ("morphem_train", "student_vit_base_16", {"n_heads": 12}),
    ("morphem_train", "student_vit_large_16", {"n_heads": 16}),
    ("chammi75_mae_boc", "mae_vit_small_16", {"n_heads": 6}),
    ("chammi75_mae_boc", "mae_vit_base_16", {"n_heads": 12}),
    ("chammi75_mae_boc", "mae_vit_large_16", {"n_heads": 16}),
    ("chammi75_simclr_boc", "simclr_vit_small_16", {"n_heads": 6}),
    ("chammi75_simclr_boc", "simclr_vit_base_16", {"n_heads": 12}),
    ("unidino", "unidino_teacher", {"n_heads": 6}),
    ("kim_dino", "teacher_vit_small_16", {"n_heads": 6}),
    ("kim_dino", "teacher_vit_base_16", {"n_heads": 12}),
    ("kim_mae_small", "mae_vit_small_16", {"n_heads": 6}),
    ("kim_mae_base", None, {"n_heads": 12}),
    ("kim_simclr", "vit_small_patch16_224", {"n_heads": 6}),
    ("kim_simclr", "vit_base_patch16_224", {"n_heads": 12}),
    ("cadino", "channel_adaptive_dino_vitl16", {"n_heads": 16}),
    ("celldino_cp", "cell_dino_cp_vits8", {"n_heads": 6}),
    ("celldino_hpa", "cell_dino_hpa_vitl16", {"n_heads": 16, "channels": ATLAS}),
    ("celldino_hpa", "cell_dino_hpa_vitl14", {"n_heads": 16, "channels": ATLAS}),
]


@pytest.mark.parametrize(("name", "variant", "facts"), FULL_SIZES)
def test_the_full_list_of_keys_loads_strictly(golden: Path, name: str, variant: str | None, facts: Any) -> None:
    variants = json.loads((golden / f"{name}.keys.json").read_text())["variants"]
    listed = variants[variant] if variant else next(iter(variants.values()))
    kind = listed["container"]
    with torch.device("meta"):
        tensors = {key: torch.empty(shape) for key, (shape, _) in listed["tensors"].items()}
        checkpoint = Checkpoint(tensors if kind in ("flat", "safetensors") else {kind: tensors}, Path(name))
        family = FAMILIES[name](**facts)
        encoder = family.convert(checkpoint)
    theirs = family.to_authors(encoder)
    assert all(value.is_meta for value in theirs.values())
    for key, value in theirs.items():
        assert any(known.endswith(key) and value.shape == tensors[known].shape for known in tensors), key
    assert encoder.embed_dim in (384, 768, 1024)


def test_every_full_size_is_looked_at(golden: Path) -> None:
    for name in FAMILIES:
        variants = json.loads((golden / f"{name}.keys.json").read_text())["variants"]
        seen = {variant or next(iter(variants)) for known, variant, _ in FULL_SIZES if known == name}
        assert seen == set(variants)


@pytest.mark.parametrize("name", BAGS)
def test_a_bag_of_channels_is_its_channels_one_by_one_in_any_order(golden: Path, name: str) -> None:
    fixture = Fixture(golden, name)
    encoder = _family(fixture, name).convert(fixture.checkpoint)
    dtype = np.uint16 if encoder.input_domain == "uint16" else np.uint8
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 224, 224), dtype=dtype)
    names = ["nucleus", "actin", "rna"]
    whole = encoder.embed(image, names, recipe=Recipe())
    dim = encoder.embed_dim
    for i, channel in enumerate(names):
        alone = encoder.embed(image[i : i + 1], [channel], recipe=Recipe()).values[0]
        place = sorted(names).index(channel)
        np.testing.assert_allclose(whole.values[0, place * dim : (place + 1) * dim], alone, atol=1e-5)
    order = [2, 0, 1]
    other = encoder.embed(image[order], [names[i] for i in order], recipe=Recipe())
    np.testing.assert_allclose(other.values, whole.values, atol=1e-5)


@pytest.mark.parametrize("name", FIXED)
def test_channels_come_by_name_in_any_order_and_others_are_refused(golden: Path, name: str) -> None:
    fixture = Fixture(golden, name)
    encoder = _family(fixture, name).convert(fixture.checkpoint)
    side = int(fixture.record["architecture"]["native_size"])
    dtype = np.uint16 if encoder.input_domain == "uint16" else np.uint8
    names = list(encoder.channels.channels)
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (len(names), side, side), dtype=dtype)
    whole = encoder.embed(image, names).values
    order = np.roll(np.arange(len(names)), 1)
    np.testing.assert_allclose(encoder.embed(image[order], [names[i] for i in order]).values, whole, atol=1e-5)
    assert np.abs(encoder.embed(image[order], names).values - whole).max() > 1e-3
    with pytest.raises(ChannelError, match="this encoder takes exactly"):
        encoder.embed(image, ["lysosome", *names[1:]])
    with pytest.raises(ChannelError, match="this encoder takes exactly"):
        encoder.embed(image[1:], names[1:])


@pytest.mark.parametrize("name", FAMILIES)
def test_an_image_does_not_depend_on_its_batch_mates(golden: Path, name: str) -> None:
    fixture = Fixture(golden, name)
    encoder = _family(fixture, name).convert(fixture.checkpoint)
    dtype = np.uint16 if encoder.input_domain == "uint16" else np.uint8
    names = list(getattr(encoder.channels, "channels", ["nucleus"]))
    images = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, len(names), 224, 224), dtype=dtype)
    together = encoder.embed(images, names).values
    alone = np.concatenate([encoder.embed(image, names).values for image in images])
    np.testing.assert_allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_wrong_number_of_heads_is_seen_in_the_numbers_alone(golden: Path, name: str) -> None:
    fixture = Fixture(golden, name)
    family: Any = _family(fixture, name)
    family.n_heads //= 2
    found = list(differences(fixture, family, torch.float32))
    assert max(distance for _, output, distance, _ in found if output.startswith(("features", "crop"))) > 0.1  # type: ignore[type-var]


@pytest.mark.parametrize("name", BAGS)
def test_the_mean_over_channels_asks_neither_for_names_nor_for_order(golden: Path, name: str) -> None:
    fixture = Fixture(golden, name)
    encoder = _family(fixture, name).convert(fixture.checkpoint)
    dtype = np.uint16 if encoder.input_domain == "uint16" else np.uint8
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (3, 224, 224), dtype=dtype)
    straight = encoder.embed(image, ["nucleus", "actin", "rna"], combine="mean", recipe=Recipe())
    other = encoder.embed(image[[2, 0, 1]], ["lysosome", "other", "r"], combine="mean", recipe=Recipe())
    np.testing.assert_allclose(other.values, straight.values, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_converted_encoder_is_saved_and_loaded_again(golden: Path, name: str, tmp_path: Path) -> None:
    from morphem.encoder import Encoder

    fixture = Fixture(golden, name)
    encoder = _family(fixture, name).convert(fixture.checkpoint)
    encoder.save_pretrained(tmp_path)
    again = Encoder.from_pretrained(tmp_path)
    assert again.recipe == encoder.recipe
    assert again.input_domain == encoder.input_domain
    names = list(getattr(encoder.channels, "channels", ["nucleus"]))
    dtype = np.uint16 if encoder.input_domain == "uint16" else np.uint8
    image = np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (len(names), 448, 224), dtype=dtype)
    assert np.array_equal(again.embed(image, names).values, encoder.embed(image, names).values)


class TestOptions:
    def test_unidino_counts_columns_by_rows_only_when_told(self, golden: Path) -> None:
        fixture = Fixture(golden, "unidino")
        field = fixture.tensors["two_fields.field1"]
        rows = {}
        for square in (False, True):
            encoder = UniDINO(n_heads=6, square_grid=square).convert(fixture.checkpoint)
            rows[square] = encoder.embed(field, ["nucleus", "actin"]).metadata["Metadata_Tiles"][0]
        assert rows == {False: 2, True: 1}

    def test_unidino_averages_over_the_tiles_that_are_not_blank(self, golden: Path) -> None:
        fixture = Fixture(golden, "unidino")
        field = fixture.tensors["two_fields.field0"].clone()
        field[0, :224, :224] = 0
        kept = UniDINO().convert(fixture.checkpoint).embed(field, ["nucleus", "actin"])
        expected = fixture.tensors["blank_tile.features"].reshape(2, -1)[[1, 0]].reshape(1, -1)  # alphabetical
        np.testing.assert_allclose(kept.values, expected.numpy(), atol=1e-5)
        every = UniDINO(keep_blank_tiles=True).convert(fixture.checkpoint).embed(field, ["nucleus", "actin"])
        assert (kept.metadata["Metadata_Tiles"][0], every.metadata["Metadata_Tiles"][0]) == (3, 4)
        assert np.abs(every.values - kept.values).max() > 1e-3

    @pytest.mark.parametrize(("name", "changed"), [("kim_mae_small", True), ("kim_mae_base", False)])
    def test_biases_of_kim_mae_are_a_named_choice(self, golden: Path, name: str, changed: bool) -> None:
        fixture = Fixture(golden, name)
        family = _family(fixture, name)
        assert isinstance(family, KimMAE)
        crops = fixture.tensors["one_crop.crops"]
        authors = family.convert(fixture.checkpoint)
        family.qkv_bias = True
        trained = family.convert(fixture.checkpoint)
        names = list(trained.channels.channels)
        distance = np.abs(trained.embed(crops, names).values - authors.embed(crops, names).values).max()
        assert (distance > 0.1) == changed
        assert trained.card["qkv_bias"] == "trained"

    def test_kim_mae_of_a_vit_s_leaves_the_biases_out_where_nothing_is_said(self, golden: Path) -> None:
        listed = json.loads((golden / "kim_mae_small.keys.json").read_text())["variants"]["mae_vit_small_16"]
        with torch.device("meta"):
            tensors = {key: torch.empty(shape) for key, (shape, _) in listed["tensors"].items()}
            encoder = KimMAE().convert(Checkpoint({"model": tensors}, Path("x")))
        assert not [key for key in encoder.state_dict() if key.endswith("qkv.bias")]

    def test_kims_statistics_need_one_number_per_channel(self) -> None:
        with pytest.raises(ConfigError, match="5 channels need as many means and deviations, not 4 and 5"):
            KimDINO(mean=[0.1] * 4)

    def test_cell_dino_gives_tokens_of_several_blocks(self, golden: Path) -> None:
        fixture = Fixture(golden, "celldino_cp")
        family = CellDINO(n_heads=6, recipe="plain", n_blocks=4, mean_patch=True)
        images = fixture.tensors["other_size.images"]
        values = family.convert(fixture.checkpoint).embed(images, CELL_PAINTING).values
        expected = fixture.tensors["other_size.features_4_blocks_and_mean_patch"].numpy()
        np.testing.assert_allclose(values, expected, atol=2e-5)

    @pytest.mark.parametrize("antialias", [True, False])
    def test_channel_adaptive_dino_follows_the_recipe_of_nearest_neighbours(
        self, golden: Path, antialias: bool
    ) -> None:
        fixture = Fixture(golden, "cadino")
        encoder = ChannelAdaptiveDINO(antialias=antialias).convert(fixture.checkpoint)
        images = fixture.tensors["knn.images"]
        names = ["actin", "golgi", "mitochondria", "nucleus", "rna"][: images.shape[1]]
        expected = fixture.tensors["knn.features" if antialias else "knn.features_no_antialias"].numpy()
        values = encoder.embed(images, names).values
        np.testing.assert_allclose(values, expected, atol=5e-6)
        np.testing.assert_allclose(np.linalg.norm(values, axis=1), 1, atol=1e-6)

    def test_cell_dino_refuses_planes_that_are_smaller_than_the_crop(self, golden: Path) -> None:
        fixture = Fixture(golden, "celldino_cp")
        encoder = CellDINO(n_heads=6).convert(fixture.checkpoint)
        with pytest.raises(Exception, match="100 x 90 pixels is smaller than the 128 x 128 pixels"):
            encoder.embed(np.ones((5, 100, 90), np.uint8) * 7, CELL_PAINTING)

    def test_the_order_of_the_atlas_is_said_to_be_assumed(self, golden: Path) -> None:
        fixture = Fixture(golden, "celldino_hpa")
        with pytest.warns(UserWarning, match="does not state the order of its four channels"):
            CellDINO().convert(fixture.checkpoint)

    def test_a_file_that_could_be_of_two_families_is_claimed_by_both(self, golden: Path) -> None:
        content = {**Fixture(golden, "morphem_train").checkpoint.content}
        del content["fp16_scaler"]
        checkpoint = Checkpoint(content, Path("x"))
        assert UniDINO.recognises(checkpoint)
        assert DINOBagOfChannels.recognises(checkpoint)

    def test_options_without_effect_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="antialias=False has no effect"):
            ChannelAdaptiveDINO(recipe="plain", antialias=False)
        with pytest.raises(ConfigError, match="recipe='linear' must be knn or plain"):
            CellDINO(recipe="linear")  # type: ignore[arg-type]

    def test_heads_are_those_of_the_published_width(self, golden: Path) -> None:
        for name, variant, facts in FULL_SIZES:
            listed = json.loads((golden / f"{name}.keys.json").read_text())["variants"]
            chosen = listed[variant] if variant else next(iter(listed.values()))
            with torch.device("meta"):
                tensors = {key: torch.empty(shape) for key, (shape, _) in chosen["tensors"].items()}
                flat = chosen["container"] in ("flat", "safetensors")
                checkpoint = Checkpoint(tensors if flat else {chosen["container"]: tensors}, Path(name))
                channels = {"channels": ATLAS} if "channels" in facts else {}
                encoder = FAMILIES[name](**channels).convert(checkpoint)
            assert network_of(encoder).network.blocks[0].attn.num_heads == facts["n_heads"]

    def test_heads_of_an_unpublished_width_are_said_to_be_assumed(self, golden: Path) -> None:
        checkpoint = Fixture(golden, "morphem_hub").checkpoint
        with pytest.warns(
            UserWarning, match="48 is the width of no published network, so 6 attention heads are assumed"
        ):
            DINOBagOfChannels().convert(checkpoint)

"""Families over all channels of an image: the authors' numbers, full key lists, and what holds for every encoder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.encoder import Encoder
from morphem.errors import ChannelError, ConfigError, WeightsError
from morphem.testing import check_encoder, check_pretrained, dense_batch
from morphem.testing.conversions import check_conversion, example_batch
from morphem.zoo.base import Checkpoint, Pretrained
from morphem.zoo.campfire import Campfire
from morphem.zoo.chadavit import ChAdaViT
from morphem.zoo.chammi75_channels import Chammi75Channels
from morphem.zoo.channelvit import ChannelViT
from morphem.zoo.dichavit import DiChaViT
from morphem.zoo.icvit import ICViT
from morphem.zoo.openphenom import OpenPhenom
from tests.references.replays import Fixture, differences

FAMILIES: dict[str, type[Pretrained]] = {
    "channelvit_hcs": ChannelViT,
    "channelvit_dino_imagenet": ChannelViT,
    "chammi75_channelvit_dino": Chammi75Channels,
    "chammi75_channelvit_mae": Chammi75Channels,
    "chammi75_channelvit_simclr": Chammi75Channels,
    "dichavit_chammi": DiChaViT,
    "dichavit_jumpcp": DiChaViT,
    "icvit_pretrained": ICViT,
    "icvit_finetuned": ICViT,
    "chadavit_hub": ChAdaViT,
    "chadavit_lightning": ChAdaViT,
    "openphenom": OpenPhenom,
    "campfire": Campfire,
    "campfire_rotary_axial": Campfire,
    "campfire_rotary_mixed": Campfire,
}
CLASSES = sorted(set(FAMILIES.values()), key=lambda cls: cls.__name__)
FILES = {"openphenom": "openphenom.ckpt"}
BY_TYPE = ["channelvit_hcs", "chammi75_channelvit_mae", "dichavit_jumpcp", "icvit_finetuned"]
AGNOSTIC = ["openphenom", "campfire", "campfire_rotary_axial", "campfire_rotary_mixed"]


def _fixture(golden: Path, name: str, file: str | None = None) -> Fixture:
    return Fixture(golden, name, file or FILES.get(name))


def _encoder(golden: Path, name: str, **facts: Any) -> Encoder:
    fixture = _fixture(golden, name)
    family = FAMILIES[name].from_golden(fixture.record)
    assert family is not None
    for fact, value in facts.items():
        assert hasattr(family, fact)
        setattr(family, fact, value)
    return family.convert(fixture.checkpoint)


def _image(n_channels: int, side: int = 224, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n_channels, side, side), dtype=np.uint8)


@pytest.mark.parametrize("cls", CLASSES)
def test_records_are_complete_and_foreign_files_refused(cls: type[Pretrained]) -> None:
    assert check_pretrained(cls) is False


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_output_is_what_the_authors_code_gives(golden: Path, name: str, dtype: torch.dtype) -> None:
    fixture = _fixture(golden, name)
    family = FAMILIES[name].from_golden(fixture.record)
    assert family is not None
    found = list(differences(fixture, family, dtype))
    assert len(found) >= sum(f"{case}.features" in fixture.tensors for case in fixture.record["cases"])
    assert not [entry for entry in found if entry[2] is None or not entry[2] <= entry[3]]


def test_openphenom_is_the_same_from_true_safetensors_and_from_a_pickle_of_that_name(
    golden: Path, tmp_path: Path
) -> None:
    named = tmp_path / "model.safetensors"  # what the authors' save function does
    named.write_bytes((golden / "openphenom.ckpt").read_bytes())
    pickle, safetensors = (
        OpenPhenom().convert(Checkpoint.read(path)) for path in (named, golden / "openphenom.safetensors")
    )
    assert all(torch.equal(value, safetensors.state_dict()[key]) for key, value in pickle.state_dict().items())


@pytest.mark.parametrize("name", FAMILIES)
def test_a_file_is_recognised_by_its_own_family_and_no_other(golden: Path, name: str) -> None:
    checkpoint = _fixture(golden, name).checkpoint
    assert [cls for cls in CLASSES if cls.recognises(checkpoint)] == [FAMILIES[name]]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_is_of_one_family(golden: Path, name: str) -> None:
    record = json.loads((golden / f"{name}.json").read_text())
    assert [cls for cls in CLASSES if cls.from_golden(record) is not None] == [FAMILIES[name]]


@pytest.mark.parametrize("name", FAMILIES)
def test_weights_go_back_and_in_again_bit_for_bit_and_other_files_are_refused(golden: Path, name: str) -> None:
    fixture = _fixture(golden, name)
    family = FAMILIES[name].from_golden(fixture.record)
    assert family is not None
    check_conversion(family, fixture.checkpoint)


# what shapes cannot show at the published sizes, by variant; the rest needs nothing
FACTS: dict[str, dict[str, Any]] = {
    "so2sat_p8_hcs": {"data_set": "so2sat_hard"},
    "campfire_vit_l14": {"rotary": "none"},
    "campfire_vit_l14_rotary_axial": {"rotary": "axial"},
    "chadavit16_moyen": {"n_heads": 12},
    "lightning_ckpt": {"n_heads": 12},
    "so2sat_p8_32": {"data_set": "so2sat_hard"},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_full_lists_of_keys_load_strictly(golden: Path, name: str) -> None:
    variants = json.loads((golden / f"{name}.keys.json").read_text())["variants"]
    assert variants
    for variant, listed in variants.items():
        facts = dict(FACTS.get(variant, {}))
        if name.startswith("chammi75"):
            facts["channel_map"] = {f"channel {number}": number for number in range(25)}
        with torch.device("meta"):
            tensors = {key: torch.empty(shape) for key, (shape, _) in listed["tensors"].items()}
            entry = listed["container"].split(" ")[0]
            content = tensors if entry in ("flat", "safetensors") else {entry: tensors}
            assert FAMILIES[name].recognises(Checkpoint(content, Path(variant)))
            family = FAMILIES[name](**facts)
            encoder = family.convert(Checkpoint(content, Path(variant)))
        theirs = family.to_authors(encoder)
        assert {key: tuple(value.shape) for key, value in theirs.items()}.items() <= {
            key: tuple(value.shape) for key, value in tensors.items()
        }.items()
        assert encoder.embed_dim in (192, 384, 768, 1024)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_converted_encoder_keeps_the_contract_of_every_encoder(golden: Path, name: str) -> None:
    encoder = _encoder(golden, name)
    if name.startswith("chadavit"):
        encoder = _encoder(golden, name, fill="by_name")
    check_encoder(encoder, example_batch(encoder))


def _some_channels(encoder: Encoder) -> list[str]:
    vocabulary = getattr(encoder.channels, "vocabulary", None)
    return list(vocabulary.names[:3]) if vocabulary else ["actin", "nucleus", "rna"]


@pytest.mark.parametrize("name", BY_TYPE)
def test_channels_come_with_their_names_in_any_order_and_names_matter(golden: Path, name: str) -> None:
    encoder = _encoder(golden, name)
    names, image = _some_channels(encoder), _image(3, 64)
    whole = encoder.embed(image, names).values
    turned = encoder.embed(image[[2, 0, 1]], [names[2], names[0], names[1]]).values
    np.testing.assert_allclose(turned, whole, atol=1e-5)
    assert np.abs(encoder.embed(image[[2, 0, 1]], names).values - whole).max() > 1e-3


@pytest.mark.parametrize("name", AGNOSTIC)
def test_names_are_nothing_to_an_encoder_without_channel_identity(golden: Path, name: str) -> None:
    encoder, image = _encoder(golden, name), _image(3, 64)
    whole = encoder.embed(image, ["nucleus", "actin", "rna"]).values
    np.testing.assert_allclose(encoder.embed(image[[2, 0, 1]], ["r", "b", "g"]).values, whole, atol=1e-5)


def test_slots_are_filled_by_name_or_as_the_authors_do_by_position(golden: Path) -> None:
    image, names = _image(3), ["rna", "actin", "nucleus"]
    order = [1, 2, 0]  # alphabetical
    ours, theirs = (_encoder(golden, "chadavit_hub", fill=fill) for fill in ("by_name", "by_position"))
    by_name = ours.embed(image, names).values
    np.testing.assert_allclose(ours.embed(image[order], [names[i] for i in order]).values, by_name, atol=1e-5)
    np.testing.assert_allclose(theirs.embed(image[order], [names[i] for i in order]).values, by_name, atol=1e-5)
    assert np.abs(theirs.embed(image, names).values - by_name).max() > 1e-3


class TestNames:
    def test_names_aliases_and_numbers_of_the_authors_are_understood(self, golden: Path) -> None:
        encoder, image = _encoder(golden, "channelvit_hcs"), _image(3, 64)
        own = encoder.embed(image, ["Mito", "HighZBF", "BF"]).values
        for names in (["mitochondria", "bright-field high z", "brightfield"], ["0", "5", "7"], [0, 5, 7]):
            assert np.array_equal(encoder.embed(image, names).values, own)

    def test_channels_of_other_data_are_refused_with_what_there_is(self, golden: Path) -> None:
        encoder = _encoder(golden, "channelvit_hcs")
        with pytest.raises(ChannelError, match="golgi body"):
            encoder.embed(_image(1, 64), ["golgi"])
        with pytest.raises(ChannelError, match="there is no channel 8: this encoder numbers them 0 to 7"):
            encoder.embed(_image(1, 64), ["8"])

    def test_channels_of_chammi_are_named_with_their_data_set(self, golden: Path) -> None:
        fixture, image = _fixture(golden, "dichavit_chammi"), _image(3)
        any_set = DiChaViT(6, "chammi").convert(fixture.checkpoint)
        cell_painting = DiChaViT(6, data_set="CP").convert(fixture.checkpoint)
        named = any_set.embed(image, ["CP nucleus", "CP er", "CP mito"]).values
        assert np.array_equal(cell_painting.embed(image, ["dapi", "er", "mito"]).values, named)
        assert np.array_equal(any_set.embed(image, [7, 8, 11]).values, named)
        assert np.abs(any_set.embed(image, ["HPA nucleus", "HPA er", "CP mito"]).values - named).max() > 1e-3
        with pytest.raises(ChannelError, match=r"'nucleus'.*Allen nucleus"):
            any_set.embed(image[:1], ["nucleus"])

    def test_shared_embeddings_of_chammi_keep_the_statistics_of_each_data_set(self, golden: Path) -> None:
        fixture = _fixture(golden, "dichavit_chammi")
        content = dict(fixture.checkpoint.content["model_params"])
        table = content["feature_extractor.patch_embed.channel_embed.weight"]
        content["feature_extractor.patch_embed.channel_embed.weight"] = table[:8]
        shared = DiChaViT(6, "chammi").convert(Checkpoint({"model_params": content}, Path("x")))
        types = shared.channels.types  # type: ignore[operator]
        batch = _dense([["Allen nucleus", "HPA nucleus", "CP er"]])
        assert types(batch).tolist() == [5, 5, 0]  # er, golgi, membrane, microtubules, mito, nucleus, protein, rna
        image = _image(1)
        allen, hpa = (shared.embed(image, [f"{name} nucleus"]).values for name in ("Allen", "HPA"))
        assert np.abs(allen - hpa).max() > 1e-3

    def test_a_checkpoint_of_chammi75_needs_its_channel_map(self, golden: Path) -> None:
        checkpoint = _fixture(golden, "chammi75_channelvit_dino").checkpoint
        with pytest.raises(WeightsError, match=r"says nothing of its channels; put the channel_map\.json"):
            Chammi75Channels().convert(Checkpoint(checkpoint.content, checkpoint.path))
        gaps = {name: 2 * number for name, number in checkpoint.sidecars["channel_map.json"].items()}
        with pytest.raises(WeightsError, match="does not number its channels from 0 without gaps"):
            Chammi75Channels(channel_map=gaps).convert(checkpoint)

    def test_types_outside_the_map_of_chammi75_are_refused_unless_told_what_they_get(self, golden: Path) -> None:
        image, name = _image(1), "chammi75_channelvit_dino"
        with pytest.raises(ChannelError, match=r"'nucleoli' is not in the vocabulary .* or set unknown to zero"):
            _encoder(golden, name).embed(image, ["nucleoli"])
        nearest = _encoder(golden, name, unknown="nearest").embed(image, ["nucleoli"]).values
        assert np.array_equal(nearest, _encoder(golden, name).embed(image, ["nucleus"]).values)

    def test_two_names_of_one_type_keep_their_own_embeddings(self, golden: Path) -> None:
        checkpoint = _fixture(golden, "chammi75_channelvit_dino").checkpoint
        names = ["mito", "mitochondria", *(f"stain {number}" for number in range(11))]
        numbers = {name: number for number, name in enumerate(names)}
        channels = Chammi75Channels(6, channel_map=numbers).convert(checkpoint).channels
        assert [channels.resolve(name) for name in ("mito", "mitochondria", "0")] == ["mito", "mitochondria", "mito"]


def _dense(panels: list[list[str]]) -> Any:
    batch = dense_batch([["nucleus"] * len(panel) for panel in panels])
    return batch._replace(channel_types=tuple(name for panel in panels for name in panel))


class TestFacts:
    def test_heads_are_those_of_the_published_width_and_said_where_there_is_none(self, golden: Path) -> None:
        listed = json.loads((golden / "chammi75_channelvit_dino.keys.json").read_text())["variants"]
        numbers = {f"channel {number}": number for number in range(25)}
        for variant, n_heads in (("small", 6), ("base", 12)):
            tensors = listed[f"student_channelvit_{variant}_16_25types"]["tensors"]
            with torch.device("meta"):
                content = {"student": {key: torch.empty(shape) for key, (shape, _) in tensors.items()}}
                encoder = Chammi75Channels(channel_map=numbers).convert(Checkpoint(content, Path("x")))
            assert encoder.channels.backbone.network.blocks[0].attn.num_heads == n_heads  # type: ignore[union-attr]
        with pytest.warns(UserWarning, match="48 is the width of no published network, so 6 attention heads"):
            ChannelViT().convert(_fixture(golden, "channelvit_hcs").checkpoint)

    def test_weights_of_eighteen_bands_need_to_be_told_which(self, golden: Path) -> None:
        content = dict(_fixture(golden, "channelvit_hcs").checkpoint.content)
        table = "patch_embed.channel_embed.weight"
        content[table] = content[table].repeat(3, 1)[:18]
        with pytest.raises(WeightsError, match=r"18 channels, and nothing in it says of which; say data_set="):
            ChannelViT(6).convert(Checkpoint(content, Path("x")))
        encoder = ChannelViT(6, "so2sat_hard").convert(Checkpoint(content, Path("x")))
        image = np.random.default_rng(0).normal(size=(2, 32, 32)).astype(np.float32)
        assert encoder.embed(image, ["So2Sat 3", "So2Sat 17"]).values.shape == (1, 48)
        with pytest.raises(ConfigError, match="No data set 'jumpcpp'; did you mean 'jumpcp'"):
            ChannelViT(6, "jumpcpp").convert(Checkpoint(content, Path("x")))

    def test_eight_channels_of_dichavit_are_told_apart_by_the_number_of_classes(self, golden: Path) -> None:
        content = dict(_fixture(golden, "dichavit_jumpcp").checkpoint.content["model_params"])
        assert DiChaViT(6).convert(Checkpoint(content, Path("x"))).after_resize is None  # 11 classes: JUMP-CP
        del content["proxies"]
        with pytest.raises(WeightsError, match="may be of CHAMMI or of JUMP-CP; say trained_on="):
            DiChaViT(6).convert(Checkpoint(content, Path("x")))

    def test_heads_of_chadavit_come_from_the_file_beside_it_unless_told(self, golden: Path) -> None:
        checkpoint = _fixture(golden, "chadavit_hub").checkpoint
        image, names = _image(2), ["nucleus", "actin"]
        twelve, told = (ChAdaViT(n_heads).convert(checkpoint).embed(image, names).values for n_heads in (None, 12))
        assert np.array_equal(twelve, told)
        other = Checkpoint(checkpoint.content, checkpoint.path, {"config.json": {"num_heads": 6}})
        assert np.abs(ChAdaViT().convert(other).embed(image, names).values - twelve).max() > 1e-3
        with pytest.warns(UserWarning, match="does not show its attention heads; 12 are assumed"):
            ChAdaViT().convert(Checkpoint(checkpoint.content, checkpoint.path))
        factory = ChAdaViT(built_by="factory").convert(checkpoint).embed(image, names).values
        assert np.abs(factory - twelve).max() > 1e-3

    def test_axial_rotary_positions_have_to_be_asked_for_and_mixed_ones_show(self, golden: Path) -> None:
        axial, mixed = (_fixture(golden, f"campfire_rotary_{form}").checkpoint for form in ("axial", "mixed"))
        with pytest.warns(UserWarning, match="cannot show whether it was trained with axial rotary positions"):
            assert not Campfire(n_heads=6).convert(axial).channels.needs_places
        assert Campfire(n_heads=6, rotary="axial").convert(axial).channels.needs_places
        assert Campfire(n_heads=4).convert(mixed).channels.needs_places
        with pytest.raises(WeightsError, match=r"has rotary frequencies .* contradicts; say 'mixed'"):
            Campfire(n_heads=4, rotary="none").convert(mixed)
        with pytest.raises(WeightsError, match=r"has no rotary frequencies .* say 'none' or 'axial'"):
            Campfire(n_heads=6, rotary="mixed").convert(axial)

    def test_openphenom_built_for_another_size_is_refused(self, golden: Path) -> None:
        checkpoint = _fixture(golden, "openphenom").checkpoint
        with pytest.raises(WeightsError, match=r"2816 positions, which are not those of grids of 196 patches"):
            OpenPhenom(image_size_px=224).convert(checkpoint)

    def test_openphenom_whose_channels_have_positions_of_their_own_is_refused(self, golden: Path) -> None:
        content = dict(_fixture(golden, "openphenom").checkpoint.content["state_dict"])
        content["encoder.vit_backbone.pos_embed"] = torch.randn_like(content["encoder.vit_backbone.pos_embed"])
        with pytest.raises(WeightsError, match="gives channels positions of their own"):
            OpenPhenom().convert(Checkpoint(content, Path("x")))

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: DiChaViT(trained_on="so2sat"), "No data that DiChaViT was trained on 'so2sat'"),
            (lambda: DiChaViT(data_set="WTC"), "No data set of CHAMMI 'WTC'"),
            (lambda: DiChaViT(trained_on="jumpcp", data_set="CP"), "data_set='CP' has no effect"),
            (lambda: ChAdaViT(built_by="notebook"), "No way to build ChAda-ViT 'notebook'"),
            (lambda: ChAdaViT(12, built_by="factory"), "built_by='factory' has 2 heads, not n_heads=12"),
            (lambda: ChAdaViT(network="backbone"), "No network of ChAda-ViT 'backbone'"),
            (lambda: Chammi75Channels(network="ema"), "No network of a DINO checkpoint 'ema'"),
            (lambda: OpenPhenom(features="class"), "No kind of OpenPhenom's features 'class'"),
            (lambda: OpenPhenom(scale="max"), "No scale of OpenPhenom 'max'"),
            (lambda: Campfire(rotary="both"), "No rotary form of Campfire 'both'"),
            (lambda: Campfire(rotation="sine"), "No rotation of Campfire 'sine'"),
            (lambda: Campfire(rotary="none", rotation="full"), "rotation='full' has no effect with rotary='none'"),
        ],
    )
    def test_facts_that_do_not_exist_or_do_nothing_are_refused(self, build: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build()


class TestOptions:
    """Compatibility options change numbers, and only where they should."""

    def _change(self, golden: Path, name: str, image: np.ndarray, names: list[Any], **options: Any) -> float:
        plain, other = _encoder(golden, name), _encoder(golden, name, **options)
        return float(np.abs(plain.embed(image, names).values - other.embed(image, names).values).max())

    def test_accidental_positions_act_where_patches_happen_to_be_as_many(self, golden: Path) -> None:
        four, three = ["Mito", "AGP", "RNA", "ER"], ["Mito", "AGP", "RNA"]
        options = {"accidental_positions": True}
        assert self._change(golden, "channelvit_hcs", _image(4, 112), four, **options) > 1e-3
        assert self._change(golden, "channelvit_hcs", _image(3, 112), three, **options) == 0
        for name in ("dichavit_jumpcp", "icvit_finetuned"):  # 4 x 7 x 7 patches of 16 pixels are as many as 14 x 14
            assert self._change(golden, name, _image(4, 112), four, **options) > 1e-3

    def test_padding_acts_on_images_of_fewer_channels(self, golden: Path) -> None:
        options = {"padded_channels": 2, "padding_seen": True}
        names = ["nucleus", "protein"]
        assert self._change(golden, "chammi75_channelvit_dino", _image(1), names[:1], **options) > 1e-3
        assert self._change(golden, "chammi75_channelvit_dino", _image(2), names, **options) == 0

    def test_teacher_and_student_differ(self, golden: Path) -> None:
        assert self._change(golden, "chammi75_channelvit_dino", _image(1), ["protein"], network="teacher") > 1e-2
        assert self._change(golden, "chadavit_lightning", _image(1), ["protein"], network="teacher") > 1e-2

    def test_newer_timm_and_the_joint_maximum_change_openphenom(self, golden: Path) -> None:
        image, names = _image(2, 256) // np.array([1, 4], np.uint8)[:, None, None], ["nucleus", "rna"]
        assert self._change(golden, "openphenom", image, names, mlp_bias="hidden") > 1e-2
        assert self._change(golden, "openphenom", image // 3, names, scale="joint_maximum") > 1e-6

    def test_cut_positions_act_at_other_sizes_alone(self, golden: Path) -> None:
        checkpoint = _fixture(golden, "openphenom").checkpoint
        plain, cut = (OpenPhenom(cut_positions=cut).convert(checkpoint).channels for cut in (False, True))
        for side, changed in ((256, False), (128, True)):
            batch = _dense([["nucleus", "rna"]])
            planes = torch.randn(2, 1, side, side, generator=torch.Generator().manual_seed(0))
            batch = batch._replace(planes=planes, sizes=torch.full_like(batch.sizes, side))
            with torch.no_grad():
                assert (not torch.allclose(plain(batch), cut(batch), atol=1e-4)) is changed

    def test_channelwise_features_of_openphenom_have_a_column_per_channel(self, golden: Path) -> None:
        encoder = _encoder(golden, "openphenom", features="channelwise")
        assert isinstance(encoder.channels, ChannelAgnostic)
        table = encoder.embed(_image(2, 256), ["rna", "nucleus"])
        assert table.values.shape == (1, 72)
        mean = _encoder(golden, "openphenom").embed(_image(2, 256), ["rna", "nucleus"]).values
        np.testing.assert_allclose(table.values.reshape(1, 2, 36).mean(1), mean, atol=1e-5)

    def test_a_full_rotation_changes_campfire(self, golden: Path) -> None:
        for form in ("axial", "mixed"):
            name = f"campfire_rotary_{form}"
            assert self._change(golden, name, _image(2, 112), ["nucleus", "rna"], rotation="full") > 1e-2


def test_two_and_three_axes_of_a_patch_projection_are_one_network(golden: Path) -> None:
    """IC-ViT stores a 2-D convolution, ChannelViT a 3-D one of the same numbers."""
    fixture = _fixture(golden, "icvit_finetuned")
    encoder = _encoder(golden, "icvit_finetuned")
    flat = {key.removeprefix("backbone."): value for key, value in ICViT().to_authors(encoder).items()}
    flat["patch_embed.proj.weight"] = flat["patch_embed.proj.weight"].unsqueeze(2)
    other = ChannelViT(fixture.record["constructor"]["num_heads"]).convert(Checkpoint(flat, Path("x")))
    image, names = _image(3, 64), ["Mito", "AGP", "BF"]
    assert np.array_equal(other.embed(image, names).values, encoder.embed(image, names).values)

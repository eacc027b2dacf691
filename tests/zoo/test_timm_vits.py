from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

import morphem
from morphem.channels.rgb_bag import IMAGENET_MEAN, IMAGENET_STD
from morphem.cli import main
from morphem.errors import ConfigError, WeightsError
from morphem.features import read
from morphem.testing import check_file
from morphem.zoo.base import Checkpoint
from morphem.zoo.dinov3_names import periods
from morphem.zoo.timm_vits import TimmViTs
from tests.small_shards import image, write
from tests.zoo.golden_replay import assert_round_trip, differences, meta_checkpoint, read_checkpoint, read_record

SIDE = 32
PLAIN: dict[str, Any] = {"position_antialias": False}
SMALL: dict[str, Any] = {"embed_dim": 32, "depth": 2, "num_heads": 4}


def _randomised(network: torch.nn.Module) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return {name: 0.2 * torch.randn(tensor.shape) for name, tensor in network.state_dict().items()}


def _file(name: str, **settings: Any) -> Checkpoint:
    """A file in timm's form, made by timm."""
    network = timm.create_model(name, pretrained=False, **SMALL, **settings)
    return Checkpoint(_randomised(network), Path(f"{name}.safetensors"))


def _family(**facts: Any) -> TimmViTs:
    return TimmViTs(**{"n_heads": 4, "input_size_px": SIDE, **facts})


def _image(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_every_output_is_that_of_the_authors_code(golden: Path, dtype: torch.dtype) -> None:
    found = differences(TimmViTs, golden, "dinov2_boc", dtype)
    assert {name.split(".")[1] for name in found} == {"features", "features_through_timm"}
    for output, (distance, tolerance) in found.items():
        assert distance <= tolerance, output


@pytest.mark.parametrize("file", ["dinov2_boc.ckpt", "dinov2_boc.timm.safetensors"])
def test_the_authors_tensors_come_back_bit_for_bit(golden: Path, file: str) -> None:
    family = TimmViTs.from_golden(read_record(golden, "dinov2_boc"))
    assert family is not None
    assert_round_trip(family, Checkpoint.read(golden / file))


@pytest.mark.parametrize("variant", ["dinov2_vits14_reg4_meta", "vit_small_patch14_reg4_dinov2_timm"])
def test_the_keys_of_the_release_load_strictly(golden: Path, variant: str) -> None:
    with torch.device("meta"):
        assert TimmViTs().convert(meta_checkpoint(golden, "dinov2_boc", variant)).embed_dim == 384


@pytest.mark.parametrize("record", TimmViTs.records, ids=lambda record: record.name)
def test_what_timm_builds_for_a_record_loads_strictly(record: Any) -> None:
    name = record.location.hub_id.removeprefix("timm/")
    with torch.device("meta"):
        content = Checkpoint(dict(timm.create_model(name, pretrained=False).state_dict()), Path(name))
        assert TimmViTs.recognises(content)
        assert TimmViTs(**record.facts).convert(content).embed_dim == record.embed_dim


FILES = [
    ("vit_small_patch16_224", {"img_size": 32}, {}),
    ("vit_small_patch16_224.augreg_in1k", {"img_size": 32}, {"mean": (0.5,) * 3, "std": (0.5,) * 3}),
    ("vit_small_patch14_reg4_dinov2", {"img_size": 42, "patch_size": 14}, {"input_size_px": 28}),
    ("vit_small_patch14_dinov2", {"img_size": 42, "patch_size": 14}, {"input_size_px": 28}),
    ("vit_small_patch16_dinov3", {"global_pool": "token"}, {}),
    ("vit_small_patch16_dinov3_qkvb", {"global_pool": "token"}, {}),
]


@pytest.mark.parametrize(("name", "settings", "facts"), FILES)
def test_features_are_timms_own(name: str, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    network = timm.create_model(
        name, pretrained=False, num_classes=0, dynamic_img_size=True, **SMALL, **settings
    ).eval()
    network.load_state_dict(_randomised(network))
    resampling = {} if "dinov3" in name else {"position_offset": 0.0, "position_antialias": True}
    family = _family(**resampling, **facts)
    encoder = assert_round_trip(family, Checkpoint(dict(network.state_dict()), Path(name)))
    side = family.input_size_px
    image = _image(2, side, side)
    shown = torch.from_numpy(image).float()[:, None].expand(-1, 3, -1, -1) / image.max()
    colours = (family.mean or IMAGENET_MEAN, family.std or IMAGENET_STD)
    mean, std = (torch.tensor(values)[:, None, None] for values in colours)
    with torch.no_grad():
        expected = network((shown - mean) / std)
    found = encoder.embed(image, ["actin", "nucleus"], combine="none").values
    np.testing.assert_allclose(found, expected.numpy(), atol=2e-5)


def test_a_classifier_and_a_mask_token_are_left_out() -> None:
    content = _file("vit_small_patch16_224", img_size=32)
    assert "head.weight" in content.content
    more = Checkpoint({**content.content, "mask_token": torch.zeros(1, 32)}, content.path)
    family = _family(mean=(0.5,) * 3, std=(0.5,) * 3)
    assert "head.weight" not in family.to_authors(family.convert(more))
    with pytest.raises(WeightsError, match=r"has a classifier \(head.\*\), and supervised networks differ"):
        _family().convert(more)
    with pytest.raises(ConfigError, match="give mean and std together"):
        _family(mean=(0.5,) * 3)


def test_heads_are_never_guessed() -> None:
    content = _file("vit_small_patch16_224", img_size=32, num_classes=0)
    with pytest.raises(WeightsError, match="a width of 32, which no released network has"):
        TimmViTs().convert(content)
    with pytest.raises(WeightsError, match="n_heads=5 does not divide the width 32"):
        _family(n_heads=5).convert(content)
    with pytest.raises(ConfigError, match="n_heads=0 must be at least 1"):
        _family(n_heads=0)


def test_settings_without_effect_on_dinov3_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"have no effect on .*, a DINOv3 network"):
        _family(layer_norm_eps=1e-6).convert(_file("vit_small_patch16_dinov3"))


def test_registers_say_how_positions_are_resampled(golden: Path) -> None:
    content, image = read_checkpoint(golden, "dinov2_boc"), _image(1, 224, 224)
    told = TimmViTs.from_golden(read_record(golden, "dinov2_boc"))
    assert told is not None
    expected = told.convert(content).embed(image, ["nucleus"]).values
    np.testing.assert_array_equal(TimmViTs(6).convert(content).embed(image, ["nucleus"]).values, expected)


def test_blocks_in_chunks_are_numbered_through() -> None:
    content = dict(_file("vit_small_patch16_224", img_size=32, num_classes=0).content)
    chunked = {}
    for name, tensor in content.items():
        parts = name.split(".")
        chunked[f"blocks.{int(parts[1]) // 2}.{name[7:]}" if parts[0] == "blocks" else name] = tensor
    image = _image(1, SIDE, SIDE)
    plain = _family().convert(Checkpoint(content, Path("x"))).embed(image, ["nucleus"]).values
    encoder = assert_round_trip(_family(), Checkpoint(chunked, Path("x")))
    np.testing.assert_array_equal(encoder.embed(image, ["nucleus"]).values, plain)


def test_without_a_network_the_error_says_what_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"model\.safetensors from https://huggingface.co/timm/vit_small_patch16_224.dino"
    ):
        morphem.load("dino-imagenet-vits16", local_files_only=True)


def test_files_of_dinov3s_authors_give_the_encoder_of_timms_file() -> None:
    network = timm.create_model("vit_small_patch16_dinov3_qkvb", num_classes=0, **SMALL)
    ours = _randomised(network)
    theirs: dict[str, Tensor] = {"mask_token": torch.zeros(1, 32), "rope_embed.periods": periods(8).bfloat16()}
    for name, tensor in ours.items():
        if name.endswith("q_bias"):
            value = ours[name.replace("q_bias", "v_bias")]
            theirs[name.replace("q_bias", "qkv.bias")] = torch.cat([tensor, torch.zeros(32), value])
            theirs[name.replace("q_bias", "qkv.bias_mask")] = torch.ones(96)
        elif not name.endswith("v_bias"):
            renamed = name.replace("reg_token", "storage_tokens")
            theirs[renamed.replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")] = tensor
    image = _image(1, SIDE, SIDE)
    tables = []
    for tensors in (ours, theirs):
        encoder = assert_round_trip(_family(), Checkpoint(tensors, Path("dinov3")))
        tables.append(encoder.embed(image, ["nucleus"]).values)
    np.testing.assert_array_equal(*tables)
    with pytest.raises(WeightsError, match="rotary positions of other periods"):
        _family().convert(Checkpoint({**theirs, "rope_embed.periods": periods(8) * 2}, Path("dinov3")))
    with pytest.raises(
        WeightsError, match="n_heads=16 does not give heads of a multiple of 4 numbers in a width of 32"
    ):
        _family(n_heads=16).convert(Checkpoint(ours, Path("dinov3")))


@pytest.mark.parametrize(("name", "settings", "facts"), FILES)
def test_the_contract_of_families_is_kept(name: str, settings: dict[str, Any], facts: dict[str, Any]) -> None:
    check_file(_family(**facts), _file(name, num_classes=0, **settings))


def test_the_brightest_pixel_of_all_channels_becomes_one() -> None:
    encoder, image = _family().convert(_file("vit_small_patch16_224", img_size=32, num_classes=0)), _image(2, 32, 32)
    table = encoder.embed(image, ["actin", "nucleus"]).values
    np.testing.assert_allclose(
        encoder.embed(image.astype(np.uint16) * 9, ["actin", "nucleus"]).values, table, atol=1e-5
    )
    image[1] //= 4
    dimmed = encoder.embed(image, ["actin", "nucleus"]).values
    assert np.abs(dimmed[:, 32:] - table[:, 32:]).max() > 1e-3


def test_full_scale_is_the_named_alternative() -> None:
    content = _file("vit_small_patch16_224", img_size=32, num_classes=0)
    encoder = _family(brightness="full_scale", mean=(0, 0, 0), std=(1, 1, 1)).convert(content)
    image = _image(2, 32, 32)
    alone = encoder.embed(image[:1], ["actin"]).values
    np.testing.assert_allclose(encoder.embed(image, ["actin", "nucleus"]).values[:, :32], alone, atol=1e-6)
    with pytest.raises(ConfigError, match="brightness='dim' must be 'image_maximum' or 'full_scale'"):
        _family(brightness="dim")


def test_a_black_image_has_an_embedding() -> None:
    encoder = _family().convert(_file("vit_small_patch16_224", img_size=32, num_classes=0))
    assert np.isfinite(encoder.embed(np.zeros((1, 32, 32), np.uint8), ["actin"]).values).all()


def test_networks_of_one_channel_are_not_recognised() -> None:
    assert not TimmViTs.recognises(_file("vit_small_patch16_224", img_size=32, in_chans=1))


def test_what_does_not_match_is_refused_by_name() -> None:
    content = dict(_file("vit_small_patch16_224", img_size=32, num_classes=0).content)
    with pytest.raises(WeightsError, match=r"1 unexpected \(blocks.0.extra\)"):
        _family().convert(Checkpoint({**content, "blocks.0.extra": torch.zeros(1)}, Path("x")))
    del content["blocks.1.norm2.bias"]
    with pytest.raises(WeightsError, match=r"1 missing \(blocks.1.norm2.bias\)"):
        _family().convert(Checkpoint(content, Path("x")))
    del content["norm.weight"]
    with pytest.raises(WeightsError, match=r"is no vision transformer for pictures: norm.weight not among"):
        _family().convert(Checkpoint(content, Path("x")))


def test_heads_and_resampling_change_the_numbers_although_shapes_fit(golden: Path) -> None:
    record, content = read_record(golden, "dinov2_boc"), read_checkpoint(golden, "dinov2_boc")
    right = TimmViTs.from_golden(record)
    assert right is not None
    image = _image(1, 224, 224)
    expected = right.convert(content).embed(image, ["nucleus"]).values
    for family in (TimmViTs(3), TimmViTs(6, position_antialias=False), TimmViTs(6, position_offset=0.1, **PLAIN)):
        assert np.abs(family.convert(content).embed(image, ["nucleus"]).values - expected).max() > 1e-3


def test_embedding_shards_keeps_the_channels_of_an_image_together(tmp_path: Path) -> None:
    """The brightest pixel is that of all channels, also where planes are read and checked one by one."""
    encoder = _family().convert(_file("vit_small_patch16_224", img_size=32, num_classes=0))
    encoder.save_pretrained(tmp_path / "encoder")
    records = [image(f"i{number}", ("nucleus", "actin"), (40, 48)) for number in range(2)]
    root = write(tmp_path / "shards", records)
    output = tmp_path / "features.parquet"
    assert (
        main(
            [
                "embed",
                "--model",
                str(tmp_path / "encoder"),
                "--data",
                root,
                "--output",
                str(output),
                "--accelerator",
                "cpu",
            ]
        )
        == 0
    )
    expected = encoder.embed(np.stack(records[0].planes), ["nucleus", "actin"]).values
    np.testing.assert_allclose(read(output).values[:1], expected, atol=1e-5)

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from morphem import zoo
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.normalizers import SelfNormalize
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint
from morphem.zoo.chammi75 import DINOBagOfChannels
from tests.references import golden as golden_cases

COLOURS = ["b", "g", "r"]  # alphabetical, so that columns come in the order of the planes


def _with(encoder: Encoder, divide_by: float = 255.0, input_size_px: int | None = 224) -> Encoder:
    return Encoder(encoder.channels, SelfNormalize(divide_by=divide_by), input_size_px=input_size_px)


@pytest.mark.parametrize(
    ("case", "divide_by", "input_size_px"),
    [
        ("native", 255.0, 224),
        ("resized", 255.0, 224),
        ("no_resize_square", 255.0, None),
        ("no_resize_rectangle", 255.0, None),
        ("domain_0_255", 1.0, 224),
        ("blank_channel", 255.0, 224),
    ],
)
def test_the_hub_form_gives_what_the_authors_code_gives(
    golden: Path, case: str, divide_by: float, input_size_px: int | None
) -> None:
    tensors = golden_cases.tensors(golden, "morphem_hub")
    encoder = _with(zoo.load(golden / "morphem_hub.safetensors"), divide_by, input_size_px)
    images = tensors[f"{case}.images"]
    table = encoder.embed(images, COLOURS[: images.shape[1]])
    limit = golden_cases.tolerance(golden, "morphem_hub", case, "features")
    np.testing.assert_allclose(table.values, tensors[f"{case}.features"].numpy(), atol=limit, rtol=0)


@pytest.mark.parametrize("case", ["native", "no_resize_square", "no_resize_rectangle", "domain_0_255"])
def test_in_double_precision_the_network_agrees_to_a_millionth(golden: Path, case: str) -> None:
    tensors = golden_cases.tensors(golden, "morphem_hub")
    images = tensors[f"{case}.images"].double() / (1 if case == "domain_0_255" else 255)
    mean, variance = images.mean((-2, -1), keepdim=True), images.var((-2, -1), correction=0, keepdim=True)
    planes = ((images - mean) / (variance + 1e-7).sqrt()).flatten(0, 1)[:, None]
    backbone = zoo.load(golden / "morphem_hub.safetensors").channels.backbone.double()
    with torch.no_grad():
        result = backbone(planes).reshape(len(images), -1)
    torch.testing.assert_close(result, tensors[f"{case}.features_f64"], atol=1e-6, rtol=0)


def test_every_stage_gives_what_the_authors_code_gives(golden: Path) -> None:
    tensors = golden_cases.tensors(golden, "morphem_hub")
    encoder = zoo.load(golden / "morphem_hub.safetensors")
    batch = ChannelBatch.from_planes([[tensors["native.images"][0, 0]]], [["r"]])
    normalised = encoder.normalizer(batch).planes.reshape(1, 1, 224, 224)
    backbone = encoder.channels.backbone
    with torch.no_grad():
        embedded, tokens = backbone.embedded(normalised), backbone.tokens(normalised)
    torch.testing.assert_close(normalised, tensors["native.tokens_normalised_input"], atol=1e-4, rtol=0)
    torch.testing.assert_close(embedded, tensors["native.tokens_embedded"], atol=1e-4, rtol=0)
    torch.testing.assert_close(tokens[:, 1:], tensors["native.tokens_norm_patch"], atol=1e-4, rtol=0)


@pytest.mark.parametrize(("network", "output"), [("student", "features"), ("teacher", "features_of_teacher")])
def test_both_networks_of_a_training_checkpoint_load(golden: Path, network: str, output: str) -> None:
    tensors = golden_cases.tensors(golden, "morphem_train")
    encoder = zoo.load(golden / "morphem_train.ckpt", network=network)
    limit = golden_cases.tolerance(golden, "morphem_train", "native", output)
    values = encoder.embed(tensors["native.images"], COLOURS).values
    np.testing.assert_allclose(values, tensors[f"native.{output}"].numpy(), atol=limit, rtol=0)
    assert encoder.card["exported"] == network


def test_a_training_checkpoint_works_away_from_the_native_size(golden: Path) -> None:
    tensors = golden_cases.tensors(golden, "morphem_train")
    encoder = _with(zoo.load(golden / "morphem_train.ckpt"), input_size_px=None)
    limit = golden_cases.tolerance(golden, "morphem_train", "no_resize", "features")
    values = encoder.embed(tensors["no_resize.images"], COLOURS[:2]).values
    np.testing.assert_allclose(values, tensors["no_resize.features"].numpy(), atol=limit, rtol=0)


def test_a_converted_encoder_is_saved_and_loaded_like_our_own(golden: Path, tmp_path: Path) -> None:
    images = golden_cases.tensors(golden, "morphem_hub")["native.images"]
    encoder = zoo.load(golden / "morphem_hub.safetensors")
    encoder.save_pretrained(tmp_path)
    again = zoo.load(tmp_path)
    assert np.array_equal(again.embed(images, COLOURS).values, encoder.embed(images, COLOURS).values)
    assert again.card["license"] == "mit"


@pytest.fixture
def released(tmp_path: Path) -> Path:
    """A file with the names of the release, head included, at a small size."""
    torch.manual_seed(0)
    network = VisionTransformer("vit_small_patch16_224", embed_dim=12, depth=1, n_heads=6).network
    head = {"head.mlp.0.weight": torch.zeros(4, 12), "head.last_layer.weight_g": torch.ones(8, 1)}
    save_file({**network.state_dict(), **head}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "custom"}')
    return tmp_path


def test_the_downloaded_folder_of_the_release_loads_without_its_head(released: Path) -> None:
    encoder = zoo.load(released)
    assert isinstance(encoder.channels, BagOfChannels)
    assert encoder.embed_dim == 12
    assert encoder.origin["model"] == str(released / "model.safetensors")
    assert encoder.input_size_px == 224


def test_a_release_with_a_missing_tensor_is_refused_with_its_name(released: Path) -> None:
    tensors = load_file(released / "model.safetensors")
    del tensors["norm.bias"]
    save_file(tensors, released / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 missing \(norm\.bias\)"):
        zoo.load(released)


def test_a_release_with_tensors_left_over_is_refused_with_their_names(released: Path) -> None:
    tensors = load_file(released / "model.safetensors")
    save_file({**tensors, "mask_token": torch.zeros(1)}, released / "model.safetensors")
    with pytest.raises(WeightsError, match=r"1 unexpected \(mask_token\)"):
        zoo.load(released)


def test_weights_of_another_family_are_refused(tmp_path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(WeightsError, match=r"is no MorphEm encoder: cls_token"):
        DINOBagOfChannels().convert(Checkpoint.read(tmp_path / "model.safetensors"))

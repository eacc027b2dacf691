"""The published networks' own outputs: ChannelViT, DiChaViT, IC-ViT and the channel attention of CHAMMI-75."""

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from morphem.channels.channel_attention import ChannelAttention
from morphem.data.schema import channel_vocabulary
from tests.channels import golden_networks
from tests.references import golden as golden_cases

NAMES = [name for name in channel_vocabulary() if name != "unknown"]
MODELS = {
    "channelvit_hcs": ("", "patch_embed.channel_embed.weight"),
    "channelvit_dino_imagenet": ("", "patch_embed.channel_embed"),
    "dichavit_jumpcp": ("feature_extractor.", "patch_embed.channel_embed.weight"),
    "icvit_finetuned": ("backbone.", "patch_embed.channel_embed.weight"),
    "chammi75_channelvit_dino": ("module.backbone.", "patch_embed.channel_tokens"),
}
CASES = [
    ("channelvit_hcs", "native_two_channels"),
    ("channelvit_hcs", "one_channel_native"),
    ("channelvit_hcs", "small_subset"),
    ("channelvit_hcs", "all_channels"),
    ("channelvit_dino_imagenet", "one_channel_native"),
    ("channelvit_dino_imagenet", "rgb"),
    ("dichavit_jumpcp", "subset"),
    ("dichavit_jumpcp", "all_channels"),
    ("icvit_finetuned", "native_three_channels"),
    ("icvit_finetuned", "one_channel"),
    ("icvit_finetuned", "small"),
    ("chammi75_channelvit_dino", "cp"),
    ("chammi75_channelvit_dino", "one_channel"),
    ("chammi75_channelvit_dino", "no_resize_repeated_type"),
]


def _strategy(folder: Path, name: str, nudged: bool = True) -> ChannelAttention:
    content = golden_networks.load(folder / f"{name}.ckpt")
    for key in ("student", "model_params", "state_dict"):
        content = content.get(key, content)
    prefix, table_key = MODELS[name]
    table = content[prefix + table_key]
    if table.ndim == 5:
        table = table[0, :, :, 0, 0].T
    strategy = ChannelAttention(
        golden_networks.backbone(content, 6, prefix), NAMES[: len(table)], nudged_positions=nudged
    )
    weights = golden_networks.network_keys(content, prefix)
    strategy.load_state_dict({**weights, "channel_embedding": table})
    return strategy.eval().double()


def _normalised(folder: Path, name: str, images: Tensor, ids: Tensor) -> Tensor:
    record = json.loads((folder / f"{name}.json").read_text())
    statistics = record.get("normalisation")
    if statistics is None:
        return golden_networks.self_normalised(images)
    mean, std = (torch.tensor(statistics[key], dtype=torch.float64) for key in ("mean", "std"))
    ids = torch.zeros_like(ids) if name == "channelvit_dino_imagenet" and ids.shape[1] == 1 else ids
    scale = 255.0 if name == "channelvit_dino_imagenet" else 1.0
    return (images.double() / scale - mean[ids][:, :, None, None]) / std[ids][:, :, None, None]


def _ids(folder: Path, name: str, case: str, tensors: dict[str, Tensor]) -> Tensor:
    inputs = json.loads((folder / f"{name}.json").read_text())["cases"][case]["inputs"]
    if "channel_ids" in inputs:
        return tensors[inputs["channel_ids"]]
    channels = inputs["channels"]
    if isinstance(channels[0], str):
        numbers = json.loads((folder / f"{name}.channel_map.json").read_text())
        channels = [numbers[channel] for channel in channels]
    return torch.tensor(channels).expand(len(tensors[f"{case}.images"]), -1)


@pytest.mark.parametrize(("name", "case"), CASES)
def test_the_network_gives_what_the_authors_code_gives(golden: Path, name: str, case: str) -> None:
    tensors = golden_cases.tensors(golden, name)
    ids = _ids(golden, name, case, tensors)
    images = _normalised(golden, name, tensors[f"{case}.images"], ids)
    batch = golden_networks.dense(list(images), [[NAMES[i] for i in row] for row in ids.tolist()])
    with torch.no_grad():
        result = _strategy(golden, name)(batch)
    torch.testing.assert_close(result, tensors[f"{case}.features_f64"], atol=1e-6, rtol=0)


def test_images_of_several_channel_counts_give_what_each_gives_alone(golden: Path) -> None:
    name = "chammi75_channelvit_dino"
    tensors = golden_cases.tensors(golden, name)
    images = golden_networks.self_normalised(tensors["mixed_channel_counts.images"])
    batch = golden_networks.dense([images[0], images[1, :1]], [[NAMES[i] for i in (0, 2, 1)], [NAMES[3]]])
    with torch.no_grad():
        result = _strategy(golden, name)(batch)
    torch.testing.assert_close(result, tensors["mixed_channel_counts.features_alone_f64"], atol=1e-6, rtol=0)


def test_only_nudged_positions_are_those_of_the_published_code_at_the_trained_size(golden: Path) -> None:
    tensors = golden_cases.tensors(golden, "channelvit_hcs")
    ids = tensors["native_two_channels.channel_ids"]
    images = _normalised(golden, "channelvit_hcs", tensors["native_two_channels.images"], ids)
    batch = golden_networks.dense(list(images), [[NAMES[i] for i in row] for row in ids.tolist()])
    with torch.no_grad():
        result = _strategy(golden, "channelvit_hcs", nudged=False)(batch)
    difference = (result - tensors["native_two_channels.features_f64"]).abs().max()
    assert 1e-3 < difference < 1e-2

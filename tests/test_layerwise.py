"""Rates by layer: the published factors, the root of the batch, and the groups that an optimizer gets."""

import math

import pytest
import torch

from morphem.errors import ConfigError
from morphem.layerwise import LayerwiseRecipe, scale_rates
from morphem.methods.dinov2 import DINOv2
from morphem.optimizers import set_rates


def _recipe(**changes: float | None) -> LayerwiseRecipe:
    return LayerwiseRecipe(**{"lr": 5e-4, "lr_per_images": 1024, **changes})  # type: ignore[arg-type]


def test_factors_fall_from_the_last_layer_to_the_first() -> None:
    scales = _recipe().scales(DINOv2.tiny())
    network = "encoder.channels.backbone.network."
    expected = {
        network + "norm.weight": 1.0,
        "head.layers.0.weight": 1.0,
        network + "blocks.1.norm2.weight": 0.9,
        network + "blocks.0.attn.qkv.weight": 0.9**2,
        network + "pos_embed": 0.9**3,
        network + "cls_token": 0.9**3,
        "mask_token": 0.9**3,
        network + "patch_embed.proj.weight": 0.2 * 0.9**3,
    }
    assert {name: scales[name] for name in expected} == pytest.approx(expected)


def test_the_optimizer_holds_every_trained_parameter_once_with_its_factor_and_decay() -> None:
    method = DINOv2.tiny()
    optimizer = _recipe().build(method)
    scales = _recipe().scales(method)
    names = {parameter: name for name, parameter in method.named_parameters()}
    held = [(names[parameter], group) for group in optimizer.param_groups for parameter in group["params"]]
    trained = sorted(name for name, parameter in method.named_parameters() if parameter.requires_grad)
    assert sorted(name for name, _ in held) == trained
    assert all(group["lr_scale"] == scales[name] for name, group in held)
    for name, group in held:
        bare = name.endswith(".bias") or dict(method.named_parameters())[name].ndim <= 1
        assert group["name"] == ("exempt" if bare else "decayed")
    set_rates(optimizer, 1e-3, 0.1)
    scale_rates(optimizer)
    assert all(group["lr"] == pytest.approx(1e-3 * scales[name]) for name, group in held)
    assert {group["weight_decay"] for _, group in held if group["name"] == "decayed"} == {0.1}
    assert {group["weight_decay"] for _, group in held if group["name"] == "exempt"} == {0.0}


def test_the_rate_grows_with_the_root_of_the_batch() -> None:
    assert _recipe().peak_lr(1024) == pytest.approx(5e-4)
    assert _recipe().peak_lr(512) == pytest.approx(5e-4 * math.sqrt(0.5))  # channel-adaptive DINO: 32 x 16 images
    assert _recipe(lr_per_images=None).peak_lr(512) == 5e-4
    with pytest.raises(ConfigError, match="lr_per_images"):
        _recipe().peak_lr(None)


def test_one_rate_for_all_makes_two_groups() -> None:
    optimizer = _recipe(layer_decay=1.0, patch_lr_scale=1.0).build(DINOv2.tiny())
    assert [group["name"] for group in optimizer.param_groups] == ["decayed", "exempt"]


def test_a_network_without_blocks_has_one_rate_but_for_its_head() -> None:
    module = torch.nn.ModuleDict({"encoder": torch.nn.Linear(2, 2), "head": torch.nn.Linear(2, 2)})
    assert _recipe().scales(module) == {
        "encoder.weight": 0.9,
        "encoder.bias": 0.9,
        "head.weight": 1.0,
        "head.bias": 1.0,
    }


@pytest.mark.parametrize("changes", [{"layer_decay": 0.0}, {"layer_decay": 1.1}, {"patch_lr_scale": 0.0}])
def test_factors_out_of_range_are_refused_by_name(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))):
        _recipe(**changes)

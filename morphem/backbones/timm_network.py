"""The networks of timm behind `VisionTransformer`, and what its settings may be."""

from functools import partial
from typing import Any, Literal

import timm
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import nn

from morphem.backbones.positions import FIXED
from morphem.backbones.rotary import ROTARY, ROTATIONS
from morphem.errors import ConfigError, unknown_name

Pooling = Literal["class", "mean"]
CLASS = 1
"""Rows of the position table before the patches: the class token's."""


def check_numbers(
    drop_path_rate: float, in_channels: int, registers: int, layer_scale: float | None, layer_norm_eps: float
) -> None:
    """Refuse numbers out of range; arguments as `VisionTransformer` takes them.

    Raises:
        ConfigError: Names the setting.
    """
    if not 0 <= drop_path_rate < 1:
        raise ConfigError(f"vit: drop_path_rate={drop_path_rate} must be at least 0 and below 1.")
    if in_channels < 1 or registers < 0:
        raise ConfigError(f"vit: in_channels={in_channels} must be at least 1, and registers={registers} at least 0.")
    if not layer_norm_eps > 0:
        raise ConfigError(f"vit: layer_norm_eps={layer_norm_eps} must be above 0.")
    if layer_scale is not None and not layer_scale > 0:
        raise ConfigError(f"vit: layer_scale={layer_scale} must be above 0, or null for none.")


def check_choices(
    positions: str,
    pooling: str,
    position_offset: float,
    position_antialias: bool,
    rotary: str,
    rotary_base: float,
    rotation: str,
) -> None:
    """Refuse settings that are none of their values or have no effect; arguments as `VisionTransformer` takes them.

    Raises:
        ConfigError: Names the setting.
    """
    choices = {
        "positions": (positions, ("learned", *FIXED)),
        "pooling": (pooling, ("class", "mean")),
        "rotary": (rotary, ROTARY),
        "rotation": (rotation, ROTATIONS),
    }
    for key, (value, allowed) in choices.items():
        if value not in allowed:
            names = ", ".join(f"'{name}'" for name in allowed[:-1])
            raise ConfigError(f"vit: {key}='{value}' must be {names} or '{allowed[-1]}'.")
    if positions != "learned" and (position_offset != 0.1 or position_antialias):
        raise ConfigError(f"vit: position_offset and position_antialias have no effect with positions='{positions}'.")
    if position_offset < 0:
        raise ConfigError(f"vit: position_offset={position_offset} must be at least 0.")
    if rotary == "none" and (rotation != "full" or rotary_base != 10.0):
        raise ConfigError("vit: rotation and rotary_base have no effect with rotary='none'.")
    if not rotary_base > 1:
        raise ConfigError(f"vit: rotary_base={rotary_base} must be above 1.")


def timm_network(name: str, changes: dict[str, Any], *, layer_norm_eps: float, **settings: Any) -> Any:
    """Build a network without classifier, and check that its tokens are what `VisionTransformer` expects.

    Args:
        name: Of timm.
        changes: Arguments of timm that replace those of the name.
        layer_norm_eps: Epsilon of all normalisations.
        settings: Further arguments of timm, with `reg_tokens`.

    Raises:
        ConfigError: If timm has no such network, or it is of another kind, or does not take the arguments.
    """
    if not timm.is_model(name):
        raise ConfigError(unknown_name("timm network", name, [*timm.list_models("vit_*patch*_224"), "test_vit"]))
    arguments: dict[str, Any] = {"num_classes": 0, "dynamic_img_size": True, **settings}
    norm: Any = partial(nn.LayerNorm, eps=layer_norm_eps)
    try:
        network = timm.create_model(name, pretrained=False, norm_layer=norm, **arguments, **changes)
    except (TypeError, ValueError, AssertionError) as fault:  # timm raises all three for settings that clash
        raise ConfigError(
            f"vit: '{name}' does not take {changes or arguments}: {fault or 'they do not fit'}."
        ) from fault
    usable = (
        isinstance(network, TimmVisionTransformer)
        and network.cls_token is not None
        and network.pos_embed is not None
        and network.num_prefix_tokens == CLASS + settings["reg_tokens"]
        and not network.no_embed_class
        and network.global_pool == "token"
    )
    if not usable:
        raise ConfigError(
            f"vit: '{name}' is not a vision transformer whose output is a class token with a learned position; "
            "take for example vit_tiny_patch16_224, vit_small_patch16_224 or vit_base_patch16_224."
        )
    return network

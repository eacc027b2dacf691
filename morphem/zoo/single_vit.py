"""What families of one vision transformer share: the architecture that shapes show, and strict loading.

The files have timm's names (DINO's, MAE's and DINOv2's code grew from the same root): `cls_token`, `pos_embed`,
`patch_embed.proj`, `blocks.{i}.norm1`, `blocks.{i}.attn.qkv`, ..., `norm`.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from morphem.backbones.vit import VisionTransformer
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.zoo.strictness import check_names, depth_of, needed

PROJECTION = "patch_embed.proj.weight"
_NEEDED = ("cls_token", "pos_embed", PROJECTION, "blocks.0.mlp.fc1.weight")
_BASE = "vit_small_patch16_224"
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16}
"""Attention heads of ViT-Ti, ViT-S, ViT-B and ViT-L by their width."""
Tensors = dict[str, Tensor]


def is_vit(tensors: Mapping[str, Any], n_channels: Callable[[int], bool], axes: int = 4) -> bool:
    """Whether tensors under timm's names are a transformer that takes a number of channels.

    Args:
        tensors: By name; other values are looked over.
        n_channels: Whether a number of input channels fits.
        axes: Of the patch projection: 4, or 5 where it is a convolution in three dimensions.
    """
    projection = tensors.get(PROJECTION)
    if not isinstance(projection, Tensor) or projection.ndim != axes:
        return False
    return n_channels(projection.shape[1]) and all(isinstance(tensors.get(name), Tensor) for name in _NEEDED)


def shapes(tensors: Mapping[str, Tensor], source: str, what: str) -> dict[str, Any]:
    """Read width, depth, patch, native size and MLP ratio off the shapes, as `VisionTransformer` takes them.

    Args:
        tensors: Under timm's names, with a patch projection of four axes.
        source: Where they come from, for messages.
        what: What they should be, for messages.

    Raises:
        WeightsError: If a tensor is missing, or the positions are not those of a square and a class token.
    """
    needed(tensors, _NEEDED, source, what)
    width, _, patch, _ = tensors[PROJECTION].shape
    rows = tensors["pos_embed"].shape[1] - 1
    side = round(rows**0.5)
    if side * side != rows:
        raise WeightsError(f"{source} is no {what}: {rows + 1} positions are not those of a square and a class token.")
    return {
        "embed_dim": width,
        "depth": depth_of(tensors),
        "patch_size_px": patch,
        "image_size_px": side * patch,
        "mlp_ratio": tensors["blocks.0.mlp.fc1.weight"].shape[0] / width,
    }


def native_size(tensors: Mapping[str, Tensor], source: str, what: str) -> int:
    """Return the side in pixels of the square that the stored positions belong to."""
    return int(shapes(tensors, source, what)["image_size_px"])


def heads_of(width: int, said: int | None, default: int, source: str) -> int:
    """Return the number of attention heads, which no shape shows: as told, or as published for the width.

    Of a width that nobody published, the default is assumed, and a warning says so.

    Args:
        width: D.
        said: What the user says; None where he says nothing.
        default: For other widths than the published ones.
        source: Where the weights come from, for the warning.
    """
    if said is not None:
        return said
    if width not in _HEADS:
        warnings.warn(
            f"{source}: {width} is the width of no published network, so {default} attention heads are assumed; a "
            "wrong number changes the features without an error, so say n_heads=... .",
            stacklevel=2,
        )
    return _HEADS.get(width, default)


def build(
    tensors: Mapping[str, Tensor],
    source: str,
    what: str,
    n_heads: int | None,
    default_heads: int = 6,
    **settings: Any,
) -> VisionTransformer:
    """Build the network that tensors show, untrained.

    Args:
        tensors: Under timm's names, with a patch projection of four axes.
        source: Where they come from, for messages.
        what: What they should be, for messages.
        n_heads: Attention heads; None for those of the published network of that width.
        default_heads: For other widths.
        settings: What shapes cannot show, as `VisionTransformer` takes it.

    Raises:
        WeightsError: If a tensor is missing, or the shapes do not go together.
    """
    shown = shapes(tensors, source, what)
    in_channels = tensors[PROJECTION].shape[1]
    heads = heads_of(shown["embed_dim"], n_heads, default_heads, source)
    return VisionTransformer(_BASE, **shown, in_channels=in_channels, n_heads=heads, **settings)


def fill(network: VisionTransformer, tensors: Mapping[str, Tensor], source: str) -> None:
    """Copy tensors into a network, name for name and shape for shape.

    Args:
        network: Takes the weights.
        tensors: Under timm's names.
        source: Where they come from, for messages.

    Raises:
        WeightsError: If names are missing or left over, or shapes differ; all kinds are listed.
    """
    check_names(network.network.state_dict(), tensors, source)
    network.network.load_state_dict(dict(tensors), strict=True)


def network_of(encoder: Encoder) -> VisionTransformer:
    """Return the transformer of an encoder of one of these families."""
    backbone: Any = encoder.channels.backbone
    return backbone if isinstance(backbone, VisionTransformer) else backbone.backbone


def state_of(encoder: Encoder) -> Tensors:
    """Return the weights of an encoder under timm's names."""
    return dict(network_of(encoder).network.state_dict())


def split_prefixes(tensors: Mapping[str, Any], *prefixes: str) -> Tensors:
    """Return the tensors under the first of some prefixes that any name has, without it.

    Args:
        tensors: By name; other values are left out.
        prefixes: The longest first; "" takes all.
    """
    for prefix in prefixes:
        found = {
            name.removeprefix(prefix): value
            for name, value in tensors.items()
            if isinstance(value, Tensor) and name.startswith(prefix)
        }
        if found:
            return found
    return {}


def without(tensors: Mapping[str, Tensor], *prefixes: str) -> Tensors:
    """Return tensors without those whose names start with one of some prefixes.

    Args:
        tensors: By name.
        prefixes: Of what is left out on purpose.
    """
    return {name: value for name, value in tensors.items() if not name.startswith(prefixes)}

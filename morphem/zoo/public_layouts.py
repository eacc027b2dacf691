"""Where the training code of others keeps its networks, and how it names their tensors.

Source: containers and names of facebookresearch/dino (`main_dino.py`), facebookresearch/mae (`util/misc.py`),
facebookresearch/dinov2 (`train/train.py`, `layers/block.py`), vturrisi/solo-learn (`solo/methods`, `solo/backbones`),
lightly-ai/lightly (`examples/pytorch_lightning`, `models/modules`) and CaicedoLab/CHAMMI-75; torchvision's and timm's
own names of transformers and ResNets.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from morphem.errors import WeightsError
from morphem.zoo.key_names import KeyNames

Layout = Literal["timm", "torchvision", "resnet", "resnet sequence"]
_ENTRIES = (
    "teacher",
    "student",
    "model",
    "state_dict",
    "model_state_dict",
    "model_ema",
    "network",
    "backbone",
    "encoder",
)
_WRAPPERS = re.compile(r"(_fsdp_wrapped_module|_orig_mod|_checkpoint_wrapped_module)\.")
_ANCHORS: dict[Layout, tuple[str, ...]] = {
    "timm": ("patch_embed.proj.weight", "cls_token"),
    "torchvision": ("conv_proj.weight", "class_token"),
    "resnet": ("layer1.0.conv1.weight", "layer2.0.conv1.weight"),
    "resnet sequence": ("4.0.conv1.weight", "5.0.conv1.weight"),
}
"""Tensors that tell a network by their names; one of them is enough, so that the lack of another is said by name."""

REQUIRED: dict[Layout, tuple[str, ...]] = {
    "timm": ("patch_embed.proj.weight", "pos_embed", "cls_token"),
    "torchvision": ("conv_proj.weight", "encoder.pos_embedding", "class_token"),
    "resnet": ("conv1.weight", "layer1.0.conv1.weight"),
    "resnet sequence": ("0.weight", "4.0.conv1.weight"),
}
"""Tensors that the architecture is read from."""

_LEFT_OUT = ("mask_token", "decoder", "head.", "heads.", "head_dist.", "fc.", "pre_logits.")
"""What a network may hold that makes no feature: classifiers, mask tokens, and the decoder of MAE."""

_TRAINING_PARTS = (
    *("head", "classifier", "projector", "projection", "predict", "decoder", "prototype", "queue", "memory_bank"),
    *("criterion", "loss", "mask_token", "center"),
)
"""Words in the names of modules that make no feature."""

_TORCHVISION = KeyNames(
    [
        ("class_token", "cls_token"),
        ("conv_proj.{rest}", "patch_embed.proj.{rest}"),
        ("encoder.pos_embedding", "pos_embed"),
        ("encoder.layers.encoder_layer_{i}.ln_1.{rest}", "blocks.{i}.norm1.{rest}"),
        ("encoder.layers.encoder_layer_{i}.self_attention.in_proj_{rest}", "blocks.{i}.attn.qkv.{rest}"),
        ("encoder.layers.encoder_layer_{i}.self_attention.out_proj.{rest}", "blocks.{i}.attn.proj.{rest}"),
        ("encoder.layers.encoder_layer_{i}.ln_2.{rest}", "blocks.{i}.norm2.{rest}"),
        ("encoder.layers.encoder_layer_{i}.mlp.0.{rest}", "blocks.{i}.mlp.fc1.{rest}"),
        ("encoder.layers.encoder_layer_{i}.mlp.3.{rest}", "blocks.{i}.mlp.fc2.{rest}"),
        ("encoder.ln.{rest}", "norm.{rest}"),
    ]
)
_SEQUENCE = KeyNames(
    [
        ("0.{rest}", "conv1.{rest}"),
        ("1.{rest}", "bn1.{rest}"),
        *((f"{stage + 3}.{{rest}}", f"layer{stage}.{{rest}}") for stage in (1, 2, 3, 4)),
    ]
)


@dataclass(frozen=True)
class Network:
    """One network inside a checkpoint.

    Attributes:
        name: How a user asks for it: where it lies, for example `teacher` or `student_backbone`.
        entry: Entry of the checkpoint that holds it; empty for the top.
        prefix: Of its tensors in that entry.
        layout: How its tensors are named.
        tensors: By their names behind the prefix.
        beside: Names of the other tensors of the entry.
    """

    name: str
    entry: str
    prefix: str
    layout: Layout
    tensors: Mapping[str, Tensor]
    beside: tuple[str, ...]


def find_networks(content: Mapping[str, Any]) -> dict[str, Network]:
    """Return all encoders in a checkpoint, by name.

    Args:
        content: Of the file.
    """
    found: dict[str, Network] = {}
    for entry in ("", *_ENTRIES):
        held = content if not entry else content.get(entry)
        if not isinstance(held, Mapping):
            continue
        tensors = {_WRAPPERS.sub("", str(k)): v for k, v in held.items() if isinstance(v, Tensor)}
        for prefix, layout in _prefixes(tensors):
            own = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            beside = tuple(k for k in tensors if not k.startswith(prefix))
            name = _name(entry, prefix)
            found[name] = Network(name, entry, prefix, layout, own, beside)
    return found


def _prefixes(tensors: Mapping[str, Tensor]) -> list[tuple[str, Layout]]:
    found: dict[tuple[str, Layout], None] = {}
    for layout, anchors in _ANCHORS.items():
        for name in tensors:
            prefixes = (name.removesuffix(anchor) for anchor in anchors if name.endswith(anchor))
            found |= {(prefix, layout): None for prefix in prefixes if prefix == "" or prefix.endswith(".")}
    return list(found)


def _name(entry: str, prefix: str) -> str:
    """Say where a network lies, without the words that every network has around it."""
    words = [word for word in prefix.split(".") if word not in ("", "module", "vit")]
    if entry in ("student", "teacher"):
        return entry
    if words and words[0] in ("student", "teacher"):
        return words[0]
    return ".".join(words) or entry or "backbone"


def strangers(network: Network, others: Mapping[str, Network], ignore: tuple[str, ...]) -> list[str]:
    """Return the tensors beside a network that are of no other network and of no known part of a training code.

    Args:
        network: The one that is taken.
        others: All networks of the checkpoint.
        ignore: Beginnings of names that the user leaves out.
    """
    around = [other.prefix for other in others.values() if other.entry == network.entry and other.prefix]
    parents = {".".join(prefix.split(".")[:count]) for prefix in around for count in range(1, len(prefix.split(".")))}
    return [
        name
        for name in network.beside
        if not name.startswith((*around, *ignore)) and not _is_training_part(name, parents)
    ]


def _is_training_part(name: str, parents: set[str]) -> bool:
    """Whether a name is a head, a decoder, a mask token or a state of a loss, at the top or beside a network."""
    rests = [name, *(name.removeprefix(f"{parent}.") for parent in parents if name.startswith(f"{parent}."))]
    return any(word in rest.split(".")[0] for rest in rests for word in _TRAINING_PARTS)


def renamed(network: Network, source: str) -> tuple[dict[str, Tensor], list[int]]:
    """Give a network's tensors timm's names, without classifiers and mask tokens.

    Args:
        network: As `find_networks` gave it.
        source: Where it comes from, for messages.

    Returns:
        The tensors, and the chunk of each block where DINOv2 keeps blocks in chunks, else an empty list.

    Raises:
        WeightsError: If a name is of no layout.
    """
    tensors = features_alone(network.tensors)
    if network.layout == "torchvision":
        return _TORCHVISION.inwards(tensors, source), []
    if network.layout == "resnet sequence":
        return _SEQUENCE.inwards(tensors, source), []
    if network.layout == "resnet":
        return tensors, []
    return without_chunks({("reg_token" if k == "register_tokens" else k): v for k, v in tensors.items()}, source)


def features_alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Leave out what makes no feature.

    Args:
        tensors: Of a network, by its own names.
    """
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(_LEFT_OUT)}


def without_chunks(tensors: Mapping[str, Tensor], source: str) -> tuple[dict[str, Tensor], list[int]]:
    """Number blocks through where DINOv2's code keeps them in chunks; return the chunk of each, or an empty list.

    Args:
        tensors: Named `blocks.{i}.{rest}`, or `blocks.{chunk}.{i}.{rest}`.
        source: Where they come from, for messages.

    Raises:
        WeightsError: If a block is in two chunks.
    """
    pattern = re.compile(r"blocks\.(\d+)\.(\d+)\.(.+)")
    chunks: dict[int, int] = {}
    flat: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = pattern.fullmatch(name)
        if match is None:
            flat[name] = tensor
            continue
        chunk, block = int(match[1]), int(match[2])
        if chunks.setdefault(block, chunk) != chunk:
            raise WeightsError(f"{source} has block {block} in the chunks {chunks[block]} and {chunk}; it is damaged.")
        flat[f"blocks.{block}.{match[3]}"] = tensor
    return flat, [chunks[block] for block in sorted(chunks)]


def authors_names(tensors: Mapping[str, Tensor], layout: str, chunks: list[int], registers: str) -> dict[str, Tensor]:
    """Undo `renamed`.

    Args:
        tensors: Under timm's names.
        layout: Of the file.
        chunks: Chunk of each block, or empty.
        registers: What the file calls registers.
    """
    if layout == "torchvision":
        return _TORCHVISION.outwards(tensors)
    if layout == "resnet sequence":
        return _SEQUENCE.outwards(tensors)
    return in_chunks({(registers if name == "reg_token" else name): value for name, value in tensors.items()}, chunks)


def in_chunks(tensors: Mapping[str, Tensor], chunks: list[int]) -> dict[str, Tensor]:
    """Undo `without_chunks`.

    Args:
        tensors: Named `blocks.{i}.{rest}`.
        chunks: Of each block; empty for none.
    """
    theirs: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        match = re.fullmatch(r"blocks\.(\d+)\.(.+)", name)
        inside = match is not None and bool(chunks)
        theirs[f"blocks.{chunks[int(match[1])]}.{match[1]}.{match[2]}" if match and inside else name] = tensor
    return theirs


def resnet_name(tensors: Mapping[str, Tensor], source: str) -> str:
    """Return timm's name of a ResNet, from its number of blocks.

    Args:
        tensors: Under timm's names.
        source: Where they come from, for messages.

    Raises:
        WeightsError: If it is none of torchvision's, or begins otherwise.
    """
    depths = tuple(
        len({name.split(".")[1] for name in tensors if name.startswith(f"layer{stage}.")}) for stage in (1, 2, 3, 4)
    )
    is_bottleneck = "layer1.0.conv3.weight" in tensors
    names: dict[tuple[tuple[int, ...], bool], str] = {
        ((2, 2, 2, 2), False): "resnet18",
        ((3, 4, 6, 3), False): "resnet34",
        ((3, 4, 6, 3), True): "resnet50",
        ((3, 4, 23, 3), True): "resnet101",
        ((3, 8, 36, 3), True): "resnet152",
    }
    name = names.get((depths, is_bottleneck))
    if name is None:
        raise WeightsError(f"{source} is a ResNet of {depths} blocks, which is none of ResNet-18, 34, 50, 101 and 152.")
    if tensors["conv1.weight"].shape[-1] != 7:
        side = tensors["conv1.weight"].shape[-1]
        raise WeightsError(
            f"{source} is a {name} for tiny pictures (its first convolution is {side} x {side}, without pooling); "
            "only the form for pictures of 224 pixels converts."
        )
    return name


def said_architecture(content: Mapping[str, Any]) -> str | None:
    """Return the name of the network in the arguments that DINO's and MAE's code saves, or None.

    Args:
        content: Of the file.
    """
    arguments = content.get("args")
    for name in ("arch", "model"):
        value = arguments.get(name) if isinstance(arguments, Mapping) else getattr(arguments, name, None)
        if isinstance(value, str):
            return value
    return None


def zero_class_row(tensors: dict[str, Tensor]) -> bool:
    """Give positions of patches alone the row of the class token that others have, zeros; say whether it was needed.

    Args:
        tensors: Under timm's names; changed.
    """
    rows = tensors["pos_embed"].shape[1]
    if round(rows**0.5) ** 2 != rows:
        return False
    positions = tensors["pos_embed"]
    tensors["pos_embed"] = torch.cat([torch.zeros_like(positions[:, :1]), positions], dim=1)
    return True

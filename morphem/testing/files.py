"""Checks of a family of pretrained encoders on one of its files: strict both ways, exact, and true to its channels."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.encoder import Encoder
from morphem.errors import MorphemError, WeightsError
from morphem.spec import to_spec
from morphem.testing.batches import tiny_batch
from morphem.testing.contract import attempt, fail, require, same
from morphem.testing.encoders import check_encoder
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint, Pretrained
from morphem.zoo.own_record import channel_sets

_LEAST_PX = 33
_COMMON = {"weight", "bias", "gamma", "scale"}


def check_file(family: Pretrained, checkpoint: Checkpoint) -> Encoder:
    """Check what a family makes of one of its files.

    Args:
        family: With the facts of the file.
        checkpoint: The file.

    Returns:
        The encoder.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    cls = type(family)
    require(cls.recognises(checkpoint), cls, f"does not recognise its own file {checkpoint.path}")
    encoder: Encoder = attempt(cls, f"cannot convert {checkpoint.path}", lambda: family.convert(checkpoint))
    require(not encoder.training, cls, "gives an encoder in training mode; its dropout would be on")
    batch = batch_for(encoder)
    by_position = getattr(encoder.channels, "fill", "by_name") == "by_position"  # an authors' order that was asked for
    check_encoder(encoder, batch_for(encoder, 1) if by_position else batch)
    authors = attempt(cls, "to_authors() fails", lambda: family.to_authors(encoder))
    _check_round_trip(family, encoder, checkpoint, authors)
    _check_strict(family, checkpoint, authors)
    _check_names(cls, encoder, batch)
    _check_planes_alone(cls, encoder, batch)
    _check_heads(family, checkpoint, encoder, batch)
    return encoder


def batch_for(encoder: Encoder, most_channels: int | None = None) -> ChannelBatch:
    """Return a small ragged batch that an encoder takes: its channels, its pixels, sizes that suit its patches.

    Args:
        encoder: Any.
        most_channels: Of an image, where not as many as the encoder likes.
    """
    panels = [panel[:most_channels] for panel in channel_sets(encoder)[-2:]]
    sizes: list[tuple[int, int]] = [(40, 48), (37, 33)]
    if encoder.input_size_px is None:
        height, width = getattr(encoder.channels, "patch_size_px", (16, 16))
        rows, columns = -(-_LEAST_PX // height), -(-_LEAST_PX // width)
        sizes = [(rows * height, columns * width), (rows * height, (columns + 1) * width)]
    batch = tiny_batch(panels, sizes)
    if encoder.input_domain == "uint16":
        return batch._replace(planes=(batch.planes.to(torch.int32) * 257).to(torch.uint16))
    return batch._replace(planes=batch.planes / 255) if encoder.input_domain == "unit" else batch


def _check_round_trip(
    family: Pretrained, encoder: Encoder, checkpoint: Checkpoint, authors: Mapping[str, Tensor]
) -> None:
    """Check that native -> authors -> native is exact, and that the authors' tensors are those of the file."""
    cls = type(family)
    flat = Checkpoint(dict(authors), checkpoint.path, checkpoint.sidecars)
    again: Encoder = attempt(
        cls, "convert() does not take what to_authors() gives, without a container", lambda: family.convert(flat)
    )
    require(to_spec(again) == to_spec(encoder), cls, "loses settings on the way to the authors' names and back")
    first, second = encoder.state_dict(), again.state_dict()
    changed = [key for key in first if key not in second or not torch.equal(first[key], second[key])]
    require(not changed, cls, f"changes tensors on the way to the authors' names and back: {', '.join(changed[:5])}")
    in_file = list(_tensors(checkpoint.content))
    for name, tensor in authors.items():
        found = any(key.endswith(name) and torch.equal(value, tensor) for key, value in in_file)
        require(found, cls, f"to_authors() gives '{name}', which the file does not hold under that name, bit for bit")


def _tensors(content: Any, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors of nested mappings with their dotted names."""
    if isinstance(content, Tensor):
        yield prefix, content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _tensors(value, f"{prefix}.{key}" if prefix else str(key))


def _check_strict(family: Pretrained, checkpoint: Checkpoint, authors: Mapping[str, Tensor]) -> None:
    """Check that a missing, a foreign and a misshapen tensor are each refused by name."""
    names = list(authors)
    for name in dict.fromkeys([names[0], names[len(names) // 2], names[-1]]):
        rest = {key: tensor for key, tensor in authors.items() if key != name}
        _refused(family, checkpoint, rest, f"a file without '{name}'", name)
        bigger = torch.zeros(*[size + 1 for size in authors[name].shape] or [2])
        _refused(family, checkpoint, {**authors, name: bigger}, f"another shape of '{name}'", None)
    strange = "of.something.else"
    _refused(family, checkpoint, {**authors, strange: torch.zeros(2, 3)}, "a tensor left over", strange)


def _refused(
    family: Pretrained, checkpoint: Checkpoint, tensors: Mapping[str, Tensor], what: str, name: str | None
) -> None:
    cls = type(family)
    try:
        family.convert(Checkpoint(dict(tensors), checkpoint.path, checkpoint.sidecars))
    except WeightsError as fault:
        require(name is None or _names_it(name, str(fault)), cls, f"refuses {what} without naming it: {fault}")
    except Exception as fault:  # whatever a stranger's conversion raises
        fail(cls, f"fails on {what} with {type(fault).__name__}: {fault}; raise a WeightsError that lists the names")
    else:
        fail(cls, f"takes {what} without a word; part of the network would be random or left out")


def _names_it(name: str, message: str) -> bool:
    """Whether a message names a tensor of the file, with or without the container's prefix."""
    parts = name.split(".")
    tails = [".".join(parts[start:]) for start in range(len(parts))]
    return any(tail in message for tail in tails if "." in tail or tail not in _COMMON)


def _check_names(cls: type, encoder: Encoder, batch: ChannelBatch) -> None:
    """Check that names matter exactly where the encoder tells channels apart by them."""
    offsets = batch.offsets.tolist()
    turned: list[str] = []
    for i in range(batch.n_images):
        turned += reversed(batch.channel_types[offsets[i] : offsets[i + 1]])
    if tuple(turned) == batch.channel_types:
        return
    renamed = batch._replace(channel_types=tuple(turned))
    try:
        first, second = encoder.features(batch), encoder.features(renamed)
    except MorphemError as fault:
        fail(cls, f"takes channels in one order of names and not in the other: {fault}")
    by_name = isinstance(encoder.channels, ChannelAttention | FixedChannels) or _has_named_statistics(encoder)
    if by_name:
        require(not same(first, second), cls, "gives the same features for swapped names; it takes channels by place")
    elif isinstance(encoder.channels, BagOfChannels | ChannelAgnostic):
        require(same(first, second), cls, "gives other features for other names, though nothing tells channels apart")


def _has_named_statistics(encoder: Encoder) -> bool:
    return any(isinstance(getattr(part, "mean", None), Mapping) for part in _pixel_steps(encoder))


def _pixel_steps(encoder: Encoder) -> list[nn.Module]:
    return [*encoder.normalizer.modules(), *(encoder.after_resize.modules() if encoder.after_resize else ())]


def _check_planes_alone(cls: type, encoder: Encoder, batch: ChannelBatch) -> None:
    """Check that a bag of channels gives each plane what it gives it alone: encode(C) = stack of encode(1)."""
    joint = any(getattr(part, "joint", False) for part in _pixel_steps(encoder))
    if not isinstance(encoder.channels, BagOfChannels) or joint:
        return
    planes = torch.split(batch.planes, batch.sizes.prod(1).tolist())
    shapes = batch.sizes.tolist()
    single = ChannelBatch.from_planes(
        [[plane.reshape(shape)] for plane, shape in zip(planes, shapes, strict=True)],
        [[name] for name in batch.channel_types],
        seeds=batch.seeds[batch.image_of_plane()].tolist(),
        boxes=[(0, 0, *shape) for shape in shapes],
    )
    alone = encoder.features(single)
    require(same(encoder.features(batch), alone), cls, "gives a plane other features among other planes than alone")


def _check_heads(family: Pretrained, checkpoint: Checkpoint, encoder: Encoder, batch: ChannelBatch) -> None:
    """Check that the number of heads, which no shape shows, is used."""
    heads = getattr(family, "n_heads", None)
    if not isinstance(heads, int):
        return
    for other in (heads // 2, heads * 2, 1):
        changed = copy.copy(family)
        changed.n_heads = other  # type: ignore[attr-defined]
        try:
            features = changed.convert(checkpoint).features(batch)
        except (MorphemError, AssertionError, ValueError, ZeroDivisionError):
            continue  # the width does not divide by it
        if other != heads:
            different = not same(features, encoder.features(batch))
            require(different, type(family), f"gives the same features with {other} heads as with {heads}")
        return

"""What replays of golden records share: images with named channels through an encoder, as a user would send them."""

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from morphem.data.schema import channel_vocabulary
from morphem.encoder import Encoder
from morphem.types import ChannelBatch

M = TypeVar("M", bound=nn.Module)
R = TypeVar("R")


def embed(
    encoder: Encoder, images: Sequence[Tensor], channels: Sequence[Sequence[str | int]], *, resize: bool = True
) -> Tensor:
    """Embed images by the encoder's own recipe, in the precision of its weights.

    Args:
        encoder: Float32 or float64.
        images: Each (C, H, W), pixels of the encoder's domain.
        channels: For each image what its planes show, as `ChannelStrategy.resolve` takes it; types may repeat.
        resize: Whether to resize as the encoder does; without, the network sees the images at their size.

    Returns:
        (N, D); where the encoder embeds planes, the planes of an image side by side, (N, C * D), which asks for images
        of one channel count.
    """
    names = [[encoder.channels.resolve(name) for name in row] for row in channels]
    batch = ChannelBatch.from_planes([list(image) for image in images], names)
    features = (encoder if resize else without_resize(encoder)).features(batch)
    return features.reshape(len(images), -1) if encoder.per_channel else features


def any_types(images: Sequence[Tensor]) -> list[list[str]]:
    """Name the channels of images for an encoder to which their names are nothing: by any different types.

    Args:
        images: Each (C, H, W).
    """
    return [list(channel_vocabulary())[: len(image)] for image in images]


def without_resize(encoder: Encoder) -> Encoder:
    """Return the encoder with the same weights that leaves images at their size.

    Args:
        encoder: Any.
    """
    return altered(encoder, input_size_px=None, geometry=None)


def altered(module: M, **changes: Any) -> M:
    """Return a module with the same weights and some attributes or parts replaced.

    Args:
        module: Stays as it is.
        changes: Attributes or parts by name.
    """
    other = copy.copy(module)
    other._modules = dict(module._modules)
    for name, value in changes.items():
        setattr(other, name, value)
    return other


def as_published(encoder: Encoder) -> Encoder:
    """Return the encoder with what the code of ChannelViT and its copies does by accident, which acts at rare sizes.

    Args:
        encoder: Its strategy is a `ChannelAttention`.
    """
    return altered(encoder, channels=altered(encoder.channels, accidental_positions=True))


def entering(module: nn.Module, run: Callable[[], R]) -> tuple[R, Any]:
    """Return what a computation gives, and what it hands to a module on the way.

    Args:
        module: Runs once in the computation.
        run: The computation.
    """
    seen: list[Any] = []

    def note(_: nn.Module, arguments: tuple[Any, ...]) -> None:
        seen.append(arguments[0])

    handle = module.register_forward_pre_hook(note)
    try:
        result = run()
    finally:
        handle.remove()
    (first,) = seen
    return result, first


def leaving(module: nn.Module, run: Callable[[], R]) -> tuple[R, Any]:
    """Return what a computation gives, and what a module gives on the way.

    Args:
        module: Runs once in the computation.
        run: The computation.
    """
    seen: list[Any] = []

    def note(_: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
        seen.append(output)

    handle = module.register_forward_hook(note)
    try:
        result = run()
    finally:
        handle.remove()
    (first,) = seen
    return result, first


def is_of(record: Mapping[str, Any], peer: str, fixture: str) -> bool:
    """Whether a golden record is of a peer, by the start of what it calls the peer, or of its own name.

    Args:
        record: Content of the `NAME.json`.
        peer: What the peer's description starts with.
        fixture: What the record's name starts with.
    """
    return str(record.get("peer", "")).startswith(peer) or str(record.get("fixture", "")).startswith(fixture)


def every_nth(tokens: Tensor, record: Mapping[str, Any], case: str) -> Tensor:
    """Return the tokens that a record holds, which its words tell (`every 8th token`), (N, T', D).

    Args:
        tokens: (N, T, D).
        record: Content of the `NAME.json`.
        case: Name of the case.
    """
    return tokens[:, :: told_step(record["cases"][case]["words"], "every {}(?:st|nd|rd|th) token")]


def told_step(text: str, pattern: str) -> int:
    """Return the number that a text tells, 1 where it tells none.

    Args:
        text: Words of a record, or the name of an output (`latent_every_9th`).
        pattern: With `{}` in the number's place.
    """
    told = re.search(pattern.replace("{}", r"(\d+)"), text)
    return int(told[1]) if told else 1

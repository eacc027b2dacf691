"""Checks of a conversion with a file of the family at hand: nothing is lost, nothing is passed over."""

from pathlib import Path

import torch
from torch import Tensor

from morphem.data.schema import channel_vocabulary
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.testing.contract import attempt, require
from morphem.types import ChannelBatch
from morphem.zoo.base import Checkpoint, Pretrained

_WHERE = Path("converted again")
_DTYPES = {"uint8": torch.uint8, "uint16": torch.uint16}


def check_conversion(family: Pretrained, checkpoint: Checkpoint) -> Encoder:
    """Check that `convert` and `to_authors` undo each other bit for bit, and that other files are refused.

    Args:
        family: With the facts of the file.
        checkpoint: A file of it.

    Returns:
        The encoder.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    cls = type(family)
    require(cls.recognises(checkpoint), cls, f"does not recognise its own file {checkpoint.path}")
    encoder = family.convert(checkpoint)
    theirs = attempt(cls, "to_authors() fails", lambda: family.to_authors(encoder))
    given = tensors_of(checkpoint.content)
    for name, tensor in theirs.items():
        known = name in given and given[name].shape == tensor.shape and torch.equal(given[name], tensor)
        require(known, cls, f"to_authors() gives '{name}' as no tensor of the file is; weights were changed on the way")
    again = family.convert(Checkpoint(theirs, _WHERE, checkpoint.sidecars)).state_dict()
    state = encoder.state_dict()
    same = again.keys() == state.keys() and all(torch.equal(value, again[name]) for name, value in state.items())
    require(same, cls, "gives another encoder when its own to_authors() is converted")
    _check_strict(family, checkpoint, theirs)
    return encoder


def _check_strict(family: Pretrained, checkpoint: Checkpoint, theirs: dict[str, Tensor]) -> None:
    """Tensors are needed, one as the other, and none is passed over; every seventh is tried."""
    for lost in list(theirs)[::7]:
        kept = {name: value for name, value in theirs.items() if name != lost}
        _check_refused(family, Checkpoint(kept, _WHERE, checkpoint.sidecars), lost, "a file without")
    first = next(iter(theirs))
    surplus = f"{first.split('.')[0]}.of.something.else" if "." in first else "of.something.else"
    more = {**theirs, surplus: torch.zeros(1)}
    _check_refused(family, Checkpoint(more, _WHERE, checkpoint.sidecars), surplus, "a file with the strange")


def _check_refused(family: Pretrained, checkpoint: Checkpoint, name: str, what: str) -> None:
    cls = type(family)
    try:
        family.convert(checkpoint)
    except WeightsError as fault:
        told = name.split(".")[-1] in str(fault)
        require(told, cls, f"refuses {what} '{name}' without saying so: {fault}")
        return
    require(False, cls, f"converts {what} '{name}'; a user would get other weights than the file's")


def tensors_of(content: object) -> dict[str, Tensor]:
    """Return all tensors of a nested checkpoint under their plain names; of equal names, the first.

    Args:
        content: Mappings of mappings.
    """
    found: dict[str, Tensor] = {}
    if not isinstance(content, dict):
        return found
    for name, value in content.items():
        new = {name: value} if isinstance(value, Tensor) else tensors_of(value)
        found = {**new, **found}
    return found


def example_batch(encoder: Encoder, counts: tuple[int, ...] = (3, 1, 2), side_px: int | None = None) -> ChannelBatch:
    """Return images that an encoder can take, of several channel counts where it takes several.

    Args:
        encoder: Any.
        counts: Channels of each image, where the encoder does not fix them.
        side_px: Of the images; the size that the encoder resizes to where not given, or 64.
    """
    strategy = encoder.channels
    fixed = getattr(strategy, "channels", None)
    known = getattr(getattr(strategy, "vocabulary", None), "names", tuple(channel_vocabulary()))
    panels = [list(fixed)] * len(counts) if isinstance(fixed, tuple) else [list(known[:count]) for count in counts]
    side = side_px or encoder.input_size_px or 64
    draw = torch.Generator().manual_seed(0)
    dtype = _DTYPES.get(encoder.input_domain, torch.float32)
    planes = [[_plane(side, dtype, draw) for _ in panel] for panel in panels]
    return ChannelBatch.from_planes(planes, panels)


def _plane(side: int, dtype: torch.dtype, draw: torch.Generator) -> Tensor:
    if dtype == torch.float32:
        return torch.rand(side, side, generator=draw)
    white = 255 if dtype == torch.uint8 else 65535
    return torch.randint(0, white + 1, (side, side), generator=draw).to(dtype)

"""Weights go into a network key for key, under the names that their authors gave them."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from morphem.errors import WeightsError

Renaming = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
_SHOWN = 5


def load_renamed(
    module: nn.Module, tensors: Mapping[str, Tensor], to_ours: Renaming, to_theirs: Renaming, source: str
) -> None:
    """Copy tensors into a module, and refuse what does not match, by the authors' names.

    Args:
        module: Takes the weights; one that was built `without_memory` gets its memory here.
        tensors: Under the authors' names.
        to_ours: Gives the state of the module for tensors of the authors.
        to_theirs: Undoes it.
        source: Where the tensors come from, for messages.

    Raises:
        WeightsError: If names are missing or left over, or shapes differ; all kinds are listed.
    """
    own = module.state_dict()
    check_names(to_theirs(own), tensors, source)
    state = {name: value.detach().to(own[name].dtype, copy=True) for name, value in to_ours(tensors).items()}
    module.load_state_dict(state, strict=True, assign=any(value.is_meta for value in own.values()))


def without_memory() -> torch.device:
    """Return the context to build a module in whose weights are all loaded afterwards.

    Nothing is initialised: a large network is built at once, and no random number is drawn.
    """
    return torch.device("meta")


def check_names(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], source: str) -> None:
    """Refuse tensors that are not those that are expected, by name and shape.

    Args:
        expected: Tensors of the right names and shapes.
        tensors: What there is.
        source: Where it comes from, for messages.

    Raises:
        WeightsError: If names are missing or left over, or shapes differ; all kinds are listed.
    """
    missing = [name for name in expected if name not in tensors]
    surplus = [name for name in tensors if name not in expected]
    misshapen = [
        f"{name} {tuple(tensors[name].shape)} for {tuple(expected[name].shape)}"
        for name in expected
        if name in tensors and tensors[name].shape != expected[name].shape
    ]
    parts = {"missing": missing, "unexpected": surplus, "of another shape": misshapen}
    faults = [_listed(what, names) for what, names in parts.items() if names]
    if faults:
        raise WeightsError(
            f"{source} does not fit this architecture: {'; '.join(faults)}; load it with the facts of the encoder that "
            "it was saved from."
        )


def needed(tensors: Mapping[str, Tensor], names: tuple[str, ...], source: str, what: str) -> None:
    """Refuse tensors without those that the architecture is read from.

    Args:
        tensors: What there is.
        names: What has to be there.
        source: Where it comes from, for messages.
        what: What it should be, for example `ChannelViT encoder`.

    Raises:
        WeightsError: If one is missing.
    """
    missing = [name for name in names if name not in tensors]
    if missing:
        raise WeightsError(f"{source} is no {what}: {', '.join(missing)} not among its {len(tensors)} tensors.")


def depth_of(tensors: Mapping[str, Tensor], prefix: str = "blocks.") -> int:
    """Return the number of blocks: how many different numbers follow a prefix.

    Args:
        tensors: By name.
        prefix: What stands before the number.
    """
    start = len(prefix.split(".")) - 1
    return len({name.split(".")[start] for name in tensors if name.startswith(prefix)})


def _listed(what: str, names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{more})"

"""Checks of pretrained encoders: a record that says what the weights are, and a conversion that takes nothing else."""

import inspect
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor

from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.testing.contract import attempt, check_class, expect_error, require
from morphem.testing.encoders import check_encoder
from morphem.zoo.base import Pretrained, Record

_MAY_BE_UNKNOWN = {"revision"}


def check_pretrained(cls: type[Pretrained], path: str | Path | None = None) -> bool:
    """Check that a family of pretrained encoders keeps its contract, without the network.

    The record is complete; tensors of something else are refused; and, where the published file is at hand, what it is
    converted to keeps the contracts of every encoder.

    Args:
        cls: The class.
        path: The published file or its folder; looked for in the hub's cache where not given.

    Returns:
        Whether the weights were at hand, and so were checked too.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    check_class(cls, Pretrained)
    _check_record(cls)
    for name, parameter in inspect.signature(cls).parameters.items():
        require(parameter.default is not parameter.empty, cls, f"cannot be built without the argument '{name}'")
    family = attempt(cls, "cannot be built", cls)
    nothing: dict[str, Tensor] = {}
    expect_error(cls, WeightsError, "convert() takes no tensors at all", lambda: family.convert(nothing, "test"))
    foreign = {"of.something.else": torch.zeros(2, 3)}
    expect_error(
        cls, WeightsError, "convert() takes weights of something else", lambda: family.convert(foreign, "test")
    )
    try:
        encoder = family.load(path, local_files_only=True)
    except WeightsError:
        if path is not None:
            raise
        return False
    require(isinstance(encoder, Encoder), cls, f"load() gives a {type(encoder).__name__}, not an Encoder")
    check_encoder(encoder)
    return True


def _check_record(cls: type[Pretrained]) -> None:
    record = getattr(cls, "record", None)
    require(isinstance(record, Record), cls, "has no `record: ClassVar[Record]`")
    assert isinstance(record, Record)
    empty = [key for key, value in asdict(record).items() if not value and key not in _MAY_BE_UNKNOWN]
    require(not empty, cls, f"its record leaves {', '.join(empty)} empty; users cite and license weights by it")
    exported = record.exported in ("student", "teacher", "unknown")
    require(exported, cls, f"its record says exported='{record.exported}'; it is student, teacher or unknown")

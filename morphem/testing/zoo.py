"""Checks of pretrained encoders: records that say what the weights are, and a conversion that takes nothing else."""

import inspect
import re
from pathlib import Path
from typing import Any

import torch

from morphem.errors import WeightsError
from morphem.testing.contract import attempt, check_class, expect_error, require
from morphem.testing.files import check_file
from morphem.zoo.base import ByHand, Checkpoint, Computed, HubFile, Pretrained, Record, WebFile

_NEEDED = ("name", "summary", "license", "citation", "source", "exported", "input_domain")
_TEXTS = ("preparation", "pooling", "channel_rule", "embed_dim")
_ALLOWED = {
    "exported": ("student", "teacher", "only", "unknown"),
    "input_domain": ("uint8", "uint16", "unit", "any", "unknown"),
}
_FOREIGN: dict[str, dict[str, Any]] = {
    "no tensors at all": {},
    "weights of something else": {"of.something.else": torch.zeros(2, 3)},
    "a nested checkpoint of something else": {"state_dict": {"of.something.else": torch.zeros(2, 3)}, "epoch": 1},
}
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


def check_pretrained(cls: type[Pretrained], path: str | Path | None = None) -> bool:
    """Check that a family of pretrained encoders keeps its contract, without the network.

    The records are complete; files of something else are not recognised and refused; and, where a file is given, what
    it is converted to keeps the contracts of every encoder and goes back to the authors' names bit for bit.

    Args:
        cls: The class.
        path: A file of the family; what `tiny()` gives where not given.

    Returns:
        Whether weights were given, and so were checked too.

    Raises:
        ContractError: Names the class, what it broke and why that matters.
    """
    check_class(cls, Pretrained)
    for name, parameter in inspect.signature(cls).parameters.items():
        require(parameter.default is not parameter.empty, cls, f"cannot be built without the argument '{name}'")
    family = attempt(cls, "cannot be built", cls)
    _check_records(cls)
    for what, content in _FOREIGN.items():
        _check_refuses(cls, family, what, Checkpoint(content, Path("test")))
    checkpoint = Checkpoint.read(Path(path)) if path is not None else cls.tiny()
    if checkpoint is None:
        return False
    check_file(family, checkpoint)
    return True


def _check_refuses(cls: type[Pretrained], family: Pretrained, what: str, foreign: Checkpoint) -> None:
    known = attempt(cls, f"recognises() fails on {what}", lambda: cls.recognises(foreign))
    require(not known, cls, f"recognises() claims {what}; a user's file would be converted by the wrong family")
    expect_error(cls, WeightsError, f"convert() takes {what}", lambda: family.convert(foreign))


def _check_records(cls: type[Pretrained]) -> None:
    records = getattr(cls, "records", None)
    good = isinstance(records, tuple) and len(records) > 0 and all(isinstance(record, Record) for record in records)
    require(good, cls, "has no `records: ClassVar[tuple[Record, ...]]`")
    assert isinstance(records, tuple)
    names = [record.name for record in records]
    require(len(set(names)) == len(names), cls, f"gives two records one name: {names}")
    known = set(inspect.signature(cls).parameters)
    for record in records:
        empty = [key for key in (*_NEEDED, *_TEXTS) if not getattr(record, key)]
        require(not empty, cls, f"its record leaves {', '.join(empty)} empty; users cite and license weights by it")
        good_name = _NAME.fullmatch(record.name) is not None
        require(good_name, cls, f"has a record '{record.name}'; names are lower case, of letters, digits and dashes")
        for key, allowed in _ALLOWED.items():
            value = getattr(record, key)
            require(value in allowed, cls, f"its record says {key}='{value}'; it is one of {', '.join(allowed)}")
        strange = sorted(set(record.facts) - known)
        require(not strange, cls, f"its record has facts that its constructor does not take: {', '.join(strange)}")
        located = isinstance(record.location, HubFile | WebFile | ByHand | Computed)
        require(located, cls, f"says of '{record.name}' no location (HubFile, WebFile, ByHand or Computed)")

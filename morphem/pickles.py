"""Files of `torch.save` as data: nothing of a file is ever run, and what no loader needs is left out of it."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO

import torch

from morphem import leftovers
from morphem.errors import WeightsError

_REMEDY = "fetch or save it again."
_WANTED = re.compile(r"(?:GLOBAL|function) ([\w.]+)")
_NAMESPACE = "argparse.Namespace"
_MAX_LEFTOVERS = 200


def read_checkpoint(path: Path, inert: Collection[str] = ()) -> dict[str, Any]:
    """Read a file of `torch.save` as data, on the CPU; nothing of the file is ever run.

    Settings and metrics that training checkpoints carry along (`morphem.leftovers` lists them) are replaced by
    stand-ins that do nothing; anything else but data is refused.

    Args:
        path: A training checkpoint. A pickled `argparse.Namespace` is data and is let through.
        inert: Dotted names of further classes that the file may name; they get a stand-in too.

    Raises:
        WeightsError: If the file is missing, damaged, not a dictionary, or holds more than data.
    """
    if not path.is_file():
        raise WeightsError(f"{path} does not exist; give a checkpoint, or a folder with config.json.")
    if _is_program(path):
        raise WeightsError(f"{path} is a TorchScript program, which is code; {_REMEDY}")
    try:
        with path.open("rb") as stream:
            content = _unpickle(stream, inert)
    except pickle.UnpicklingError as fault:
        raise WeightsError(_refusal(path, str(fault))) from fault
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as fault:  # what torch raises for damaged archives
        raise WeightsError(f"{path} {_kind(path) or f'cannot be read ({first_line(fault)})'}; {_REMEDY}") from fault
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a {type(content).__name__}; a checkpoint is a dictionary.")
    return content


def _unpickle(stream: BinaryIO, inert: Collection[str]) -> Any:
    """Load with torch's weights-only reader, with a stand-in for every tolerated name that it asks for."""
    wanted = {name for name in _named_in(stream) if leftovers.tolerated(name, inert)}
    as_mapping: Collection[str] = ()
    for _ in range(_MAX_LEFTOVERS):
        stream.seek(0)
        stand_ins = [leftovers.stand_in(name, name in as_mapping) for name in wanted - {_NAMESPACE}]
        try:
            # a stream, because torch goes by the name of a path: it would read a pickle called .safetensors as one
            with torch.serialization.safe_globals([argparse.Namespace, *stand_ins]):
                return torch.load(stream, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as fault:
            unknown = _WANTED.search(str(fault))
            name = _full_name(unknown[1]) if unknown else ""
            if name and name not in wanted and leftovers.tolerated(name, inert):
                wanted.add(name)  # files of the oldest kind cannot be listed beforehand
            elif "Can only SETITEM" in str(fault) and inert and not as_mapping:
                as_mapping = inert  # what kind of class the user let through is seen only now
            else:
                raise
    raise pickle.UnpicklingError(f"it names more than {_MAX_LEFTOVERS} classes")


def _named_in(stream: BinaryIO) -> list[str]:
    """Return the names of classes and functions in an archive of `torch.save`, without running it."""
    try:
        return sorted(torch.serialization.get_unsafe_globals_in_checkpoint(stream))
    except (ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
        return []  # of the oldest kind, or damaged: loading it says which


def _full_name(name: str) -> str:
    """Return the name of a builtin as pickles write it; torch's messages leave its module out."""
    return name if "." in name else f"builtins.{name}"


def _refusal(path: Path, message: str) -> str:
    """Say which class a pickle wanted, where torch tells, or that the file is no checkpoint."""
    wanted = _WANTED.search(message)
    if wanted is None:
        return f"{path} {_kind(path) or f'is not a file of weights ({message.splitlines()[0]})'}; {_REMEDY}"
    return (
        f"{path} holds more than weights (it wants to build {wanted[1]}), which could run code; "
        "ask its authors for a safetensors file, or save its state_dict alone."
    )


def _kind(path: Path) -> str | None:
    """Say what a file is that users take for weights, or None."""
    with path.open("rb") as stream:
        start = stream.read(512)
    if not start:
        return "is empty"
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS, not the file it points to (git lfs pull)"
    if start.lstrip()[:15].lower().startswith((b"<!doctype html", b"<html")):
        return "is a web page, not the file behind it (a login or a confirmation page, perhaps)"
    if start.startswith(b"\x89HDF"):
        return "is an HDF5 file (Keras, perhaps), which holds no torch weights"
    return None


def _is_program(path: Path) -> bool:
    """Whether a file is an archive of TorchScript, which torch would hand to another reader."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("constants.pkl") for name in archive.namelist())


def first_line(fault: BaseException) -> str:
    """Return the first line of what an exception says, or its class where it says nothing.

    Args:
        fault: Any.
    """
    lines = str(fault).strip().splitlines()
    return lines[0] if lines else type(fault).__name__

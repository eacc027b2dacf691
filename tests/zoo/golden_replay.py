"""Replay golden records through a family, and read key lists of real size."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from morphem.encoder import Encoder
from morphem.zoo.base import Checkpoint, Pretrained

FLOAT64 = 1e-6


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """Return the JSON of a golden record."""
    record: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
    return record


def read_checkpoint(folder: Path, name: str) -> Checkpoint:
    """Return the checkpoint of a golden record."""
    plain = folder / f"{name}.ckpt"
    return Checkpoint.read(plain if plain.is_file() else folder / f"{name}.safetensors")


def differences(cls: type[Pretrained], folder: Path, name: str, dtype: torch.dtype) -> dict[str, tuple[float, float]]:
    """Return the largest difference and the tolerance of every output that the record has in a precision.

    An output that `replay` leaves out has an infinite difference.
    """
    record = read_record(folder, name)
    tensors = load_file(folder / f"{name}.golden.safetensors")
    family, checkpoint = cls.from_golden(record), read_checkpoint(folder, name)
    assert family is not None
    encoder = family.convert(checkpoint).to(dtype)
    found = {}
    for case, content in record["cases"].items():
        inputs = {key: tensors[value] for key, value in content["inputs"].items()}
        with torch.no_grad():
            outputs = family.replay(encoder, checkpoint, record, case, inputs)
        for output, key in content["outputs"].items():
            wanted = tensors.get(key if dtype == torch.float32 else f"{key}_f64")
            if wanted is not None:
                found[f"{case}.{output}"] = (
                    _distance(outputs.get(output), wanted),
                    _tolerance(record, case, output, dtype),
                )
    return found


def _distance(found: Tensor | None, wanted: Tensor) -> float:
    if found is None or found.shape != wanted.shape:
        return float("inf")
    return float((found - wanted).abs().max())


def _tolerance(record: Mapping[str, Any], case: str, output: str, dtype: torch.dtype) -> float:
    if dtype == torch.float64:
        return FLOAT64
    stated = record["precision"]["per_case"].get(case, {}).get(output, {})
    return float(stated.get("suggested_absolute_tolerance_float32", 5e-5))


def assert_round_trip(family: Pretrained, checkpoint: Checkpoint) -> Encoder:
    """Check that `to_authors` undoes `convert` bit for bit, and that what it gives converts again."""
    encoder = family.convert(checkpoint)
    theirs = family.to_authors(encoder)
    given = {key: value for key, value in checkpoint.entry("model", "state_dict").items() if isinstance(value, Tensor)}
    assert set(theirs) <= set(given)
    for key, tensor in theirs.items():
        assert torch.equal(tensor, given[key]), key
    again = family.convert(Checkpoint(theirs, checkpoint.path, checkpoint.sidecars))
    for key, tensor in encoder.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    return encoder


def meta_checkpoint(folder: Path, name: str, variant: str) -> Checkpoint:
    """Return a checkpoint without memory that has all tensors of a key list of real size."""
    keys = json.loads((folder / f"{name}.keys.json").read_text())["variants"][variant]["tensors"]
    tensors = {
        key: torch.empty(shape, dtype=getattr(torch, kind), device="meta") for key, (shape, kind) in keys.items()
    }
    return Checkpoint(tensors, Path(f"{name}:{variant}"))

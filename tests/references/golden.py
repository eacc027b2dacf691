"""Cases of the golden files: inputs, outputs, tolerances."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file


def tensors(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """Return all inputs and outputs of a fixture."""
    return load_file(folder / f"{name}.golden.safetensors")


def tolerance(folder: Path, name: str, case: str, output: str) -> float:
    """Return the absolute tolerance in float32 that the record of a fixture gives for one output."""
    record = json.loads((folder / f"{name}.json").read_text())
    return float(record["precision"]["per_case"][case][output]["suggested_absolute_tolerance_float32"])

"""Golden records against our own families: every output of every case, in float32 and in float64."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from morphem.zoo.base import Checkpoint, Pretrained

PLAIN_TOLERANCE = 5e-5
DOUBLE_TOLERANCE = 1e-6


class Fixture:
    """A record with its checkpoint and tensors.

    Args:
        folder: Where the golden files are.
        name: Of the fixture.
        file: Name of the checkpoint, where there are several.
    """

    def __init__(self, folder: Path, name: str, file: str | None = None) -> None:
        self.record: dict[str, Any] = json.loads((folder / f"{name}.json").read_text())
        self.tensors = load_file(folder / f"{name}.golden.safetensors")
        self.checkpoint = Checkpoint.read(folder / (file or self.record["container"]["file"]))

    def inputs(self, case: str) -> dict[str, Any]:
        """Inputs of a case: tensors, and other values as in the record."""
        return {
            key: self.tensors[value] if isinstance(value, str) and value in self.tensors else value
            for key, value in self.record["cases"][case]["inputs"].items()
        }

    def tolerance(self, case: str, output: str) -> float:
        """Absolute tolerance in float32."""
        known = self.record["precision"]["per_case"].get(case, {}).get(output, {})
        return float(known.get("suggested_absolute_tolerance_float32", PLAIN_TOLERANCE))


def differences(
    fixture: Fixture, family: Pretrained, dtype: torch.dtype
) -> Iterator[tuple[str, str, float | None, float]]:
    """Yield case, output, largest difference (None: not computed) and tolerance."""
    encoder = family.convert(fixture.checkpoint).to(dtype)
    for case, content in fixture.record["cases"].items():
        with torch.no_grad():
            found = family.replay(encoder, fixture.checkpoint, fixture.record, case, fixture.inputs(case))
        for output, name in content["outputs"].items():
            double = dtype == torch.float64
            if double and f"{name}_f64" not in fixture.tensors:
                continue
            expected = fixture.tensors[f"{name}_f64" if double else name]
            limit = DOUBLE_TOLERANCE if double else fixture.tolerance(case, output)
            yield case, output, _distance(found.get(output), expected), limit


def _distance(found: Tensor | None, expected: Tensor) -> float | None:
    if found is None:
        return None
    assert found.shape == expected.shape, f"{tuple(found.shape)} instead of {tuple(expected.shape)}"
    blank = torch.isnan(expected)
    assert torch.equal(torch.isnan(found), blank)
    return float((found.double() - expected.double())[~blank].abs().max())

"""Golden records: files that say what a checkpoint must give for which input, in the format of `../shared/golden`.

`NAME.json` is the record; `NAME.golden.safetensors` beside it holds inputs and outputs, `NAME_f64` those of double
precision; `container` names the checkpoint. Our own exports carry `golden.json` and `golden.safetensors`.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from morphem import weights
from morphem.errors import WeightsError

DEFAULT_TOLERANCE = 5e-5
DEFAULT_TOLERANCE_F64 = 1e-6
_KEYS = ("suggested_absolute_tolerance_float32", "absolute_tolerance_float32", "absolute_tolerance", "tolerance")
_KEYS_F64 = ("suggested_absolute_tolerance_float64", "absolute_tolerance_float64")
_SUFFIX_F64 = "_f64"
_SUFFIXES = (".ckpt", ".pth", ".pt", ".bin", ".safetensors")


@dataclass(frozen=True)
class Golden:
    """A golden record with its tensors.

    Attributes:
        path: The JSON file.
        record: Its content.
        tensors: Inputs and outputs of all cases.
    """

    path: Path
    record: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """What the record is called."""
        return str(self.record.get("fixture", self.path.stem))

    @property
    def cases(self) -> Mapping[str, Mapping[str, Any]]:
        """The cases by name."""
        return dict(self.record["cases"])

    def inputs(self, case: str) -> dict[str, Any]:
        """Return the inputs of a case: tensors where the record names some, else values as they stand there."""
        return {
            name: self.tensors[value] if isinstance(value, str) and value in self.tensors else value
            for name, value in self.cases[case].get("inputs", {}).items()
        }

    def outputs(self, case: str, double: bool = False) -> Iterator[tuple[str, Tensor]]:
        """Yield the outputs of a case by name; in double precision those alone that the record has.

        Raises:
            WeightsError: If the record names a tensor that its file lacks.
        """
        for name, tensor in self.cases[case].get("outputs", {}).items():
            key = f"{tensor}{_SUFFIX_F64}" if double else tensor
            if double and key not in self.tensors:
                continue
            if key not in self.tensors:
                raise WeightsError(f"{self.path}: case '{case}' names the output '{key}', which its tensors lack.")
            yield name, self.tensors[key]

    def has_double(self, case: str) -> bool:
        """Whether a case has outputs in double precision."""
        return any(True for _ in self.outputs(case, double=True))

    def tolerance(self, case: str, output: str, double: bool = False) -> float:
        """Return the largest absolute difference that is still right.

        Args:
            case: Name of the case.
            output: Name of the output.
            double: Whether in double precision.
        """
        precision, of_case = self.record.get("precision", {}), self.cases[case]
        keys = _KEYS_F64 if double else _KEYS
        plain: Any = _sub(of_case, "tolerance").get(output)
        if not double and _is_number(plain):
            return float(plain)
        per_case = _sub(precision, "per_case", case)
        of_output = [_sub(of_case, name, output) for name in ("precision", "tolerance", "accuracy")]
        places = [*of_output, _sub(per_case, output), _sub(of_case, "precision"), of_case, per_case]
        places += [precision] if double else []  # the others are the largest of all cases there
        found = (float(place[key]) for place in places for key in keys if _is_number(place.get(key)))
        return next(found, DEFAULT_TOLERANCE_F64 if double else DEFAULT_TOLERANCE)

    def checkpoints(self) -> list[Path]:
        """Return the files of weights that the record names, in its order.

        Raises:
            WeightsError: If it names none, or one is not beside it.
        """
        container = self.record.get("container", {})
        names = [container["file"]] if "file" in container else list(container.get("files", {}))
        names = names or [name for name in self.record.get("files", []) if _is_checkpoint(str(name))]
        if not names:
            raise WeightsError(f"{self.path} names no checkpoint (container.file or container.files).")
        paths = [self.path.with_name(str(name)) for name in names]
        absent = [path for path in paths if not path.is_file()]
        if absent:
            raise WeightsError(f"{self.path} names the checkpoint {absent[0]}, which is not there; put it beside.")
        return paths


def _sub(mapping: Any, *keys: str) -> Mapping[str, Any]:
    """Return a nested mapping, or an empty one."""
    for key in keys:
        mapping = mapping.get(key, {}) if isinstance(mapping, Mapping) else {}
    return mapping if isinstance(mapping, Mapping) else {}


def _is_checkpoint(name: str) -> bool:
    return name.endswith(_SUFFIXES) and not name.endswith(".golden.safetensors")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def read_golden(path: Path) -> Golden:
    """Read a golden record.

    Args:
        path: The JSON file, or a folder with a `golden.json`.

    Raises:
        WeightsError: If it is missing, damaged, no golden record, or its tensors are missing.
    """
    path = path / "golden.json" if path.is_dir() else path
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as fault:
        raise WeightsError(
            f"{path} does not exist; give the JSON file of a golden record, or an exported folder."
        ) from fault
    except (OSError, ValueError) as fault:
        raise WeightsError(f"{path} is not a golden record ({fault}).") from fault
    if not isinstance(record, dict) or not isinstance(record.get("cases"), dict) or not record["cases"]:
        raise WeightsError(f"{path} is not a golden record: it has no cases.")
    candidates = [path.with_name(f"{path.stem}.golden.safetensors"), path.with_name(f"{path.stem}.safetensors")]
    if path.name != "golden.json":
        candidates = candidates[:1]
    tensors = next((place for place in candidates if place.is_file()), None)
    if tensors is None:
        raise WeightsError(f"{path} needs {candidates[-1].name} beside it, with its inputs and outputs.")
    return Golden(path, record, weights.read_tensors(tensors))

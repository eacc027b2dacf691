"""A score as a record: protocol, settings, scores, intervals, what went in by its hash, and what code made it."""

import hashlib
import inspect
import json
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from morphem import registry
from morphem.benchmarks.base import Benchmark, Inputs
from morphem.benchmarks.leaks import LeakReport
from morphem.benchmarks.score import Score, to_plain
from morphem.errors import DataError
from morphem.features import FeatureTable

FORMAT_VERSION = 1
_LIBRARIES = (
    "morphem", "numpy", "pandas", "scipy", "scikit-learn", "copairs", "pycytominer", "torch",
    "igraph", "umap-learn", "harmonypy", "scanorama",
)  # fmt: skip


@dataclass(frozen=True)
class Record:
    """The result of one benchmark on one set of features.

    Attributes:
        name: Registered name of the benchmark.
        benchmark: The instance.
        score: What it gave.
        leaks: Leak probes by name of part.
        features: Where features come from, and their hashes, by name of part.
        side: Hashes of side tables.
        differs: Why a run from images cannot be identical with the published protocol; empty for tables.
        seconds: Of scoring.
    """

    name: str
    benchmark: Benchmark
    score: Score
    leaks: Mapping[str, LeakReport]
    features: Mapping[str, Any]
    side: Mapping[str, str]
    differs: tuple[str, ...]
    seconds: float

    @property
    def warnings(self) -> list[str]:
        """Sentences of all leak probes."""
        several = len(self.leaks) > 1
        return [
            f"{part}: {text}" if several else text for part, report in self.leaks.items() for text in report.warnings
        ]

    def to_json(self) -> dict[str, Any]:
        """Return the whole record as plain data."""
        cls = type(self.benchmark)
        record = {
            "format_version": FORMAT_VERSION,
            "benchmark": self.name,
            "title": cls.title,
            "protocol_version": cls.protocol_version,
            "source": cls.source,
            "variant": self.benchmark.variant,
            "variant_is": cls.variants[self.benchmark.variant],
            "settings": self.benchmark.settings(),
            "headline": self.benchmark.headline,
            "scores": dict(self.score.values),
            "intervals": dict(self.score.intervals),
            "missing": dict(self.score.missing),
            "rules": dict(self.score.rules),
            "counts": dict(self.score.counts),
            "notes": list(self.score.notes),
            "warnings": self.warnings,
            "differs_from_published": list(self.differs),
            "leaks": {part: _leaks(report) for part, report in self.leaks.items()},
            "features": dict(self.features),
            "side_tables": dict(self.side),
            "published": [asdict(row) for row in cls.published],
            "code": {"protocol": code_hash(cls), **versions()},
            "seconds": round(self.seconds, 3),
            "details": dict(self.score.details),
        }
        plain: dict[str, Any] = to_plain(record)
        return plain


def _leaks(report: LeakReport) -> dict[str, Any]:
    return {"probes": [asdict(leak) for leak in report.leaks], "not_probed": report.missing}


def write_json(data: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write JSON; the file appears whole or not at all.

    Raises:
        DataError: If it cannot be written.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        partial.replace(path)
    except OSError as fault:
        raise DataError(f"cannot write {path} ({fault}); free some space or choose another place.") from fault
    finally:
        partial.unlink(missing_ok=True)


def table_hash(table: FeatureTable) -> str:
    """Return SHA-256 of a table's values, column names and metadata, in the order that they have."""
    digest = hashlib.sha256(np.ascontiguousarray(table.values).data)
    digest.update("\0".join(table.columns).encode())
    digest.update(frame_hash(table.metadata).encode())
    return digest.hexdigest()


def frame_hash(frame: pd.DataFrame) -> str:
    """Return SHA-256 of a frame, as text."""
    return hashlib.sha256(frame.to_csv(index=False).encode()).hexdigest()


def settings_digest(settings: Mapping[str, Any]) -> str:
    """Return SHA-256 of plain settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def code_hash(cls: type[Benchmark]) -> str:
    """Return SHA-256 of the source of a protocol and of the pieces that protocols share."""
    own = inspect.getsourcefile(cls)
    files = {Path(own)} if own else set()
    plugins = {plugin.target.partition(":")[0].rpartition(".")[2] for plugin in registry.plugins("benchmarks")}
    shared = {file for file in Path(__file__).parent.glob("*.py") if file.stem not in plugins}
    digest = hashlib.sha256()
    for file in sorted(files | shared, key=lambda file: file.name):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Return versions of Python and of the libraries that numbers may depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def describe_features(inputs: Inputs, source: Mapping[str, Any]) -> dict[str, Any]:
    """Return what is known of the features of every part.

    Args:
        inputs: As they were scored.
        source: Where they come from: `model` and `data`, or `features`.
    """
    parts = {}
    for name, table in inputs.tables.items():
        kept = (
            "model",
            "revision",
            "weights_fingerprint",
            "morphem_version",
            "data",
            "settings",
            "aggregate",
            "profile",
        )
        provenance = {key: table.provenance[key] for key in (*kept, "tables") if key in table.provenance}
        parts[name] = {
            "rows": len(table),
            "features": len(table.columns),
            "sha256": table_hash(table),
            "provenance": _plain(provenance),
        }
    return {**source, "parts": parts}


def _plain(value: Any) -> Any:
    """Return provenance as JSON takes it; what it cannot hold becomes text."""
    return json.loads(json.dumps(value, default=str))

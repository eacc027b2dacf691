"""Benchmarks whose data cannot be here, on the smallest tables in their layout, through the command line.

Writes each test layout (a planted effect) as a user would have it, runs `morphem benchmark NAME`, and compares
the scores with `benchmarks/NAME/expected.json`, which also says what to run on the real data.

    python benchmarks/layouts.py campfire kim
    python benchmarks/layouts.py --write campfire     # after a change that is meant to change numbers
"""

import argparse
import json
import re
import sys
import tempfile
from pathlib import Path

from morphem import registry
from morphem.cli import main as morphem
from morphem.testing.benchmark_data import tiny_settings, write_tiny_tables

HERE = Path(__file__).parent
TOLERANCE = 0.02  # other libraries and processors round otherwise; forests and networks amplify that


def scores_of(name: str, folder: Path) -> dict[str, float]:
    cls = registry.get("benchmarks", name)
    tables = write_tiny_tables(cls, cls.tiny(0, 1.0), folder / name)
    output = folder / f"{name}.json"
    words = ["benchmark", name, "--features", str(tables), "--output", str(output), "--no-leak-probes"]
    for key, value in tiny_settings(cls).items():
        words += ["--set", f"{key}={json.dumps(value)}"]
    if morphem(words) != 0:
        raise SystemExit(f"{name}: the command failed.")
    scores: dict[str, float] = json.loads(output.read_text())["scores"]
    return scores


def expected(name: str) -> dict[str, object]:
    content: dict[str, object] = json.loads((HERE / name / "expected.json").read_text())
    return content


def differences(name: str, found: dict[str, float]) -> list[str]:
    """Return what is out of its range, one sentence each."""
    scores = expected(name)["scores"]
    assert isinstance(scores, dict)
    lost = [f"{name}: {key} is not given" for key in scores if key not in found]
    return lost + [
        f"{name}: {key} = {found[key]:.4f}, expected {bounds['low']} to {bounds['high']}"
        for key, bounds in scores.items()
        if key in found and not bounds["low"] <= found[key] <= bounds["high"]
    ]


def write(name: str, found: dict[str, float]) -> None:
    cls = registry.get("benchmarks", name)
    path = HERE / name / "expected.json"
    path.parent.mkdir(exist_ok=True)
    old = json.loads(path.read_text()) if path.exists() else {}
    ranges = {
        key: {"value": round(value, 4), "low": round(value - TOLERANCE, 4), "high": round(value + TOLERANCE, 4)}
        for key, value in found.items()
    }
    tables = sorted({row.table for row in cls.published})
    content = {
        "benchmark": name,
        "command": f"python benchmarks/layouts.py {name}",
        "command_on_real_data": f"morphem benchmark {name} --features FEATURES.parquet --output out.json",
        "data": "the test layout, with an effect that is planted (seed 0); the published data cannot be here",
        "published": "; ".join(tables) if tables else "none that could be matched",
        **{
            key: value for key, value in old.items() if key in ("command_on_real_data", "faithful_run")
        },  # kept where written by hand
        "scores": ranges,
        "why_a_range": f"{TOLERANCE} on both sides for other processors and libraries",
    }
    text = json.dumps(content, indent=2)
    path.write_text(
        re.sub(r"\{\s+(\"value\"[^}]*?)\s+\}", lambda hit: "{" + " ".join(hit[1].split()) + "}", text) + "\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", metavar="NAME")
    parser.add_argument("--write", action="store_true", help="write expected.json instead of comparing")
    options = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for name in options.names:
            found = scores_of(name, Path(folder))
            if options.write:
                write(name, found)
            wrong += differences(name, found)
            print(name, *(f"{key}={value:.4f}" for key, value in found.items()))
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{len(options.names)} benchmarks as expected.")


if __name__ == "__main__":
    main()

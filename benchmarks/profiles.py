"""Seconds and peak memory of the steps of `morphem profile` against pycytominer and pandas on the same rows.

Every measurement is a process of its own, so that its peak memory is its own; what the process had in memory after it
imported its libraries and read or made its rows is not counted in seconds, but is in the peak.

    python benchmarks/profiles.py
    python benchmarks/profiles.py --jump ../shared/data/jumpcp1-profiles --cells 400000
    python benchmarks/profiles.py --jump ../shared/data/jumpcp1-profiles --effect

`--effect` says what corrections do on the seven plates of CPJUMP1 (602 features without bright-field; cosine). Every
second control is kept out of the fits: how often is the control nearest to such a control, of their own, of the same
plate (by chance 13.9 %)? And how often does the treated well nearest to a treated well, on another plate, hold the same
compound? A compound has the same position on every plate, so the second number holds effects of position as well.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

CONTROLS = "Metadata_control_type == 'negcon'"


def synthetic_wells(n_plates: int, n_features: int) -> pd.DataFrame:
    """Plates of 384 wells, 64 of them controls; features correlate in blocks of four."""
    generator = np.random.default_rng(0)
    n = 384 * n_plates
    common = np.repeat(generator.normal(size=(n, n_features // 4)), 4, axis=1)
    values = (common + generator.normal(size=(n, n_features))).astype(np.float32)
    metadata = pd.DataFrame(
        {
            "Metadata_Plate": np.repeat([f"P{i:03d}" for i in range(n_plates)], 384),
            "Metadata_Well": np.tile([f"{chr(65 + i // 24)}{i % 24 + 1:02d}" for i in range(384)], n_plates),
            "Metadata_control_type": np.tile([*["negcon"] * 64, *["trt"] * 320], n_plates),
        }
    )
    names = [f"Cells_Feature_{i:04d}" for i in range(n_features)]
    return pd.concat([metadata, pd.DataFrame(values, columns=names)], axis=1)


def write_cells(path: Path, n_cells: int, n_features: int, n_plates: int) -> None:
    """Cells of plates one after another, as `morphem embed --unit cell` writes them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    per_plate, writer = n_cells // n_plates, None
    for plate in range(n_plates):
        columns: dict[str, Any] = {
            "Metadata_Plate": [f"P{plate}"] * per_plate,
            "Metadata_Well": [f"{chr(65 + i % 384 // 24)}{i % 24 + 1:02d}" for i in range(per_plate)],
            "Metadata_Cell": np.arange(per_plate),
        }
        columns |= {
            f"Cells_Feature_{i:04d}": generator.normal(size=per_plate).astype(np.float32) for i in range(n_features)
        }
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def load(options: argparse.Namespace) -> pd.DataFrame:
    """The rows of a measurement: the seven plates where asked for, else synthetic ones."""
    if options.jump:
        from morphem.profiles import read_table

        return read_table(options.jump).to_frame()
    return synthetic_wells(options.plates, options.features)


def features_of(frame: pd.DataFrame) -> list[str]:
    return [name for name in frame if not name.startswith("Metadata_")]


def ours(name: str, frame: pd.DataFrame) -> Callable[[], Any]:
    import pycytominer  # noqa: F401 - the other side has it imported too

    from morphem.profiles import TVN, Aggregate, Combat, MadRobustize, SelectFeatures, Sphere, from_frame

    table = from_frame(frame)
    step = {
        "sphere": Sphere(samples=CONTROLS, epsilon=1e-3),
        "mad": MadRobustize(samples=CONTROLS),
        "correlation": SelectFeatures(operations=["correlation"]),
        "aggregate": Aggregate(by="well", operation="median"),
        "tvn": TVN(samples=CONTROLS),
        "combat": Combat(),
    }[name]
    step.prepare()
    return lambda: step(table)


def theirs(name: str, frame: pd.DataFrame) -> Callable[[], Any]:
    from pycytominer import aggregate, feature_select, normalize

    names, metadata = features_of(frame), [name for name in frame if name.startswith("Metadata_")]
    settings: dict[str, Any] = {"features": names, "meta_features": metadata, "samples": CONTROLS}
    if name == "sphere":
        return lambda: normalize(frame, method="spherize", spherize_epsilon=1e-3, **settings)
    if name == "mad":
        plates = [part for _, part in frame.groupby("Metadata_Plate")]
        return lambda: pd.concat([normalize(part, method="mad_robustize", **settings) for part in plates])
    if name == "correlation":
        return lambda: feature_select(frame, features=names, operation="correlation_threshold")
    return lambda: aggregate(frame, strata=["Metadata_Plate", "Metadata_Well"], features=names, operation="median")


def cells(who: str, path: str) -> Callable[[], Any]:
    if who == "morphem":
        from morphem.profiles import Recipe, apply_to_files

        recipe = Recipe.from_dict({"steps": [{"step": "aggregate", "by": "well"}]})
        return lambda: apply_to_files([path], recipe)
    from pycytominer import aggregate

    def whole() -> Any:
        frame = pd.read_parquet(path)
        strata = ["Metadata_Plate", "Metadata_Well"]
        return aggregate(frame, strata=strata, features=features_of(frame), operation="mean")

    return whole


EFFECTS: dict[str, list[dict[str, Any]]] = {
    "as published": [],
    "standardize per plate": [{"step": "standardize", "samples": "controls"}],
    "sphere": [{"step": "sphere", "epsilon": 1e-3}],
    "sphere, eigenvalue 1": [{"step": "sphere", "epsilon": 1.0, "epsilon_on": "eigenvalue"}],
    "sphere per plate": [
        {"step": "sphere", "epsilon": 1.0, "epsilon_on": "eigenvalue", "per": ["Metadata_Plate"], "method": "ZCA"}
    ],
    "tvn": [{"step": "tvn"}],
    "combat": [{"step": "combat"}],
    "combat on controls": [{"step": "combat", "samples": "controls"}],
    "harmony": [{"step": "harmony"}],
    "scanorama": [{"step": "scanorama"}],
}


def effect(folder: Path) -> None:
    """Print what corrections do to plates and to replicates."""
    from morphem.errors import ConfigError
    from morphem.profiles import apply, read_table

    table = read_table(folder)
    control = (table.metadata["Metadata_control_type"] == "negcon").to_numpy()
    table.metadata["Metadata_Kept_Out"] = np.where(control & (np.cumsum(control) % 2 == 0), "yes", "no")
    fitted = f"{CONTROLS} and Metadata_Kept_Out == 'no'"
    for name, steps in EFFECTS.items():
        first: dict[str, Any] = {"step": "drop_features", "patterns": ["*Brightfield*", "*ZBF*"]}
        try:
            out = apply(table, {"controls": fitted, "steps": [first, *steps]})
        except ConfigError as fault:
            print(f"{name:22} {fault}")
            continue
        kept_out = (out.metadata["Metadata_Kept_Out"] == "yes").to_numpy()
        plate, compound = out.metadata["Metadata_Plate"].to_numpy(), out.metadata["Metadata_broad_sample"].to_numpy()
        unit = out.values / np.linalg.norm(out.values, axis=1, keepdims=True)
        near = unit[kept_out] @ unit[kept_out].T
        np.fill_diagonal(near, -np.inf)
        same_plate = (plate[kept_out][near.argmax(1)] == plate[kept_out]).mean()
        near = unit[~control] @ unit[~control].T
        near[plate[~control][:, None] == plate[~control][None]] = -np.inf
        same_compound = (compound[~control][near.argmax(1)] == compound[~control]).mean()
        print(
            f"{name:22} {len(out.columns):4} features, same plate {same_plate:6.1%}, same compound {same_compound:6.1%}"
        )


def measure(options: argparse.Namespace) -> None:
    """Run one measurement in this process and print it as JSON."""
    if options.one == "cells":
        action = cells(options.who, options.cells_file)
    else:
        frame = load(options)
        action = (ours if options.who == "morphem" else theirs)(options.one, frame)
    begin = time.perf_counter()
    action()
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "peak_mib": peak}))


def child(options: argparse.Namespace, one: str, who: str, cells_file: str = "") -> dict[str, float]:
    words = [sys.executable, "-W", "ignore", __file__, "--one", one, "--who", who, "--cells-file", cells_file]
    words += ["--plates", str(options.plates), "--features", str(options.features)]
    words += ["--jump", str(options.jump)] if options.jump else []
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plates", type=int, default=7)
    parser.add_argument("--features", type=int, default=904)
    parser.add_argument("--jump", type=Path, help="the seven plates of CPJUMP1 instead of synthetic rows")
    parser.add_argument("--cells", type=int, default=200_000)
    parser.add_argument("--effect", action="store_true", help="what corrections do, instead of speed; needs --jump")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--who", help=argparse.SUPPRESS)
    parser.add_argument("--cells-file", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.effect:
        if not options.jump:
            parser.error("--effect needs --jump")
        effect(options.jump)
        return
    if options.one:
        measure(options)
        return
    rows = (
        "the plates of " + str(options.jump)
        if options.jump
        else f"{options.plates} plates x {options.features} features"
    )
    print(f"{rows}\n{'step':22} {'morphem':>20} {'pycytominer':>20}")
    for one in ("sphere", "mad", "correlation", "aggregate", "tvn", "combat"):
        both = [child(options, one, "morphem")]
        both += [child(options, one, "pycytominer")] if one not in ("tvn", "combat") else []
        print(f"{one:22} " + " ".join(f"{r['seconds']:9.2f} s {r['peak_mib']:5.0f} MiB" for r in both))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cells.parquet"
        write_cells(path, options.cells, 384, 8)
        size = path.stat().st_size / 2**20
        both = [child(options, "cells", who, str(path)) for who in ("morphem", "pycytominer")]
        print(f"{options.cells} cells x 384 in a file of {size:.0f} MiB, 8 plates, to wells:")
        print(f"{'cells to wells':22} " + " ".join(f"{r['seconds']:9.2f} s {r['peak_mib']:5.0f} MiB" for r in both))


if __name__ == "__main__":
    main()

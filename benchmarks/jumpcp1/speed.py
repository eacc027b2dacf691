"""JUMP-CP1 end to end on the seven plates, against copairs called directly: time and peak memory.

Both read the same files, leave out bright-field features, rank replicates against DMSO wells with 100,000 draws of the
null, form consensus profiles, and rank targets with 20,000 draws. Copairs gets a fresh cache of nulls, or its p-values
would depend on earlier runs, and once more the settings that made it fastest (unit vectors, a dot product).
Each runs in a process of its own, in turns; times are wall and CPU seconds without the imports, memory is the peak of
the process.

    python benchmarks/jumpcp1/speed.py --features ../shared/data/jumpcp1-profiles
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import pandas as pd

WAYS = ("morphem", "morphem with leak probes", "copairs", "copairs with unit vectors")


def by_morphem(folder: Path, leaks: bool) -> dict[str, float]:
    from morphem.benchmarks.runner import score_features

    return dict(score_features("jumpcp1", folder, leaks=leaks).score.values)


def by_copairs(folder: Path, unit: bool) -> dict[str, float]:
    from copairs.map import average_precision, mean_average_precision, multilabel

    frame = pd.concat([pd.read_csv(file) for file in sorted(folder.glob("*/*.csv.gz"))], ignore_index=True)
    features = [
        name for name in frame if not name.startswith("Metadata_") and "ZBF" not in name and "Brightfield" not in name
    ]
    controls = frame["Metadata_control_type"].eq("negcon").to_numpy()
    meta = pd.DataFrame(
        {
            "compound": frame["Metadata_broad_sample"].mask(controls, "DMSO"),
            "plate": frame["Metadata_Plate"],
            "reference": np.where(controls, np.arange(len(frame)), -1),
        }
    )
    values = frame[features].to_numpy(np.float64)
    options: dict[str, Any] = {"progress_bar": False}
    with tempfile.TemporaryDirectory() as cache:
        ranked = average_precision(meta, _unit(values) if unit else values, ["compound"], [], ["plate"], ["reference"],
                                   **(options | _dot(unit)))  # fmt: skip
        activity = mean_average_precision(
            ranked[~controls], ["compound"], 100_000, 0.05, 0, progress_bar=False, cache_dir=cache
        )
        active = set(activity.loc[activity["below_corrected_p"], "compound"])
        targets = pd.read_csv(next(folder.glob("JUMP-Target-1_compound*.tsv")), sep="\t").set_index("broad_sample")
        names = sorted(active)
        profiles = np.asarray([np.median(values[(meta["compound"] == name).to_numpy()], axis=0) for name in names])
        labels = pd.DataFrame(
            {"name": names, "target": [targets.loc[name, "target_list"].split("|") for name in names]}
        )
        of_targets = multilabel.average_precision(
            labels, _unit(profiles) if unit else profiles, ["target"], [], [], ["target"], multilabel_col="target",
            **(options | _dot(unit)),
        )  # fmt: skip
        consistency = mean_average_precision(
            of_targets, ["target"], 20_000, 0.05, 0, progress_bar=False, cache_dir=cache
        )
    total = len({target for text in targets["target_list"].dropna() for target in text.split("|")})
    maps = "mean_average_precision"
    return {
        "active_fraction": len(active) / len(activity),
        "jump_cp1": activity.loc[activity["below_corrected_p"], maps].sum() / len(activity),
        "jump_cp2": consistency.loc[consistency["below_corrected_p"], maps].sum() / total,
    }


def _unit(values: np.ndarray) -> np.ndarray:
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _dot(unit: bool) -> dict[str, Any]:
    return {"distance": lambda a, b: np.einsum("pf,pf->p", a, b), "batch_size": 2000} if unit else {}


def measure(way: str, folder: Path) -> None:
    begin, cpu = time.perf_counter(), time.process_time()
    if way.startswith("morphem"):
        import morphem.benchmarks.runner  # noqa: F401

        begin, cpu = time.perf_counter(), time.process_time()
        scores = by_morphem(folder, "leak" in way)
    else:
        import copairs.map  # noqa: F401

        begin, cpu = time.perf_counter(), time.process_time()
        scores = by_copairs(folder, "unit" in way)
    result = {
        "wall": time.perf_counter() - begin,
        "cpu": time.process_time() - cpu,
        "peak_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "scores": {name: float(scores[name]) for name in ("active_fraction", "jump_cp1", "jump_cp2")},
    }
    print(json.dumps(result))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--one", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        measure(options.one, options.features)
        return
    results: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    for _ in range(options.repeats):
        for way in WAYS:
            command = [sys.executable, __file__, "--features", str(options.features), "--one", way]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
            results[way].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{'':28} {'wall s':>8} {'CPU s':>8} {'peak GiB':>9}  active  JUMP-CP1  JUMP-CP2")
    for way, runs in results.items():
        wall, cpu, peak = (median(run[key] for run in runs) for key in ("wall", "cpu", "peak_gib"))
        scores = runs[0]["scores"]
        print(
            f"{way:28} {wall:8.1f} {cpu:8.1f} {peak:9.2f}  {scores['active_fraction']:.4f}  {scores['jump_cp1']:.5f}  "
            f"{scores['jump_cp2']:.5f}"
        )


if __name__ == "__main__":
    main()

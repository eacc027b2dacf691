"""How fast crops stream from shards, against a plain loop that decodes a PNG with Pillow and cuts a crop from it.

Both cut crops of one scale from the same 1000 x 1000 planes, in one process and one thread, in turns. Times are CPU
times, so that other programs on the machine do not count. The plain loop decodes once per crop; it is timed on files
as Pillow writes them and on the strips of the shards, and the faster of the two counts. The last column compares with a
Pillow loop that cuts as many crops from each decoded plane as we do.
Then the memory of a reading worker, with an index of 10 thousand and of a million planes.

    python benchmarks/streaming.py
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import torch
from PIL import Image

from morphem.data.index import Index, build_index, open_index
from morphem.data.loader import StreamLoader
from morphem.data.order import StudyBalance
from morphem.data.sampling import Box, Scales
from morphem.data.shards import ImageRecord, RangeReader, ShardSet, ShardWriter, finish_set
from morphem.data.stream import CropStream

CROPS = (1, 4)


def make_plane(side: int, number: int) -> np.ndarray:
    """Draw blobs on an uneven background with camera noise: about half of its bytes are left after compression."""
    rng = np.random.default_rng(number)
    grid = np.arange(side, dtype=np.float32)
    image = np.outer(20 + 10 * np.sin(grid / side * 3 + number), np.ones(side, np.float32))
    for _ in range(90):
        x, y, radius, height = *rng.uniform(0, side, 2), rng.uniform(5, 25), rng.uniform(20, 150)
        image += height * np.outer(np.exp(-(((grid - y) / radius) ** 2)), np.exp(-(((grid - x) / radius) ** 2)))
    return np.clip(image + rng.normal(0, 2.2, image.shape), 0, 255).astype(np.uint8)


def write_planes(folder: Path, count: int, side: int) -> list[Path]:
    """Write the planes as shards, and as single PNG files with Pillow's defaults."""
    paths = []
    with ShardWriter(folder / "shards", "benchmark") as writer:
        for number in range(count):
            plane = make_plane(side, number)
            row = {
                "experiment.study": "benchmark",
                "imaging.multi_channel_id": str(number),
                "imaging.channel": 1,
                "imaging.channel_type": "nucleus",
                "geometry.height": side,
                "geometry.width": side,
                "geometry.channels": 1,
            }
            cells = np.random.default_rng(number).integers(0, side, (90, 2), dtype=np.int32)
            writer.add(ImageRecord(str(number), [plane], [row], ["DAPI"], None, cells))
            paths.append(folder / f"{number}.png")
            Image.fromarray(plane).save(paths[-1])
    finish_set(folder / "shards")
    return paths


def open_loader(shards: ShardSet, scale: int, crops: int, batch_size: int = 64) -> StreamLoader:
    """Open the training stream in this process."""
    index = open_index(shards, folder=Path(shards.root, "index"))
    balance = StudyBalance([index.n_planes], [index.n_planes], seed=0)
    stream = CropStream(
        index, shards.reader(), balance, Scales(default=scale), batch_size=batch_size, crops_per_image=crops
    )
    return StreamLoader(stream)


def cpu_seconds(run: Callable[[], object]) -> float:
    """Time a call, in seconds of this process's CPU."""
    start = time.process_time()
    run()
    return time.process_time() - start


def pillow_loop(paths: list[Path], boxes: list[Box], crops: int) -> None:
    """Cut `crops` crops from every decoded plane."""
    for place, path in enumerate(paths):
        with Image.open(path) as image:
            plane = np.asarray(image)
        for y, x, height, width in boxes[place * crops : (place + 1) * crops]:
            torch.from_numpy(plane[y : y + height, x : x + width].copy())


def compare(folder: Path, planes: int, side: int, scale: int, rounds: int) -> Iterator[str]:
    """Yield the lines of the table of speeds."""
    paths = write_planes(folder, planes, side)
    shards = ShardSet(folder / "shards")
    stored = sum(shard["bytes"] for shard in shards.manifest["shards"]) / (planes * side**2)
    ours_as_files = [folder / f"strips-{place}.png" for place in range(planes)]
    reader = shards.reader()
    for path, row in zip(
        ours_as_files, shards.table(["shard", "plane_offset", "plane_nbytes"]).to_pylist(), strict=True
    ):
        path.write_bytes(reader.read(row["shard"], row["plane_offset"], row["plane_nbytes"]))
    yield f"{planes} planes of {side} x {side}, stored in {stored:.0%} of their raw size; crops of {scale} px +- 10 %"
    yield f"{'crops/plane':>11} {'Pillow':>9} {'(of strips)':>12} {'morphem':>9} {'ratio':>7} {'if it shares too':>17}"
    for crops in CROPS:
        loader = open_loader(shards, scale, crops)
        boxes = [Box(*box) for batch in loader for box in batch.boxes.tolist()]
        times: dict[str, list[float]] = {"plain": [], "strips": [], "equal": [], "ours": []}
        for _ in range(rounds):
            times["plain"].append(cpu_seconds(lambda: pillow_loop(paths, boxes, 1)))  # noqa: B023
            times["ours"].append(cpu_seconds(lambda: sum(1 for _ in loader)))  # noqa: B023
            times["strips"].append(cpu_seconds(lambda: pillow_loop(ours_as_files, boxes, 1)))  # noqa: B023
            times["equal"].append(cpu_seconds(lambda: pillow_loop(paths, boxes, crops)))  # noqa: B023
        plain, strips = planes / median(times["plain"]), planes / median(times["strips"])
        equal, ours = planes * crops / median(times["equal"]), planes * crops / median(times["ours"])
        ratio = ours / max(plain, strips)
        yield f"{crops:>11} {plain:>7.0f}/s {strips:>10.0f}/s {ours:>7.0f}/s {ratio:>6.1f}x {ours / equal:>16.1f}x"


def make_index(path: Path, n: int) -> None:
    """Write an index of `n` planes that lie nowhere."""
    numbers = np.arange(n)
    columns = {name: pa.array(["benchmark"]).take(pa.array(numbers * 0)) for name in ("experiment.study", "shard")}
    columns["imaging.channel_type"] = pa.array(["nucleus"]).take(pa.array(numbers * 0))
    columns["key"] = pa.array(np.char.add("benchmark--", numbers.astype("U9")))
    sizes = (
        "geometry.height",
        "geometry.width",
        "plane_offset",
        "plane_nbytes",
        "cells_offset",
        "cells_nbytes",
        "n_cells",
    )
    build_index(pa.table(columns | dict.fromkeys(sizes, pa.array(numbers))), path)


def print_memory(path: Path) -> None:
    """Look up samples all over an index, and print resident memory, and the part that is not files, in MiB."""
    index = Index(str(path))
    balance = StudyBalance([index.n_planes], [index.n_planes], seed=0)
    stream = CropStream(index, RangeReader("."), balance, Scales(default=64), batch_size=64)
    for place in range(20_000):
        stream._records(balance.at(place).sample)
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(*(int(lines[name].split()[0]) / 1024 for name in ("VmRSS", "RssAnon")))


def memory(folder: Path) -> Iterator[str]:
    """Yield the lines of the table of memory; each worker is a fresh process."""
    yield f"{'index rows':>11} {'index file':>12} {'resident in a worker':>21} {'without mapped files':>21}"
    for n in (10_000, 1_000_000):
        path = folder / f"{n}.index"
        make_index(path, n)
        command = [sys.executable, __file__, "--resident", str(path)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        resident, own = map(float, found.split())
        yield f"{n:>11,} {path.stat().st_size / 2**20:>8.1f} MiB {resident:>17.1f} MiB {own:>17.1f} MiB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, default=64, help="planes to write (64)")
    parser.add_argument("--side", type=int, default=1000, help="side of a plane in pixels (1000)")
    parser.add_argument("--scale", type=int, default=300, help="crop scale in pixels (300)")
    parser.add_argument("--rounds", type=int, default=7, help="the median of so many rounds counts (7)")
    parser.add_argument("--resident", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.resident:
        return print_memory(options.resident)
    with tempfile.TemporaryDirectory() as folder:
        for line in compare(Path(folder), options.planes, options.side, options.scale, options.rounds):
            print(line, flush=True)
        for line in memory(Path(folder)):
            print(line, flush=True)
    return None


if __name__ == "__main__":
    main()

"""How fast 2048 x 2048 16-bit TIFF files become shards, against a plain loop of tifffile, numpy and Pillow.

Both read the same files, clip at the 0.1 and 99.9 percentiles, scale to 8 bit and write lossless PNG, in one process
and one thread, in turns. Times are CPU times, so that other programs on the machine do not count. The plain loop saves
with Pillow's defaults; the second one with the settings that suit camera noise (level 1, run lengths), which is the
fastest that one gets from Pillow. Ours also measures quality, looks for copied channels, checks every row, writes the
tables and hashes the shards; the last lines say how its time is spent.

    python benchmarks/ingest.py
"""

import argparse
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import tifffile
from PIL import Image

from morphem.data import png
from morphem.data.shards import ShardSet
from morphem.ingest import ingest
from morphem.ingest.prepare import Preparation
from morphem.ingest.quality import measure
from morphem.ingest.scaling import DEFAULT_CLIP, scale
from morphem.ingest.settings import IngestSettings
from morphem.sources.sheet import SheetSource

CHANNELS = ("nucleus", "actin", "mitochondria", "rna")


def make_plane(side: int, seed: int) -> np.ndarray:
    """Draw cells on an uneven background as a camera sees them: counts with shot noise and read noise."""
    rng = np.random.default_rng(seed)
    grid = np.arange(side, dtype=np.float32)
    light = np.outer(280 + 60 * np.sin(grid / side * 3), np.ones(side, np.float32))
    for _ in range(side * side // 20000):
        x, y = rng.integers(0, side, 2)
        radius, height = rng.uniform(8, 30), rng.uniform(200, 3000)
        rows = slice(max(0, y - 90), y + 90)
        columns = slice(max(0, x - 90), x + 90)
        profile = [np.exp(-(((grid[part] - centre) / radius) ** 2)) for part, centre in ((rows, y), (columns, x))]
        light[rows, columns] += height * np.outer(*profile)
    return np.clip(rng.poisson(light) + rng.normal(0, 6, light.shape), 0, 65535).astype(np.uint16)


def write_study(folder: Path, images: int, side: int, compression: str | None) -> list[Path]:
    """Write the files of a study and its sheet; return the files in order."""
    rows, paths = [], []
    for image in range(images):
        for number, channel in enumerate(CHANNELS):
            paths.append(folder / f"{image}-{channel}.tif")
            tifffile.imwrite(paths[-1], make_plane(side, image * len(CHANNELS) + number), compression=compression)
            rows.append(
                {
                    "file": paths[-1].name,
                    "experiment.study": "benchmark",
                    "imaging.multi_channel_id": str(image),
                    "imaging.channel": number + 1,
                    "imaging.channel_type": channel,
                    "geometry.height": side,
                    "geometry.width": side,
                    "geometry.channels": len(CHANNELS),
                }
            )
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return paths


def plain_loop(paths: list[Path], folder: Path, **settings: int) -> int:
    """What a lab's script does; return the bytes that it wrote."""
    folder.mkdir(exist_ok=True)
    n_bytes = 0
    for path in paths:
        plane = tifffile.imread(path)
        low, high = np.percentile(plane, (0.1, 99.9))
        scaled = (np.clip(plane, low, high) - low) / (high - low) * 255
        target = folder / f"{path.stem}.png"
        Image.fromarray(np.rint(scaled).astype(np.uint8)).save(target, **settings)
        n_bytes += target.stat().st_size
    return n_bytes


def ours(folder: Path, output: Path, preparation: Preparation) -> int:
    """Ingest the study; return the bytes of its shards."""
    return ingest([SheetSource(str(folder))], output, IngestSettings(preparation=preparation, overwrite=True)).n_bytes


def cpu_seconds(run: Callable[[], object]) -> float:
    """Time a call, in seconds of this process's CPU."""
    start = time.process_time()
    run()
    return time.process_time() - start


def stages(folder: Path) -> dict[str, float]:
    """Seconds of each stage over the study, one after the other."""
    source = SheetSource(str(folder))
    seconds = dict.fromkeys(("read", "percentile and scale", "quality", "encode"), 0.0)
    for image_id in source.image_ids():
        images = []
        seconds["read"] += cpu_seconds(lambda: images.append(source.load(image_id)))  # noqa: B023
        for plane in images[0].planes:
            scaled = []
            seconds["percentile and scale"] += cpu_seconds(lambda: scaled.append(scale(plane, DEFAULT_CLIP)))  # noqa: B023
            seconds["quality"] += cpu_seconds(lambda: measure(scaled[0]))  # noqa: B023
            seconds["encode"] += cpu_seconds(lambda: png.encode(scaled[0].plane))  # noqa: B023
    return seconds


def check(folder: Path, plain: Path, output: Path) -> None:
    """Both wrote the same pixels, but for halves that fall on the other side."""
    shards = ShardSet(output)
    reader = shards.reader()
    for row, path in zip(shards.table().to_pylist(), sorted(plain.glob("0-*.png")), strict=False):
        name = f"{row['imaging.multi_channel_id']}-{row['imaging.channel_type']}"
        plane = png.decode(reader.read(row["shard"], row["plane_offset"], row["plane_nbytes"]))
        other = np.asarray(Image.open(path.with_stem(name)))
        assert np.abs(plane.astype(int) - other).max() <= 1, f"{name} differs from the plain loop"


def compare(folder: Path, images: int, side: int, compression: str | None, rounds: int) -> None:
    """Print the table."""
    study, plain, output = folder / "study", folder / "plain", folder / "shards"
    study.mkdir()
    paths = write_study(study, images, side, compression)
    ways: dict[str, Callable[[], int]] = {
        "plain loop, Pillow's default": lambda: plain_loop(paths, plain),
        "plain loop, run lengths": lambda: plain_loop(
            paths, folder / "rle", compress_level=1, compress_type=zlib.Z_RLE
        ),
        "morphem ingest": lambda: ours(study, output, Preparation()),
        "morphem ingest, no quality": lambda: ours(study, folder / "bare", Preparation(quality=False)),
        "morphem ingest, 16 bit": lambda: ours(study, folder / "deep", Preparation(bit_depth=16)),
    }
    sizes = {name: way() for name, way in ways.items()}  # also warms up
    check(study, plain, output)
    times: dict[str, list[float]] = {name: [] for name in ways}
    parts: list[dict[str, float]] = []
    for _ in range(rounds):
        for name, way in ways.items():
            times[name].append(cpu_seconds(way))
        parts.append(stages(study))
    first = next(iter(ways))
    n = len(paths)
    print(f"{n} planes of {side} x {side}, uint16 TIFF ({compression or 'not compressed'}), one core")
    print(f"{'':<30} {'planes/s':>9} {'ratio':>7} {'MiB/plane':>10} {'size':>6}")
    for name in ways:
        ratio, size = median(times[first]) / median(times[name]), sizes[name] / sizes[first]
        speed, mib = n / median(times[name]), sizes[name] / n / 2**20
        print(f"{name:<30} {speed:>9.1f} {ratio:>6.1f}x {mib:>10.2f} {size:>5.0%}")
    total = median(times["morphem ingest"])
    print("of the time of morphem ingest:")
    shares = {name: median(part[name] for part in parts) / total for name in parts[0]}
    for name, share in (shares | {"checks, tables, tar, hash": 1 - sum(shares.values())}).items():
        print(f"  {name:<28} {share:>6.0%} {share * total / n * 1000:>9.1f} ms per plane")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=3, help="images of four channels (3)")
    parser.add_argument("--side", type=int, default=2048, help="side of a plane in pixels (2048)")
    parser.add_argument("--compression", choices=("lzw", "deflate"), help="of the TIFF files; none where not given")
    parser.add_argument("--rounds", type=int, default=5, help="the median of so many rounds counts (5)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        compare(Path(folder), options.images, options.side, options.compression, options.rounds)


if __name__ == "__main__":
    main()

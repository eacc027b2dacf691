"""Planes per second of `morphem.embed.extract` against a loop that encodes image by image and channel by channel.

Both read the same shards in the same run and give the same features. The loop is what the field's evaluation code does:
decode a plane with Pillow, cut the tiles, normalise, resize, one forward pass per tile and channel through all tokens
of all blocks, with torch's own threads. The rounds alternate, and the best of each counts. On a busy machine the loop's
threads wait for each other, so the ratio by the clock flatters; with OMP_NUM_THREADS=1 the ratio of CPU seconds does
not. The last line is the limit: a program that did nothing but the matrix products of the network (as morphem computes
it), at the highest rate this machine reaches on a matrix of the network's size, would have this ratio.

    python benchmarks/embedding.py
    python benchmarks/embedding.py --backbone vit_base_patch16_224 --device cuda --images 64 --batch-size 256
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.commit import finish_set
from morphem.data.record import ImageRecord
from morphem.data.shards import ShardSet
from morphem.data.writer import ShardWriter
from morphem.embed import extract
from morphem.encoder import Encoder
from morphem.normalizers import SelfNormalize

_PRODUCTS = 50

CHANNELS = ("nucleus", "actin", "mitochondria", "golgi", "endoplasmic reticulum")


def write_shards(root: Path, n_images: int, n_channels: int, size_px: int) -> None:
    """Write images of smooth random texture with camera noise."""
    generator = np.random.default_rng(0)
    with ShardWriter(root, "benchmark") as writer:
        for number in range(n_images):
            planes = []
            for _ in range(n_channels):
                coarse = torch.from_numpy(generator.gamma(0.5, 40, (1, 1, size_px // 16, size_px // 16)))
                smooth = functional.interpolate(coarse, size=(size_px, size_px), mode="bicubic")[0, 0].numpy()
                planes.append(np.clip(smooth + generator.normal(0, 4, smooth.shape), 0, 254).astype(np.uint8))
            rows = [
                {
                    "experiment.study": "benchmark",
                    "imaging.multi_channel_id": str(number),
                    "imaging.channel": nth + 1,
                    "imaging.channel_type": channel,
                    "microscopy.type": "fluorescence",
                    "geometry.height": size_px,
                    "geometry.width": size_px,
                    "geometry.channels": n_channels,
                }
                for nth, channel in enumerate(CHANNELS[:n_channels])
            ]
            writer.add(ImageRecord(str(number), planes, rows, CHANNELS[:n_channels]))
    finish_set(root)


@torch.no_grad()
def plain_loop(encoder: Encoder, root: Path, tile_px: int, device: torch.device) -> np.ndarray:
    """Encode image by image, channel by channel; return features as (tiles, channels * D)."""
    shards = ShardSet(root)
    table, reader = shards.table().to_pandas(), shards.reader()
    network, rows = encoder.channels.backbone, []
    for _, image in table.groupby("key", sort=False):
        columns = []
        for plane in image.sort_values("imaging.channel_type").itertuples():
            data = reader.read(plane.shard, plane.plane_offset, plane.plane_nbytes)
            pixels = torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).to(device).float() / 255
            vectors = []
            for y in range(0, pixels.shape[0], tile_px):
                for x in range(0, pixels.shape[1], tile_px):
                    tile = pixels[y : y + tile_px, x : x + tile_px][None, None]
                    tile = (tile - tile.mean()) / (tile.var(correction=0) + 1e-7).sqrt()
                    side = encoder.input_size_px
                    if tile.shape[-1] != side:
                        tile = functional.interpolate(tile, size=(side, side), mode="bilinear", antialias=True)
                    vectors.append(network.tokens(tile)[:, 0].cpu())
            columns.append(torch.cat(vectors))
        rows.append(torch.cat(columns, dim=1))
    return torch.cat(rows).numpy()


def timed(function: Callable[[], np.ndarray], device: torch.device) -> tuple[float, float, np.ndarray]:
    """Return seconds by the clock, seconds of all CPU cores, and the features."""
    begin, begin_cpu = time.perf_counter(), time.process_time()
    result = function()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin, time.process_time() - begin_cpu, result


@torch.no_grad()
def limit_seconds(encoder: Encoder, n_planes: int, device: torch.device) -> float:
    """Return how long the matrix products of the network alone take for some planes."""
    backbone, side = encoder.channels.backbone, encoder.input_size_px
    plane = torch.zeros(1, 1, side, side, device=device)
    with FlopCounterMode(display=False) as counter:
        backbone(plane)
    n_tokens = 4 * (side // backbone.patch_size_px[0]) ** 2
    tokens = torch.randn(n_tokens, backbone.embed_dim, device=device)
    weight = torch.randn(backbone.embed_dim, 4 * backbone.embed_dim, device=device)
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    torch.set_num_threads(1 if device.type == "cpu" else torch.get_num_threads())
    try:
        with ThreadPoolExecutor(threads) as pool:
            seconds = [best_product(tokens, weight, device, pool, threads) for _ in range(5)]
    finally:
        torch.set_num_threads(threads)
    rate = threads * _PRODUCTS * 2 * tokens.shape[0] * weight.numel() / min(seconds)
    return n_planes * counter.get_total_flops() / rate


def best_product(a: torch.Tensor, b: torch.Tensor, device: torch.device, pool: ThreadPoolExecutor, n: int) -> float:
    """Return how long `n` threads take for `_PRODUCTS` products each."""

    def work(_: int) -> None:
        for _ in range(_PRODUCTS):
            torch.mm(a, b)

    begin = time.perf_counter()
    list(pool.map(work, range(n)))
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - begin


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="vision transformer of timm (%(default)s)")
    parser.add_argument("--images", type=int, default=4, help="number of images (%(default)s)")
    parser.add_argument("--channels", type=int, default=3, choices=range(1, 6), help="per image (%(default)s)")
    parser.add_argument("--size-px", type=int, default=448, help="side of an image, a multiple of a tile (%(default)s)")
    parser.add_argument("--tile-size-px", type=int, default=224, help="side of a tile (%(default)s)")
    parser.add_argument("--input-size-px", type=int, default=224, help="side of the network's input (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=64, help="planes at once (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=0, help="reading processes (%(default)s)")
    parser.add_argument("--precision", default="32-true", help="of extract; the loop is 32-true (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (%(default)s)")
    options = parser.parse_args()
    if options.size_px % options.tile_size_px:
        parser.error("--size-px must be a multiple of --tile-size-px")
    return options


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    torch.manual_seed(0)
    backbone = VisionTransformer(options.backbone)
    encoder = Encoder(BagOfChannels(backbone), SelfNormalize(), input_size_px=options.input_size_px).eval().to(device)
    n_planes = options.images * options.channels * (options.size_px // options.tile_size_px) ** 2
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_shards(root, options.images, options.channels, options.size_px)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "plain loop": lambda: plain_loop(encoder, root, options.tile_size_px, device),
            "morphem.extract": lambda: (
                extract(
                    encoder,
                    root,
                    tile_size_px=options.tile_size_px,
                    batch_size=options.batch_size,
                    num_workers=options.num_workers,
                    precision=options.precision,
                ).values
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        cpu_seconds: dict[str, list[float]] = {name: [] for name in ways}
        values = {}
        for _ in range(options.rounds):
            for name, way in ways.items():
                took, took_cpu, values[name] = timed(way, device)
                seconds[name].append(took)
                cpu_seconds[name].append(took_cpu)
    difference = np.abs(values["plain loop"] - values["morphem.extract"]).max()
    threads = torch.get_num_threads()
    print(f"{options.backbone}, {n_planes} planes of {options.tile_size_px} px, {device}, {threads} threads")
    print(f"{'':18} {'best s':>8} {'median s':>9} {'planes/s':>9} {'ratio':>6} {'CPU s':>8} {'ratio':>6}")
    for name in ways:
        best, cpu = min(seconds[name]), min(cpu_seconds[name])
        ratio, cpu_ratio = min(seconds["plain loop"]) / best, min(cpu_seconds["plain loop"]) / cpu
        rate, median = n_planes / best, np.median(seconds[name])
        print(f"{name:18} {best:8.2f} {median:9.2f} {rate:9.1f} {ratio:6.2f} {cpu:8.2f} {cpu_ratio:6.2f}")
    limit = limit_seconds(encoder, n_planes, device)
    print(
        f"{'products alone':18} {limit:8.2f} {'':9} {n_planes / limit:9.1f} {min(seconds['plain loop']) / limit:6.2f}"
    )
    print(f"largest difference of a feature: {difference:.1e}")


if __name__ == "__main__":
    main()

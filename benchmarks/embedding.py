"""Planes per second of `morphem.embed.extract` against two measures, on fields of several channels.

(a) A loop as the field's evaluation code has it: fields are decoded with Pillow to float, every channel plane is
normalised as a whole, resized (antialiased), and embedded channel after channel through all tokens of all blocks, with
torch's own threads and a copy to the host after each channel. `--loop-images` fields go through it at once (1, as that
code does for single images). With `--unit tile` a plane is cut into tiles first.
(b) timm's own forward alone on random tensors of the same batch: no reading, no normalising, no resizing.

All run in one process with the same weights and give the same features. The rounds alternate, and the best of each
counts. On a busy machine threads wait for each other, so the ratio by the clock flatters whoever waits less; CPU
seconds do not, but they leave out how well threads are used. The last line is the limit: a program that did nothing but
the matrix products of the network (as morphem computes it), at the highest rate this machine reaches on a matrix of the
network's size, would have this ratio.

    python benchmarks/embedding.py                                      # whole fields of 5 x 1080 x 1080, ViT-S
    python benchmarks/embedding.py --unit tile --images 1 --size-px 1120
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
import pandas as pd
import timm
import torch
from PIL import Image
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.commit import finish_set
from morphem.data.record import ImageRecord
from morphem.data.shards import RangeReader, ShardSet
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
def plain_loop(encoder: Encoder, root: Path, tile_px: int | None, n_fields: int, device: torch.device) -> np.ndarray:
    """Encode fields channel by channel; return features as (fields or tiles, channels * D)."""
    shards = ShardSet(root)
    table, reader = shards.table().to_pandas(), shards.reader()
    fields = [image.sort_values("imaging.channel_type") for _, image in table.groupby("key", sort=False)]
    network, rows = encoder.channels.backbone, []
    for first in range(0, len(fields), n_fields):
        images = [decoded_field(reader, field) for field in fields[first : first + n_fields]]
        batch = torch.stack(images).to(device)  # (N, C, H, W)
        columns = []
        for channel in range(batch.shape[1]):
            planes = cut_tiles(batch[:, channel : channel + 1], tile_px)
            mean, variance = planes.mean((2, 3), keepdim=True), planes.var((2, 3), correction=0, keepdim=True)
            planes = (planes - mean) / (variance + 1e-7).sqrt()
            side = encoder.input_size_px
            if planes.shape[-1] != side:
                planes = functional.interpolate(planes, size=(side, side), mode="bilinear", antialias=True)
            columns.append(network.tokens(planes)[:, 0].cpu())
        rows.append(torch.cat(columns, dim=1))
    return torch.cat(rows).numpy()


def decoded_field(reader: RangeReader, field: pd.DataFrame) -> torch.Tensor:
    """Decode the planes of a field one after another, (C, H, W), 0 to 1."""
    planes = []
    for plane in field.itertuples():
        data = reader.read(plane.shard, plane.plane_offset, plane.plane_nbytes)
        planes.append(torch.from_numpy(np.array(Image.open(io.BytesIO(data)))).float() / 255)
    return torch.stack(planes)


def cut_tiles(planes: torch.Tensor, tile_px: int | None) -> torch.Tensor:
    """Cut planes (N, 1, H, W) into tiles row by row, (N * tiles, 1, tile, tile)."""
    if tile_px is None:
        return planes
    tiles = planes.unfold(2, tile_px, tile_px).unfold(3, tile_px, tile_px)  # (N, 1, rows, columns, tile, tile)
    return tiles.reshape(-1, 1, tile_px, tile_px)


@torch.inference_mode()
def timm_alone(network: torch.nn.Module, n_planes: int, batch_size: int, side: int, device: torch.device) -> np.ndarray:
    """Run timm's forward on random tensors, batch after batch."""
    planes = torch.randn(batch_size, 1, side, side, device=device)
    sizes = [batch_size] * (n_planes // batch_size) + ([n_planes % batch_size] if n_planes % batch_size else [])
    return torch.cat([network(planes[:size]) for size in sizes]).cpu().numpy()


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
    parser.add_argument("--images", type=int, default=8, help="number of fields (%(default)s)")
    parser.add_argument("--channels", type=int, default=5, choices=range(1, 6), help="per field (%(default)s)")
    parser.add_argument("--size-px", type=int, default=1080, help="side of a field (%(default)s)")
    parser.add_argument(
        "--unit", default="image", choices=["image", "tile"], help="whole fields or tiles (%(default)s)"
    )
    parser.add_argument("--tile-size-px", type=int, default=224, help="side of a tile (%(default)s)")
    parser.add_argument("--input-size-px", type=int, default=224, help="side of the network's input (%(default)s)")
    parser.add_argument("--batch-size", type=int, default=40, help="planes at once (%(default)s)")
    parser.add_argument("--loop-images", type=int, default=1, help="fields at once in the loop (%(default)s)")
    parser.add_argument("--num-workers", type=int, default=0, help="reading processes (%(default)s)")
    parser.add_argument("--precision", default="32-true", help="of extract; the others are 32-true (%(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (%(default)s)")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds (%(default)s)")
    options = parser.parse_args()
    if options.unit == "tile" and options.size_px % options.tile_size_px:
        parser.error("--size-px must be a multiple of --tile-size-px")
    return options


def main() -> None:
    options = parse()
    device = torch.device(options.device)
    torch.manual_seed(0)
    backbone = VisionTransformer(options.backbone)
    encoder = Encoder(BagOfChannels(backbone), SelfNormalize(), input_size_px=options.input_size_px).eval().to(device)
    alone = timm.create_model(options.backbone, num_classes=0, in_chans=1, img_size=options.input_size_px)
    alone = alone.eval().to(device)
    tile = options.tile_size_px if options.unit == "tile" else None
    n_planes = options.images * options.channels * ((options.size_px // tile) ** 2 if tile else 1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_shards(root, options.images, options.channels, options.size_px)
        ways: dict[str, Callable[[], np.ndarray]] = {
            "plain loop": lambda: plain_loop(encoder, root, tile, options.loop_images, device),
            "timm alone": lambda: timm_alone(alone, n_planes, options.batch_size, options.input_size_px, device),
            "morphem.extract": lambda: (
                extract(
                    encoder,
                    root,
                    unit=options.unit,
                    tile_size_px=tile,
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
    print(
        f"{options.backbone}, {options.images} fields of {options.channels} x {options.size_px} px, by {options.unit}, "
        f"{n_planes} planes of {options.input_size_px} px, {device}, {torch.get_num_threads()} threads"
    )
    print(f"{'':18} {'best s':>8} {'median s':>9} {'planes/s':>9} {'loop/it':>8} {'CPU s':>8} {'loop/it':>8}")
    first, first_cpu = min(seconds["plain loop"]), min(cpu_seconds["plain loop"])
    for name in ways:
        best, cpu = min(seconds[name]), min(cpu_seconds[name])
        print(
            f"{name:18} {best:8.2f} {np.median(seconds[name]):9.2f} {n_planes / best:9.1f} {first / best:8.2f} "
            f"{cpu:8.2f} {first_cpu / cpu:8.2f}"
        )
    limit = limit_seconds(encoder, n_planes, device)
    print(f"{'products alone':18} {limit:8.2f} {'':9} {n_planes / limit:9.1f} {first / limit:8.2f}")
    share, share_cpu = (min(each["timm alone"]) / min(each["morphem.extract"]) for each in (seconds, cpu_seconds))
    print(f"extract reaches {100 * share:.0f} % of timm alone by the clock, {100 * share_cpu:.0f} % by CPU seconds")
    print(f"largest difference of a feature from the loop's: {difference:.1e}")


if __name__ == "__main__":
    main()

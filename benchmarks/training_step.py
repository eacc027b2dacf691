"""One training step of DINO over bag of channels: images per second, FLOP utilisation, and where the time goes.

    python benchmarks/training_step.py                      # ViT-S/16, 2 x 224 + 8 x 96, on the GPU if there is one
    python benchmarks/training_step.py --size tiny --batch-size 16 --steps 5   # seconds on a CPU

The step is timed twice: as a whole, with the device running free, and in parts, waiting for the device after each part
(so the parts add up to a little more). FLOPs are counted from the architecture: multiplications and additions of all
matrix products, three times the forward pass for what is trained and once for the teacher. Utilisation is given against
the fastest large matrix product measured in the same run and precision, and against --peak-tflops where that is given.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from morphem import rng
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.module import ShardData
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.methods.dino import DINO
from morphem.normalizers import SelfNormalize
from morphem.optimizers import clip_per_tensor, set_rates
from morphem.types import ChannelBatch

PARTS = ("data wait", "augmentation", "forward", "backward", "optimizer", "EMA and centre")


@dataclass(frozen=True)
class Size:
    """What is trained: a network, its views and its head."""

    embed_dim: int
    depth: int
    n_heads: int
    patch_px: int
    views_px: tuple[tuple[int, int], ...]  # count, side
    n_prototypes: int
    hidden_dim: int
    bottleneck_dim: int

    def method(self) -> DINO:
        """Build the method."""
        network = VisionTransformer(
            "vit_small_patch16_224",
            drop_path_rate=0.1,
            patch_size_px=self.patch_px,
            image_size_px=self.views_px[0][1],
            embed_dim=self.embed_dim,
            depth=self.depth,
            n_heads=self.n_heads,
        )
        areas = ((0.4, 1.0), (0.05, 0.4))
        recipes = [ViewRecipe(count=n, size_px=s, area=a) for (n, s), a in zip(self.views_px, areas, strict=True)]
        encoder = Encoder(BagOfChannels(network), SelfNormalize(saturation_noise=True), self.views_px[0][1])
        return DINO(encoder, MultiCrop(recipes), self.n_prototypes, self.hidden_dim, self.bottleneck_dim)

    def flops(self) -> float:
        """FLOPs of a step per image: two for each multiplication and addition of a matrix product."""
        d = self.embed_dim
        head = d * self.hidden_dim + self.hidden_dim**2 + self.hidden_dim * self.bottleneck_dim
        head += self.bottleneck_dim * self.n_prototypes
        student = teacher = 0.0
        for number, (count, side) in enumerate(self.views_px):
            patches = (side // self.patch_px) ** 2
            tokens = patches + 1
            block = tokens * 12 * d**2 + 2 * tokens**2 * d
            view = self.depth * block + patches * self.patch_px**2 * d + head
            student += count * view
            teacher += count * view if number == 0 else 0.0
        return 2 * (3 * student + teacher)


SIZES = {
    "small": Size(384, 12, 6, 16, ((2, 224), (8, 96)), 65536, 2048, 256),
    "base": Size(768, 12, 12, 16, ((2, 224), (8, 96)), 65536, 2048, 256),
    "tiny": Size(96, 4, 3, 8, ((2, 64), (8, 32)), 1024, 256, 64),
}


class Clock:
    """Sums up wall time by part, waiting for the device at both ends, or does nothing."""

    def __init__(self, device: torch.device, on: bool) -> None:
        self.device, self.on = device, on
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        if not self.on:
            yield
            return
        synchronize(self.device)
        start = time.perf_counter()
        yield
        synchronize(self.device)
        self.seconds[name] += time.perf_counter() - start


def synchronize(device: torch.device) -> None:
    """Wait for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def batches(options: argparse.Namespace) -> Iterator[ChannelBatch]:
    """Batches without end: from shards, or one and the same from memory."""
    if options.data is None:
        side = options.crop_px
        noise = rng.mix_tensor(torch.arange(options.batch_size * side * side), "pixels")
        planes = list((noise.remainder(200)).to(torch.uint8).view(options.batch_size, side, side))
        batch = ChannelBatch.from_planes(
            [[plane] for plane in planes], [["nucleus"]] * options.batch_size, seeds=range(options.batch_size)
        )
        while True:
            yield batch
    data = ShardData(
        options.data,
        options.batch_size,
        num_workers=options.num_workers,
        crops_per_image=options.crops_per_image,
        samples_per_epoch=options.batch_size * (2 * options.steps + options.warmup + 8),
        pin_memory=options.device.type == "cuda",
    )
    data.setup("fit")
    loader = data.train_dataloader()
    while True:
        yield from loader


def train(
    method: DINO,
    optimizer: torch.optim.Optimizer,
    stream: Iterator[ChannelBatch],
    steps: int,
    options: argparse.Namespace,
    clock: Clock,
) -> float:
    """Take steps, and return the seconds that they took."""
    device = options.device
    half = torch.autocast(device.type, dtype=torch.bfloat16) if options.precision == "bf16-mixed" else nullcontext()
    synchronize(device)
    start = time.perf_counter()
    for step in range(steps):
        with clock.part("data wait"):
            batch = next(stream).to(device, non_blocking=True)
        with clock.part("augmentation"):
            views = method.make_views(batch)
        with clock.part("forward"), half:
            loss: Tensor = method.step(views).loss
        with clock.part("backward"):
            optimizer.zero_grad()
            loss.backward()
        with clock.part("optimizer"):
            set_rates(optimizer, 1e-4, 0.04)
            clip_per_tensor(method.parameters(), 3.0)
            optimizer.step()
        with clock.part("EMA and centre"):
            method.after_update(step)
    synchronize(device)
    return time.perf_counter() - start


def matrix_rate(device: torch.device, precision: str) -> float:
    """Fastest FLOPs per second of a large matrix product, out of five."""
    side = 8192 if device.type == "cuda" else 1024
    dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
    x = torch.ones(side, side, device=device, dtype=dtype)
    best = float("inf")
    for _ in range(6):
        synchronize(device)
        start = time.perf_counter()
        x @ x
        synchronize(device)
        best = min(best, time.perf_counter() - start)
    return 2 * side**3 / best


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="network, views and head (default: small)")
    parser.add_argument("--batch-size", type=int, default=None, help="crops per step (default: 256 on a GPU, 4 else)")
    parser.add_argument("--steps", type=int, default=None, help="steps that are timed (default: 20 on a GPU, 3 else)")
    parser.add_argument("--warmup", type=int, default=2, help="steps before that")
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default=None, help="default: bf16 on a GPU")
    parser.add_argument("--device", type=torch.device, default=None, help="default: cuda if there is one, else cpu")
    parser.add_argument(
        "--data", default=None, help="shards to stream from, e.g. sample://train (default: from memory)"
    )
    parser.add_argument("--num-workers", type=int, default=8, help="processes that read, with --data")
    parser.add_argument("--crops-per-image", type=int, default=1, help="crops per decoded plane, with --data")
    parser.add_argument("--crop-px", type=int, default=300, help="side of the crops, without --data")
    parser.add_argument("--peak-tflops", type=float, default=None, help="of the device in this precision, if known")
    options = parser.parse_args()
    options.device = options.device or torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = options.device.type == "cuda"
    options.batch_size = options.batch_size or (256 if on_gpu else 4)
    options.steps = options.steps or (20 if on_gpu else 3)
    options.precision = options.precision or ("bf16-mixed" if on_gpu else "32-true")
    return options


def main() -> None:
    options = parse()
    torch.manual_seed(0)
    size = SIZES[options.size]
    method = size.method().to(options.device)
    method.train()
    optimizer = method.recipe.build(method)
    stream = batches(options)
    train(method, optimizer, stream, options.warmup, options, Clock(options.device, on=False))
    free = train(method, optimizer, stream, options.steps, options, Clock(options.device, on=False))
    clock = Clock(options.device, on=True)
    train(method, optimizer, stream, options.steps, options, clock)

    name = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else "CPU"
    views = " + ".join(f"{count} x {side}" for count, side in size.views_px)
    speed = options.steps * options.batch_size / free
    rate = speed * size.flops()
    peak = matrix_rate(options.device, options.precision)
    print(f"DINO, bag of channels, ViT of width {size.embed_dim} and depth {size.depth}, views {views}")
    print(f"{name}, torch {torch.__version__}, {options.precision}, {options.batch_size} crops per step")
    print(f"{'images per second':<28}{speed:>12.1f}")
    print(f"{'seconds per step':<28}{free / options.steps:>12.4f}")
    print(f"{'GFLOPs per image':<28}{size.flops() / 1e9:>12.1f}")
    print(f"{'TFLOP/s':<28}{rate / 1e12:>12.3f}")
    print(f"{'share of a matrix product':<28}{rate / peak:>12.1%}  ({peak / 1e12:.3g} TFLOP/s measured)")
    if options.peak_tflops:
        print(f"{'share of the peak (MFU)':<28}{rate / 1e12 / options.peak_tflops:>12.1%}")
    total = sum(clock.seconds.values())
    for part in PARTS:
        seconds = clock.seconds[part]
        print(f"  {part:<26}{seconds / total:>12.1%}{1000 * seconds / options.steps:>12.1f} ms")


if __name__ == "__main__":
    main()

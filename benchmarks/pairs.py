"""What a training step of each method costs over each channel strategy: one table.

    python benchmarks/pairs.py                      # ViT-S/16 at 224 px, on the GPU if there is one
    python benchmarks/pairs.py --size tiny --images 8 --steps 2     # minutes on a CPU
    python benchmarks/pairs.py --methods dino,mae --strategies bag_of_channels,channel_attention

A step makes the views of a batch, computes the loss of the method, and all gradients; the optimizer comes on top. The
images have 1, 2, ... 8 channels in equal numbers (`fixed_channels`, which takes one panel alone: five). Views are the
published kinds: two large and eight small ones for `dino` and `dinov2`, two large ones for `simclr` and `supcon`, one
large one for the others.

FLOPs are what torch counts in matrix products, convolutions and attention of a whole step. Memory is what a step needs
at most beyond what was there before: of the device, or of the process on a CPU. A pair that is refused says why.
"""

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from channels import SIZES, TYPES, Case, Size, _resident, build
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from morphem import registry, rng
from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.memory_fusion import MemoryFusion
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.decoders import DecoderRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.base import Method
from morphem.methods.mae import several_channels
from morphem.normalizers import SelfNormalize
from morphem.types import ChannelBatch


@dataclass(frozen=True)
class Pair:
    """One row of the table."""

    method: str
    strategy: str
    size: Size
    images: int
    steps: int
    device: str
    precision: str

    @property
    def counts(self) -> list[int]:
        """Channels of each image."""
        return [5] * self.images if self.strategy == "fixed_channels" else [1 + i % 8 for i in range(self.images)]


@dataclass(frozen=True)
class Cost:
    """What was measured; `refused` says why nothing was."""

    pair: Pair
    seconds: float = 0.0
    memory: float = 0.0
    flops: float = 0.0
    refused: str | None = None


def strategy_of(pair: Pair) -> ChannelStrategy:
    """Build a strategy over a network of the size asked for."""
    batch = "five" if pair.strategy == "fixed_channels" else "mixed"
    if pair.strategy == "memory_fusion":
        inner = build(Case("channel_attention", "mixed", pair.size, 8, 1, pair.device, pair.precision))
        assert isinstance(inner, ChannelAttention)
        return MemoryFusion(inner, n_heads=pair.size.n_heads)
    return build(Case(pair.strategy, batch, pair.size, 8, 1, pair.device, pair.precision))


def method_of(pair: Pair) -> Method:
    """Build a method with its published kinds of views, and heads of published width where the network has it too."""
    cls = registry.get("methods", pair.method)
    side, patch = pair.size.side_px, pair.size.patch_px
    small = max(patch, round(side * 96 / 224 / patch) * patch)
    strategy = strategy_of(pair)
    encoder = Encoder(strategy, SelfNormalize(), input_size_px=side)
    settings: dict[str, object] = {}
    if pair.method in ("dino", "dinov2"):
        views = [ViewRecipe(count=2, size_px=side), ViewRecipe(count=8, size_px=small, area=(0.05, 0.4))]
        if pair.size.embed_dim < 384:
            settings = {"n_prototypes": 1024, "head_hidden_dim": 256, "head_bottleneck_dim": 64}
    elif pair.method in ("simclr", "supcon"):
        views = [ViewRecipe(count=2, size_px=side, area=(0.2, 1.0))]
    else:
        views = [ViewRecipe(count=1, size_px=side, area=(0.9, 1.0), aspect=(0.9, 1.1))]
    if pair.method in ("supervised", "proxy", "finetune", "supcon", "cha_mae"):
        settings |= {"classes": ["first", "second"]}
    if pair.method in ("mae", "cha_mae"):
        identity = "types" if several_channels(strategy) else "none"
        width = (
            {"width": 512, "depth": 8, "n_heads": 16}
            if pair.size.embed_dim >= 384
            else {"width": 64, "depth": 2, "n_heads": 4}
        )
        settings |= {"decoder": DecoderRecipe(identity=identity, **width)}
    return cls(encoder, MultiCrop(views), **settings)


def images_of(pair: Pair) -> ChannelBatch:
    """Make a ragged batch of noise with labels."""
    side, counts = pair.size.side_px, pair.counts
    pixels = (rng.uniform(torch.arange(sum(counts)), "pixels", side * side).view(-1, side, side) * 254).to(torch.uint8)
    planes = [list(part) for part in pixels.split(counts)]
    batch = ChannelBatch.from_planes(
        planes,
        [TYPES[:count] for count in counts],
        seeds=range(len(counts)),
        labels=[[i % 2] for i in range(len(counts))],
    )
    return batch.to(torch.device(pair.device))


def measure(pair: Pair) -> Cost:
    """Count and time steps, in a process of its own."""
    torch.manual_seed(0)
    try:
        method = method_of(pair)
    except ConfigError as fault:
        return Cost(pair, refused=str(fault).partition(": ")[2])
    device = torch.device(pair.device)
    on_gpu = device.type == "cuda"
    method = method.to(device).train()
    batch = images_of(pair)
    half = torch.autocast(device.type, dtype=torch.bfloat16) if pair.precision == "bf16-mixed" else nullcontext()
    before = torch.cuda.memory_allocated() if on_gpu else _resident()

    def step() -> None:
        method.zero_grad()
        with half:
            loss = method.step(method.make_views(method.encoder.channels.select(batch))).loss
        loss.backward()
        if on_gpu:
            torch.cuda.synchronize()

    step()
    counter = FlopCounterMode(display=False)
    with counter, nullcontext() if on_gpu else sdpa_kernel(SDPBackend.MATH):  # torch counts no other attention of a CPU
        step()
    seconds = []
    for _ in range(pair.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    after = torch.cuda.max_memory_allocated() if on_gpu else _resident()
    return Cost(pair, sorted(seconds)[len(seconds) // 2], after - before, counter.get_total_flops())


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="network and side of the planes")
    parser.add_argument("--images", type=int, default=None, help="images of a batch (default: 32 on a GPU, 8 else)")
    parser.add_argument("--steps", type=int, default=None, help="steps that are timed (default: 10 on a GPU, 2 else)")
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default=None, help="default: bf16 on a GPU")
    parser.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    parser.add_argument("--methods", default=None, help="names with commas between (default: all of morphem's)")
    parser.add_argument(
        "--strategies", default=None, help="names with commas between (default: all that are known here)"
    )
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = options.device.startswith("cuda")
    options.images = options.images or (32 if on_gpu else 8)
    options.steps = options.steps or (10 if on_gpu else 2)
    options.precision = options.precision or ("bf16-mixed" if on_gpu else "32-true")
    return options


KNOWN = (
    "bag_of_channels",
    "channel_attention",
    "channel_agnostic",
    "slot_attention",
    "memory_fusion",
    "fixed_channels",
)


def names(given: str | None, known: tuple[str, ...]) -> list[str]:
    """Return the names asked for.

    Raises:
        SystemExit: If one is not known.
    """
    asked = list(known) if given is None else given.split(",")
    for name in asked:
        if name not in known:
            raise SystemExit(f"no '{name}'; known: {', '.join(known)}")
    return asked


def main() -> None:
    """Measure every pair."""
    options = parse()
    own = tuple(plugin.name for plugin in registry.plugins("methods") if plugin.package == "morphem")
    methods, strategies = names(options.methods, own), names(options.strategies, KNOWN)
    size = SIZES[options.size]
    device = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    print(
        f"ViT of width {size.embed_dim} and depth {size.depth}, planes of {size.side_px} px, patches of {size.patch_px}"
    )
    print(f"{device}, torch {torch.__version__}, {options.precision}, {options.images} images per step")
    print(f"{'method':<12}{'strategy':<19}{'GFLOP/image':>12}{'images/s':>11}{'memory MiB':>12}{'us per plane':>14}")
    reasons: list[str] = []
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for method in methods:
            for strategy in strategies:
                pair = Pair(method, strategy, size, options.images, options.steps, options.device, options.precision)
                print(row(pool.submit(measure, pair).result(), reasons), flush=True)
    for number, reason in enumerate(reasons, 1):
        print(f"({number}) {reason}")


def row(cost: Cost, reasons: list[str]) -> str:
    """Return a line of the table; reasons of refusals are numbered."""
    pair = cost.pair
    name = f"{pair.method:<12}{pair.strategy:<19}"
    if cost.refused is not None:
        if cost.refused not in reasons:
            reasons.append(cost.refused)
        return f"{name}{f'refused ({reasons.index(cost.refused) + 1})':>12}"
    planes = sum(pair.counts)
    return (
        f"{name}{cost.flops / pair.images / 1e9:>12.2f}{pair.images / cost.seconds:>11.1f}{cost.memory / 2**20:>12.0f}"
        f"{1e6 * cost.seconds / planes:>14.0f}"
    )


if __name__ == "__main__":
    main()

"""What each channel strategy costs on images of one to eight channels, and what padding would cost.

    python benchmarks/channels.py                      # ViT-S/16 at 224 px, on the GPU if there is one
    python benchmarks/channels.py --size tiny --images 8 --steps 3     # seconds on a CPU

A step embeds a batch and computes all gradients; heads and losses of methods come on top. All strategies have a
network of one width and depth. `mixed` is a batch with images of 1, 2, ... 8 channels in equal numbers; `five` has five
channels in every image. A token is real if a patch of an image stands behind it: `real` is the share of real tokens
among those that enter the first block, class tokens left out. `us per token` is the time for a real token, and `vs bag`
the same as a multiple of that of bag of channels on the same batch. `padded` is channel attention as other code has it:
every image gets as many channels as the largest of the batch, and attention leaves the added ones out by a mask.

FLOPs are counted from the architecture: multiplications and additions of all matrix products, three times the forward
pass. Memory is what a step needs at most beyond what was there before: of the device, or of the process on a CPU.
"""

import argparse
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.nn.functional import pad

from morphem import rng
from morphem.backbones.post_norm import PostNormTransformer
from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_agnostic import ChannelAgnostic
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.channels.slot_attention import SlotAttention
from morphem.types import ChannelBatch

TYPES = ("nucleus", "actin", "rna", "mitochondria", "golgi body", "microtubules", "protein", "bright-field")
BATCHES = {"mixed": (1, 2, 3, 4, 5, 6, 7, 8), "five": (5,)}
STRATEGIES = ("bag_of_channels", "channel_attention", "channel_agnostic", "slot_attention", "fixed_channels", "padded")
BASE = "bag_of_channels"


class Padded(ChannelAttention):
    """Channel attention that pads to the largest channel count of the batch, for comparison."""

    def forward(self, batch: ChannelBatch) -> Tensor:
        """Embed every image of a dense, normalised batch: (N, D)."""
        parts = self.sequences(batch)
        longest = max(part.tokens.shape[1] for part in parts)
        tokens = torch.cat([pad(part.tokens, (0, 0, 0, longest - part.tokens.shape[1])) for part in parts])
        seen = torch.cat([torch.full((len(part.rows),), 1 + part.tokens.shape[1]) for part in parts])
        mask = (torch.arange(1 + longest) < seen[:, None]).to(tokens.device)[:, None, None]  # (N, 1, 1, 1 + T)
        network = self.backbone.network
        x = self.backbone._with_class(tokens)
        for block in network.blocks:
            x = block(x, attn_mask=mask)
        rows = torch.cat([part.rows for part in parts])
        return network.norm(x)[:, 0][rows.argsort()]


@dataclass(frozen=True)
class Size:
    """The network."""

    embed_dim: int
    depth: int
    n_heads: int
    patch_px: int
    side_px: int

    @property
    def patches(self) -> int:
        """Patches of a plane."""
        return (self.side_px // self.patch_px) ** 2

    def flops(self, n_tokens: int, n_inputs: int) -> float:
        """FLOPs of a step for a sequence of patch tokens, each cut from some planes."""
        d, n = self.embed_dim, n_tokens + 1
        block = n * 12 * d**2 + 2 * n**2 * d
        return 3 * 2 * (self.depth * block + n_tokens * n_inputs * self.patch_px**2 * d)


SIZES = {"tiny": Size(96, 4, 3, 8, 64), "small": Size(384, 12, 6, 16, 224), "base": Size(768, 12, 12, 16, 224)}


@dataclass(frozen=True)
class Case:
    """One row of the table."""

    strategy: str
    batch: str
    size: Size
    images: int
    steps: int
    device: str
    precision: str

    @property
    def counts(self) -> list[int]:
        """Channels of each image."""
        kinds = BATCHES[self.batch]
        return [kinds[i % len(kinds)] for i in range(self.images)]

    def sequences(self) -> list[tuple[int, int]]:
        """Patch tokens of each sequence that is computed, and planes that each is cut from."""
        patches, counts = self.size.patches, self.counts
        if self.strategy == BASE:
            return [(patches, 1)] * sum(counts)
        if self.strategy == "fixed_channels":
            return [(patches, count) for count in counts]
        return [((max(counts) if self.strategy == "padded" else count) * patches, 1) for count in counts]


@dataclass(frozen=True)
class Result:
    """What was measured."""

    case: Case
    seconds: float
    memory: float
    computed: int

    @property
    def real(self) -> float:
        """Share of real tokens among those that are computed."""
        n_inputs = self.case.sequences()[0][1]
        return self.case.size.patches * sum(self.case.counts) / (n_inputs * self.computed)

    @property
    def per_token(self) -> float:
        """Seconds for each real token, counted by planes."""
        return self.seconds / (self.case.size.patches * sum(self.case.counts))


def build(case: Case) -> ChannelStrategy:
    """Build a strategy."""
    size = case.size
    shape = {
        "patch_size_px": size.patch_px,
        "image_size_px": size.side_px,
        "embed_dim": size.embed_dim,
        "depth": size.depth,
        "n_heads": size.n_heads,
    }
    vit = VisionTransformer("vit_small_patch16_224", **shape)
    makers: dict[str, Callable[[], ChannelStrategy]] = {
        "bag_of_channels": lambda: BagOfChannels(vit),
        "channel_attention": lambda: ChannelAttention(vit, TYPES),
        "channel_agnostic": lambda: ChannelAgnostic(vit),
        "slot_attention": lambda: SlotAttention(PostNormTransformer(**shape, hidden_dim=4 * size.embed_dim)),
        "fixed_channels": lambda: FixedChannels(vit, TYPES[: max(case.counts)]),
        "padded": lambda: Padded(vit, TYPES),
    }
    return makers[case.strategy]()


def dense(case: Case) -> ChannelBatch:
    """Make a batch of noise."""
    side, counts = case.size.side_px, case.counts
    pixels = rng.normal(torch.arange(sum(counts)), "pixels", side * side).view(-1, side, side)
    images = [list(part) for part in pixels.split(counts)]
    batch = ChannelBatch.from_planes(images, [TYPES[:count] for count in counts], seeds=range(len(counts)))
    return batch._replace(planes=batch.planes.view(-1, 1, side, side)).to(torch.device(case.device))


def measure(case: Case) -> Result:
    """Time steps, in a process of its own."""
    torch.manual_seed(0)
    device = torch.device(case.device)
    on_gpu = device.type == "cuda"
    strategy = build(case).to(device).train()
    batch = dense(case)
    half = torch.autocast(device.type, dtype=torch.bfloat16) if case.precision == "bf16-mixed" else nullcontext()
    before = torch.cuda.memory_allocated() if on_gpu else _resident()

    def step() -> None:
        strategy.zero_grad()
        with half:
            loss = strategy(batch).square().mean()
        loss.backward()
        if on_gpu:
            torch.cuda.synchronize()

    computed = tokens_computed(strategy, batch)
    step()
    step()
    seconds = []
    for _ in range(case.steps):
        start = time.perf_counter()
        step()
        seconds.append(time.perf_counter() - start)
    after = torch.cuda.max_memory_allocated() if on_gpu else _resident()
    return Result(case, sorted(seconds)[len(seconds) // 2], after - before, computed)


@torch.no_grad()
def tokens_computed(strategy: ChannelStrategy, batch: ChannelBatch) -> int:
    """Count the patch tokens that enter the first block."""
    counts: list[int] = []
    backbone = strategy.backbone
    first = (backbone.network if isinstance(backbone, VisionTransformer) else backbone).blocks[0]
    hook = first.register_forward_pre_hook(lambda _, inputs: counts.append(inputs[0][:, 1:, 0].numel()))
    strategy(batch)
    hook.remove()
    return sum(counts)


def _resident() -> float:
    """Bytes that this process has held at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024.0


def parse() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="small", help="network and side of the planes")
    parser.add_argument("--images", type=int, default=None, help="images of a batch (default: 64 on a GPU, 8 else)")
    parser.add_argument("--steps", type=int, default=None, help="steps that are timed (default: 20 on a GPU, 3 else)")
    parser.add_argument("--precision", choices=["bf16-mixed", "32-true"], default=None, help="default: bf16 on a GPU")
    parser.add_argument("--device", default=None, help="default: cuda if there is one, else cpu")
    options = parser.parse_args()
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = options.device.startswith("cuda")
    options.images = options.images or (64 if on_gpu else 8)
    options.steps = options.steps or (20 if on_gpu else 3)
    options.precision = options.precision or ("bf16-mixed" if on_gpu else "32-true")
    return options


def row(result: Result, base: Result) -> str:
    """Return a line of the table."""
    case = result.case
    flops = sum(case.size.flops(*sequence) for sequence in case.sequences()) / case.images
    return (
        f"{case.batch:<7}{case.strategy:<19}{flops / 1e9:>12.1f}{case.images / result.seconds:>12.1f}"
        f"{result.memory / 2**20:>12.0f}{result.real:>8.0%}{1e6 * result.per_token:>14.3f}"
        f"{result.per_token / base.per_token:>8.2f}x"
    )


def main() -> None:
    """Measure every strategy on both batches."""
    options = parse()
    size = SIZES[options.size]
    name = torch.cuda.get_device_name(options.device) if options.device.startswith("cuda") else "CPU"
    print(
        f"ViT of width {size.embed_dim} and depth {size.depth}, planes of {size.side_px} px, patches of {size.patch_px}"
    )
    print(f"{name}, torch {torch.__version__}, {options.precision}, {options.images} images per step")
    print(
        f"{'batch':<7}{'strategy':<19}{'GFLOP/image':>12}{'images/s':>12}{'memory MiB':>12}{'real':>8}"
        f"{'us per token':>14}{'vs bag':>9}"
    )
    settings = (size, options.images, options.steps, options.device, options.precision)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        for batch in BATCHES:
            names = [name for name in STRATEGIES if name != "fixed_channels" or len(BATCHES[batch]) == 1]
            base = pool.submit(measure, Case(BASE, batch, *settings)).result()
            for strategy in names:
                case = Case(strategy, batch, *settings)
                result = base if strategy == BASE else pool.submit(measure, case).result()
                print(row(result, base), flush=True)


if __name__ == "__main__":
    main()

"""Time multi-crop in batch against a plain loop over planes with torch's own `interpolate`.

    python benchmarks/views.py --planes 64 --side-px 300 --device cpu

Both make 2 views of 224 and 8 of 96 pixels from every crop (random resized crop, flips, self-normalisation), from the
same boxes, as one float32 tensor per view. The loop gets its boxes and flips for nothing.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from morphem.data import view_boxes
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.normalizers import SelfNormalize
from morphem.rng import uniform
from morphem.types import ChannelBatch

RECIPES = [ViewRecipe(count=2, size_px=224), ViewRecipe(count=8, size_px=96, area=(0.05, 0.4))]


def make_batch(n_planes: int, side_px: int) -> ChannelBatch:
    """Crops of noise whose sides differ by up to 10 %, as the loader's do."""
    generator = torch.Generator().manual_seed(0)
    low, high = int(0.9 * side_px), int(1.1 * side_px)
    sizes = torch.randint(low, high + 1, (n_planes, 2), generator=generator).tolist()
    images = [[torch.randint(0, 256, size, dtype=torch.uint8, generator=generator)] for size in sizes]
    return ChannelBatch.from_planes(images, [["nucleus"]] * n_planes, seeds=range(n_planes))


def draw_all(batch: ChannelBatch) -> list[tuple[int, list[list[int]], Tensor]]:
    """Size, boxes and flips of every view."""
    drawn: list[tuple[int, list[list[int]], Tensor]] = []
    for recipe in RECIPES:
        for _ in range(recipe.count):
            name = f"view/{len(drawn)}"
            draws = uniform(batch.seeds, f"{name}/box", 2 * view_boxes.TRIES + 2).double()
            boxes = view_boxes.random_resized(batch.sizes, recipe.area, recipe.aspect, draws)
            drawn.append((recipe.size_px, boxes.tolist(), uniform(batch.seeds, f"{name}/turn", 3)[:, :2] < 0.5))
    return drawn


def loop(batch: ChannelBatch, drawn: list[tuple[int, list[list[int]], Tensor]]) -> list[Tensor]:
    """Make the views one by one, as the published data loader does."""
    areas = batch.sizes.prod(1).tolist()
    views: list[list[Tensor]] = [[] for _ in drawn]
    for i, (plane, size) in enumerate(zip(torch.split(batch.planes, areas), batch.sizes.tolist(), strict=True)):
        crop = plane.view(size).float()
        crop = crop - crop.mean()
        crop = crop / (crop.square().mean() + 1e-7).sqrt()
        for view, (size_px, boxes, flips) in zip(views, drawn, strict=True):
            y, x, h, w = boxes[i]
            box = crop[None, None, y : y + h, x : x + w]
            resized = F.interpolate(box, (size_px, size_px), mode="bicubic", antialias=True)[0]
            axes = [axis for axis, flip in zip((-1, -2), flips[i].tolist(), strict=True) if flip]
            view.append(resized.flip(axes) if axes else resized)
    return [torch.stack(view) for view in views]


def best_of(functions: Sequence[Callable[[], object]], repeats: int, device: str) -> list[float]:
    """Shortest time of a call of each function in seconds; they take turns, so that a busy machine slows all alike."""
    best = [float("inf")] * len(functions)
    for repeat in range(repeats + 1):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            function()
            if device != "cpu":
                torch.accelerator.synchronize()
            best[i] = min(best[i], time.perf_counter() - start) if repeat else best[i]  # the first one warms up
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--planes", type=int, default=64, help="planes per batch (default 64)")
    parser.add_argument("--side-px", type=int, nargs="+", default=[300], help="side of a crop in pixels (default 300)")
    parser.add_argument("--device", default="cpu", help="where the batch lies (default cpu)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (default 1)")
    parser.add_argument("--repeats", type=int, default=5, help="the best of so many runs counts (default 5)")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    multi_crop, normalizer = MultiCrop(RECIPES), SelfNormalize()
    print(
        f"{arguments.planes} planes, {arguments.threads} CPU thread(s), device {arguments.device}, "
        f"torch {torch.__version__}"
    )
    print(f"{'crop, px':>8} {'loop, us/plane':>15} {'morphem, us/plane':>18} {'ratio':>6} {'largest difference':>19}")
    for side_px in arguments.side_px:
        batch = make_batch(arguments.planes, side_px)
        drawn = draw_all(batch)
        batch = batch.to(arguments.device)
        both = [partial(loop, batch, drawn), partial(multi_crop, batch, normalizer)]
        plain, ours = best_of(both, arguments.repeats, arguments.device)
        pairs = zip(loop(batch, drawn), multi_crop(batch, normalizer), strict=True)
        difference = max(float((a - b.planes).abs().max()) for a, b in pairs)
        each = 1e6 / arguments.planes
        print(f"{side_px:>8} {plain * each:>15.0f} {ours * each:>18.0f} {plain / ours:>6.2f} {difference:>19.1e}")


if __name__ == "__main__":
    main()

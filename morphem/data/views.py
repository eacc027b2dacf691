"""Views: what a method sees of a crop. Made in batch, on the device of the batch, each pixel resampled once.

All planes of an image share the geometry of a view; intensity changes are drawn for each plane. Every draw is a
function of the seed of the image, the number of the view and (for a plane) the channel type: a view does not change
with its batch mates, the order of channels, the device or the number of workers.

Source: multi-crop of DINO (Caron et al. 2021, https://arxiv.org/abs/2104.14294) with the parameters of CHAMMI-75;
plain crops and 'Color' of Kim et al. 2025 and uniDINO.
Differs from CHAMMI-75: float32 throughout, where its loader keeps normalised crops in float16; its MAE adds saturation
noise after the resize, here it is added before.
"""

from collections.abc import Iterator
from itertools import accumulate

import torch
from torch import Tensor, nn

from morphem.data import photometry, view_boxes
from morphem.data.view_recipe import ViewRecipe, as_recipe
from morphem.errors import ConfigError
from morphem.normalizers import Normalizer, check_bytes, normalize_pixels, plane_seeds
from morphem.resample import resample
from morphem.rng import mix_tensor, uniform
from morphem.spec import Configurable
from morphem.types import ChannelBatch

__all__ = ["MultiCrop", "ViewRecipe"]

# Pixels that go through all steps together on a CPU: what fits its cache, and needs no fresh pages from the system.
_CPU_PIXELS = 1 << 20


class MultiCrop(nn.Module, Configurable):
    """Make all views of a batch of crops.

    Args:
        recipes: Kinds of views; the views come in this order. DINO wants the global views first.

    Raises:
        ConfigError: If there is no recipe, or one has an unknown key.
    """

    def __init__(self, recipes: list[ViewRecipe]) -> None:
        super().__init__()
        self.recipes = tuple(as_recipe(recipe) for recipe in recipes)
        if not self.recipes:
            raise ConfigError("MultiCrop.recipes is empty; give at least one, for example {count: 2, size_px: 224}.")

    @property
    def n_views(self) -> int:
        """V, over all recipes."""
        return sum(recipe.count for recipe in self.recipes)

    @torch.no_grad()
    def forward(self, batch: ChannelBatch, normalizer: Normalizer) -> list[ChannelBatch]:
        """Make the views.

        Args:
            batch: Ragged crops, uint8; the planes of an image have one size.
            normalizer: The encoder's own.

        Returns:
            One dense, normalised batch per view, float32, in the order of the recipes. `boxes` says where each view
            lies in its image, `seeds` are new for each view.

        Raises:
            DataError: If planes are not uint8, planes of an image differ in size, or a crop is smaller than a plain
                view.
        """
        check_bytes(batch)
        device = batch.planes.device
        batch = _pointers_to_cpu(batch)
        crops = view_boxes.crop_sizes(batch)
        ends = list(accumulate((recipe.count for recipe in self.recipes), initial=0))
        groups = [
            _Group(recipe, range(first, last), batch, crops)
            for recipe, first, last in zip(self.recipes, ends[:-1], ends[1:], strict=True)
        ]
        with torch.autocast(device.type, enabled=False):
            for first, last in _chunks(batch):
                _make(batch, first, last, groups, normalizer)
        return [view.to(device, non_blocking=True) for group in groups for view in group.views(batch)]

    @classmethod
    def tiny(cls) -> "MultiCrop":
        """Two small global views and two local ones."""
        return cls([ViewRecipe(count=2, size_px=32), ViewRecipe(count=2, size_px=16, area=(0.05, 0.4))])


class _Group:
    """The views of one recipe while they are made.

    Attributes:
        recipe: How.
        numbers: Numbers of the views among all views.
        boxes: Where each is cut, (V, N, 4).
        turns: Uniform numbers for mirroring x, mirroring y and turning, (V, N, 3).
        planes: The result, (V, P, 1, H, W).
    """

    def __init__(self, recipe: ViewRecipe, numbers: range, batch: ChannelBatch, crops: Tensor) -> None:
        self.recipe = recipe
        self.numbers = numbers
        self.boxes = torch.stack([_draw_boxes(recipe, number, crops, batch) for number in numbers])
        self.turns = torch.stack([uniform(batch.seeds, f"view/{number}/turn", 3) for number in numbers])
        side = recipe.size_px
        self.planes = torch.empty(len(numbers), batch.n_planes, 1, side, side, device=batch.planes.device)

    def views(self, batch: ChannelBatch) -> Iterator[ChannelBatch]:
        """One dense batch per view, with what is known of the crops in `batch`."""
        for number, boxes, planes in zip(self.numbers, self.boxes, self.planes, strict=True):
            view = batch._replace(
                planes=planes,
                sizes=torch.full_like(batch.sizes, self.recipe.size_px),
                boxes=torch.cat([batch.boxes[:, :2] + boxes[:, :2], boxes[:, 2:]], dim=1),
                seeds=mix_tensor(batch.seeds, f"view/{number}"),
            )
            yield _drop_channels(view, self.recipe.channel_drop)


def _pointers_to_cpu(batch: ChannelBatch) -> ChannelBatch:
    """Everything but the pixels on the CPU, in one copy: the only time that the host waits for the device."""
    if batch.sizes.device.type == "cpu":
        return batch
    parts = (batch.sizes, batch.offsets, batch.seeds, batch.boxes, batch.rows)
    joined = torch.split(torch.cat([part.flatten() for part in parts]).cpu(), [part.numel() for part in parts])
    sizes, offsets, seeds, boxes, rows = (a.view_as(b) for a, b in zip(joined, parts, strict=True))
    return batch._replace(sizes=sizes, offsets=offsets, seeds=seeds, boxes=boxes, rows=rows)


def _draw_boxes(recipe: ViewRecipe, number: int, crops: Tensor, batch: ChannelBatch) -> Tensor:
    """The box of view `number` in each crop, (N, 4)."""
    if recipe.mode == "resize":
        return view_boxes.whole(crops)
    if recipe.mode == "plain":
        draws = uniform(batch.seeds, f"view/{number}/box", 2).double()
        return view_boxes.plain(crops, recipe.size_px, draws, batch.keys)
    draws = uniform(batch.seeds, f"view/{number}/box", 2 * view_boxes.TRIES + 2).double()
    return view_boxes.random_resized(crops, recipe.area, recipe.aspect, draws)


def _chunks(batch: ChannelBatch) -> Iterator[tuple[int, int]]:
    """Ranges of images that go through all steps together: all of them on an accelerator."""
    if batch.planes.device.type != "cpu":
        yield 0, batch.n_images
        return
    ends = batch.sizes.prod(1).cumsum(0)[batch.offsets[1:] - 1].tolist()
    first, start = 0, 0
    for image, end in enumerate(ends):
        if end - start >= _CPU_PIXELS or image == len(ends) - 1:
            yield first, image + 1
            first, start = image + 1, end


def _images(batch: ChannelBatch, first: int, last: int) -> ChannelBatch:
    """Images `first` to `last` - 1 of a ragged batch whose pointers are on the CPU."""
    planes = slice(int(batch.offsets[first]), int(batch.offsets[last]))
    starts = [0, *batch.sizes.prod(1).cumsum(0).tolist()]
    return ChannelBatch(
        planes=batch.planes[starts[planes.start] : starts[planes.stop]],
        sizes=batch.sizes[planes],
        offsets=batch.offsets[first : last + 1] - planes.start,
        channel_types=batch.channel_types[planes],
        keys=batch.keys[first:last],
        seeds=batch.seeds[first:last],
        boxes=batch.boxes[first:last],
        rows=batch.rows[first:last],
        labels=batch.labels[first:last],
    )


def _make(batch: ChannelBatch, first: int, last: int, groups: list[_Group], normalizer: Normalizer) -> None:
    """Make all views of images `first` to `last` - 1."""
    part = _images(batch, first, last)
    places = slice(int(batch.offsets[first]), int(batch.offsets[last]))
    prepared = normalizer.prepare(part)
    shift, scale = normalizer.affine(prepared)
    first_of_all = [group.recipe.normalizes_first for group in groups]
    normalized = prepared
    if any(first_of_all):
        normalized = normalize_pixels(prepared, shift, scale, in_place=all(first_of_all))
    image = part.image_of_plane()
    for group in groups:
        target = group.planes[:, places]  # (V, p, 1, H, W)
        source = normalized if group.recipe.normalizes_first else prepared
        boxes, turns = group.boxes[:, first:last][:, image], group.turns[:, first:last][:, image]
        _cut(group.recipe, boxes, turns, source, target)
        if group.recipe.normalizes_first and group.recipe.blur_sigma is None:
            continue
        seeds = plane_seeds(part)
        for number, planes in zip(group.numbers, target, strict=True):
            view = part._replace(planes=planes)
            _alter(view, group.recipe, mix_tensor(seeds, f"view/{number}"), normalizer, shift, scale)


def _cut(recipe: ViewRecipe, boxes: Tensor, turns: Tensor, source: ChannelBatch, target: Tensor) -> None:
    """Cut the views of one recipe, with boxes (V, P, 4) and draws (V, P, 3), into `target`, (V, P, 1, H, W)."""
    resample(
        source,
        boxes,
        (recipe.size_px, recipe.size_px),
        flip_x=turns[..., 0] < recipe.flip_x,
        flip_y=turns[..., 1] < recipe.flip_y,
        quarter_turns=(4 * turns[..., 2]).long() if recipe.quarter_turns else None,
        interpolation=recipe.interpolation,
        out=target,
    )


def _alter(
    view: ChannelBatch, recipe: ViewRecipe, seeds: Tensor, normalizer: Normalizer, shift: Tensor, scale: Tensor
) -> None:
    """Change intensity, blur, add noise and normalise, in place; `seeds` are those of the planes, (P,)."""
    planes = view.planes
    device = planes.device

    def draw(name: str, limits: tuple[float, float]) -> Tensor:
        values = limits[0] + (limits[1] - limits[0]) * uniform(seeds, name)[:, 0]
        return values.to(device, non_blocking=True)

    if recipe.changes_intensity:
        planes = planes / 255.0
    if recipe.shift is not None or recipe.gamma is not None:
        shifts, gammas = draw("shift", recipe.shift or (0.0, 0.0)), draw("gamma", recipe.gamma or (1.0, 1.0))
        planes = photometry.color(planes, shifts, gammas)
    if recipe.blur_sigma is not None:
        blurred = draw("blurred", (0.0, 1.0)) < recipe.blur_probability
        planes = photometry.blur(planes, draw("sigma", recipe.blur_sigma) * blurred, recipe.blur_kernel_px)
    if recipe.noise_std > 0:
        planes = photometry.add_noise(planes, recipe.noise_std, seeds.to(device, non_blocking=True))
    if recipe.changes_intensity:
        planes = planes * 255.0
    if recipe.normalize == "view":
        shift, scale = normalizer.affine(view._replace(planes=planes))
    if not recipe.normalizes_first:
        planes = normalizer.normalize_views(planes, shift, scale)
    if planes is not view.planes:
        view.planes.copy_(planes)


def _drop_channels(view: ChannelBatch, probability: float) -> ChannelBatch:
    """Leave one channel out of some of the images that have several."""
    if probability == 0:
        return view
    counts = view.offsets.diff()
    image = view.image_of_plane()
    drop = (uniform(view.seeds, "drop")[:, 0] < probability) & (counts > 1)
    draws = uniform(plane_seeds(view), "drop")[:, 0]
    least = torch.full((len(counts),), 2.0).scatter_reduce(0, image, draws, "amin")
    keep = ~(drop[image] & (draws == least[image]))
    kept = keep.nonzero().flatten()
    remaining = torch.zeros_like(counts).index_add(0, image, keep.long())
    return view._replace(
        planes=view.planes[kept.to(view.planes.device, non_blocking=True)],
        sizes=view.sizes[kept],
        offsets=torch.cat([view.offsets[:1], remaining.cumsum(0)]),
        channel_types=tuple(view.channel_types[i] for i in kept.tolist()),
    )

"""Cut boxes out of ragged planes and resize them: every pixel resampled once, all planes in batch, on any device.

The result is that of cropping a box and resizing it with `torch.nn.functional.interpolate(antialias=True)`, where the
filter ends at the edge of the box: its taps are cut off there and weighed anew. Rows and columns are filtered one after
the other. A pass is one `embedding_bag`: each row of the result is a weighted sum of a few rows of a table. That kernel
is several times faster than `interpolate` on a CPU, adds in float32 whatever the settings of autocast and TF32 are,
and adds the same terms in the same order whatever else is in the batch. Flips cost nothing: they change the order in
which the taps are read.

Source: the filters of ATen's UpSampleKernel and of Pillow (Keys 1981, a = -0.5 with and -0.75 without antialiasing),
https://pytorch.org/docs/stable/generated/torch.nn.functional.interpolate.html.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from morphem.types import ChannelBatch

Interpolation = Literal["bicubic", "bilinear"]

_HALF_WIDTH = {"bicubic": 2, "bilinear": 1}
# Planes that share one table on an accelerator, counted in float32 values of scratch memory: 512 MiB.
_SCRATCH = 1 << 27
# Planes whose taps are computed together on a CPU: few enough for the taps to stay in the cache.
_CPU_PLANES = 16


class Taps(NamedTuple):
    """Which rows of a table make each row of a result.

    Attributes:
        source: Row of the table, (..., out, K), int32 or int64.
        weight: Its weight, of the same shape; the weights of one row of the result sum to 1.
    """

    source: Tensor
    weight: Tensor


class _Part(NamedTuple):
    """Planes that are resampled together.

    Attributes:
        first: Place of the first in the batch.
        boxes: What to cut, y, x, height, width in the plane, (n, V, 4).
        flips: Whether to mirror y and x, (n, V, 2).
        origin: Corner (y, x) of the window that holds all boxes of a plane, (n, 2).
        extent: Height and width of that window, (n, 2).
    """

    first: int
    boxes: Tensor
    flips: Tensor
    origin: Tensor
    extent: Tensor


@torch.no_grad()
def resample(
    batch: ChannelBatch,
    boxes: Tensor,
    size_px: tuple[int, int],
    *,
    flip_x: Tensor | None = None,
    flip_y: Tensor | None = None,
    quarter_turns: Tensor | None = None,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
    out: Tensor | None = None,
) -> Tensor:
    """Crop, resize, flip and turn the planes of a batch.

    Args:
        batch: Ragged, uint8, uint16 or float. On an accelerator, keep `sizes` on the CPU if nothing shall wait for the
            device.
        boxes: What to cut: y, x, height, width in pixels of the plane, (P, 4) or, for V views of each plane,
            (V, P, 4), int64; inside the plane. On an accelerator, keep it on the CPU too.
        size_px: Height and width of the result in pixels.
        flip_x: Mirror left and right, (P,) or (V, P), bool.
        flip_y: Mirror top and bottom, of the same shape.
        quarter_turns: Turns by 90 degrees counter-clockwise after the flips, as `torch.rot90` makes them, of the same
            shape, any integers; needs a square `size_px`.
        interpolation: `bicubic` or `bilinear`.
        antialias: Widen the filter where the box shrinks.
        out: Where to write the result; strides are free.

    Returns:
        (P, 1, h, w) or (V, P, 1, h, w), on the device of the pixels, float64 where they are, else float32.

    Raises:
        ValueError: If the batch is dense, a box is empty or leaves its plane, or turns meet a rectangle.
    """
    _check(batch, boxes, size_px, interpolation, quarter_turns)
    device = batch.planes.device
    views = boxes.cpu().reshape(-1, batch.n_planes, 4)  # (V, P, 4)
    flips, transposed = _orientation(views.shape[:2], flip_x, flip_y, quarter_turns)
    sizes = batch.sizes.cpu()
    _check_inside(views, sizes, batch.channel_types)
    result = (
        out
        if out is not None
        else torch.empty(*boxes.shape[:-1], 1, *size_px, device=device, dtype=working_type(batch.planes))
    )
    target = result if boxes.ndim == 3 else result[None]  # (V, P, 1, h, w)
    for part in _parts(views, flips, size_px, device):
        if device.type == "cpu":
            _resample_one_by_one(batch, sizes, part, target, interpolation, antialias)
        else:
            _resample_together(batch, sizes, part, target, interpolation, antialias)
    if transposed is not None:
        chosen = transposed.to(device, non_blocking=True)[..., None, None, None]
        target.copy_(torch.where(chosen, target.mT, target))
    return result


def working_type(pixels: Tensor) -> torch.dtype:
    """Return the type that pixels are resampled in."""
    return torch.float64 if pixels.dtype == torch.float64 else torch.float32


def separable(tables: Tensor, rows: Taps, columns: Taps) -> Tensor:
    """Filter images along y, then along x.

    Args:
        tables: Images, (n, H, W), float32 or float64, as the weights are.
        rows: Taps along y for V results of each image, (n, V, h, K); they count the n * H rows of all images.
        columns: Taps along x, (n, V, w, K); they count the n * V * W columns of all results of the first pass.

    Returns:
        (n, V, h, w); x before y in memory.
    """
    count, views, height = rows.source.shape[:3]
    width = columns.source.shape[2]
    low = _weighted_rows(tables.flatten(0, 1), rows).view(count * views, height, -1)  # (n * V, h, W)
    return _weighted_rows(low.mT.flatten(0, 1), columns).view(count, views, width, height).mT


def _weighted_rows(table: Tensor, taps: Taps) -> Tensor:
    """Sum rows of a table (R, B) by taps (..., out, K): (product of ... and out, B)."""
    source, weight = taps.source.flatten(0, -2), taps.weight.flatten(0, -2)
    return F.embedding_bag(source, table, mode="sum", per_sample_weights=weight)


def axis_taps(
    start: Tensor,
    length: Tensor,
    out_px: int,
    flip: Tensor,
    *,
    interpolation: Interpolation = "bicubic",
    antialias: bool = True,
    device: torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> Taps:
    """Compute the taps that resize intervals of one axis.

    Args:
        start: First row of each interval in the table, (...,), int64, on the CPU.
        length: Pixels of each interval, at least 1, of the same shape.
        out_px: Pixels of the result.
        flip: Whether the result runs backwards, of the same shape, bool.
        interpolation: `bicubic` or `bilinear`.
        antialias: Widen the filter by length / out_px where that is above 1.
        device: Where to compute the taps.
        dtype: Of the weights.

    Returns:
        Taps of shape (..., out_px, K), with K as large as the longest interval needs.
    """
    half = _HALF_WIDTH[interpolation]
    shortest, longest = (int(limit) for limit in length.aminmax())
    count = min(longest, int(2 * half * max(longest / out_px, 1.0)) + 2) if antialias else 2 * half
    start, length, flip = (values.to(device, non_blocking=True)[..., None] for values in (start, length, flip))
    scale = length.double() / out_px  # (..., 1)
    stretch = scale.clamp(min=1.0) if antialias else torch.ones_like(scale)
    position = torch.arange(out_px, device=device)
    center = torch.where(flip, out_px - 1 - position, position).add(0.5).mul(scale)  # (..., out)
    if antialias:  # the window of K taps holds the whole filter and stays inside the interval
        low = (center - half * stretch + 0.5).long().minimum(length - count).clamp_(min=0)
    else:
        low = (center - 0.5).floor().long() - (half - 1)
    offset = torch.arange(count, device=device)
    distance = ((low + 0.5 - center) / stretch)[..., None] + (offset / stretch)[..., None, :]
    weight = _kernel(distance.to(dtype), interpolation, -0.5 if antialias else -0.75)  # (..., out, K)
    if not antialias:  # what lies outside repeats the edge
        index = torch.minimum((low[..., None] + offset).clamp_(min=0), length[..., None] - 1) + start[..., None]
        return Taps(index, weight)
    if count > shortest:
        weight.masked_fill_(low[..., None] + offset >= length[..., None], 0.0)
        offset = torch.minimum(offset, length - 1)[..., None, :]
    weight /= weight.cumsum(-1)[..., -1:]  # in order, so that zeros at the end, and thus K, change nothing
    return Taps((low + start).int()[..., None] + offset.int(), weight)


def _kernel(distance: Tensor, interpolation: Interpolation, a: float) -> Tensor:
    """The hat, or Keys' cubic in truncated powers, at distances in units of the filter; overwrites `distance`."""
    near = distance.abs_().neg().add_(1.0).clamp_(min=0.0)
    if interpolation == "bilinear":
        return near
    far = distance.neg_().add_(2.0).clamp_(min=0.0)
    outer = far.square().mul_(far.sub_(1.0))
    inner = near.square().mul_(near.mul_(-2.0).add_(3.0 + 4.0 * a))
    return inner.sub_(outer, alpha=a)


def _taps(
    part: _Part, start: Tensor, size_px: torch.Size, interpolation: Interpolation, antialias: bool, pixels: Tensor
) -> tuple[Taps, Taps]:
    """Taps along y and along x, with the first rows of the boxes in their tables, (n, V, 2)."""
    rows, columns = (
        axis_taps(
            start[..., axis],
            part.boxes[..., 2 + axis],
            size_px[axis],
            part.flips[..., axis],
            interpolation=interpolation,
            antialias=antialias,
            device=pixels.device,
            dtype=working_type(pixels),
        )
        for axis in (0, 1)
    )
    return rows, columns


def _resample_one_by_one(
    batch: ChannelBatch, sizes: Tensor, part: _Part, target: Tensor, interpolation: Interpolation, antialias: bool
) -> None:
    """Resample planes one after the other, each from a table that fits the cache, into `target` (V, P, 1, h, w)."""
    start = part.boxes[..., :2] - part.origin[:, None]  # (n, V, 2)
    start[..., 1] += torch.arange(len(target)) * part.extent[:, 1:]
    rows, columns = _taps(part, start, target.shape[3:], interpolation, antialias, batch.planes)
    areas = sizes.prod(1)
    begin, count = int(areas[: part.first].sum()), len(start)
    areas = areas[part.first : part.first + count]
    planes = torch.split(batch.planes[begin : begin + int(areas.sum())], areas.tolist())
    windows = torch.cat([sizes[part.first : part.first + count], part.origin, part.extent], dim=1).tolist()
    for i, (plane, (height, width, y, x, h, w)) in enumerate(zip(planes, windows, strict=True)):
        table = plane.view(height, width)[y : y + h, x : x + w].to(rows.weight.dtype).contiguous()
        one = slice(i, i + 1)
        views = separable(
            table[None], Taps(rows.source[one], rows.weight[one]), Taps(columns.source[one], columns.weight[one])
        )
        target[:, part.first + i, 0] = views[0]


def _resample_together(
    batch: ChannelBatch, sizes: Tensor, part: _Part, target: Tensor, interpolation: Interpolation, antialias: bool
) -> None:
    """Resample planes on an accelerator with a few kernels for all, into `target` (V, P, 1, h, w)."""
    count, views = part.boxes.shape[:2]
    height, width = part.extent.amax(0).tolist()
    image = torch.arange(count)[:, None]
    shifts = torch.stack([(image * height).expand(count, views), (image * views + torch.arange(views)) * width], dim=2)
    start = part.boxes[..., :2] - part.origin[:, None] + shifts  # (n, V, 2)
    taps = _taps(part, start, target.shape[3:], interpolation, antialias, batch.planes)
    tables = _gather(batch, sizes, part, height, width)
    target[:, part.first : part.first + count, 0] = separable(tables, *taps).transpose(0, 1)


def _gather(batch: ChannelBatch, sizes: Tensor, part: _Part, height: int, width: int) -> Tensor:
    """The windows of planes, (n, H, W), float32; beyond a plane its last row and column are repeated."""
    device = batch.planes.device
    places = slice(part.first, part.first + len(part.origin))
    areas = sizes.prod(1)
    begin = (areas.cumsum(0) - areas)[places]
    numbers = torch.cat([begin[:, None], sizes[places], part.origin], dim=1).to(device, non_blocking=True)  # (n, 5)
    begin, h, w, y, x = (column[:, None, None] for column in numbers.unbind(1))
    y = torch.minimum(y + torch.arange(height, device=device)[:, None], h - 1)  # (n, H, 1)
    x = torch.minimum(x + torch.arange(width, device=device), w - 1)  # (n, 1, W)
    return batch.planes[begin + y * w + x].to(working_type(batch.planes))


def _parts(views: Tensor, flips: Tensor, size_px: tuple[int, int], device: torch.device) -> Iterator[_Part]:
    """Split the planes of boxes (V, P, 4) and flips (V, P, 2) into what is resampled together."""
    boxes, flips = views.transpose(0, 1), flips.transpose(0, 1)
    origin = boxes[..., :2].amin(1)
    extent = (boxes[..., :2] + boxes[..., 2:]).amax(1) - origin
    step = _CPU_PLANES
    if device.type != "cpu":
        height, width = extent.amax(0).tolist()
        each = 4 * height * width + len(views) * size_px[0] * (2 * width + size_px[1])
        step = max(1, _SCRATCH // each)
    for first in range(0, len(boxes), step):
        places = slice(first, first + step)
        yield _Part(first, boxes[places], flips[places], origin[places], extent[places])


def _orientation(
    shape: torch.Size, flip_x: Tensor | None, flip_y: Tensor | None, quarter_turns: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Flips and turns as: mirror y and x, (V, P, 2), then transpose where the other tensor, (V, P), says so."""
    none = torch.zeros(shape, dtype=torch.bool)
    x = none if flip_x is None else flip_x.cpu().reshape(shape)
    y = none if flip_y is None else flip_y.cpu().reshape(shape)
    if quarter_turns is None:
        return torch.stack([y, x], dim=2), None
    turns = quarter_turns.cpu().reshape(shape) % 4
    return torch.stack([y ^ (turns >= 2), x ^ ((turns == 1) | (turns == 2))], dim=2), turns % 2 == 1


def _check(
    batch: ChannelBatch, boxes: Tensor, size_px: tuple[int, int], interpolation: str, quarter_turns: Tensor | None
) -> None:
    if not batch.ragged:
        raise ValueError("resample takes a ragged batch; this one is dense")
    if interpolation not in _HALF_WIDTH:
        raise ValueError(f"interpolation is '{interpolation}'; allowed: bicubic, bilinear")
    if min(size_px) < 1:
        raise ValueError(f"size_px is {size_px}; both sides must be at least 1")
    if boxes.ndim not in (2, 3) or boxes.shape[-2:] != (batch.n_planes, 4):
        raise ValueError(f"boxes are {tuple(boxes.shape)}; {batch.n_planes} planes need (P, 4) or (V, P, 4)")
    if quarter_turns is not None and size_px[0] != size_px[1]:
        raise ValueError(f"quarter turns need a square result; size_px is {size_px}")


def _check_inside(views: Tensor, sizes: Tensor, channel_types: tuple[str, ...]) -> None:
    """Refuse boxes that are empty or leave their plane: reading them would read the pixels of another plane."""
    bad = (views[..., :2] < 0) | (views[..., 2:] < 1) | (views[..., :2] + views[..., 2:] > sizes)
    if bad.any():
        view, plane, _ = bad.nonzero()[0].tolist()
        raise ValueError(
            f"box {views[view, plane].tolist()} (y, x, height, width) is not inside plane {plane} "
            f"({channel_types[plane]}) of {sizes[plane].tolist()} pixels"
        )

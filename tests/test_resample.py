"""Resampling against a plain float64 reference and against torch's interpolate."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from morphem import resample as module
from morphem.resample import Interpolation, axis_taps, resample
from morphem.types import ChannelBatch
from tests.references import resampling

SIZES = [(50, 61), (31, 40), (12, 90), (7, 5), (3, 1)]
BOXES = torch.tensor([[4, 3, 40, 57], [0, 0, 31, 40], [1, 30, 11, 60], [2, 1, 5, 3], [0, 0, 1, 1]])
# Pixels go up to 255 and sums are in float32.
TOLERANCE = 2e-4


def noise(sizes: list[tuple[int, int]] = SIZES, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(0, 256, size, dtype=torch.uint8, generator=generator) for size in sizes]


def as_batch(planes: list[Tensor]) -> ChannelBatch:
    return ChannelBatch.from_planes([[plane] for plane in planes], [["nucleus"]] * len(planes))


@pytest.mark.parametrize("size", [(16, 16), (33, 20), (64, 64), (1, 7)])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_equals_crop_and_interpolate(interpolation: Interpolation, antialias: bool, size: tuple[int, int]) -> None:
    planes = noise()
    result = resample(as_batch(planes), BOXES, size, interpolation=interpolation, antialias=antialias)
    for plane, (y, x, h, w), found in zip(planes, BOXES.tolist(), result, strict=True):
        crop = plane[None, None, y : y + h, x : x + w].double()
        expected = F.interpolate(crop, size, mode=interpolation, antialias=antialias, align_corners=False)[0]
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("turns", [0, 1, 2, 3, -1, 6])
@pytest.mark.parametrize(("flip_x", "flip_y"), [(False, False), (True, False), (False, True), (True, True)])
def test_equals_the_plain_reference_with_flips_and_turns(flip_x: bool, flip_y: bool, turns: int) -> None:
    planes = noise()
    count = len(planes)
    result = resample(
        as_batch(planes),
        BOXES,
        (14, 14),
        flip_x=torch.full((count,), flip_x),
        flip_y=torch.full((count,), flip_y),
        quarter_turns=torch.full((count,), turns),
    )
    for plane, box, found in zip(planes, BOXES.tolist(), result, strict=True):
        expected = resampling.resampled(
            plane.numpy(), tuple(box), (14, 14), flip_x=flip_x, flip_y=flip_y, quarter_turns=turns
        )
        np.testing.assert_allclose(found[0].numpy(), expected, rtol=0, atol=TOLERANCE)


def test_planes_are_oriented_one_by_one() -> None:
    planes = noise()
    flips = torch.tensor([True, False, True, False, True])
    turns = torch.tensor([0, 1, 2, 3, 4])
    result = resample(as_batch(planes), BOXES, (9, 9), flip_x=flips, quarter_turns=turns)
    for i, plane in enumerate(planes):
        expected = resampling.resampled(
            plane.numpy(), tuple(BOXES[i].tolist()), (9, 9), flip_x=bool(flips[i]), quarter_turns=int(turns[i])
        )
        np.testing.assert_allclose(result[i, 0].numpy(), expected, rtol=0, atol=TOLERANCE)


def test_a_box_of_the_size_of_the_result_is_copied_bit_for_bit() -> None:
    planes = noise([(40, 50), (33, 33)])
    boxes = torch.tensor([[3, 9, 30, 30], [1, 2, 30, 30]])
    result = resample(as_batch(planes), boxes, (30, 30))
    assert torch.equal(result[0, 0], planes[0][3:33, 9:39].float())
    assert torch.equal(result[1, 0], planes[1][1:31, 2:32].float())


def test_several_views_are_the_views_one_by_one() -> None:
    batch = as_batch(noise())
    boxes = torch.stack([BOXES, torch.tensor([[0, 0, h, w] for h, w in SIZES])])
    flips = torch.tensor([[True] * 5, [False] * 5])
    together = resample(batch, boxes, (11, 13), flip_y=flips)
    assert together.shape == (2, 5, 1, 11, 13)
    for view in range(2):
        torch.testing.assert_close(together[view], resample(batch, boxes[view], (11, 13), flip_y=flips[view]))


def test_a_plane_does_not_depend_on_its_batch_mates() -> None:
    planes = noise()
    together = resample(as_batch(planes), BOXES, (16, 16))
    for i, plane in enumerate(planes):
        assert torch.equal(resample(as_batch([plane]), BOXES[i : i + 1], (16, 16))[0], together[i])


def test_planes_together_equal_planes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The way of an accelerator, also when its scratch memory holds two planes at a time, is that of a CPU."""
    batch = as_batch(noise())
    boxes = torch.stack([BOXES, torch.tensor([[0, 0, h, w] for h, w in SIZES])])
    expected = resample(batch, boxes, (16, 12))
    for scratch in (1 << 27, 1):
        monkeypatch.setattr(module, "_SCRATCH", scratch)
        result = torch.zeros_like(expected)
        flips = torch.zeros(2, 5, 2, dtype=torch.bool)
        for part in module._parts(boxes, flips, (16, 12), torch.device("meta")):
            module._resample_together(batch, batch.sizes, part, result, "bicubic", True)
        assert torch.equal(result, expected)


def test_an_even_plane_stays_even() -> None:
    result = resample(
        as_batch([torch.full((57, 41), 200, dtype=torch.uint8)]), torch.tensor([[3, 1, 50, 33]]), (24, 70)
    )
    torch.testing.assert_close(result, torch.full_like(result, 200.0), rtol=1e-6, atol=0)


def test_float_pixels_and_autocast_change_nothing() -> None:
    batch = as_batch(noise())
    expected = resample(batch, BOXES, (16, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        result = resample(batch._replace(planes=batch.planes.float()), BOXES, (16, 16))
    assert result.dtype == torch.float32
    assert torch.equal(result, expected)


def test_writes_into_a_given_tensor() -> None:
    batch = as_batch(noise())
    whole = torch.zeros(2, 7, 1, 8, 8)
    target = whole[1, 1:6]
    turns = torch.tensor([0, 1, 2, 3, 1])
    assert resample(batch, BOXES, (8, 8), quarter_turns=turns, out=target) is target
    assert torch.equal(target, resample(batch, BOXES, (8, 8), quarter_turns=turns))
    assert not whole[0].any()


def test_taps_weigh_one_and_stay_inside_their_interval() -> None:
    start, length = torch.tensor([5, 0, 9]), torch.tensor([40, 3, 1])
    for antialias in (True, False):
        taps = axis_taps(start, length, 10, torch.tensor([False, True, False]), antialias=antialias)
        torch.testing.assert_close(taps.weight.sum(-1), torch.ones(3, 10))
        assert (taps.source >= start[:, None, None]).all()
        assert (taps.source < (start + length)[:, None, None]).all()


@pytest.mark.parametrize("box", [[-1, 0, 5, 5], [0, -1, 5, 5], [0, 0, 0, 5], [0, 0, 5, 0], [6, 0, 5, 5], [0, 6, 5, 5]])
def test_a_box_outside_its_plane_is_refused(box: list[int]) -> None:
    with pytest.raises(ValueError, match=r"box .* is not inside plane 0 \(nucleus\) of \[10, 10\] pixels"):
        resample(as_batch(noise([(10, 10)])), torch.tensor([box]), (4, 4))


def test_turns_of_a_rectangle_are_refused() -> None:
    with pytest.raises(ValueError, match="quarter turns need a square"):
        resample(as_batch(noise()), BOXES, (4, 5), quarter_turns=torch.zeros(5, dtype=torch.long))


def test_wrong_arguments_are_refused() -> None:
    batch = as_batch(noise())
    with pytest.raises(ValueError, match="bicubic, bilinear"):
        resample(batch, BOXES, (4, 4), interpolation="nearest")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 1"):
        resample(batch, BOXES, (0, 4))
    with pytest.raises(ValueError, match="5 planes need"):
        resample(batch, BOXES[:3], (4, 4))
    with pytest.raises(ValueError, match="ragged"):
        resample(batch._replace(planes=torch.zeros(5, 1, 4, 4)), BOXES, (4, 4))

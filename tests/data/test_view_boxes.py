"""Boxes against a plain loop, and in their distribution."""

import pytest
import torch

from morphem.data import view_boxes
from morphem.rng import uniform
from tests.references import random_resized

SEEDS = torch.arange(400)
DRAWS = uniform(SEEDS, "box", 2 * view_boxes.TRIES + 2).double()


@pytest.mark.parametrize("area", [(0.4, 1.0), (0.05, 0.4), (0.9, 1.0)])
@pytest.mark.parametrize("size", [(300, 280), (31, 97), (400, 20), (5, 4)])
def test_random_resized_equals_the_plain_loop(size: tuple[int, int], area: tuple[float, float]) -> None:
    crops = torch.tensor([size] * len(SEEDS))
    boxes = view_boxes.random_resized(crops, area, (3 / 4, 4 / 3), DRAWS)
    for box, draws in zip(boxes.tolist(), DRAWS.tolist(), strict=True):
        assert tuple(box) == random_resized.box(*size, area, (3 / 4, 4 / 3), draws)


def test_area_is_uniform_and_the_logarithm_of_aspect_too() -> None:
    crops = torch.full((400, 2), 1000)
    boxes = view_boxes.random_resized(crops, (0.05, 0.4), (3 / 4, 4 / 3), DRAWS).double()
    area, aspect = boxes[:, 2] * boxes[:, 3] / 1e6, (boxes[:, 3] / boxes[:, 2]).log()
    assert 0.049 < float(area.min()) < 0.06
    assert 0.39 < float(area.max()) < 0.401
    assert float(area.mean()) == pytest.approx(0.225, abs=0.015)
    assert float(aspect.mean()) == pytest.approx(0.0, abs=0.03)
    assert float(aspect.exp().min()) == pytest.approx(0.75, abs=0.01)
    assert float(aspect.exp().max()) == pytest.approx(4 / 3, abs=0.02)


def test_a_crop_too_narrow_for_any_try_gives_the_largest_box_in_the_middle() -> None:
    boxes = view_boxes.random_resized(torch.tensor([[400, 20], [20, 400]]), (0.9, 1.0), (3 / 4, 4 / 3), DRAWS[:2])
    assert boxes.tolist() == [[186, 0, 27, 20], [0, 186, 20, 27]]


def test_places_reach_both_edges() -> None:
    boxes = view_boxes.plain(torch.tensor([[12, 10]] * 400), 8, DRAWS[:, :2], ("image",) * 400)
    assert set(boxes[:, 0].tolist()) == {0, 1, 2, 3, 4}
    assert set(boxes[:, 1].tolist()) == {0, 1, 2}
    assert set(boxes[:, 2:].flatten().tolist()) == {8}

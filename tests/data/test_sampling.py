from collections import Counter

import pytest

from morphem.data.sampling import Box, Scales, draw_box, draw_cell, published_scales
from morphem.errors import ConfigError
from morphem.rng import below

SIZES = [(1, 1), (1, 500), (40, 30), (440, 440), (512, 512), (1080, 300)]


@pytest.mark.parametrize(("height", "width"), SIZES)
@pytest.mark.parametrize("scale", [1, 3, 200, 450, 512, 5000, "full"])
@pytest.mark.parametrize("with_cell", [False, True])
def test_a_crop_lies_inside_and_is_cut_only_by_the_image(
    height: int, width: int, scale: object, with_cell: bool
) -> None:
    for seed in range(150):
        cell = (below(width + 20, seed, "x") - 10, below(height + 20, seed, "y") - 10) if with_cell else None
        box = draw_box(height, width, (scale,), seed, cell)  # type: ignore[arg-type]
        assert 0 <= box.y <= box.y + box.height <= height
        assert 0 <= box.x <= box.x + box.width <= width
        if scale == "full":
            assert box == (0, 0, height, width)
        else:
            assert isinstance(scale, int)
            assert min(max(int(0.9 * scale), 1), height) <= box.height <= min(max(int(1.1 * scale), 1), height)
            assert min(max(int(0.9 * scale), 1), width) <= box.width <= min(max(int(1.1 * scale), 1), width)


def test_sides_are_drawn_independently_over_the_whole_range() -> None:
    boxes = [draw_box(1000, 1000, (100,), seed, None) for seed in range(3000)]
    assert {box.height for box in boxes} == {box.width for box in boxes} == set(range(90, 111))
    mean = sum((box.height - 100) * (box.width - 100) for box in boxes) / len(boxes)
    assert abs(mean) < 4  # the variance of one side is 36.7


def test_a_crop_is_centred_on_its_cell_where_there_is_room() -> None:
    for seed in range(50):
        box = draw_box(1000, 1000, (100,), seed, (400, 600))
        assert abs(box.x + box.width / 2 - 400) <= 0.5
        assert abs(box.y + box.height / 2 - 600) <= 0.5


def test_without_a_cell_every_position_is_reached() -> None:
    corners = {(box.y, box.x) for box in (draw_box(4, 5, (3,), seed, None) for seed in range(200)) if box[2:] == (3, 3)}
    assert corners == {(y, x) for y in range(2) for x in range(3)}


def test_the_scales_of_a_study_are_equally_likely() -> None:
    counts = Counter(draw_box(1000, 1000, (100, 300, "full"), seed, None).height // 80 for seed in range(3000))
    assert counts[1] > 900  # 90 to 110 pixels
    assert counts[12] > 900  # the whole image


def test_every_cell_is_drawn_and_no_cells_give_none() -> None:
    assert {draw_cell(5, seed) for seed in range(200)} == set(range(5))
    assert draw_cell(0, 1) is None


def test_the_same_seed_gives_the_same_crop() -> None:
    assert draw_box(500, 600, (100, 200), 7, (40, 50)) == draw_box(500, 600, (100, 200), 7, (40, 50))
    assert isinstance(draw_box(500, 600, (100,), 7, None), Box)


def test_published_scales_are_those_of_the_training_code() -> None:
    table = published_scales()
    assert len(table) == 75
    assert table["hpa0018"] == (200, 450)
    assert table["nidr0027"] == (200, "full")


def test_overrides_come_before_the_table_and_the_table_before_the_default() -> None:
    scales = Scales({"hpa0018": [100, "full"], "mine": 80}, default=64)
    assert scales.of("hpa0018") == (100, "full")
    assert scales.of("mine") == (80,)
    assert scales.of("idr0002") == (114, 350)
    assert scales.of("unheard of") == (64,)


@pytest.mark.parametrize("bad", [0, -3, 2.5, "fulll", True, []])
def test_a_scale_that_is_no_scale_is_refused_with_its_study(bad: object) -> None:
    with pytest.raises(ConfigError, match=r"data\.scales\.mine"):
        Scales({"mine": bad})  # type: ignore[dict-item]


def test_an_override_of_an_absent_study_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mitosis'"):
        Scales({"mitosys": 80}).check_studies(["mitosis", "yeast"])

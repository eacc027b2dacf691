"""False colours."""

import numpy as np
import pytest

from morphem.data.schema import channel_vocabulary
from morphem.report.colours import COLOURS, TRANSMITTED, WHITE, channels_to_mix, colours_of, mix


def test_colours_are_given_to_known_channel_types_only() -> None:
    assert {*COLOURS, *TRANSMITTED} <= set(channel_vocabulary())


def test_a_type_has_the_same_colour_in_every_panel() -> None:
    assert colours_of(["nucleus", "actin"])[0] == colours_of(["rna", "golgi body", "nucleus"])[2]


@pytest.mark.parametrize(
    "panel",
    [["protein"] * 6, ["golgi body", "rna", "protein"], ["unknown", "nucleus", "other"], ["nucleus", "nucleoli"]],
)
def test_no_two_channels_of_an_image_share_a_colour(panel: list[str]) -> None:
    assert len(set(colours_of(panel))) == len(panel)


def test_more_channels_than_colours_still_get_one_each() -> None:
    assert len(colours_of(["protein"] * 40)) == 40


def test_a_single_channel_is_grey() -> None:
    assert colours_of(["nucleus"]) == [WHITE]


def test_transmitted_light_is_not_mixed_with_fluorescence() -> None:
    assert channels_to_mix(["bright-field", "nucleus", "actin"]) == [1, 2]
    assert channels_to_mix(["bright-field"]) == [0]


def test_the_mixture_is_the_largest_light_of_each_colour() -> None:
    generator = np.random.default_rng(0)
    planes = [generator.integers(0, 256, (3, 4), dtype=np.uint8) for _ in range(2)]
    colours = ["#ff8000", "#4080ff"]
    expected = np.zeros((3, 4, 3))
    for y in range(3):
        for x in range(4):
            for part, (warm, cold) in enumerate([(255, 64), (128, 128), (0, 255)]):
                expected[y, x, part] = max(int(planes[0][y, x]) * warm / 255, int(planes[1][y, x]) * cold / 255)
    np.testing.assert_allclose(mix(planes, colours), expected, atol=0.51)


def test_red_green_and_blue_planes_give_the_colour_picture_back() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    kinds = ["b", "g", "r"]
    planes = [picture[..., 2], picture[..., 1], picture[..., 0]]
    np.testing.assert_array_equal(mix(planes, colours_of(kinds)), picture)

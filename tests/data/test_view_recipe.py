"""Recipes refuse what is out of range or without effect."""

from typing import Any

import pytest

from morphem.data.view_recipe import ViewRecipe, as_recipe
from morphem.errors import ConfigError

WRONG = [
    ({"count": 0}, "count is 0; it must be at least 1"),
    ({"size_px": 0}, "size_px is 0; it must be at least 1"),
    ({"mode": "plian"}, "mode: No choice 'plian'; did you mean 'plain'"),
    ({"interpolation": "nearest"}, "interpolation: No choice 'nearest'"),
    ({"normalize": "crops"}, "normalize: No choice 'crops'; did you mean 'crop'"),
    ({"area": (0.0, 1.0)}, "area is"),
    ({"area": (0.5, 1.1)}, "area is"),
    ({"area": (0.5, 0.4)}, "area is .* the smaller first"),
    ({"area": (0.5,)}, "area is .* two numbers"),
    ({"area": None}, "area is None"),
    ({"area": (float("nan"), 1.0)}, "area is"),
    ({"aspect": (0.0, 1.0)}, "aspect is"),
    ({"aspect": 1.0}, "aspect is 1.0; it must be two numbers"),
    ({"flip_x": 1.5}, "flip_x is 1.5; it must be from 0 to 1"),
    ({"flip_y": -0.1}, "flip_y is -0.1"),
    ({"shift": (0.3, -0.3)}, "shift is"),
    ({"gamma": (0.0, 1.0)}, "gamma is"),
    ({"blur_sigma": (0.0, 1.0)}, "blur_sigma is"),
    ({"blur_sigma": (0.1, 2.0), "blur_probability": 2.0}, "blur_probability is 2.0"),
    ({"blur_sigma": (0.1, 2.0), "blur_kernel_px": 10}, "blur_kernel_px is 10; it must be odd"),
    ({"blur_sigma": (0.1, 2.0), "blur_kernel_px": 65}, "blur_kernel_px is 65"),
    ({"noise_std": -0.1}, "noise_std is -0.1; it must be at least 0"),
    ({"channel_drop": 1.01}, "channel_drop is 1.01"),
]

IDLE = [
    ({"mode": "plain", "area": (0.1, 0.2)}, "area is set but has no effect with mode: plain"),
    ({"mode": "resize", "aspect": (1.0, 1.0)}, "aspect is set but has no effect with mode: resize"),
    ({"mode": "plain", "interpolation": "bilinear"}, "interpolation is set but has no effect with mode: plain"),
    ({"blur_probability": 0.1}, "blur_probability is set but has no effect with blur_sigma: null"),
    ({"blur_kernel_px": 23}, "blur_kernel_px is set but has no effect with blur_sigma: null"),
]


@pytest.mark.parametrize(("settings", "message"), WRONG + IDLE)
def test_a_wrong_or_idle_setting_is_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"ViewRecipe.{message}"):
        ViewRecipe(**({"count": 1, "size_px": 32} | settings))


def test_defaults_are_the_global_views_of_chammi75() -> None:
    recipe = ViewRecipe(count=2, size_px=224)
    assert (recipe.mode, recipe.area, recipe.aspect) == ("random_resized", (0.4, 1.0), (3 / 4, 4 / 3))
    assert (recipe.flip_x, recipe.flip_y, recipe.interpolation, recipe.normalize) == (0.5, 0.5, "bicubic", "crop")
    assert not recipe.changes_intensity
    assert recipe.blur_sigma is None
    assert recipe.channel_drop == 0


def test_a_recipe_comes_from_plain_data() -> None:
    recipe = as_recipe({"count": 8, "size_px": 96, "area": [0.05, 0.4]})
    assert recipe == ViewRecipe(count=8, size_px=96, area=(0.05, 0.4))


def test_an_unknown_or_missing_key_is_named() -> None:
    with pytest.raises(ConfigError, match="No key of ViewRecipe 'size'; did you mean 'size_px'"):
        as_recipe({"count": 1, "size": 32})
    with pytest.raises(ConfigError, match="a recipe needs 'size_px'"):
        as_recipe({"count": 1})

"""How one kind of view is made, as a config says it.

Source of the numbers: CHAMMI-75 (CaicedoLab/CHAMMI-75 at b84a4ec), Kim et al. 2025 and uniDINO (Bayer-Group/uniDINO at
95cd8a9), each named where it stands.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from morphem.errors import ConfigError, unknown_name
from morphem.resample import Interpolation

Mode = Literal["random_resized", "plain", "resize"]


@dataclass(frozen=True)
class ViewRecipe:
    """How one kind of view is made; the defaults are the global views of CHAMMI-75's DINO.

    The steps, in this order: crop and resize, flips, quarter turns, intensity shift and gamma, blur, noise,
    normalisation, channel drop.

    Args:
        count: Views of this kind, at least 1.
        size_px: Side of the square view in pixels.
        mode: `random_resized` cuts a box of random area and aspect and resizes it; `plain` cuts a box of `size_px`
            and resizes nothing, as Kim et al. and uniDINO do, because the size of a cell is signal; `resize` takes the
            whole crop.
        area: Smallest and largest area of the box, as a fraction of the crop's, in (0, 1]. Published: DINO's global
            views 0.4 to 1, local views 0.05 to 0.4; MAE 0.9 to 1; SimCLR 0.2 to 1. Only for `random_resized`.
        aspect: Smallest and largest width / height of the box. Published: 3/4 to 4/3; MAE 0.9 to 1.1. Only for
            `random_resized`.
        flip_x: Probability to mirror left and right. Published: 0.5 everywhere.
        flip_y: Probability to mirror top and bottom. Published: 0.5 everywhere.
        quarter_turns: Turn by 0, 90, 180 or 270 degrees with equal probability.
        interpolation: `bicubic` (DINO, SimCLR) or `bilinear` (MAE), antialiased. Not for `plain`.
        shift: Range of a shift of intensity, of pixels in [0, 1], drawn for each plane; None for none.
            Kim et al. and uniDINO ('Color'): -0.3 to 0.3.
        gamma: Range of the exponent of intensity, above 0, drawn for each plane; None for none. Kim et al. and uniDINO
            ('Color'): 0.5 to 1.5. With shift or gamma, pixels are clipped to [0, 1].
        blur_sigma: Range of the standard deviation of a Gaussian blur in pixels of the view, drawn for each plane;
            None for none. Published: SimCLR and Kim et al. 0.1 to 2.
        blur_probability: Probability to blur a plane. Published: 0.5. Only with `blur_sigma`.
        blur_kernel_px: Odd width of the blur's kernel. Published: CHAMMI-75's SimCLR 11, Kim et al. 23. Only with
            `blur_sigma`.
        noise_std: Standard deviation of Gaussian noise on pixels in [0, 1]. Kim et al. tried 0.05.
        channel_drop: Probability to leave one channel, drawn at random, out of an image's view; an image of one
            channel keeps it. Kim et al. tried 0.5. The plane is gone, not blank, so only methods whose views may
            differ in channels can use it.
        normalize: `crop` normalises a view by the statistics of the whole crop (DINO, SimCLR); `view` by its own (MAE).

    Raises:
        ConfigError: If a value is out of range, or set without effect.
    """

    count: int
    size_px: int
    mode: Mode = "random_resized"
    area: tuple[float, float] = (0.4, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    flip_x: float = 0.5
    flip_y: float = 0.5
    quarter_turns: bool = False
    interpolation: Interpolation = "bicubic"
    shift: tuple[float, float] | None = None
    gamma: tuple[float, float] | None = None
    blur_sigma: tuple[float, float] | None = None
    blur_probability: float = 0.5
    blur_kernel_px: int = 11
    noise_std: float = 0.0
    channel_drop: float = 0.0
    normalize: Literal["crop", "view"] = "crop"

    def __post_init__(self) -> None:
        for key in ("area", "aspect", "shift", "gamma", "blur_sigma"):
            self._check_range(key)
        self._check_values()
        self._check_effects()

    def _check_range(self, key: str) -> None:
        value = getattr(self, key)
        if value is None and key not in ("area", "aspect"):
            return
        if not isinstance(value, list | tuple) or len(value) != 2 or not value[0] <= value[1]:
            raise ConfigError(f"ViewRecipe.{key} is {value!r}; it must be two numbers, the smaller first.")
        object.__setattr__(self, key, (float(value[0]), float(value[1])))  # a list, when it comes from a file

    def _check_values(self) -> None:
        choices = {"mode": get_args(Mode), "interpolation": get_args(Interpolation), "normalize": ("crop", "view")}
        for key, allowed in choices.items():
            if getattr(self, key) not in allowed:
                raise ConfigError(f"ViewRecipe.{key}: {unknown_name('choice', str(getattr(self, key)), allowed)}")
        checks = {
            "count": (self.count >= 1, "at least 1"),
            "size_px": (self.size_px >= 1, "at least 1"),
            "area": (self.area[0] > 0 and self.area[1] <= 1, "above 0 and at most 1"),
            "aspect": (self.aspect[0] > 0, "above 0"),
            "gamma": (self.gamma is None or self.gamma[0] > 0, "above 0"),
            "blur_sigma": (self.blur_sigma is None or self.blur_sigma[0] > 0, "above 0"),
            "blur_kernel_px": (
                self.blur_kernel_px % 2 == 1 and 1 < self.blur_kernel_px < 2 * self.size_px,
                "odd, above 1 and below twice size_px",
            ),
            "noise_std": (self.noise_std >= 0, "at least 0"),
        }
        for key in ("flip_x", "flip_y", "blur_probability", "channel_drop"):
            checks[key] = (0 <= getattr(self, key) <= 1, "from 0 to 1")
        for key, (right, rule) in checks.items():
            if not right:
                raise ConfigError(f"ViewRecipe.{key} is {getattr(self, key)}; it must be {rule}.")

    def _check_effects(self) -> None:
        """Refuse what would be read and then ignored."""
        idle: dict[str, str] = {}
        if self.mode != "random_resized":
            idle |= dict.fromkeys(("area", "aspect"), f"mode: {self.mode}")
        if self.mode == "plain":
            idle["interpolation"] = "mode: plain"
        if self.blur_sigma is None:
            idle |= dict.fromkeys(("blur_probability", "blur_kernel_px"), "blur_sigma: null")
        for field in fields(self):
            if field.name in idle and getattr(self, field.name) != field.default:
                raise ConfigError(
                    f"ViewRecipe.{field.name} is set but has no effect with {idle[field.name]}; "
                    f"leave {field.name} out, or change {idle[field.name].split(':')[0]}."
                )

    @property
    def changes_intensity(self) -> bool:
        """Whether a step needs pixels in [0, 1]."""
        return self.shift is not None or self.gamma is not None or self.noise_std > 0

    @property
    def normalizes_first(self) -> bool:
        """Whether pixels are normalised before they are cut, as the reference does: most exact, and cheapest."""
        return self.normalize == "crop" and not self.changes_intensity


def as_recipe(recipe: ViewRecipe | Mapping[str, Any]) -> ViewRecipe:
    """Return a recipe, also from the plain data of a file.

    Raises:
        ConfigError: If a key is unknown or missing, or a value is out of range.
    """
    if isinstance(recipe, ViewRecipe):
        return recipe
    known = [field.name for field in fields(ViewRecipe)]
    for key in recipe:
        if key not in known:
            raise ConfigError(f"MultiCrop.recipes: {unknown_name('key of ViewRecipe', key, known)}")
    for key in ("count", "size_px"):
        if key not in recipe:
            raise ConfigError(f"MultiCrop.recipes: a recipe needs '{key}', for example {{count: 2, size_px: 224}}.")
    return ViewRecipe(**recipe)

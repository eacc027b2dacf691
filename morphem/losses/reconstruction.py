"""Reconstruction losses of masked autoencoders: squared error of pixels, Fourier magnitudes, frequency bands.

Source: He et al. 2022, https://arxiv.org/abs/2111.06377 (pixels, normalised patches); CA-MAE, Kraus et al. 2024,
https://arxiv.org/abs/2404.10242, loss.py of recursionpharma/maes_microscopy (Fourier magnitudes); Campfire, Hurry et
al. 2025 (bands).
Differs from the CA-MAE, CHAMMI-75 and ChA-MAEViT code: there the token matrix is viewed as square tiles, which are
patches of the picture only where a plane has as many patches as a patch has pixels (256 px in patches of 16); here each
patch is transformed, which is the same there and right for every grid. Campfire published no training code; a cut-off
is a fraction of the highest frequency along an axis here, and the definitions of low and high pass, which the paper's
text swaps, are the usual ones.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from morphem.errors import ConfigError

_PATCH_EPS = 1e-6  # He et al. and CHAMMI-75


@dataclass(frozen=True)
class LossRecipe:
    """What a reconstruction is judged by; the defaults are those of CHAMMI-75's bag-of-channels MAE.

    Published: CHAMMI-75's channel MAE and ChA-MAEViT take `normalize_patches` with 0.99 of pixels and 0.01 of Fourier
    magnitudes; CA-MAE the same shares without; Kim et al. `normalize_patches`; Campfire pixels and bands over `all`.

    Args:
        over: Whether `hidden` patches alone count for pixels and Fourier magnitudes, or `all` of them.
        normalize_patches: Whether each patch of the target gets mean 0 and variance 1.
        pixel_weight: Weight of the mean squared error of pixels, at least 0.
        fourier_weight: Weight of the mean absolute difference between the magnitudes of the two-dimensional Fourier
            transforms of patches (not divided by their size), at least 0.
        low_pass_weight: Weight of the mean squared error after a low pass over the whole plane, hidden patches or not,
            at least 0.
        low_pass_cutoff: Highest frequency that it lets through, as a fraction of the highest along an axis (half a
            cycle per pixel), above 0 and below the diagonal's 1.41. Campfire tried 0.05 to 0.7.
        high_pass_weight: The same for a high pass.
        high_pass_cutoff: Frequencies above it pass, in the same unit.

    Raises:
        ConfigError: If a value is out of its range, or all weights are 0.
    """

    over: Literal["hidden", "all"] = "hidden"
    normalize_patches: bool = False
    pixel_weight: float = 1.0
    fourier_weight: float = 0.0
    low_pass_weight: float = 0.0
    low_pass_cutoff: float = 0.1
    high_pass_weight: float = 0.0
    high_pass_cutoff: float = 0.1

    def __post_init__(self) -> None:
        if self.over not in ("hidden", "all"):
            raise ConfigError(f"LossRecipe.over is '{self.over}'; it must be 'hidden' or 'all'.")
        weights = ("pixel_weight", "fourier_weight", "low_pass_weight", "high_pass_weight")
        for key in weights:
            if not getattr(self, key) >= 0:
                raise ConfigError(f"LossRecipe.{key} is {getattr(self, key)}; it must be at least 0.")
        if not any(getattr(self, key) for key in weights):
            raise ConfigError(f"LossRecipe has no weight above 0; set one of {', '.join(weights)}.")
        for name in ("low_pass", "high_pass"):
            key = f"{name}_cutoff"
            if not 0 < getattr(self, key) < 2**0.5:
                raise ConfigError(f"LossRecipe.{key} is {getattr(self, key)}; it must be above 0 and below 1.41.")
            if (
                not getattr(self, f"{name}_weight")
                and getattr(self, key) != type(self).__dataclass_fields__[key].default
            ):
                raise ConfigError(f"LossRecipe.{key} is set but has no effect with {name}_weight: 0.")

    @property
    def bands(self) -> bool:
        """Whether a term looks at whole planes."""
        return bool(self.low_pass_weight or self.high_pass_weight)


class Sums(NamedTuple):
    """Sums of the terms over part of a batch, to be divided by numbers that the whole batch gives.

    Attributes:
        pixels: Mean squared errors of patches, summed, ().
        fourier: Mean absolute differences of magnitudes of patches, summed, ().
        low_pass: Mean squared errors of planes after the low pass, summed, ().
        high_pass: The same after the high pass.
        patches: Patches that were judged, ().
        planes: Planes that were judged, ().
    """

    pixels: Tensor
    fourier: Tensor
    low_pass: Tensor
    high_pass: Tensor
    patches: Tensor
    planes: Tensor

    def plus(self, other: "Sums") -> "Sums":
        """Add the sums of another part."""
        return Sums(*(mine + theirs for mine, theirs in zip(self, other, strict=True)))

    def terms(
        self, recipe: LossRecipe, patches: Tensor | None = None, planes: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Return the means of the terms that the recipe asks for, by name.

        Args:
            recipe: As the sums were made.
            patches: Number to divide the terms of patches by, where not that of these sums.
            planes: The same for the terms of planes.
        """
        n_patches, n_planes = self.patches if patches is None else patches, self.planes if planes is None else planes
        terms = {
            "pixels": (recipe.pixel_weight, self.pixels, n_patches),
            "fourier": (recipe.fourier_weight, self.fourier, n_patches),
            "low_pass": (recipe.low_pass_weight, self.low_pass, n_planes),
            "high_pass": (recipe.high_pass_weight, self.high_pass, n_planes),
        }
        return {name: total / count for name, (weight, total, count) in terms.items() if weight}


def normalized_patches(pixels: Tensor) -> Tensor:
    """Give each patch mean 0 and variance 1 (unbiased, plus 1e-6), (..., X) to (..., X)."""
    variance, mean = torch.var_mean(pixels, dim=-1, keepdim=True)
    return (pixels - mean) / (variance + _PATCH_EPS).sqrt()


def reconstruction_sums(
    predicted: Tensor,
    pixels: Tensor,
    hidden: Tensor,
    places: tuple[Tensor, Tensor],
    grid: tuple[int, int],
    patch_size_px: tuple[int, int],
    recipe: LossRecipe,
) -> Sums:
    """Judge reconstructions.

    Args:
        predicted: (B, T, X), float32, X pixels of a patch, channel after channel where a token has several.
        pixels: What they should be, before `normalize_patches`, (B, T, X).
        hidden: Which tokens were hidden, (B, T), bool.
        places: `channels` and `patches` of `Sequences`, each (B, T); looked at for bands alone.
        grid: Patches along height and width.
        patch_size_px: Height ph and width pw of a patch.
        recipe: The terms.

    Returns:
        The sums of all terms with a weight above 0; 0 for the others.
    """
    target = normalized_patches(pixels) if recipe.normalize_patches else pixels
    judged = (hidden if recipe.over == "hidden" else torch.ones_like(hidden)).to(predicted.dtype)
    difference = predicted - target
    none = predicted.new_zeros(())
    fourier, low, high, n_planes = none, none, none, none
    if recipe.fourier_weight:
        fourier = (magnitude_errors(predicted, target, patch_size_px) * judged).sum()
    if recipe.bands:
        planes = assemble(difference, *places, grid, patch_size_px)  # (B, C, H, W)
        n_planes = none + planes.shape[0] * planes.shape[1]
        low_errors, high_errors = band_errors(planes, recipe.low_pass_cutoff, recipe.high_pass_cutoff)
        low, high = low_errors.sum(), high_errors.sum()
    return Sums((difference.square().mean(2) * judged).sum(), fourier, low, high, judged.sum(), n_planes)


def weighted(terms: dict[str, Tensor], recipe: LossRecipe) -> Tensor:
    """Return the loss, (), from its terms as `Sums.terms` gives them."""
    weights = {
        "pixels": recipe.pixel_weight,
        "fourier": recipe.fourier_weight,
        "low_pass": recipe.low_pass_weight,
        "high_pass": recipe.high_pass_weight,
    }
    return torch.stack([weights[name] * value for name, value in terms.items()]).sum()


def magnitude_errors(predicted: Tensor, target: Tensor, patch_size_px: tuple[int, int]) -> Tensor:
    """Mean absolute difference between the Fourier magnitudes of patches, (B, T, X) to (B, T).

    Args:
        predicted: Pixels of patches, channel after channel where there are several.
        target: The same.
        patch_size_px: Height and width of a patch.
    """
    shape = (*predicted.shape[:2], -1, *patch_size_px)
    first, second = (torch.fft.fft2(x.reshape(shape)).abs() for x in (predicted, target))
    errors: Tensor = (first - second).abs().mean((2, 3, 4))
    return errors


def assemble(
    values: Tensor, channels: Tensor, patches: Tensor, grid: tuple[int, int], patch_size_px: tuple[int, int]
) -> Tensor:
    """Put patches back to planes.

    Args:
        values: Pixels of patches, (B, T, X): of one channel, or of C channels one after another.
        channels: Channel of each token, (B, T), int64; -1 where it has all.
        patches: Place of each token in the grid, (B, T), int64.
        grid: Patches along height h and width w.
        patch_size_px: Height ph and width pw of a patch.

    Returns:
        (B, C, h * ph, w * pw).
    """
    (h, w), (ph, pw) = grid, patch_size_px
    inner = values.shape[2] // (ph * pw)  # channels in a token
    outer = values.shape[1] // (h * w)  # channels in a sequence, 1 where tokens have all
    order = channels.clamp(min=0) * (h * w) + patches
    table = torch.empty_like(values).scatter(1, order[:, :, None].expand_as(values), values)
    tiles = table.reshape(-1, outer, h, w, inner, ph, pw)
    return tiles.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, outer * inner, h * ph, w * pw)


def band_errors(difference: Tensor, low_cutoff: float, high_cutoff: float) -> tuple[Tensor, Tensor]:
    """Mean squares of planes after a low and after a high pass.

    The passes are sharp in the distance from frequency 0 and let a cut-off itself through the low one; the mean square
    is taken in the frequency domain, where by Parseval's theorem it is the same.

    Args:
        difference: (B, C, H, W), float32.
        low_cutoff: Of the low pass, as a fraction of half a cycle per pixel.
        high_cutoff: Of the high pass.

    Returns:
        Each (B, C).
    """
    height, width = difference.shape[-2:]
    rows = torch.fft.fftfreq(height, device=difference.device) * 2
    columns = torch.fft.fftfreq(width, device=difference.device) * 2
    distance = (rows[:, None].square() + columns.square()).sqrt()  # (H, W)
    power = torch.view_as_real(torch.fft.fft2(difference)).square().sum(-1) / (height * width) ** 2
    return (power * (distance <= low_cutoff)).sum((2, 3)), (power * (distance > high_cutoff)).sum((2, 3))

"""Reconstruction losses against the formulas written plainly, on grids and patches of any shape."""

import numpy as np
import pytest
import torch
from torch import Tensor

from morphem.channels.sequences import patchify
from morphem.errors import ConfigError
from morphem.losses.reconstruction import (
    LossRecipe,
    assemble,
    band_errors,
    normalized_patches,
    reconstruction_sums,
    weighted,
)
from tests.references import masked_autoencoder as plain

# channels of a sequence, channels in a token, grid, patch
LAYOUTS = {
    "one channel": (1, 1, (2, 2), (4, 4)),
    "three channels": (3, 1, (2, 3), (4, 2)),
    "tokens of three channels": (1, 3, (3, 2), (3, 4)),
}


def _case(layout: str) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor]]:
    """Predictions and pixels, (B, T, X), which tokens are hidden, and their channels and patches, in random order."""
    outer, inner, (h, w), (ph, pw) = LAYOUTS[layout]
    generator = torch.Generator().manual_seed(11)
    shape = (2, outer * h * w, inner * ph * pw)
    predicted, pixels = torch.randn(2, *shape, generator=generator)
    hidden = torch.rand(shape[:2], generator=generator) < 0.6
    order = torch.stack([torch.randperm(shape[1], generator=generator) for _ in range(2)])
    channels = order // (h * w) if inner == 1 else torch.full_like(order, -1)
    return predicted, 1.0 + 3.0 * pixels, hidden, (channels, order % (h * w))


def _terms(layout: str, recipe: LossRecipe) -> dict[str, float]:
    _, _, grid, patch = LAYOUTS[layout]
    predicted, pixels, hidden, places = _case(layout)
    sums = reconstruction_sums(predicted, pixels, hidden, places, grid, patch, recipe)
    return {name: float(value) for name, value in sums.terms(recipe).items()}


def _numpy(layout: str, *, normalize: bool) -> tuple[plain.Floats, plain.Floats, np.ndarray, list[np.ndarray]]:
    predicted, pixels, hidden, places = _case(layout)
    target = pixels.double().numpy()
    if normalize:
        target = np.array([[plain.normalized(patch) for patch in row] for row in target])
    return predicted.double().numpy(), target, hidden.numpy(), [place.numpy() for place in places]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("over", ["hidden", "all"])
def test_pixels_and_magnitudes_are_the_papers(layout: str, normalize: bool, over: str) -> None:
    recipe = LossRecipe(over=over, normalize_patches=normalize, fourier_weight=0.01)  # type: ignore[arg-type]
    predicted, target, hidden, _ = _numpy(layout, normalize=normalize)
    judged = hidden if over == "hidden" else np.ones_like(hidden)
    found = _terms(layout, recipe)
    assert found["pixels"] == pytest.approx(plain.pixel_loss(predicted, target, judged), rel=1e-5)
    expected = plain.magnitude_loss(predicted, target, judged, LAYOUTS[layout][3])
    assert found["fourier"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("low", "high"), [(0.3, 0.3), (0.7, 0.5), (1.2, 0.05)])
def test_bands_are_what_a_filter_over_the_whole_plane_leaves(layout: str, low: float, high: float) -> None:
    recipe = LossRecipe(low_pass_weight=1.0, low_pass_cutoff=low, high_pass_weight=1.0, high_pass_cutoff=high)
    outer, inner, grid, patch = LAYOUTS[layout]
    predicted, target, _, (channels, patches) = _numpy(layout, normalize=False)
    errors: dict[str, list[float]] = {"low": [], "high": []}
    for b in range(2):
        for channel in range(outer * inner):
            pictures = [
                plain.picture_of(x[b], channel, channels[b], patches[b], grid, patch) for x in (predicted, target)
            ]
            for band, cutoff in (("low", low), ("high", high)):
                first, second = (plain.filtered(picture, cutoff, band) for picture in pictures)
                errors[band].append(float(((first - second) ** 2).mean()))
    found = _terms(layout, recipe)
    assert found["low_pass"] == pytest.approx(np.mean(errors["low"]), rel=1e-4)
    assert found["high_pass"] == pytest.approx(np.mean(errors["high"]), rel=1e-4)


def test_magnitudes_are_camaes_where_a_plane_has_as_many_patches_as_a_patch_has_pixels() -> None:
    generator = torch.Generator().manual_seed(2)
    predicted, pixels = torch.randn(2, 2, 16, 16, generator=generator)
    hidden = torch.rand(2, 16, generator=generator) < 0.75
    recipe = LossRecipe(pixel_weight=0.0, fourier_weight=1.0)
    places = (torch.zeros(2, 16, dtype=torch.int64), torch.arange(16).expand(2, -1))
    sums = reconstruction_sums(predicted, pixels, hidden, places, (4, 4), (4, 4), recipe)
    expected = plain.camae_magnitude_loss(predicted.double().numpy(), pixels.double().numpy(), hidden.numpy())
    assert float(weighted(sums.terms(recipe), recipe)) == pytest.approx(expected, rel=1e-5)


def test_magnitudes_do_not_see_a_patch_that_is_shifted_round() -> None:
    patch = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    shifted = patch.roll((1, 2), (2, 3)).reshape(1, 1, 16)
    recipe = LossRecipe(fourier_weight=1.0)
    places = (torch.zeros(1, 1, dtype=torch.int64),) * 2
    hidden = torch.ones(1, 1, dtype=torch.bool)
    terms = reconstruction_sums(patch.reshape(1, 1, 16), shifted, hidden, places, (1, 1), (4, 4), recipe).terms(recipe)
    assert float(terms["pixels"]) > 0.1
    assert float(terms["fourier"]) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS)
def test_assembled_patches_are_the_planes_they_were_cut_from(layout: str) -> None:
    outer, inner, (h, w), patch = LAYOUTS[layout]
    _, _, _, (channels, patches) = _case(layout)
    planes = torch.randn(2, outer * inner, h * patch[0], w * patch[1], generator=torch.Generator().manual_seed(5))
    if inner > 1:
        cut = patchify(planes, patch)  # (B, h * w, X)
        values = cut[torch.arange(2)[:, None], patches]
    else:
        cut = patchify(planes.reshape(-1, 1, *planes.shape[2:]), patch).unflatten(0, (2, outer))
        values = cut[torch.arange(2)[:, None], channels, patches]
    assert torch.equal(assemble(values, channels, patches, (h, w), patch), planes)


def test_a_low_and_a_high_pass_with_one_cutoff_make_the_whole_error() -> None:
    difference = torch.randn(2, 3, 12, 20, generator=torch.Generator().manual_seed(1))
    low, high = band_errors(difference, 0.4, 0.4)
    torch.testing.assert_close(low + high, difference.square().mean((2, 3)))
    assert (low > 0).all()
    assert (high > 0).all()


def test_normalized_patches_have_mean_0_and_variance_1_and_flat_ones_are_0() -> None:
    patches = torch.cat([torch.randn(3, 64) * 5 + 100, torch.full((1, 64), 7.0)])
    normalized = normalized_patches(patches)
    torch.testing.assert_close(normalized.mean(1), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(normalized.var(1), torch.tensor([1.0, 1.0, 1.0, 0.0]), atol=1e-5, rtol=0)


def test_parts_of_a_batch_add_up_to_the_whole() -> None:
    recipe = LossRecipe(fourier_weight=0.5, low_pass_weight=0.2, high_pass_weight=0.1)
    _, _, grid, patch = LAYOUTS["three channels"]
    predicted, pixels, hidden, places = _case("three channels")
    whole = reconstruction_sums(predicted, pixels, hidden, places, grid, patch, recipe)
    parts = [
        reconstruction_sums(predicted[i], pixels[i], hidden[i], (places[0][i], places[1][i]), grid, patch, recipe)
        for i in (slice(0, 1), slice(1, 2))
    ]
    torch.testing.assert_close(torch.stack(parts[0].plus(parts[1])), torch.stack(whole))
    terms = whole.terms(recipe)
    loss = terms["pixels"] + 0.5 * terms["fourier"] + 0.2 * terms["low_pass"] + 0.1 * terms["high_pass"]
    torch.testing.assert_close(weighted(terms, recipe), loss)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"over": "visible"}, "it must be 'hidden' or 'all'"),
        ({"fourier_weight": -1.0}, "fourier_weight is -1.0; it must be at least 0"),
        ({"pixel_weight": 0.0}, "has no weight above 0"),
        ({"low_pass_weight": 1.0, "low_pass_cutoff": 2.0}, "low_pass_cutoff is 2.0; it must be above 0 and below 1.41"),
        ({"high_pass_cutoff": 0.5}, "high_pass_cutoff is set but has no effect with high_pass_weight: 0"),
    ],
)
def test_recipes_without_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LossRecipe(**settings)  # type: ignore[arg-type]

"""Intensity, blur and noise against plain float64 references."""

import numpy as np
import pytest
import torch
from torch import Tensor

from morphem.data import photometry
from tests.references import photometry as reference


@pytest.fixture
def planes() -> Tensor:
    """Four planes in [0, 1], (4, 1, 9, 12)."""
    return torch.rand(4, 1, 9, 12, generator=torch.Generator().manual_seed(0))


def test_color_equals_the_plain_formula(planes: Tensor) -> None:
    shift, gamma = torch.tensor([-0.3, 0.0, 0.1, 0.3]), torch.tensor([0.5, 1.0, 1.5, 0.8])
    result = photometry.color(planes, shift, gamma)
    for i, plane in enumerate(planes[:, 0].double().numpy()):
        expected = reference.color(plane, float(shift[i]), float(gamma[i]))
        np.testing.assert_allclose(result[i, 0].numpy(), expected, atol=1e-5)


def test_color_clips_what_resampling_overshoots() -> None:
    planes = torch.tensor([-0.2, 1.3]).view(1, 1, 1, 2)
    assert photometry.color(planes, torch.zeros(1), torch.full((1,), 0.5)).flatten().tolist() == [0.0, 1.0]


@pytest.mark.parametrize("kernel", [3, 11, 17])
def test_blur_equals_the_plain_convolution(planes: Tensor, kernel: int) -> None:
    sigma = torch.tensor([0.1, 0.7, 2.0, 1.3])
    result = photometry.blur(planes, sigma, kernel)
    for i, plane in enumerate(planes[:, 0].double().numpy()):
        expected = reference.blurred(plane, float(sigma[i]), kernel)
        np.testing.assert_allclose(result[i, 0].numpy(), expected, atol=1e-6)


def test_blur_of_no_width_changes_nothing(planes: Tensor) -> None:
    assert torch.equal(photometry.blur(planes, torch.zeros(4), 11), planes)


def test_noise_has_the_standard_deviation_and_follows_the_seed() -> None:
    planes = torch.full((2, 1, 100, 100), 0.5)
    noisy = photometry.add_noise(planes, 0.05, torch.tensor([1, 2]))
    assert float(noisy.std()) == pytest.approx(0.05, rel=0.03)
    assert float(noisy.mean()) == pytest.approx(0.5, abs=0.002)
    assert torch.equal(noisy[1:], photometry.add_noise(planes[1:], 0.05, torch.tensor([2])))
    assert not torch.equal(noisy[0], noisy[1])

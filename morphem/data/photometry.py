"""Changes of intensity, focus and noise, each plane of each view on its own.

Pixels are in [0, 1] here. Every function takes one number per plane and works on all planes at once.

Source: 'Color' and the ranges of Kim et al. 2025 and uniDINO (Bayer-Group/uniDINO at 95cd8a9); Gaussian blur of
SimCLR (Chen et al. 2020, https://arxiv.org/abs/2002.05709) with the kernel sizes of CHAMMI-75 (11) and Kim et al. (23).
"""

import torch
from torch import Tensor

from morphem.resample import Taps, separable
from morphem.rng import normal


def color(planes: Tensor, shift: Tensor, gamma: Tensor) -> Tensor:
    """Shift the intensity and clip, then raise to a power.

    Args:
        planes: (P, 1, H, W).
        shift: Added, (P,).
        gamma: Exponents above 0, (P,).

    Returns:
        (P, 1, H, W), values in [0, 1].
    """
    return (planes + _column(shift)).clamp_(0.0, 1.0).pow_(_column(gamma))


def blur(planes: Tensor, sigma: Tensor, kernel_px: int) -> Tensor:
    """Blur with a Gaussian cut off at `kernel_px`, the planes mirrored at their edges.

    Args:
        planes: (P, 1, H, W), H and W above half the kernel.
        sigma: Standard deviation in pixels, (P,); 0 leaves a plane as it is.
        kernel_px: Odd.

    Returns:
        (P, 1, H, W).
    """
    height, width = planes.shape[-2:]
    rows, columns = (_blur_taps(sigma, kernel_px, side) for side in (height, width))
    return separable(planes[:, 0], rows, columns).contiguous()


def _blur_taps(sigma: Tensor, kernel_px: int, side: int) -> Taps:
    """Taps of the blur along one side, (P, 1, side, kernel_px), in tables of `side` rows, one after the other."""
    offset = torch.arange(kernel_px, device=sigma.device) - kernel_px // 2
    source = (torch.arange(side, device=sigma.device)[:, None] + offset).abs()  # mirrored at the first pixel
    source = (side - 1) - ((side - 1) - source).abs()  # and at the last
    source = source + side * torch.arange(len(sigma), device=sigma.device)[:, None, None, None]
    weight = (-0.5 * (offset / sigma.clamp(min=1e-3)[:, None]) ** 2).exp()  # (P, K); 1e-3 pixels leave one tap
    weight = weight / weight.sum(1, keepdim=True)
    return Taps(source, weight[:, None, None].expand_as(source))


def add_noise(planes: Tensor, std: float, seeds: Tensor) -> Tensor:
    """Add Gaussian noise of one standard deviation to planes (P, 1, H, W), from their seeds (P,)."""
    noise = normal(seeds, "noise", planes[0].numel())
    return planes + std * noise.view_as(planes)


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]

"""Plain steps of input normalisation, and how to chain them: what the authors of published encoders do to pixels.

Each step is a normaliser of its own; `Chain` runs several, one on what the one before it gave. A chain in an encoder's
`normalizer` acts before planes are resized, one in its `after_resize` on what the network will see.

Source: facts on each are in the zoo's files. Statistics are exact (float64), and empty planes become exactly zero.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import ClassVar, Literal, Self

import numpy as np
import torch
from torch import Tensor

from morphem.domains import Domain, check_domain
from morphem.errors import ConfigError
from morphem.normalizers import Normalizer, normalize_pixels, plane_moments
from morphem.types import ChannelBatch

__all__ = ["Chain", "Divide", "JointMaximum", "JointMinMax", "Percentiles", "ZScore"]


class Chain(Normalizer):
    """Steps one after another; with no step, pixels stay as they are.

    Args:
        steps: Normalisers. Only the first may need raw values (saturation noise), and is then of the input domain.
        input_domain: Pixels that the weights were made for: `uint8`, `uint16`, `unit` (floats from 0 to 1), or `any`
            where the steps do not care about the range.

    Raises:
        ConfigError: If the domain is unknown, a step is no normaliser, or one that is not the first needs raw values.
    """

    def __init__(self, steps: Sequence[Normalizer] = (), input_domain: Domain = "uint8") -> None:
        super().__init__()
        check_domain(input_domain)
        self.input_domain = input_domain
        for number, step in enumerate(steps):
            if not isinstance(step, Normalizer):
                raise ConfigError(f"Chain.steps[{number}] is a {type(step).__name__}, not a normaliser.")
            if number and getattr(step, "saturation_noise", False):
                raise ConfigError(
                    f"Chain.steps[{number}] adds noise to saturated pixels, whose raw values it must see; put it first."
                )
        self.steps = torch.nn.ModuleList(steps)

    def prepare(self, batch: ChannelBatch) -> ChannelBatch:
        """Make float pixels as the first step does, whatever domain that step alone would have."""
        first = next(iter(self.steps), None)
        if first is not None and getattr(first, "saturation_noise", False):
            return first.prepare(batch)  # type: ignore[no-any-return, operator]
        return super().prepare(batch)

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Find the shift and scale of all steps together, each (P,)."""
        ragged = batch if batch.ragged else _ragged(batch)
        current = ragged._replace(planes=ragged.planes.clone())
        shift = ragged.planes.new_zeros(batch.n_planes)
        scale = torch.ones_like(shift)
        for step in self.steps:
            minus, times = step.affine(current)  # type: ignore[operator]
            current = normalize_pixels(current, minus, times, in_place=True)
            # ((x - shift) * scale - minus) * times
            shift = shift + torch.where(scale == 0, 0.0, minus / scale)
            scale = scale * times
        return shift, scale

    def apply_to(self, batch: ChannelBatch) -> ChannelBatch:
        """Run the steps one after another on float pixels, in place."""
        for step in self.steps:
            batch = step.apply_to(batch)  # type: ignore[operator]
        return batch


class Divide(Normalizer):
    """Divide by a number, for example the full scale of the pixels: 255 or 65535.

    Args:
        by: Above 0.

    Raises:
        ConfigError: If it is not.
    """

    def __init__(self, by: float = 255.0) -> None:
        super().__init__()
        _check_positive("Divide", by=by)
        self.by = by

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Return no shift and 1 / by, each (P,)."""
        zeros = batch.planes.new_zeros(batch.n_planes)
        return zeros, torch.full_like(zeros, 1.0 / self.by)

    def apply_to(self, batch: ChannelBatch) -> ChannelBatch:
        """Divide float pixels, in place and rounded once, as the authors' divisions are."""
        return batch._replace(planes=batch.planes.div_(self.by))


class ZScore(Normalizer):
    """Subtract the mean of every plane and divide by its population standard deviation.

    Instance normalisation without parameters is `ZScore(1e-5)`.

    Args:
        eps: At least 0.
        eps_on: Where epsilon is added: to the `variance`, as instance normalisation does, or to the `deviation`. With
            an epsilon of 0, an empty plane is divided by 1.

    Raises:
        ConfigError: If epsilon is below 0 or `eps_on` is unknown.
    """

    def __init__(self, eps: float = 1e-5, eps_on: Literal["variance", "deviation"] = "variance") -> None:
        super().__init__()
        if not eps >= 0:
            raise ConfigError(f"ZScore.eps is {eps}; it must be at least 0.")
        if eps_on not in ("variance", "deviation"):
            raise ConfigError(f"ZScore.eps_on='{eps_on}' must be 'variance' or 'deviation'.")
        self.eps = eps
        self.eps_on = eps_on

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Find mean and 1 / deviation of every plane, each (P,)."""
        mean, variance = plane_moments(batch)
        width = (variance + self.eps).sqrt() if self.eps_on == "variance" else variance.sqrt() + self.eps
        width = torch.where(width > 0, width, 1.0)
        return mean.to(batch.planes.dtype), (1.0 / width).to(batch.planes.dtype)


class JointMinMax(Normalizer):
    """Bring all planes of an image together to 0 .. 1: (x - min) / (max - min + eps), over all of its channels.

    Args:
        eps: Above 0. SubCell: 1e-6.

    Raises:
        ConfigError: If epsilon is not above 0.
    """

    joint: ClassVar[bool] = True

    def __init__(self, eps: float = 1e-6) -> None:
        super().__init__()
        _check_positive("JointMinMax", eps=eps)
        self.eps = eps

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Find the minimum of every image, and 1 / (range + eps), for each of its planes, (P,)."""
        low, high = image_limits(batch)
        return low, (1.0 / ((high - low).double() + self.eps)).to(low.dtype)


class JointMaximum(Normalizer):
    """Divide by the largest pixel of an image, over all of its channels; an image without a pixel above 0 stays."""

    joint: ClassVar[bool] = True

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Return no shift and 1 / maximum of every image, for each of its planes, (P,)."""
        _, high = image_limits(batch)
        return torch.zeros_like(high), torch.where(high > 0, 1.0 / high.double(), 1.0).to(high.dtype)

    def apply_to(self, batch: ChannelBatch) -> ChannelBatch:
        """Divide float pixels, in place and rounded once."""
        _, high = image_limits(batch)
        divisors = torch.split(torch.where(high > 0, high, 1.0), 1)
        areas = batch.sizes.prod(1).tolist()
        by = torch.cat([divisor.expand(area) for divisor, area in zip(divisors, areas, strict=True)])
        return batch._replace(planes=batch.planes.div_(by))


class Percentiles(Normalizer):
    """Bring two percentiles of every plane to 0 and 1, without clipping: (x - low) / (high - low).

    A plane whose pixels are all equal stays as it is; where only the two percentiles are equal, `eps` stands for their
    difference.

    Args:
        low: 0 to 100, below `high`; between two pixels, percentiles are interpolated. Microsnoop: 1.
        high: 0 to 100. Microsnoop: 99.
        eps: Above 0. Microsnoop: 1e-6.

    Raises:
        ConfigError: If a number is out of range.
    """

    def __init__(self, low: float = 1.0, high: float = 99.0, eps: float = 1e-6) -> None:
        super().__init__()
        if not 0 <= low < high <= 100:
            raise ConfigError(f"Percentiles: low={low} and high={high} must rise, from 0 to 100.")
        _check_positive("Percentiles", eps=eps)
        self.low = low
        self.high = high
        self.eps = eps

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Find the low percentile and 1 / difference of every plane, each (P,)."""
        pairs = [self._of_plane(plane) for plane in plane_list(batch)]
        both = torch.tensor(pairs, dtype=torch.float64).to(batch.planes.dtype).to(batch.planes.device)
        return both[:, 0], both[:, 1]

    def _of_plane(self, plane: Tensor) -> tuple[float, float]:
        values = plane.detach().cpu().numpy()
        low, high = (float(value) for value in np.percentile(values, (self.low, self.high)))
        if high > low:
            return low, 1.0 / (high - low)
        return (0.0, 1.0) if values.min() == values.max() else (low, 1.0 / self.eps)

    @classmethod
    def tiny(cls) -> Self:
        """Percentiles that small planes have."""
        return cls(5.0, 95.0)


def plane_list(batch: ChannelBatch) -> Sequence[Tensor]:
    """Return the pixels of every plane, P tensors of one axis."""
    if not batch.ragged:
        return list(batch.planes.flatten(1))
    return torch.split(batch.planes, batch.sizes.prod(1).tolist())


def image_limits(batch: ChannelBatch) -> tuple[Tensor, Tensor]:
    """Return the smallest and the largest pixel of the image that each plane belongs to, each (P,)."""
    # along a named axis, because ONNX knows no other minimum
    limits = torch.stack([torch.stack(plane.aminmax(dim=0)) for plane in plane_list(batch)])  # (P, 2)
    low, high = limits.unbind(1)
    bounds = batch.offsets.tolist()
    lows = [low[a:b].amin(0, keepdim=True).expand(b - a) for a, b in pairwise(bounds)]
    highs = [high[a:b].amax(0, keepdim=True).expand(b - a) for a, b in pairwise(bounds)]
    return torch.cat(lows), torch.cat(highs)


def _ragged(batch: ChannelBatch) -> ChannelBatch:
    sizes = torch.tensor([batch.planes.shape[-2:]] * batch.n_planes, dtype=torch.int64)
    return batch._replace(planes=batch.planes.reshape(-1), sizes=sizes)


def _check_positive(owner: str, **settings: float) -> None:
    for key, value in settings.items():
        if not value > 0:
            raise ConfigError(f"{owner}.{key} is {value}; it must be above 0.")

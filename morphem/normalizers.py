"""What an encoder does to pixels before its network sees them; saved with its weights.

Every normaliser gives a plane as (pixel - shift) * scale. `prepare` makes float pixels of what an image holds (with the
published saturation noise, where wanted), `affine` finds shift and scale, `forward` does both. More of them, and how to
chain them, stand in `morphem.pixel_steps`.

Source: CaicedoLab/CHAMMI-75 at b84a4ec (saturation noise and self-normalisation, of training and of the released
encoder); Bayer-Group/CellPaintSSL (statistics of a data set).
Differs from CHAMMI-75: the noise reaches every channel, not the first alone, and is seeded by the sample; statistics
are exact (float64), so that an empty plane becomes exactly zero.
"""

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from typing import ClassVar, Self

import numpy as np
import torch
from torch import Tensor, nn

from morphem.domains import Domain, check_finite, check_type
from morphem.errors import ChannelError, ConfigError, DataError, unknown_name
from morphem.rng import mix, mix_tensor
from morphem.spec import Configurable
from morphem.types import ChannelBatch

_SATURATED = 255
# Pixels that get their noise together on an accelerator: bounds the scratch memory of 64-bit words to about 1 GiB.
_NOISE_PIXELS = 1 << 24
# Pixels that are summed together on a CPU: 1 MiB of float64.
_BLOCK_PIXELS = 1 << 17


class Normalizer(nn.Module, Configurable, ABC):
    """Base of all input normalisers: pixels of the input domain in, normalised planes out.

    Attributes:
        input_domain: Pixels that it was made for: `uint8`, `uint16`, `unit` (floats from 0 to 1) or `any`.
    """

    input_domain: Domain = "uint8"
    joint: ClassVar[bool] = False
    """Whether the planes of an image have a say in each other's shift and scale."""

    def prepare(self, batch: ChannelBatch) -> ChannelBatch:
        """Make float pixels; the place of whatever must see the raw values.

        Args:
            batch: Ragged, pixels of the input domain.

        Returns:
            Ragged, float32 (float64 where the pixels were), values as they were; the pixels are a new tensor.

        Raises:
            DataError: If the batch is not ragged, of another type, or has NaN or infinite pixels.
        """
        check_pixels(batch, self.input_domain)
        wide = batch.planes.dtype == torch.float64
        return batch._replace(planes=batch.planes.to(torch.float64 if wide else torch.float32, copy=True))

    @abstractmethod
    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Find shift and scale of every plane.

        Args:
            batch: Prepared pixels in the units of the input domain, float, ragged or dense.

        Returns:
            Shift in grey levels and scale per grey level, each (P,), of the type and on the device of the pixels.
        """

    def forward(self, batch: ChannelBatch, dtype: torch.dtype = torch.float32) -> ChannelBatch:
        """Prepare and normalise a batch.

        Args:
            batch: Ragged, pixels of the input domain.
            dtype: float32, or float64 for networks in double precision.

        Returns:
            Ragged, of that type.

        Raises:
            DataError: As `prepare`.
        """
        prepared = self.prepare(batch)
        return self.apply_to(prepared._replace(planes=prepared.planes.to(dtype)))

    def apply_to(self, batch: ChannelBatch) -> ChannelBatch:
        """Normalise float pixels, in place.

        Args:
            batch: Prepared pixels, ragged, float.
        """
        return normalize_pixels(batch, *self.affine(batch), in_place=True)

    def normalize_views(self, planes: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """Normalise dense planes, (..., P, 1, H, W), with the shift and scale of their crops, each (P,)."""
        return (planes - shift[:, None, None, None]) * scale[:, None, None, None]

    @classmethod
    def tiny(cls) -> Self:
        """An instance with default settings, for tests and docs."""
        return cls()


class SelfNormalize(Normalizer):
    """Normalise every plane by its own mean and standard deviation: (x - mean) / sqrt(variance + eps).

    Args:
        eps: Added to the population variance of values divided by `divide_by`; above 0. Published: 1e-7.
        divide_by: What pixels are divided by before eps is added. 255 as in the evaluation of the released MorphEm
            encoder (the default, since weights must see what they were measured with); 1 as in CHAMMI-75's training.
            It matters for nearly empty planes alone, whose standard deviation is around 0.1 grey levels or less.
        saturation_noise: Replace pixels of exactly 255 by uniform noise in [saturation_low, 255], seeded by the
            sample. Published: on in training.
        saturation_low: Lower end of that noise in grey levels, 0 to 255. Published: 200.

    Raises:
        ConfigError: If a setting is out of range, or `saturation_low` is set without `saturation_noise`.
    """

    def __init__(
        self,
        eps: float = 1e-7,
        divide_by: float = 255.0,
        saturation_noise: bool = False,
        saturation_low: float = 200.0,
    ) -> None:
        super().__init__()
        _check_positive("SelfNormalize", eps=eps, divide_by=divide_by)
        if not 0 <= saturation_low <= _SATURATED:
            raise ConfigError(f"SelfNormalize.saturation_low is {saturation_low}; allowed: 0 to 255.")
        if not saturation_noise and saturation_low != 200.0:
            raise ConfigError(
                f"SelfNormalize.saturation_low is {saturation_low} but has no effect without noise; "
                "set saturation_noise: true, or leave saturation_low out."
            )
        self.eps = eps
        self.divide_by = divide_by
        self.saturation_noise = saturation_noise
        self.saturation_low = saturation_low

    def prepare(self, batch: ChannelBatch) -> ChannelBatch:
        """Make float pixels of bytes, with saturation noise where it is on."""
        prepared = super().prepare(batch)
        if self.saturation_noise:
            _add_saturation_noise(batch, prepared.planes, self.saturation_low)
        return prepared

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Find mean and 1 / sqrt(population variance + eps) of every plane, each (P,)."""
        mean, variance = plane_moments(batch)
        scale = (variance + self.eps * self.divide_by**2).rsqrt()
        return mean.to(batch.planes.dtype), scale.to(batch.planes.dtype)


class DatasetNormalize(Normalizer):
    """Normalise by fixed statistics: (x / divide_by - mean) / std, one pair for all channels or one per channel type.

    Args:
        mean: One number, or one per channel type by name, in units of pixel / divide_by.
        std: Likewise, above 0. With names, the same names as `mean`.
        divide_by: What pixels are divided by first; 255 puts them in [0, 1].

    Raises:
        ConfigError: If a standard deviation is not above 0, or the names of mean and std differ.
    """

    def __init__(self, mean: float | dict[str, float], std: float | dict[str, float], divide_by: float = 255.0) -> None:
        super().__init__()
        _check_positive("DatasetNormalize", divide_by=divide_by)
        deviations = std if isinstance(std, Mapping) else {"": std}
        _check_positive("DatasetNormalize", **{f"std.{name}" if name else "std": v for name, v in deviations.items()})
        if isinstance(mean, Mapping) and isinstance(std, Mapping) and set(mean) != set(std):
            raise ConfigError(
                f"DatasetNormalize.mean and .std name different channels ({sorted(set(mean) ^ set(std))}); "
                "give both for each channel."
            )
        self.mean = mean
        self.std = std
        self.divide_by = divide_by

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Look up mean and 1 / std of every plane by its channel type, each (P,).

        Raises:
            ChannelError: If there are no statistics for a channel type.
        """
        mean = [self.divide_by * _by_name(self.mean, name) for name in batch.channel_types]
        scale = [1.0 / (self.divide_by * _by_name(self.std, name)) for name in batch.channel_types]
        both = torch.tensor([mean, scale], dtype=torch.float64).to(batch.planes.dtype)
        both = both.to(batch.planes.device, non_blocking=True)
        return both[0], both[1]

    @classmethod
    def tiny(cls) -> Self:
        """Statistics of one number each."""
        return cls(mean=0.5, std=0.25)


def check_pixels(batch: ChannelBatch, domain: Domain) -> None:
    """Refuse a batch that is not ragged, or whose pixels are of another domain or not finite.

    Raises:
        DataError: With what the batch holds instead, and the remedy.
    """
    if not batch.ragged:
        raise DataError(
            f"the normaliser takes ragged planes, but these are dense, {tuple(batch.planes.shape)}; "
            "make the batch with ChannelBatch.from_planes."
        )
    check_type(batch.planes.dtype, domain)
    check_finite(batch.planes)


def check_bytes(batch: ChannelBatch) -> None:
    """Refuse a batch that is not ragged uint8, as the loader gives it.

    Raises:
        DataError: With what the batch holds instead, and the remedy.
    """
    check_pixels(batch, "uint8")


def plane_seeds(batch: ChannelBatch) -> Tensor:
    """Seed of each plane, (P,), int64, from the seed of its image and its channel.

    A plane is known by its channel type, and by its rank among planes of one type, not by its position: channels can
    be reordered with their names.
    """
    bounds = batch.offsets.tolist()
    words: list[int] = []
    for first, last in pairwise(bounds):
        seen: Counter[str] = Counter()
        for name in batch.channel_types[first:last]:
            words.append(mix(name, seen[name]))
            seen[name] += 1
    channel = torch.tensor(words, dtype=torch.int64).to(batch.seeds.device, non_blocking=True)
    return mix_tensor(batch.seeds[batch.image_of_plane()], channel)


def plane_moments(batch: ChannelBatch) -> tuple[Tensor, Tensor]:
    """Mean and population variance of every plane, each (P,), float64.

    Whole grey levels are summed without rounding, so the mean of an empty plane is its grey level exactly.
    """
    batch = _as_ragged(batch)
    areas = batch.sizes.prod(1)
    if batch.planes.device.type == "cpu":
        sums = torch.stack([_plane_sums(plane) for plane in torch.split(batch.planes, areas.tolist())])
    else:
        areas = areas.to(batch.planes.device, non_blocking=True)
        sums = _segment_sums(batch.planes, areas)
    mean, mean_square = (sums / areas[:, None]).unbind(1)
    return mean, (mean_square - mean.square()).clamp(min=0.0)


def _plane_sums(plane: Tensor) -> Tensor:
    """Sum and sum of squares of a plane, (2,), float64, block by block so that each stays in the cache."""
    total = torch.zeros(2, dtype=torch.float64)
    for block in torch.split(plane, _BLOCK_PIXELS):
        wide = block.double()
        total += torch.stack([wide.sum(), torch.dot(wide, wide)])
    return total


def _segment_sums(pixels: Tensor, areas: Tensor) -> Tensor:
    """Sums and sums of squares of all planes with a few kernels, (P, 2), float64."""
    wide = pixels.double()
    total = torch.segment_reduce(wide, "sum", lengths=areas, unsafe=True)  # safe would wait for the device
    return torch.stack([total, torch.segment_reduce(wide.square_(), "sum", lengths=areas, unsafe=True)], dim=1)


def normalize_pixels(batch: ChannelBatch, shift: Tensor, scale: Tensor, *, in_place: bool = False) -> ChannelBatch:
    """Return (pixel - shift) * scale of a ragged float batch.

    Args:
        batch: Ragged, float32.
        shift: Of each plane, (P,).
        scale: Of each plane, (P,).
        in_place: Overwrite the pixels of `batch`.
    """
    target = batch.planes if in_place else torch.empty_like(batch.planes)
    if batch.planes.device.type == "cpu":
        areas = batch.sizes.prod(1).tolist()
        sources, targets = torch.split(batch.planes, areas), torch.split(target, areas)
        for plane, result, minus, times in zip(sources, targets, shift.tolist(), scale.tolist(), strict=True):
            torch.sub(plane, minus, out=result).mul_(times)
    else:
        torch.sub(batch.planes, _per_pixel(shift, batch), out=target).mul_(_per_pixel(scale, batch))
    return batch._replace(planes=target)


def _per_pixel(values: Tensor, batch: ChannelBatch) -> Tensor:
    """Repeat values of planes, (P,), for each of their pixels, (S,)."""
    areas = batch.sizes.prod(1).to(values.device, non_blocking=True)
    return values.repeat_interleave(areas, output_size=len(batch.planes))


def _add_saturation_noise(batch: ChannelBatch, pixels: Tensor, low: float) -> None:
    """Replace the saturated pixels of a batch of bytes in its float `pixels` by noise in [low, 255]."""
    seeds = mix_tensor(plane_seeds(batch), "saturation").to(pixels.device, non_blocking=True)
    start = batch.starts().to(pixels.device, non_blocking=True)
    if pixels.device.type == "cpu":
        saturated = np.flatnonzero(batch.planes.numpy() == _SATURATED)  # several times faster than torch's nonzero
        index = torch.from_numpy(saturated)
        pixels[index] = _noise(index, start, seeds, low)
    else:
        _replace_saturated(batch.planes, pixels, start, seeds, low)


def _replace_saturated(bytes_: Tensor, pixels: Tensor, start: Tensor, seeds: Tensor, low: float) -> None:
    """Draw noise for all pixels and use it where they are saturated: to pick those would wait for the device."""
    for first in range(0, len(pixels), _NOISE_PIXELS):
        chunk = slice(first, min(first + _NOISE_PIXELS, len(pixels)))
        noise = _noise(torch.arange(chunk.start, chunk.stop, device=pixels.device), start, seeds, low)
        pixels[chunk] = torch.where(bytes_[chunk] == _SATURATED, noise, pixels[chunk])


def _noise(index: Tensor, start: Tensor, seeds: Tensor, low: float) -> Tensor:
    """Uniform noise in [low, 255] for pixels of the ragged form; a function of plane seed and place in the plane."""
    plane = torch.searchsorted(start, index, right=True) - 1
    words = mix_tensor(seeds[plane], index - start[plane])
    return low + (_SATURATED - low) * 2.0**-24 * ((words >> 40) & 0xFFFFFF).float()


def _as_ragged(batch: ChannelBatch) -> ChannelBatch:
    if batch.ragged:
        return batch
    sizes = torch.tensor([batch.planes.shape[-2:]] * batch.n_planes, dtype=torch.int64)
    return batch._replace(planes=batch.planes.reshape(-1), sizes=sizes)


def _by_name(values: float | Mapping[str, float], name: str) -> float:
    if not isinstance(values, Mapping):
        return values
    if name not in values:
        raise ChannelError(unknown_name("statistics of channel type", name, values))
    return values[name]


def _check_positive(owner: str, **settings: float) -> None:
    for key, value in settings.items():
        if not value > 0:
            raise ConfigError(f"{owner}.{key} is {value}; it must be above 0.")

"""What published protocols do to pixels in place of an encoder's own preparation: the same weights, other steps.

A protocol names one of `morphem.benchmarks.preparations.PREPARATIONS` in its feature recipe. Encoders that standardise
every plane by itself, as those of CHAMMI-75 do, get the protocol's constants; any other encoder keeps its own
normaliser, because pixels of another range would be meaningless to it, and only the order of steps and the size change.

Source: CaicedoLab/CHAMMI-75 at b84a4ec, loaders and transforms of its benchmarks (facts in the protocols' files).
"""

import torch
from torch import Tensor

from morphem.benchmarks.preparations import PREPARATIONS
from morphem.encoder import Encoder
from morphem.errors import ConfigError, unknown_name
from morphem.geometry import Fit, Geometry
from morphem.normalizers import Normalizer, SelfNormalize, plane_moments
from morphem.pixel_steps import Chain, Divide
from morphem.spec import class_of
from morphem.types import ChannelBatch

__all__ = ["PREPARATIONS", "NoiseInOneChannel", "PadToPatches", "SampleZScore", "prepared", "remarks"]

_SIZE_PX = 224  # of every loader that resizes


class SampleZScore(Normalizer):
    """Subtract the mean of every plane and divide by its sample deviation (n - 1) plus epsilon.

    Args:
        divide_by: What pixels are divided by first; above 0.
        eps: Added to the deviation; above 0. Published: 1e-7.

    Raises:
        ConfigError: If a number is not above 0.
    """

    def __init__(self, divide_by: float = 1.0, eps: float = 1e-7) -> None:
        super().__init__()
        if not (divide_by > 0 and eps > 0):
            raise ConfigError(f"SampleZScore: divide_by={divide_by} and eps={eps} must be above 0.")
        self.divide_by = divide_by
        self.eps = eps

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Find mean and 1 / (deviation + eps * divide_by) of every plane, each (P,)."""
        mean, variance = plane_moments(batch)
        area = batch.sizes.prod(1).to(variance) if batch.ragged else variance.new_tensor(batch.planes[0].numel())
        deviation = (variance * area / (area - 1).clamp(min=1)).sqrt()
        scale = 1.0 / (deviation + self.eps * self.divide_by)
        return mean.to(batch.planes.dtype), scale.to(batch.planes.dtype)


class PadToPatches(Normalizer):
    """Put zeros around planes up to the next multiple of the patch, the smaller half at the top and left.

    Args:
        patch_px: Height and width of a patch, at least 1.

    Raises:
        ConfigError: If a side is below 1.
    """

    def __init__(self, patch_px: tuple[int, int]) -> None:
        super().__init__()
        if min(patch_px) < 1:
            raise ConfigError(f"PadToPatches: patch_px={tuple(patch_px)} must be at least 1 pixel on each side.")
        self.patch_px = (int(patch_px[0]), int(patch_px[1]))

    def affine(self, batch: ChannelBatch) -> tuple[Tensor, Tensor]:
        """Return no shift and a scale of 1, each (P,)."""
        zeros = batch.planes.new_zeros(batch.n_planes)
        return zeros, torch.ones_like(zeros)

    def apply_to(self, batch: ChannelBatch) -> ChannelBatch:
        """Pad ragged float pixels."""
        patch = batch.sizes.new_tensor(self.patch_px)
        sizes = (batch.sizes + patch - 1) // patch * patch
        if torch.equal(sizes, batch.sizes):
            return batch
        planes = torch.split(batch.planes, batch.sizes.prod(1).tolist())
        padded = []
        for plane, (height, width), (tall, wide) in zip(planes, batch.sizes.tolist(), sizes.tolist(), strict=True):
            larger = plane.new_zeros(tall, wide)
            top, left = (tall - height) // 2, (wide - width) // 2
            larger[top : top + height, left : left + width] = plane.view(height, width)
            padded.append(larger.flatten())
        return batch._replace(planes=torch.cat(padded), sizes=sizes)

    @classmethod
    def tiny(cls) -> "PadToPatches":
        """Pad to multiples of 8."""
        return cls((8, 8))


class NoiseInOneChannel(SelfNormalize):
    """Self-normalisation with noise on saturated pixels of one channel type alone, seeded by the sample.

    CHAMMI-75's step looks at the first plane of an image alone, which in HPAv23 shows microtubules. Theirs has no seed.

    Args:
        channel: Channel type that gets the noise.
        eps: As in `SelfNormalize`.
        divide_by: As in `SelfNormalize`.
    """

    def __init__(self, channel: str = "microtubules", eps: float = 1e-7, divide_by: float = 1.0) -> None:
        super().__init__(eps, divide_by, saturation_noise=True)
        self.channel = channel

    def prepare(self, batch: ChannelBatch) -> ChannelBatch:
        """Make float pixels, with noise in the one channel."""
        noisy, plain = super().prepare(batch), Normalizer.prepare(self, batch)
        has_noise = torch.tensor([name == self.channel for name in batch.channel_types], device=plain.planes.device)
        pixel = has_noise.repeat_interleave(batch.sizes.prod(1).to(has_noise.device))
        return plain._replace(planes=torch.where(pixel, noisy.planes, plain.planes))


def prepared(encoder: Encoder, name: str) -> Encoder:
    """Return an encoder of the same weights that prepares pixels as a protocol does.

    Args:
        encoder: Its channel strategy is shared, not copied.
        name: One of `PREPARATIONS`.

    Raises:
        ConfigError: If there is no such preparation.
    """
    if name not in PREPARATIONS:
        raise ConfigError(unknown_name("preparation", name, PREPARATIONS))
    if name == "own":
        return encoder
    own, after = encoder.normalizer, encoder.after_resize
    if name == "without_noise":
        quiet = _without_noise(own)
        return encoder if quiet is own else _rebuilt(encoder, quiet, after, encoder.geometry)
    if name == "grey_levels":
        if not _standardises(encoder):
            return encoder
        return _rebuilt(encoder, NoiseInOneChannel(divide_by=1.0), after, encoder.geometry)
    if name in ("square_resized_first", "resized_only"):
        first: Normalizer = _without_noise(own)
        if name == "resized_only" and _standardises(encoder):
            first = Divide(255.0)
        fit: Fit = "crop_and_stretch" if name == "square_resized_first" else "stretch"
        size = Geometry(encoder.input_size_px or _SIZE_PX, fit)
        return _rebuilt(encoder, Chain((), own.input_domain), _joined(first, after), size)
    scores = SampleZScore(255.0 if name == "unresized" else 1.0) if _standardises(encoder) else _without_noise(own)
    patch = getattr(encoder.channels, "patch_size_px", (1, 1))
    steps = Chain([scores, PadToPatches(tuple(patch))], own.input_domain)
    return _rebuilt(encoder, steps, after, None)


def remarks(encoder: Encoder, name: str) -> tuple[str, ...]:
    """Return what a preparation could not do to an encoder, one sentence each.

    Args:
        encoder: With its own preparation.
        name: One of `PREPARATIONS`.
    """
    if name in ("own", "without_noise", "square_resized_first") or _standardises(encoder):
        return ()
    return (
        f"the encoder keeps its own normaliser ({type(encoder.normalizer).__name__}) where the protocol has "
        f"'{PREPARATIONS[name]}' for encoders that standardise every plane by itself",
    )


def _rebuilt(encoder: Encoder, normalizer: Normalizer, after: Normalizer | None, size: Geometry | None) -> Encoder:
    channels = encoder.channels
    if size is None:
        result = Encoder(channels, normalizer, None, after_resize=after, recipe=encoder.recipe)
    else:
        result = Encoder(
            channels,
            normalizer,
            size.size_px,
            size.interpolation,
            size.antialias,
            size.fit,
            size.shorter_side_px,
            after,
            encoder.recipe,
        )
    result.card, result.origin = encoder.card, encoder.origin
    return result.to(encoder.device)


def _standardises(encoder: Encoder) -> bool:
    """Whether an encoder's first step is to standardise every plane by itself."""
    return class_of(encoder.normalizer) is SelfNormalize


def _without_noise(normalizer: Normalizer) -> Normalizer:
    """Return a self-normaliser without its noise: the protocols' loaders leave no pixel of 255 to be replaced."""
    if isinstance(normalizer, SelfNormalize) and class_of(normalizer) is SelfNormalize and normalizer.saturation_noise:
        return SelfNormalize(normalizer.eps, normalizer.divide_by)
    return normalizer


def _joined(first: Normalizer, second: Normalizer | None) -> Normalizer:
    return first if second is None else Chain([first, second], first.input_domain)

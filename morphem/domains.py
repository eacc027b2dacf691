"""What numbers the pixels of an encoder are: its input domain, checked by type and range, and conversion as told.

The most frequent silent mistake of this field is to hand an encoder pixels of another range: 0 to 1 instead of 0 to
255, or 16-bit intensities. No network complains; its features are merely wrong.
"""

import warnings
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from morphem.errors import ConfigError, DataError

Domain = Literal["uint8", "uint16", "unit", "any"]
DOMAINS: tuple[Domain, ...] = ("uint8", "uint16", "unit", "any")
Stated = Literal["uint8", "uint16", "unit", "percentiles"] | float
WHITE: dict[str, float] = {"uint8": 255.0, "uint16": 65535.0, "unit": 1.0}
CLIP_PERCENTILES = (0.1, 99.9)

_WORDS = {
    "uint8": "8-bit pixels (uint8, 0 to 255)",
    "uint16": "16-bit pixels (uint16, 0 to 65535)",
    "unit": "floats from 0 to 1",
    "any": "uint8, uint16 or float pixels",
}
_TYPES: dict[str, tuple[torch.dtype, ...]] = {
    "uint8": (torch.uint8,),
    "uint16": (torch.uint16,),
    "unit": (torch.float32, torch.float64),
    "any": (torch.uint8, torch.uint16, torch.float32, torch.float64),
}
_12_BIT = 4095.0
_ROUNDING = 1e-5  # floats in 0 to 1 that were computed may leave it by this much


def check_domain(domain: str) -> None:
    """Refuse a name that is no input domain.

    Raises:
        ConfigError: With the names that there are.
    """
    if domain not in DOMAINS:
        raise ConfigError(f"input_domain='{domain}' must be one of {', '.join(DOMAINS)}.")


def check_type(dtype: torch.dtype, domain: Domain) -> None:
    """Refuse pixels of a type that an encoder does not take as it is.

    Args:
        dtype: Of the pixels.
        domain: Of the encoder.

    Raises:
        DataError: With the remedy.
    """
    if dtype not in _TYPES[domain]:
        raise DataError(_mismatch(_name(dtype), domain))


def check_finite(pixels: Tensor) -> None:
    """Refuse NaN and infinities.

    Args:
        pixels: Of any type and shape.

    Raises:
        DataError: With how many there are.
    """
    if pixels.is_floating_point() and not bool(torch.isfinite(pixels).all()):
        bad = int((~torch.isfinite(pixels)).sum())
        raise DataError(
            f"{bad} of {pixels.numel()} pixels are NaN or infinite; replace them (for example by the plane's smallest "
            "value) or leave the image out."
        )


def to_domain(images: Sequence[Tensor], domain: Domain, stated: Stated | None) -> list[Tensor]:
    """Check that pixels are what an encoder was made for, or make them so as told.

    Types and ranges are judged over all images together: one dark image among others is no mistake.

    Args:
        images: Each (C, H, W), of one type.
        domain: Of the encoder.
        stated: None: the pixels have to be of the domain. `uint8`, `uint16` or `unit`: they span 0 to 255, 0 to 65535
            or 0 to 1; a number: they span 0 to that number (4095 for a 12-bit camera); the full range becomes the full
            range of the domain. `percentiles`: every plane is clipped at its 0.1 and 99.9 percentiles, which become the
            ends of the domain, as `morphem ingest` does.

    Returns:
        Images of the domain's type.

    Raises:
        ConfigError: If `stated` is none of these or has no effect.
        DataError: If the pixels are of another domain, leave the stated range, or are NaN or infinite.
    """
    types = {image.dtype for image in images}
    if len(types) > 1:
        raise DataError(f"the images of one call have one type, not {', '.join(sorted(map(_name, types)))}.")
    for image in images:
        check_finite(image)
    if stated is None:
        _check_as_they_are(images, domain)
        return list(images)
    if stated == "percentiles":
        return [torch.stack([_clipped(plane, domain) for plane in image]) for image in images]
    white = _white(stated)
    if domain == "any":
        raise ConfigError(f"pixels={stated!r} has no effect: this encoder takes pixels of any range; leave it out.")
    low, high = _range(images)
    if low < 0 or high > white * (1 + _ROUNDING):
        raise DataError(f"pixels={stated!r} says 0 to {white:g}, but these pixels reach from {low:g} to {high:g}.")
    return [_scaled(image.double(), WHITE[domain] / white, domain) for image in images]


def _check_as_they_are(images: Sequence[Tensor], domain: Domain) -> None:
    dtype = images[0].dtype
    low, high = _range(images)
    if dtype not in _TYPES[domain]:
        raise DataError(_mismatch(f"{_name(dtype)} from {low:g} to {high:g}{_guess(dtype, low, high)}", domain))
    if domain == "unit" and not -_ROUNDING <= low <= high <= 1 + _ROUNDING:
        raise DataError(_mismatch(f"floats from {low:g} to {high:g}{_guess(dtype, low, high)}", domain))
    if domain == "uint8" and high == 1:
        raise DataError(
            "these 8-bit pixels are all 0 or 1, as floats in 0 to 1 become when they are cast to uint8; scale them to "
            "0 to 255 before the cast, or say pixels='uint8' if they are meant."
        )
    if domain == "uint16" and 0 < high <= WHITE["uint8"]:
        raise DataError(
            f"these 16-bit pixels reach only {high:g}, as 8-bit images in a 16-bit file do, and an encoder made for "
            "0 to 65535 sees them as black; say pixels=255 to stretch them, or pixels='uint16' if they are meant."
        )
    if domain == "uint16" and WHITE["uint8"] < high <= _12_BIT:
        warnings.warn(
            f"the brightest of these 16-bit pixels is {high:g}, as a 12-bit camera gives them; if the encoder was made "
            "for images that use the full range, say pixels='percentiles' or pixels=4095 (pixels='uint16' takes them "
            "as they are).",
            stacklevel=4,
        )


def _guess(dtype: torch.dtype, low: float, high: float) -> str:
    """What floats of a range probably are."""
    if not dtype.is_floating_point:
        return ""
    if low < 0:
        return ", with negative values: they may be normalised already"
    for limit, words in ((1.0, "0 to 1"), (255.0, "0 to 255"), (65535.0, "0 to 65535")):
        if high <= limit * (1 + _ROUNDING):
            return f", which looks like {words}"
    return ""


def _mismatch(found: str, domain: Domain) -> str:
    """The sentence for pixels of another kind than an encoder was made for."""
    if domain == "any":
        return f"the encoder takes {_WORDS['any']}, not {found}; convert them first."
    goal = f"0 to {WHITE[domain]:g}"
    return (
        f"the encoder expects {_WORDS[domain]}, not {found}; scale them to {goal} first, or say what they are: "
        "pixels='unit', 'uint8', 'uint16' or a number (their full range becomes the encoder's), or "
        "pixels='percentiles' (each plane is clipped at its 0.1 and 99.9 percentiles, as `morphem ingest` does)."
    )


def _white(stated: object) -> float:
    if isinstance(stated, str) and stated in WHITE:
        return WHITE[stated]
    if isinstance(stated, int | float) and not isinstance(stated, bool) and np.isfinite(stated) and stated > 0:
        return float(stated)
    raise ConfigError(f"pixels={stated!r} must be 'uint8', 'uint16', 'unit', 'percentiles', or a number above 0.")


def _range(images: Sequence[Tensor]) -> tuple[float, float]:
    limits = [_wide(image).aminmax() for image in images]
    return min(float(low) for low, _ in limits), max(float(high) for _, high in limits)


def _wide(pixels: Tensor) -> Tensor:
    """Pixels in a type that torch can compare: it cannot compare uint16 on every device."""
    return pixels.to(torch.int32) if pixels.dtype == torch.uint16 else pixels


def _scaled(pixels: Tensor, factor: float, domain: Domain) -> Tensor:
    values = (pixels * factor).clamp_(0.0, WHITE[domain])
    return values.float() if domain == "unit" else values.round_().to(torch.int32).to(_TYPES[domain][0])


def _clipped(plane: Tensor, domain: Domain) -> Tensor:
    """A plane between its percentiles, stretched to the domain (to 0 .. 255 where it has no range of its own)."""
    target: Domain = "uint8" if domain == "any" else domain
    values = plane.double()
    low, high = np.percentile(values.cpu().numpy(), CLIP_PERCENTILES)
    if not high > low:
        return _scaled(torch.zeros_like(values), 1.0, target)
    return _scaled(values.clamp(float(low), float(high)) - float(low), WHITE[target] / float(high - low), target)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

"""How planes of any size become squares for a network: stretched, cropped or padded."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from morphem.errors import ConfigError, DataError
from morphem.resample import Interpolation, resample, working_type
from morphem.types import ChannelBatch

Fit = Literal["stretch", "centre_crop", "crop_and_stretch", "pad", "pad_and_stretch"]
FITS: tuple[Fit, ...] = ("stretch", "centre_crop", "crop_and_stretch", "pad", "pad_and_stretch")


@dataclass(frozen=True)
class Geometry:
    """What is done to a plane so that it is a square of `size_px`.

    Attributes:
        size_px: Side of the square.
        fit: `stretch` resizes both sides, whatever the proportions; `centre_crop` cuts the square out of the middle;
            `crop_and_stretch` cuts the largest square out of the middle and resizes it;
            `pad` puts zeros around a smaller plane, the smaller half at the top and left, and refuses a larger one;
            `pad_and_stretch` pads the shorter side to the longer one in the same way, then resizes.
        shorter_side_px: With `centre_crop`: the shorter side is resized to this first, the other in proportion and
            rounded down; None crops the plane as it is.
        interpolation: Of the resize: `bilinear` or `bicubic`.
        antialias: Whether to widen the filter where the plane shrinks.

    Raises:
        ConfigError: If a setting is out of range or has no effect.
    """

    size_px: int
    fit: Fit = "stretch"
    shorter_side_px: int | None = None
    interpolation: Interpolation = "bilinear"
    antialias: bool = True

    def __post_init__(self) -> None:
        """Check the settings."""
        if self.size_px < 1:
            raise ConfigError(f"encoder: input_size_px={self.size_px} must be at least 1, or null for no resize.")
        if self.fit not in FITS:
            raise ConfigError(f"encoder: fit='{self.fit}' must be one of {', '.join(FITS)}.")
        if self.interpolation not in ("bilinear", "bicubic"):
            raise ConfigError(f"encoder: interpolation='{self.interpolation}' must be 'bilinear' or 'bicubic'.")
        shorter = self.shorter_side_px
        if shorter is not None and self.fit != "centre_crop":
            raise ConfigError(f"encoder: shorter_side_px={shorter} has no effect with fit='{self.fit}'.")
        if shorter is not None and shorter < self.size_px:
            raise ConfigError(f"encoder: shorter_side_px={shorter} must be at least input_size_px={self.size_px}.")
        if not self.resizes and (self.interpolation != "bilinear" or not self.antialias):
            raise ConfigError(f"encoder: interpolation and antialias have no effect with fit='{self.fit}' alone.")

    @property
    def resizes(self) -> bool:
        """Whether planes are resampled at all."""
        return self.fit in ("stretch", "crop_and_stretch", "pad_and_stretch") or self.shorter_side_px is not None

    def __call__(self, batch: ChannelBatch) -> Tensor:
        """Make squares of planes, (P, 1, S, S).

        Args:
            batch: Ragged, float.

        Raises:
            DataError: If a plane is smaller than the crop, or larger than what it is padded to.
        """
        side = self.size_px
        if self.fit != "centre_crop" and bool((batch.sizes == side).all()):
            return batch.planes.reshape(-1, 1, side, side)
        if self.fit in ("stretch", "crop_and_stretch"):
            return self._stretch(batch)
        if self.fit == "centre_crop":
            return self._centre_crop(batch)
        if self.fit == "pad":
            self._refuse_larger(batch)
            return pad(batch, torch.full((batch.n_planes,), side)).planes.reshape(-1, 1, side, side)
        return self._stretch(pad(batch, batch.sizes.amax(1).cpu()))

    def _stretch(self, batch: ChannelBatch) -> Tensor:
        sides, first = batch.sizes, torch.zeros_like(batch.sizes)
        if self.fit == "crop_and_stretch":
            sides = batch.sizes.amin(1, keepdim=True).expand(-1, 2)
            first = torch.round((batch.sizes - sides) / 2).long()  # halves to even, as in `centre_crop`
        size = (self.size_px, self.size_px)
        return resample(
            batch, torch.cat([first, sides], dim=1), size, interpolation=self.interpolation, antialias=self.antialias
        )

    def _centre_crop(self, batch: ChannelBatch) -> Tensor:
        side = self.size_px
        result = batch.planes.new_empty(batch.n_planes, 1, side, side, dtype=working_type(batch.planes))
        sizes = batch.sizes.tolist()
        planes = torch.split(batch.planes, batch.sizes.prod(1).tolist())
        for number, (plane, (height, width)) in enumerate(zip(planes, sizes, strict=True)):
            image = self._shorter(plane.view(height, width))
            h, w = image.shape
            if min(h, w) < side:
                raise DataError(
                    f"a plane of {height} x {width} pixels is smaller than the {side} x {side} pixels that this "
                    "encoder cuts from its middle; give larger images, or set another input_size_px or fit."
                )
            top, left = round((h - side) / 2), round((w - side) / 2)
            result[number, 0] = image[top : top + side, left : left + side]
        return result

    def _shorter(self, image: Tensor) -> Tensor:
        """Resize an image (H, W) so that its shorter side is `shorter_side_px`."""
        goal = self.shorter_side_px
        if goal is None or min(image.shape) == goal:
            return image
        height, width = image.shape
        size = (goal, int(goal * width / height)) if height <= width else (int(goal * height / width), goal)
        one = ChannelBatch.from_planes([[image]], [["plane"]])
        whole = torch.tensor([[0, 0, height, width]])
        return resample(one, whole, size, interpolation=self.interpolation, antialias=self.antialias)[0, 0]

    def _refuse_larger(self, batch: ChannelBatch) -> None:
        largest = int(batch.sizes.max())
        if largest > self.size_px:
            raise DataError(
                f"a plane has a side of {largest} pixels, but this encoder pads planes to {self.size_px}; cut larger "
                f"images into tiles of {self.size_px} pixels."
            )


def pad(batch: ChannelBatch, sides: Tensor) -> ChannelBatch:
    """Put zeros around planes so that they are squares, the smaller half at the top and left.

    Args:
        batch: Ragged.
        sides: Side of the square of each plane in pixels, (P,), int64, none below the plane's own.
    """
    planes = torch.split(batch.planes, batch.sizes.prod(1).tolist())
    padded = []
    for plane, (height, width), side in zip(planes, batch.sizes.tolist(), sides.tolist(), strict=True):
        square = plane.new_zeros(side, side)
        top, left = (side - height) // 2, (side - width) // 2
        square[top : top + height, left : left + width] = plane.view(height, width)
        padded.append(square.flatten())
    sizes = sides.to(batch.sizes)[:, None].expand(-1, 2).contiguous()
    return batch._replace(planes=torch.cat(padded), sizes=sizes)

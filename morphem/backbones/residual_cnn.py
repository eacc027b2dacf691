"""A residual convolutional network on single-channel planes: the encoder of Microsnoop, with its decoder.

Source: Microsnoop, Xun et al. 2024, https://doi.org/10.1016/j.xinn.2023.100541, cellimnet/microsnoop-publish at
3f0b0ce, whose blocks come from Cellpose (Stringer et al. 2021, https://doi.org/10.1038/s41592-020-01018-x) by way of
scellseg 0.1.8. Facts that no shape shows: batch normalisation and ReLU come before each convolution (so the very first
pair sees the pixels), 2 x 2 max pooling between stages, nearest-neighbour upsampling in the decoder.
"""

from collections.abc import Sequence
from typing import Self

from torch import Tensor, nn
from torch.nn.functional import interpolate, max_pool2d, normalize, relu

from morphem.backbones.base import Backbone
from morphem.errors import ConfigError, DataError

_BATCH_NORM_EPS = 1e-5


class NormConv(nn.Module):
    """Batch normalisation, ReLU (where asked for) and a convolution that keeps height and width.

    Args:
        n_in: Channels that go in.
        n_out: Channels that come out.
        side: Of the kernel in pixels, odd.
        rectified: Whether ReLU follows the normalisation.
    """

    def __init__(self, n_in: int, n_out: int, side: int, rectified: bool = True) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(n_in, eps=_BATCH_NORM_EPS)
        self.conv = nn.Conv2d(n_in, n_out, side, padding=side // 2)
        self.rectified = rectified

    def forward(self, x: Tensor) -> Tensor:
        """Map (P, n_in, H, W) to (P, n_out, H, W)."""
        x = self.norm(x)
        out: Tensor = self.conv(relu(x) if self.rectified else x)
        return out


class DownStage(nn.Module):
    """Two residual pairs of convolutions; the first one changes the width.

    Args:
        n_in: Channels that go in.
        n_out: Channels that come out.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.projection = NormConv(n_in, n_out, 1, rectified=False)
        self.convs = nn.ModuleList(NormConv(n_in if i == 0 else n_out, n_out, 3) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Map (P, n_in, H, W) to (P, n_out, H, W)."""
        first, second, third, fourth = self.convs
        x = self.projection(x) + second(first(x))
        out: Tensor = x + fourth(third(x))
        return out


class ResidualCNN(Backbone):
    """Stages of residual convolutions; the embedding is the mean of the last map, scaled to length 1.

    Args:
        widths: Channels of each stage; the last one is D. Published: 32, 64, 128, 256.

    Raises:
        ConfigError: If there is no stage, or a width is below 1.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        _check_widths("residual_cnn", widths)
        self.widths = tuple(widths)
        self.embed_dim = self.widths[-1]
        self.stages = nn.ModuleList(
            DownStage(n_in, n_out) for n_in, n_out in zip((1, *self.widths), self.widths, strict=False)
        )

    def forward(self, planes: Tensor) -> Tensor:
        """Embed planes, (P, 1, H, W) to (P, D), each row of length 1.

        Args:
            planes: Normalised pixels; H and W are at least 2 ** (stages - 1).

        Raises:
            DataError: If a plane is smaller than that.
        """
        return style(self.maps(planes)[-1])

    def maps(self, planes: Tensor) -> list[Tensor]:
        """Return the map of every stage, (P, width, H / 2 ** i, W / 2 ** i), the largest first.

        Args:
            planes: As `forward` takes them.

        Raises:
            DataError: If a plane is smaller than one pixel of the last map.
        """
        least = 2 ** (len(self.stages) - 1)
        if min(planes.shape[-2:]) < least:
            raise DataError(
                f"planes of {planes.shape[-2]} x {planes.shape[-1]} pixels are too small for {len(self.stages)} stages;"
                f" both sides must be at least {least}: pad or resize them (input_size_px of the encoder does it)."
            )
        maps: list[Tensor] = []
        for stage in self.stages:
            maps.append(stage(max_pool2d(maps[-1], 2) if maps else planes))
        return maps

    @classmethod
    def tiny(cls) -> Self:
        """Build the smallest instance that works: two stages of widths 4 and 8."""
        return cls(widths=(4, 8))


class StyledConv(nn.Module):
    """Normalise, rectify and convolve a map to which a linear function of the style was added.

    Args:
        n_channels: Of the map.
        n_style: Length of the style.
    """

    def __init__(self, n_channels: int, n_style: int) -> None:
        super().__init__()
        self.conv = NormConv(n_channels, n_channels, 3)
        self.from_style = nn.Linear(n_style, n_channels)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        """Map (P, C, H, W) with the styles of its planes, (P, S), to the same shape."""
        out: Tensor = self.conv(x + self.from_style(vector)[:, :, None, None])
        return out


class UpStage(nn.Module):
    """Two residual pairs of convolutions that also look at the encoder's map of the same size and at the style.

    Args:
        n_in: Channels that go in.
        n_out: Channels that come out, as many as the encoder's map has.
        n_style: Length of the style.
    """

    def __init__(self, n_in: int, n_out: int, n_style: int) -> None:
        super().__init__()
        self.projection = NormConv(n_in, n_out, 1, rectified=False)
        self.first = NormConv(n_in, n_out, 3)
        self.styled = nn.ModuleList(StyledConv(n_out, n_style) for _ in range(3))

    def forward(self, x: Tensor, skipped: Tensor, vector: Tensor) -> Tensor:
        """Map (P, n_in, H, W) with a map (P, n_out, H, W) and styles (P, S) to (P, n_out, H, W)."""
        second, third, fourth = self.styled
        x = self.projection(x) + second(self.first(x) + skipped, vector)
        out: Tensor = x + fourth(third(x, vector), vector)
        return out


class ResidualDecoder(nn.Module):
    """Paint planes from the maps of a `ResidualCNN`.

    Args:
        widths: Of the encoder.

    Raises:
        ConfigError: If there is no stage, or a width is below 1.
    """

    def __init__(self, widths: Sequence[int] = (32, 64, 128, 256)) -> None:
        super().__init__()
        _check_widths("residual decoder", widths)
        n_style = widths[-1]
        self.stages = nn.ModuleList(
            UpStage(n_in, n_out, n_style) for n_in, n_out in zip((*widths[1:], n_style), widths, strict=True)
        )
        self.last = NormConv(widths[0], 1, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return planes, (P, 1, H, W).

        Args:
            maps: What `ResidualCNN.maps` gave; the sides of a map are twice those of the next one.
        """
        vector = style(maps[-1])
        x = maps[-1]
        for i in reversed(range(len(self.stages))):
            x = self.stages[i](x, maps[i], vector)
            x = interpolate(x, scale_factor=2.0, mode="nearest") if i else x
        out: Tensor = self.last(x)
        return out


def style(maps: Tensor) -> Tensor:
    """Return the mean of each map over its positions, scaled to length 1, (P, D, h, w) to (P, D)."""
    return normalize(maps.mean((2, 3)), dim=1)


def _check_widths(owner: str, widths: Sequence[int]) -> None:
    if not widths or min(widths) < 1:
        raise ConfigError(f"{owner}: widths={list(widths)} must be at least one number of at least 1.")

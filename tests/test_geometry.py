import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError, DataError
from morphem.geometry import Geometry, pad
from morphem.normalizers import SelfNormalize
from morphem.pixel_steps import Chain, Divide, ZScore
from morphem.types import ChannelBatch


def _batch(*sizes: tuple[int, int], dtype: torch.dtype = torch.float32) -> ChannelBatch:
    torch.manual_seed(0)
    planes = [torch.rand(size, dtype=dtype) for size in sizes]
    return ChannelBatch.from_planes([[plane] for plane in planes], [["nucleus"]] * len(planes))


def _planes(batch: ChannelBatch) -> list[Tensor]:
    parts = torch.split(batch.planes, batch.sizes.prod(1).tolist())
    return [part.view(*size) for part, size in zip(parts, batch.sizes.tolist(), strict=True)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("antialias", [True, False])
@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_planes_are_stretched(mode: str, antialias: bool, dtype: torch.dtype) -> None:
    batch = _batch((30, 20), (9, 33), (16, 16), dtype=dtype)
    found = Geometry(16, interpolation=mode, antialias=antialias)(batch)  # type: ignore[arg-type]
    assert found.dtype == dtype
    for square, plane in zip(found, _planes(batch), strict=True):
        expected = interpolate(plane[None, None], (16, 16), mode=mode, antialias=antialias)[0]
        torch.testing.assert_close(square, expected, atol=2e-6 if dtype == torch.float32 else 1e-12, rtol=0)


@pytest.mark.parametrize(("size", "corner"), [((20, 25), (2, 4)), ((17, 16), (0, 0)), ((19, 21), (2, 2))])
def test_the_middle_is_cut_out_with_halves_rounded_to_even(size: tuple[int, int], corner: tuple[int, int]) -> None:
    batch = _batch(size)
    y, x = corner
    found = Geometry(16, "centre_crop")(batch)[0, 0]
    assert torch.equal(found, _planes(batch)[0][y : y + 16, x : x + 16])


@pytest.mark.parametrize(("size", "resized"), [((40, 60), (20, 30)), ((61, 40), (30, 20)), ((20, 33), (20, 33))])
@pytest.mark.parametrize("antialias", [True, False])
def test_the_shorter_side_is_resized_before_the_crop(
    size: tuple[int, int], resized: tuple[int, int], antialias: bool
) -> None:
    batch = _batch(size)
    found = Geometry(16, "centre_crop", 20, "bicubic", antialias)(batch)[0, 0]
    whole = interpolate(_planes(batch)[0][None, None], resized, mode="bicubic", antialias=antialias)[0, 0]
    top, left = round((resized[0] - 16) / 2), round((resized[1] - 16) / 2)
    torch.testing.assert_close(found, whole[top : top + 16, left : left + 16], atol=2e-6, rtol=0)


@pytest.mark.parametrize(
    ("size", "corner", "side"), [((20, 31), (0, 6), 20), ((33, 16), (8, 0), 16), ((16, 16), (0, 0), 16)]
)
def test_the_largest_square_is_cut_out_before_the_resize(
    size: tuple[int, int], corner: tuple[int, int], side: int
) -> None:
    batch = _batch(size)
    found = Geometry(16, "crop_and_stretch")(batch)[0]
    (y, x), plane = corner, _planes(batch)[0]
    square = plane[None, None, y : y + side, x : x + side]
    expected = interpolate(square, (16, 16), mode="bilinear", antialias=True)[0]
    torch.testing.assert_close(found, expected, atol=2e-6, rtol=0)


def test_smaller_planes_are_padded_with_the_smaller_half_first() -> None:
    batch = _batch((9, 16), (4, 7))
    for square, plane in zip(Geometry(16, "pad")(batch), _planes(batch), strict=True):
        expected = np.zeros((16, 16), np.float32)
        height, width = plane.shape
        top, left = (16 - height) // 2, (16 - width) // 2
        expected[top : top + height, left : left + width] = plane.numpy()
        np.testing.assert_array_equal(square[0].numpy(), expected)


def test_planes_are_padded_to_squares_and_stretched() -> None:
    batch = _batch((9, 20))
    square = pad(batch, torch.tensor([20])).planes.view(1, 1, 20, 20)
    found = Geometry(16, "pad_and_stretch", antialias=False)(batch)
    torch.testing.assert_close(found, interpolate(square, (16, 16), mode="bilinear"), atol=2e-6, rtol=0)


def test_larger_planes_are_not_padded() -> None:
    with pytest.raises(DataError, match="a side of 20 pixels, but this encoder pads planes to 16; cut larger"):
        Geometry(16, "pad")(_batch((9, 20)))


def test_planes_smaller_than_the_crop_are_refused() -> None:
    with pytest.raises(DataError, match="a plane of 30 x 15 pixels is smaller than the 16 x 16 pixels"):
        Geometry(16, "centre_crop")(_batch((30, 15)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size_px": 0}, "input_size_px=0 must be at least 1"),
        ({"fit": "squeeze"}, "fit='squeeze' must be one of stretch, centre_crop, crop_and_stretch, pad"),
        ({"interpolation": "nearest"}, "interpolation='nearest' must be"),
        ({"shorter_side_px": 20}, "shorter_side_px=20 has no effect with fit='stretch'"),
        ({"fit": "centre_crop", "shorter_side_px": 10}, "shorter_side_px=10 must be at least input_size_px=16"),
        ({"fit": "pad", "antialias": False}, "no effect with fit='pad' alone"),
        ({"fit": "centre_crop", "interpolation": "bicubic"}, "no effect with fit='centre_crop' alone"),
    ],
)
def test_settings_that_clash_or_do_nothing_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Geometry(**{"size_px": 16, **settings})  # type: ignore[arg-type]


def test_an_encoder_without_a_resize_takes_no_settings_of_one() -> None:
    with pytest.raises(ConfigError, match="have no effect without input_size_px"):
        Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=None, fit="centre_crop")


def _seen(encoder: Encoder, image: np.ndarray) -> Tensor:
    """What the network of an encoder sees of an image of one plane."""
    seen: list[Tensor] = []
    handle = encoder.channels.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].planes))
    encoder.embed(image[None], ["nucleus"])
    handle.remove()
    return seen[0]


def test_pixels_are_normalised_before_the_resize_after_it_or_both() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 30), dtype=np.uint8)
    raw = torch.from_numpy(image)[None, None].double() / 255

    def z(planes: Tensor, eps: float) -> Tensor:
        mean, variance = planes.mean((2, 3), keepdim=True), planes.var((2, 3), keepdim=True, correction=0)
        return (planes - mean) / (variance + eps).sqrt()

    def small(planes: Tensor) -> Tensor:
        return interpolate(planes, (16, 16), mode="bilinear", antialias=True)

    unit, score = Chain([Divide(255.0)]), ZScore(1e-3)
    expected = {
        "before": small(z(raw, 1e-3)),
        "after": z(small(raw), 1e-3),
        "both": z(small(z(raw, 1e-3)), 1e-3),
    }
    encoders = {
        "before": Encoder(BagOfChannels.tiny(), Chain([Divide(255.0), score]), 16),
        "after": Encoder(BagOfChannels.tiny(), unit, 16, after_resize=score),
        "both": Encoder(BagOfChannels.tiny(), Chain([Divide(255.0), score]), 16, after_resize=score),
    }
    for name, encoder in encoders.items():
        torch.testing.assert_close(_seen(encoder, image).double(), expected[name], atol=1e-5, rtol=0)


def test_without_a_resize_pixels_are_normalised_after_nothing_all_the_same() -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 32), dtype=np.uint8)
    one = Encoder(BagOfChannels.tiny(), Chain([Divide(255.0)]), None, after_resize=ZScore(1e-3))
    seen = _seen(one, image)
    torch.testing.assert_close(seen.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    assert seen.shape == (1, 1, 16, 32)

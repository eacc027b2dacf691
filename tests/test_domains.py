import warnings

import numpy as np
import pytest
import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.domains import Domain, to_domain
from morphem.encoder import Encoder
from morphem.errors import ConfigError, DataError
from morphem.ingest.scaling import Percentiles, to_uint8
from morphem.normalizers import SelfNormalize
from morphem.pixel_steps import Chain, Divide, ZScore
from morphem.recipe import Recipe
from morphem.types import ChannelBatch

PANEL = ["nucleus", "actin"]


def _image(top: float, dtype: type, low: float = 0.0, shape: tuple[int, ...] = (2, 20, 18)) -> np.ndarray:
    """Pixels from `low` to `top`, both of which occur."""
    values = np.random.default_rng(0).uniform(low, top, shape)
    values.flat[0], values.flat[1] = low, top
    return (np.rint(values) if np.issubdtype(dtype, np.integer) else values).astype(dtype)


def _encoder(domain: Domain) -> Encoder:
    torch.manual_seed(0)
    white = {"uint8": 255.0, "uint16": 65535.0, "unit": 1.0, "any": 1.0}[domain]
    steps = [ZScore(1e-12)] if domain == "any" else [Divide(white)]
    return Encoder(BagOfChannels.tiny(), Chain(steps, input_domain=domain), input_size_px=16).eval()


def _tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image)


# what is handed in, to an encoder of which domain, and what the error says of it
MISTAKES = [
    (_image(1.0, np.float32), "uint8", r"not float32 from 0 to 1, which looks like 0 to 1"),
    (_image(250.0, np.float32), "uint8", r"not float32 from 0 to 250, which looks like 0 to 255"),
    (_image(40000.0, np.float64), "uint8", r"not float64 from 0 to 40000, which looks like 0 to 65535"),
    (_image(3.0, np.float32, -2.0), "uint8", r"from -2 to 3, with negative values: they may be normalised already"),
    (_image(40000, np.uint16), "uint8", r"expects 8-bit pixels \(uint8, 0 to 255\), not uint16 from 0 to 40000"),
    (_image(1, np.uint8), "uint8", r"all 0 or 1, as floats in 0 to 1 become when they are cast to uint8"),
    (_image(255, np.uint8), "uint16", r"expects 16-bit pixels \(uint16, 0 to 65535\), not uint8 from 0 to 255"),
    (_image(251, np.uint16), "uint16", r"reach only 251, as 8-bit images in a 16-bit file do.*pixels=255 to stretch"),
    (_image(1.0, np.float32), "uint16", r"not float32 from 0 to 1, which looks like 0 to 1"),
    (_image(255.0, np.float32), "unit", r"expects floats from 0 to 1, not floats from 0 to 255, which looks like 0 to"),
    (_image(1.0, np.float32, -1.0), "unit", r"not floats from -1 to 1, with negative values"),
    (_image(255, np.uint8), "unit", r"expects floats from 0 to 1, not uint8 from 0 to 255"),
    (_image(100, np.int32), "any", r"takes uint8, uint16 or float pixels, not int32"),
    (_image(100, np.int64), "uint8", r"expects 8-bit pixels .* not int64 from 0 to 100"),
]


@pytest.mark.parametrize(("image", "domain", "said"), MISTAKES)
def test_pixels_of_another_range_are_named_and_refused(image: np.ndarray, domain: Domain, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        _encoder(domain).embed(image, PANEL)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("image", "domain"),
    [
        (_image(255, np.uint8), "uint8"),
        (_image(65535, np.uint16), "uint16"),
        (_image(1.0, np.float32), "unit"),
        (_image(1.0, np.float64), "unit"),
        (_image(255, np.uint8), "any"),
        (_image(40000, np.uint16), "any"),
        (_image(7.0, np.float32, -3.0), "any"),
    ],
)
def test_pixels_of_the_domain_are_taken_as_they_are(image: np.ndarray, domain: Domain) -> None:
    (same,) = to_domain([_tensor(image)], domain, None)
    assert torch.equal(same, _tensor(image))
    assert np.isfinite(_encoder(domain).embed(image, PANEL).values).all()


def test_a_black_image_is_no_mistake() -> None:
    for domain, dtype in (("uint8", np.uint8), ("uint16", np.uint16), ("unit", np.float32)):
        assert np.isfinite(_encoder(domain).embed(np.zeros((2, 16, 16), dtype), PANEL).values).all()  # type: ignore[arg-type]


def test_one_dark_image_among_bright_ones_is_no_mistake() -> None:
    images = [_image(60000, np.uint16), _image(90, np.uint16)]
    assert len(_encoder("uint16").embed(images, PANEL)) == 2


@pytest.mark.parametrize("domain", ["uint8", "uint16", "unit"])
@pytest.mark.parametrize(
    ("stated", "white", "dtype"),
    [("unit", 1.0, np.float32), ("uint8", 255.0, np.uint8), ("uint16", 65535.0, np.uint16), (4095, 4095.0, np.uint16)],
)
def test_the_full_range_becomes_the_full_range_of_the_encoder(
    domain: Domain, stated: object, white: float, dtype: type
) -> None:
    image = _image(white, dtype)
    (found,) = to_domain([_tensor(image)], domain, stated)  # type: ignore[arg-type]
    goal = {"uint8": 255.0, "uint16": 65535.0, "unit": 1.0}[domain]
    expected = image.astype(np.float64) / white * goal
    assert str(found.dtype).removeprefix("torch.") == ("float32" if domain == "unit" else domain)
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-6 if domain == "unit" else 0.5 + 1e-6)


def test_converted_pixels_are_embedded_as_those_of_the_domain_are() -> None:
    encoder, image = _encoder("uint8"), _image(255, np.uint8)
    expected = encoder.embed(image, PANEL).values
    for given, stated in ((image / 255.0, "unit"), (image.astype(np.uint16) * 257, "uint16")):
        table = encoder.embed(given, PANEL, pixels=stated)  # type: ignore[arg-type]
        np.testing.assert_array_equal(table.values, expected)
        assert table.provenance["pixels"] == stated


def test_percentiles_give_what_ingest_writes() -> None:
    image = _image(30000, np.uint16, 200)
    (found,) = to_domain([_tensor(image)], "uint8", "percentiles")
    for plane, expected in zip(found.numpy(), image, strict=True):
        np.testing.assert_array_equal(plane, to_uint8(expected, Percentiles()).plane)
    (wide,) = to_domain([_tensor(image)], "uint16", "percentiles")
    assert (int(wide.to(torch.int32).min()), int(wide.to(torch.int32).max())) == (0, 65535)


def test_a_plane_without_contrast_becomes_black_by_percentiles() -> None:
    (found,) = to_domain([torch.full((1, 4, 4), 900.0)], "uint8", "percentiles")
    assert not found.any()


def test_pixels_beyond_the_stated_range_are_refused() -> None:
    with pytest.raises(DataError, match=r"pixels='unit' says 0 to 1, but these pixels reach from 0 to 250"):
        _encoder("uint8").embed(_image(250.0, np.float32), PANEL, pixels="unit")


def test_a_suspicious_range_is_taken_when_it_is_stated() -> None:
    dark = _image(200, np.uint16)
    (found,) = to_domain([_tensor(dark)], "uint16", "uint16")
    assert torch.equal(found, _tensor(dark))
    binary = _image(1, np.uint8)
    assert torch.equal(to_domain([_tensor(binary)], "uint8", "uint8")[0], _tensor(binary))


@pytest.mark.parametrize("stated", ["12bit", 0, -1.0, float("nan"), True])
def test_another_statement_is_refused(stated: object) -> None:
    with pytest.raises(ConfigError, match=r"pixels=.* must be 'uint8', 'uint16', 'unit', 'percentiles', or a number"):
        _encoder("uint8").embed(_image(1.0, np.float32), PANEL, pixels=stated)  # type: ignore[arg-type]


def test_a_statement_without_effect_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"pixels='uint16' has no effect: this encoder takes pixels of any range"):
        _encoder("any").embed(_image(9, np.uint16), PANEL, pixels="uint16")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("domain", ["unit", "any"])
def test_nan_and_infinity_are_refused_with_their_number(domain: Domain, bad: float) -> None:
    image = _image(1.0, np.float32)
    image[1, 3, 4:6] = bad
    with pytest.raises(DataError, match=r"2 of 720 pixels are NaN or infinite"):
        _encoder(domain).embed(image, PANEL)
    batch = ChannelBatch.from_planes([list(_tensor(image))], [PANEL])
    with pytest.raises(DataError, match=r"2 of 720 pixels are NaN or infinite"):
        _encoder(domain).features(batch)


@pytest.mark.parametrize("shape", [(2, 0, 5), (0, 2, 5, 5)])
def test_an_empty_image_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(DataError, match="there is no pixel to embed"):
        _encoder("uint8").embed(np.zeros(shape, np.uint8), PANEL)


def test_images_of_one_call_have_one_type() -> None:
    with pytest.raises(DataError, match="have one type, not float32, uint8"):
        _encoder("any").embed([_image(9, np.uint8), _image(1.0, np.float32)], PANEL)


@pytest.mark.parametrize("given", [[[1, 2], [3, 4]], np.array([["a"]]), "image.png"])
def test_what_is_no_image_is_refused(given: object) -> None:
    with pytest.raises(DataError, match="an image is an array of numbers or a tensor, not"):
        _encoder("uint8").embed(given, PANEL)  # type: ignore[arg-type]


def test_arrays_of_another_byte_order_are_read_right() -> None:
    image = _image(60000, np.uint16)
    expected = _encoder("uint16").embed(image, PANEL).values
    np.testing.assert_array_equal(_encoder("uint16").embed(image.astype(">u2"), PANEL).values, expected)


def test_ragged_batches_of_16_bit_and_floats_do_not_depend_on_batch_mates() -> None:
    for domain, dtype, top in (("uint16", np.uint16, 65535), ("unit", np.float32, 1.0)):
        encoder = _encoder(domain)  # type: ignore[arg-type]
        images = [_image(top, dtype), _image(top, dtype, shape=(2, 31, 12)), _image(top, dtype, shape=(2, 16, 16))]  # type: ignore[arg-type]
        batch = ChannelBatch.from_planes([list(_tensor(image)) for image in images], [PANEL] * 3)
        together = encoder.features(batch)
        alone = [encoder.features(ChannelBatch.from_planes([list(_tensor(image))], [PANEL])) for image in images]
        torch.testing.assert_close(together, torch.cat(alone), atol=1e-6, rtol=0)


def test_features_take_the_type_of_the_domain_alone() -> None:
    batch = ChannelBatch.from_planes([list(_tensor(_image(60000, np.uint16)))], [PANEL])
    assert _encoder("uint16").features(batch).shape == (2, 16)
    with pytest.raises(DataError, match=r"expects 8-bit pixels \(uint8, 0 to 255\), not uint16"):
        _encoder("uint8").features(batch)


def test_an_encoder_in_double_precision_computes_in_it() -> None:
    torch.manual_seed(0)
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=16).double()
    image = _image(255, np.uint8, shape=(2, 40, 23))
    batch = ChannelBatch.from_planes([list(_tensor(image))], [PANEL])
    result = encoder.features(batch)
    assert result.dtype == torch.float64
    planes = torch.from_numpy(image).double()[:, None]
    mean, variance = planes.mean((2, 3), keepdim=True), planes.var((2, 3), keepdim=True, correction=0)
    planes = (planes - mean) / (variance + 1e-7 * 255**2).sqrt()
    planes = torch.nn.functional.interpolate(planes, (16, 16), mode="bilinear", antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(result, encoder.channels.backbone(planes), atol=1e-12, rtol=0)


def test_a_saved_encoder_remembers_its_domain(tmp_path: object) -> None:
    encoder = _encoder("uint16")
    encoder.save_pretrained(str(tmp_path))
    again = Encoder.from_pretrained(str(tmp_path))
    assert again.input_domain == "uint16"
    assert again.recipe == Recipe()


def test_what_looks_like_12_bit_is_taken_with_a_warning() -> None:
    image = _image(3000, np.uint16)
    with pytest.warns(UserWarning, match=r"brightest of these 16-bit pixels is 3000, as a 12-bit camera gives them"):
        _encoder("uint16").embed(image, PANEL)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _encoder("uint16").embed(image, PANEL, pixels="uint16")

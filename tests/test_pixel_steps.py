import json

import numpy as np
import pytest
import torch
from torch import Tensor

from morphem.errors import ConfigError, DataError
from morphem.normalizers import DatasetNormalize, Normalizer, SelfNormalize
from morphem.pixel_steps import Chain, Divide, JointMaximum, JointMinMax, Percentiles, ZScore, image_limits
from morphem.spec import from_spec, to_spec
from morphem.types import ChannelBatch
from tests.references import pixel_steps as plain

STEPS: list[Normalizer] = [
    Divide(255.0),
    ZScore(1e-5),
    ZScore(1e-7, "deviation"),
    JointMinMax(),
    JointMaximum(),
    Percentiles(1.0, 99.0),
    Chain([Divide(255.0), ZScore(1e-7)]),
    Chain([Divide(255.0), JointMaximum(), DatasetNormalize(0.4, 0.2, divide_by=1.0), ZScore(1e-5)]),
    Chain(),
]


def _plane(height: int, width: int, seed: int, top: int = 256) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, top, (height, width)).astype(np.uint8))


@pytest.fixture
def images() -> list[list[Tensor]]:
    return [[_plane(9, 13, 0), _plane(9, 13, 1, 40)], [_plane(20, 7, 2, 3)], [_plane(5, 5, 3), _plane(4, 6, 4)]]


@pytest.fixture
def batch(images: list[list[Tensor]]) -> ChannelBatch:
    return ChannelBatch.from_planes(images, [["nucleus", "actin"][: len(image)] for image in images])


def _split(batch: ChannelBatch) -> list[Tensor]:
    parts = torch.split(batch.planes, batch.sizes.prod(1).tolist())
    return [part.view(*size) for part, size in zip(parts, batch.sizes.tolist(), strict=True)]


def _double(step: Normalizer, batch: ChannelBatch) -> list[np.ndarray]:
    return [plane.numpy() for plane in _split(step(batch, torch.float64))]


def _assert_equal(step: Normalizer, batch: ChannelBatch, expected: list[np.ndarray]) -> None:
    for found, wanted in zip(_double(step, batch), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-9, rtol=1e-9)
    for found, wanted in zip(_split(step(batch)), expected, strict=True):
        assert found.dtype == torch.float32
        np.testing.assert_allclose(found.numpy(), wanted, atol=5e-5, rtol=1e-5)


def _planes(images: list[list[Tensor]]) -> list[np.ndarray]:
    return [plane.numpy() for image in images for plane in image]


def test_pixels_are_divided(images: list[list[Tensor]], batch: ChannelBatch) -> None:
    _assert_equal(Divide(255.0), batch, [plain.divided(plane, 255.0) for plane in _planes(images)])


@pytest.mark.parametrize("eps_on", ["variance", "deviation"])
@pytest.mark.parametrize("eps", [1e-7, 1e-5, 0.5])
def test_planes_lose_mean_and_deviation(
    images: list[list[Tensor]], batch: ChannelBatch, eps: float, eps_on: str
) -> None:
    expected = [plain.z_score(plane, eps, eps_on) for plane in _planes(images)]
    _assert_equal(ZScore(eps, eps_on), batch, expected)  # type: ignore[arg-type]


def test_the_place_of_epsilon_matters() -> None:
    batch = ChannelBatch.from_planes([[torch.tensor([[0, 1]], dtype=torch.uint8)]], [["nucleus"]])
    on_variance, on_deviation = (ZScore(0.1, kind)(batch).planes for kind in ("variance", "deviation"))  # type: ignore[arg-type]
    assert (on_variance - on_deviation).abs().max() > 0.01


def test_an_image_is_brought_to_its_own_range_over_all_channels(
    images: list[list[Tensor]], batch: ChannelBatch
) -> None:
    expected = [plane for image in images for plane in plain.joint_min_max([p.numpy() for p in image], 1e-6)]
    _assert_equal(JointMinMax(1e-6), batch, expected)


def test_an_image_is_divided_by_its_largest_pixel_over_all_channels(
    images: list[list[Tensor]], batch: ChannelBatch
) -> None:
    expected = [plane for image in images for plane in plain.joint_maximum([p.numpy() for p in image])]
    _assert_equal(JointMaximum(), batch, expected)


def test_percentiles_are_brought_to_0_and_1(images: list[list[Tensor]], batch: ChannelBatch) -> None:
    _assert_equal(Percentiles(1, 99), batch, [plain.percentiles(plane, 1, 99, 1e-6) for plane in _planes(images)])


@pytest.mark.parametrize("levels", [[7] * 400, [7] * 399 + [9]], ids=["constant", "two equal percentiles"])
def test_planes_without_a_range_between_percentiles_follow_the_authors(levels: list[int]) -> None:
    plane = torch.tensor(levels, dtype=torch.uint8).view(20, 20)
    batch = ChannelBatch.from_planes([[plane]], [["nucleus"]])
    expected = plain.percentiles(plane.numpy(), 1, 99, 1e-6)
    np.testing.assert_allclose(Percentiles(1, 99)(batch, torch.float64).planes.view(20, 20).numpy(), expected)


@pytest.mark.parametrize("step", [ZScore(1e-7), ZScore(0.0), JointMinMax(), ZScore(0.0, "deviation")])
@pytest.mark.parametrize("level", [0, 1, 37, 255])
def test_an_empty_plane_becomes_exactly_zero(step: Normalizer, level: int) -> None:
    plane = torch.full((31, 29), level, dtype=torch.uint8)
    assert not step(ChannelBatch.from_planes([[plane]], [["nucleus"]])).planes.any()


def test_a_black_image_has_no_maximum_and_stays_black() -> None:
    batch = ChannelBatch.from_planes([[torch.zeros(4, 4, dtype=torch.uint8)]], [["nucleus"]])
    assert not JointMaximum()(batch).planes.any()
    assert torch.isfinite(JointMaximum().affine(batch._replace(planes=batch.planes.float()))[1]).all()


@pytest.mark.parametrize("step", STEPS)
def test_shift_and_scale_say_what_the_step_does(step: Normalizer, batch: ChannelBatch) -> None:
    raw = batch._replace(planes=batch.planes.double())
    shift, scale = step.affine(raw)
    normalised = _double(step, batch)
    for plane, minus, times, expected in zip(_split(raw), shift, scale, normalised, strict=True):
        np.testing.assert_allclose(((plane - minus) * times).numpy(), expected, atol=1e-9)
    assert torch.equal(raw.planes, batch.planes.double())


def test_a_chain_runs_its_steps_in_order(batch: ChannelBatch) -> None:
    first = Divide(255.0)(batch, torch.float64)
    expected = ZScore(1e-3).apply_to(first._replace(planes=first.planes.clone()))
    found = Chain([Divide(255.0), ZScore(1e-3)])(batch, torch.float64)
    assert torch.equal(found.planes, expected.planes)
    other = Chain([ZScore(1e-3), Divide(255.0)])(batch, torch.float64)
    assert not torch.allclose(found.planes, other.planes, atol=1e-3)


@pytest.mark.parametrize("step", STEPS)
def test_an_image_does_not_depend_on_its_batch_mates(step: Normalizer, images: list[list[Tensor]]) -> None:
    names = [["nucleus", "actin"][: len(image)] for image in images]
    together = _split(step(ChannelBatch.from_planes(images, names)))
    alone = [p for i, n in zip(images, names, strict=True) for p in _split(step(ChannelBatch.from_planes([i], [n])))]
    assert all(torch.equal(a, b) for a, b in zip(together, alone, strict=True))


@pytest.mark.parametrize("step", STEPS)
def test_dense_planes_have_the_statistics_of_ragged_ones(step: Normalizer) -> None:
    ragged = ChannelBatch.from_planes([[_plane(6, 8, 0), _plane(6, 8, 1)]], [["nucleus", "actin"]])
    ragged = ragged._replace(planes=ragged.planes.double())
    dense = ragged._replace(planes=ragged.planes.view(2, 1, 6, 8))
    for found, expected in zip(step.affine(dense), step.affine(ragged), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("step", STEPS)
def test_a_saved_step_does_the_same(step: Normalizer, batch: ChannelBatch) -> None:
    again = from_spec(json.loads(json.dumps(to_spec(step))))
    assert torch.equal(again(batch).planes, step(batch).planes)
    assert again.input_domain == step.input_domain


def test_a_chain_takes_the_pixels_of_its_domain(batch: ChannelBatch) -> None:
    wide = batch._replace(planes=batch.planes.to(torch.int32).mul(257).to(torch.uint16))
    scaled = Chain([Divide(65535.0)], input_domain="uint16")(wide, torch.float64).planes
    torch.testing.assert_close(scaled, batch.planes.double() / 255)
    with pytest.raises(DataError, match=r"expects 16-bit pixels \(uint16, 0 to 65535\), not uint8"):
        Chain([Divide(65535.0)], input_domain="uint16")(batch)
    with pytest.raises(DataError, match=r"expects 8-bit pixels \(uint8, 0 to 255\), not uint16"):
        Chain([Divide(255.0)])(wide)


def test_a_chain_of_any_domain_takes_what_has_no_scale(batch: ChannelBatch) -> None:
    chain = Chain([Percentiles(5, 95)], input_domain="any")
    expected = chain(batch).planes
    for other in (batch.planes.to(torch.int32).to(torch.uint16), batch.planes.float() * 3, batch.planes.double() / 255):
        torch.testing.assert_close(chain(batch._replace(planes=other)).planes, expected, atol=1e-5, rtol=1e-5)


def test_saturation_noise_sees_the_raw_values_at_the_head_of_a_chain() -> None:
    plane = torch.full((8, 8), 255, dtype=torch.uint8)
    batch = ChannelBatch.from_planes([[plane]], [["nucleus"]], seeds=[3])
    noisy = SelfNormalize(saturation_noise=True)
    assert torch.equal(Chain([noisy])(batch).planes, noisy(batch).planes)
    assert not torch.equal(Chain([SelfNormalize()])(batch).planes, noisy(batch).planes)


def test_saturation_noise_later_in_a_chain_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"Chain.steps\[1\] adds noise to saturated pixels.* put it first"):
        Chain([Divide(255.0), SelfNormalize(saturation_noise=True)])


def test_limits_of_an_image_are_those_of_all_its_planes(batch: ChannelBatch) -> None:
    low, high = image_limits(batch._replace(planes=batch.planes.float()))
    assert low[0] == low[1]
    assert high[0] == high[1] == batch.planes[: 2 * 9 * 13].max()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Divide(0.0), "Divide.by is 0.0; it must be above 0"),
        (lambda: ZScore(-1.0), "ZScore.eps is -1.0"),
        (lambda: ZScore(1.0, "mean"), "ZScore.eps_on='mean' must be"),
        (lambda: JointMinMax(0.0), "JointMinMax.eps is 0.0"),
        (lambda: Percentiles(99, 1), "low=99 and high=1 must rise"),
        (lambda: Percentiles(eps=0.0), "Percentiles.eps is 0.0"),
        (lambda: Chain([3]), r"Chain.steps\[0\] is a int, not a normaliser"),
        (lambda: Chain([], input_domain="int8"), "input_domain='int8' must be one of uint8, uint16, unit, any"),
    ],
)
def test_settings_out_of_range_are_refused(build: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build()  # type: ignore[operator]

"""Normalisers against plain float64 references and the published encoder's own input."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from morphem import normalizers as module
from morphem.errors import ChannelError, ConfigError, DataError
from morphem.normalizers import (
    DatasetNormalize,
    Normalizer,
    SelfNormalize,
    normalize_pixels,
    plane_moments,
    plane_seeds,
)
from morphem.rng import mix_tensor
from morphem.spec import from_spec, to_spec
from morphem.types import ChannelBatch
from tests.references import photometry


def noise(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 255, (height, width), dtype=torch.uint8, generator=generator)


def saturated(height: int, width: int, seed: int = 0) -> Tensor:
    """A plane with about a third of its pixels at 255."""
    plane = noise(height, width, seed)
    return plane.masked_fill(plane > 170, 255)


def split(batch: ChannelBatch) -> list[Tensor]:
    """The planes of a ragged batch, each (H, W)."""
    parts = torch.split(batch.planes, batch.sizes.prod(1).tolist())
    return [part.view(*size) for part, size in zip(parts, batch.sizes.tolist(), strict=True)]


@pytest.fixture
def batch() -> ChannelBatch:
    """Three images with one to three planes of different sizes."""
    images = [[noise(9, 13, 1), noise(9, 13, 2)], [noise(20, 7, 3)], [noise(8, 8, 4), noise(8, 8, 5), noise(8, 8, 6)]]
    names = [["nucleus", "actin"], ["protein"], ["actin", "protein", "protein"]]
    return ChannelBatch.from_planes(images, names, seeds=[3, 4, 5])


@pytest.mark.parametrize("divide_by", [255.0, 1.0])
@pytest.mark.parametrize("eps", [1e-7, 0.5])
def test_self_normalisation_equals_the_plain_formula(batch: ChannelBatch, eps: float, divide_by: float) -> None:
    result = SelfNormalize(eps=eps, divide_by=divide_by)(batch)
    for plane, found in zip(split(batch), split(result), strict=True):
        expected = photometry.self_normalized(plane.numpy().astype(np.float64), eps, divide_by)
        np.testing.assert_allclose(found.numpy(), expected, atol=2e-6)


def test_equals_what_the_published_encoder_sees(golden: Path) -> None:
    values = load_file(golden / "morphem_hub.golden.safetensors")
    images = values["native.images"]  # (N, C, H, W)
    batch = ChannelBatch.from_planes([list(image) for image in images], [["a", "b", "c"]] * len(images))
    expected = values["native.tokens_normalised_input"].squeeze()
    torch.testing.assert_close(split(SelfNormalize()(batch))[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("divide_by", [255.0, 1.0])
@pytest.mark.parametrize("level", [0, 1, 37, 255])
def test_an_empty_plane_becomes_exactly_zero(level: int, divide_by: float) -> None:
    plane = torch.full((301, 299), level, dtype=torch.uint8)
    result = SelfNormalize(divide_by=divide_by)(ChannelBatch.from_planes([[plane]], [["nucleus"]]))
    assert not result.planes.any()


def test_a_plane_does_not_depend_on_its_batch_mates() -> None:
    images = [[saturated(30, 40, seed)] for seed in range(4)]
    normalizer = SelfNormalize(saturation_noise=True)
    together = split(normalizer(ChannelBatch.from_planes(images, [["nucleus"]] * 4, seeds=[7, 8, 9, 10])))
    for i, image in enumerate(images):
        alone = normalizer(ChannelBatch.from_planes([image], [["nucleus"]], seeds=[7 + i]))
        assert torch.equal(split(alone)[0], together[i])


def test_large_planes_are_summed_in_blocks(monkeypatch: pytest.MonkeyPatch, batch: ChannelBatch) -> None:
    expected = plane_moments(batch)
    monkeypatch.setattr(module, "_BLOCK_PIXELS", 10)
    torch.testing.assert_close(plane_moments(batch), expected)


def test_the_way_of_an_accelerator_is_that_of_a_cpu(monkeypatch: pytest.MonkeyPatch, batch: ChannelBatch) -> None:
    pixels = batch.planes.float()
    sums = module._segment_sums(pixels, batch.sizes.prod(1))
    for plane, found in zip(split(batch), sums, strict=True):
        assert torch.equal(found, module._plane_sums(plane.flatten()))
    bytes_ = torch.cat([saturated(9, 13, seed).flatten() for seed in range(2)])
    two = ChannelBatch.from_planes([list(bytes_.view(2, 9, 13))], [["nucleus", "actin"]], seeds=[3])
    expected = SelfNormalize(saturation_noise=True).prepare(two).planes
    monkeypatch.setattr(module, "_NOISE_PIXELS", 50)
    found = bytes_.float()
    seeds = mix_tensor(plane_seeds(two), "saturation")
    module._replace_saturated(bytes_, found, two.starts(), seeds, 200.0)
    assert torch.equal(found, expected)


class TestSaturationNoise:
    def test_changes_saturated_pixels_alone(self) -> None:
        plane = saturated(40, 50)
        batch = ChannelBatch.from_planes([[plane]], [["nucleus"]], seeds=[1])
        result = split(SelfNormalize(saturation_noise=True).prepare(batch))[0]
        full = plane == 255
        assert torch.equal(result[~full], plane[~full].float())
        assert (result[full] >= 200).all()
        assert (result[full] < 255).all()

    @pytest.mark.parametrize("low", [200.0, 100.0, 255.0])
    def test_is_uniform_from_low_to_255(self, low: float) -> None:
        plane = torch.full((200, 200), 255, dtype=torch.uint8)
        normalizer = SelfNormalize(saturation_noise=True, saturation_low=low)
        values = normalizer.prepare(ChannelBatch.from_planes([[plane]], [["nucleus"]])).planes.double()
        width = 255 - low
        assert float(values.mean()) == pytest.approx((low + 255) / 2, abs=0.01 * width + 1e-9)
        assert float(values.std()) == pytest.approx(width / math.sqrt(12), rel=0.02, abs=1e-9)

    def test_reaches_every_channel_with_noise_of_its_own(self) -> None:
        plane = torch.full((30, 30), 255, dtype=torch.uint8)
        batch = ChannelBatch.from_planes([[plane] * 3], [["nucleus", "actin", "actin"]], seeds=[1])
        first, second, third = split(SelfNormalize(saturation_noise=True).prepare(batch))
        assert not torch.equal(first, second)
        assert not torch.equal(second, third)

    def test_follows_the_seed(self) -> None:
        def make(seed: int) -> Tensor:
            batch = ChannelBatch.from_planes([[saturated(20, 20)]], [["nucleus"]], seeds=[seed])
            return SelfNormalize(saturation_noise=True).prepare(batch).planes

        assert torch.equal(make(1), make(1))
        assert not torch.equal(make(1), make(2))

    def test_is_off_unless_asked_for(self) -> None:
        batch = ChannelBatch.from_planes([[saturated(20, 20)]], [["nucleus"]])
        assert torch.equal(SelfNormalize().prepare(batch).planes, batch.planes.float())

    def test_moves_with_a_channel_when_channels_are_reordered(self) -> None:
        planes, names = [saturated(20, 20, i) for i in range(3)], ["nucleus", "actin", "protein"]
        order = [2, 0, 1]
        normalizer = SelfNormalize(saturation_noise=True)
        plain = split(normalizer(ChannelBatch.from_planes([planes], [names], seeds=[1])))
        moved = ChannelBatch.from_planes([[planes[i] for i in order]], [[names[i] for i in order]], seeds=[1])
        for i, found in zip(order, split(normalizer(moved)), strict=True):
            assert torch.equal(found, plain[i])


class TestDatasetNormalize:
    def test_one_pair_for_all(self, batch: ChannelBatch) -> None:
        result = DatasetNormalize(mean=0.4, std=0.2)(batch)
        torch.testing.assert_close(result.planes, (batch.planes.float() / 255 - 0.4) / 0.2)

    def test_a_pair_for_each_channel_type(self, batch: ChannelBatch) -> None:
        mean = {"nucleus": 0.1, "actin": 0.2, "protein": 0.3}
        std = {"nucleus": 1.0, "actin": 2.0, "protein": 3.0}
        result = split(DatasetNormalize(mean, std, divide_by=1.0)(batch))
        for plane, name, found in zip(split(batch), batch.channel_types, result, strict=True):
            torch.testing.assert_close(found, (plane.float() - mean[name]) / std[name])

    def test_an_unknown_channel_type_is_named_with_the_nearest(self, batch: ChannelBatch) -> None:
        with pytest.raises(ChannelError, match="No statistics of channel type 'nucleus'; did you mean 'nucleis'"):
            DatasetNormalize({"nucleis": 0.0}, {"nucleis": 1.0})(batch)

    def test_mean_and_std_must_name_the_same_channels(self) -> None:
        with pytest.raises(ConfigError, match=r"\['actin'\]"):
            DatasetNormalize({"nucleus": 0.0, "actin": 0.0}, {"nucleus": 1.0})

    @pytest.mark.parametrize(
        ("settings", "key"),
        [
            ({"std": 0.0}, "std is 0.0"),
            ({"std": {"actin": -1.0}}, "std.actin is -1.0"),
            ({"std": 1.0, "divide_by": 0.0}, "divide_by is 0.0"),
        ],
    )
    def test_settings_out_of_range_are_refused(self, settings: dict[str, float], key: str) -> None:
        with pytest.raises(ConfigError, match=f"DatasetNormalize.{key}"):
            DatasetNormalize(mean=0.0, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": 0.0}, "eps is 0.0; it must be above 0"),
        ({"eps": math.nan}, "eps is nan"),
        ({"divide_by": -1.0}, "divide_by is -1.0"),
        ({"saturation_noise": True, "saturation_low": 256.0}, "saturation_low is 256.0; allowed: 0 to 255"),
        ({"saturation_low": 100.0}, "saturation_low is 100.0 but has no effect"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=f"SelfNormalize.{message}"):
        SelfNormalize(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.float32, torch.int16])
def test_pixels_other_than_bytes_are_refused_with_the_remedy(batch: ChannelBatch, dtype: torch.dtype) -> None:
    with pytest.raises(DataError, match=r"expects 8-bit pixels .* scale them to 0 to 255 first"):
        SelfNormalize()(batch._replace(planes=batch.planes.to(dtype)))


def test_a_dense_batch_is_refused(batch: ChannelBatch) -> None:
    with pytest.raises(DataError, match="ragged"):
        SelfNormalize()(batch._replace(planes=torch.zeros(6, 1, 4, 4, dtype=torch.uint8)))


def test_normalising_leaves_its_input_alone_unless_in_place(batch: ChannelBatch) -> None:
    prepared = SelfNormalize().prepare(batch)
    before = prepared.planes.clone()
    result = normalize_pixels(prepared, torch.ones(6), torch.full((6,), 2.0))
    assert torch.equal(prepared.planes, before)
    torch.testing.assert_close(result.planes, (before - 1) * 2)
    normalize_pixels(prepared, torch.ones(6), torch.full((6,), 2.0), in_place=True)
    assert torch.equal(prepared.planes, result.planes)


def test_dense_planes_have_the_moments_of_ragged_ones() -> None:
    plane = noise(12, 10)
    ragged = ChannelBatch.from_planes([[plane, plane + 1]], [["nucleus", "actin"]])
    dense = ragged._replace(planes=ragged.planes.float().view(2, 1, 12, 10))
    torch.testing.assert_close(plane_moments(dense), plane_moments(ragged))


def test_plane_seeds_know_a_plane_by_image_channel_type_and_rank(batch: ChannelBatch) -> None:
    seeds = plane_seeds(batch)
    assert len(set(seeds.tolist())) == batch.n_planes


@pytest.mark.parametrize(
    "normalizer",
    [
        SelfNormalize(eps=1e-5, divide_by=1.0, saturation_noise=True, saturation_low=180.0),
        DatasetNormalize({"nucleus": 0.1, "actin": 0.2, "protein": 0.3}, 0.5),
        SelfNormalize.tiny(),
        DatasetNormalize.tiny(),
    ],
)
def test_a_saved_normaliser_does_the_same(batch: ChannelBatch, normalizer: Normalizer) -> None:
    again = from_spec(json.loads(json.dumps(to_spec(normalizer))))
    assert torch.equal(again(batch).planes, normalizer(batch).planes)

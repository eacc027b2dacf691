"""Preparations of published protocols: what the network sees, against their loaders written plainly."""

import numpy as np
import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.benchmarks.preparations import PREPARATIONS
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.normalizers import DatasetNormalize, Normalizer, SelfNormalize
from morphem.pixel_steps import ZScore
from morphem.protocol_pixels import NoiseInOneChannel, PadToPatches, SampleZScore, prepared, remarks
from morphem.spec import from_spec, to_spec
from morphem.types import ChannelBatch
from morphem.zoo.seen import network_batch
from tests.references import chammi75_pixels as plain

SIDE, PATCH = 16, 8
RANDOM = np.random.default_rng(3)


def _encoder(normalizer: Normalizer | None = None, side: int | None = SIDE, after: Normalizer | None = None) -> Encoder:
    torch.manual_seed(0)
    encoder = Encoder(BagOfChannels(VisionTransformer.tiny()), normalizer or SelfNormalize(), side, after_resize=after)
    return encoder.double().eval()


def _plane(height: int, width: int) -> np.ndarray:
    rows, columns = np.mgrid[:height, :width]
    return (((rows * 3 + columns * 5) % 97) * 2 + RANDOM.integers(0, 40, (height, width))).astype(np.uint8)


def _batch(planes: list[np.ndarray], names: list[str]) -> ChannelBatch:
    return ChannelBatch.from_planes([[torch.from_numpy(plane) for plane in planes]], [names])


def _seen(encoder: Encoder, planes: list[np.ndarray], names: list[str] | None = None) -> list[np.ndarray]:
    batch = network_batch(encoder, _batch(planes, names or ["nucleus", "actin", "protein"][: len(planes)]))
    return [plane[0].numpy() for plane in batch.planes]


def test_chammi_crops_the_square_resizes_it_and_then_standardises() -> None:
    planes = [_plane(24, 38), _plane(24, 38)]
    for found, plane in zip(_seen(prepared(_encoder(), "square_resized_first"), planes), planes, strict=True):
        np.testing.assert_allclose(found, plain.chammi(plane, SIDE), atol=1e-9)
    assert abs(_seen(prepared(_encoder(), "square_resized_first"), planes)[0].var() - 1) < 1e-3
    assert _seen(_encoder(), planes)[0].var() < 0.9  # the encoder alone standardises first


def test_idr0017_has_both_states_of_the_public_code() -> None:
    planes = [_plane(25, 25), _plane(25, 25)]
    for name, standardise in (("without_noise", True), ("resized_only", False)):
        for found, plane in zip(_seen(prepared(_encoder(), name), planes), planes, strict=True):
            np.testing.assert_allclose(found, plain.idr0017(plane, SIDE, standardise), atol=1e-9)


def test_hpav23_stays_on_the_scale_of_grey_levels() -> None:
    usual, faint = _plane(20, 20), np.zeros((20, 20), np.uint8)
    faint[3, 4] = 1  # where epsilon matters
    for found, plane in zip(_seen(prepared(_encoder(), "grey_levels"), [usual, faint]), [usual, faint], strict=True):
        np.testing.assert_allclose(found, plain.hpav23(plane, SIDE), atol=1e-9)
    assert not np.allclose(found, _seen(_encoder(), [faint])[0], atol=1e-6)


def test_hpav23_has_noise_in_saturated_microtubules_alone() -> None:
    bright = _plane(SIDE, SIDE)
    bright[:4] = 255
    names = ["microtubules", "endoplasmic reticulum", "nucleus"]
    tubes, reticulum, nucleus = _seen(prepared(_encoder(), "grey_levels"), [bright, bright, bright], names)
    np.testing.assert_allclose(reticulum, plain.hpav23(bright, SIDE), atol=1e-9)
    np.testing.assert_allclose(nucleus, reticulum)
    assert len(np.unique(tubes[:4])) > 30
    assert len(np.unique(reticulum[:4])) == 1
    again = _seen(prepared(_encoder(), "grey_levels"), [bright, bright, bright], names)[0]
    assert np.array_equal(tubes, again)


@pytest.mark.parametrize(("size", "padded_to"), [(48, 48), (13, 16), (16, 16)])
def test_rbc_mc_does_not_resize_and_pads_to_whole_patches(size: int, padded_to: int) -> None:
    plane = _plane(size, size)
    (found,) = _seen(prepared(_encoder(), "unresized"), [plane])
    assert found.shape == (padded_to, padded_to)
    np.testing.assert_allclose(found, plain.rbc_mc(plane, PATCH), atol=1e-9)


def test_cellphie_standardises_over_the_zeros_around_the_neuron() -> None:
    plane, mask = _plane(20, 20), np.zeros((20, 20), np.uint8)
    mask[5:12, 3:15] = 1
    (found,) = _seen(prepared(_encoder(), "unresized_grey_levels"), [plane * mask])
    np.testing.assert_allclose(found, plain.cellphie(plane, mask, PATCH), atol=1e-9)
    (empty,) = _seen(prepared(_encoder(), "unresized_grey_levels"), [np.zeros((20, 20), np.uint8)])
    assert not empty.any()


@pytest.mark.parametrize("name", PREPARATIONS)
def test_features_of_a_preparation_do_not_depend_on_batch_mates(name: str) -> None:
    encoder = prepared(_encoder(), name)
    first, second = _plane(32, 32), _plane(32, 32)
    both = ChannelBatch.from_planes(
        [[torch.from_numpy(first)], [torch.from_numpy(second)]], [["microtubules"], ["actin"]], seeds=[5, 6]
    )
    alone = ChannelBatch.from_planes([[torch.from_numpy(first)]], [["microtubules"]], seeds=[5])
    torch.testing.assert_close(encoder.features(both)[:1], encoder.features(alone))
    assert encoder.channels is _same(encoder)


def _same(encoder: Encoder) -> object:
    return prepared(encoder, "unresized").channels


def test_noise_of_the_encoder_never_acts_where_the_loader_has_divided_before() -> None:
    bright = np.full((SIDE, SIDE), 255, np.uint8)
    bright[0] = 3
    encoder = _encoder(SelfNormalize(saturation_noise=True))
    for name, expected in (
        ("square_resized_first", plain.chammi(bright, SIDE)),
        ("without_noise", plain.idr0017(bright, SIDE, True)),
        ("unresized", plain.rbc_mc(bright, PATCH)),
    ):
        (found,) = _seen(prepared(encoder, name), [bright])
        np.testing.assert_allclose(found, expected, atol=1e-9)
    assert not np.allclose(_seen(encoder, [bright])[0], plain.idr0017(bright, SIDE, True))


def test_what_a_network_does_inside_stays_behind_the_padding() -> None:
    plane = _plane(13, 13)
    (found,) = _seen(prepared(_encoder(after=ZScore(1e-5)), "unresized"), [plane])
    expected = plain.rbc_mc(plane, PATCH)
    np.testing.assert_allclose(found, (expected - expected.mean()) / np.sqrt(expected.var() + 1e-5), atol=1e-9)


def test_an_encoder_with_fixed_statistics_keeps_them_and_says_so() -> None:
    encoder, plane = _encoder(DatasetNormalize(0.4, 0.2)), _plane(13, 13)
    (found,) = _seen(prepared(encoder, "unresized"), [plane])
    np.testing.assert_allclose(found, plain.padded((plane / 255 - 0.4) / 0.2, PATCH), atol=1e-9)
    (said,) = remarks(encoder, "unresized")
    assert "keeps its own normaliser (DatasetNormalize)" in said
    assert remarks(_encoder(), "unresized") == ()
    assert remarks(encoder, "own") == ()
    assert prepared(encoder, "grey_levels") is encoder


def test_the_spec_of_a_prepared_encoder_tells_its_steps_and_builds_it_again() -> None:
    encoder = _encoder()
    spec = to_spec(prepared(encoder, "unresized"))
    assert spec != to_spec(encoder)
    other = from_spec(spec)
    other.load_state_dict(encoder.state_dict())
    plane = _plane(13, 13)
    assert np.array_equal(_seen(other.double(), [plane])[0], _seen(prepared(encoder, "unresized"), [plane])[0])


def test_an_encoder_without_a_size_gets_that_of_the_loaders() -> None:
    (found,) = _seen(prepared(_encoder(side=None), "square_resized_first"), [_plane(40, 44)])
    assert found.shape == (224, 224)


def test_an_unknown_preparation_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="No preparation 'unresize'; did you mean 'unresized'"):
        prepared(_encoder(), "unresize")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SampleZScore(0.0), "divide_by=0.0 and eps=1e-07 must be above 0"),
        (lambda: PadToPatches((0, 8)), r"patch_px=\(0, 8\) must be at least 1 pixel"),
        (lambda: NoiseInOneChannel(divide_by=-1.0), "divide_by is -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(make: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

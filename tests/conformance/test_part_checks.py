"""The checks of parts catch what they are for; the failure names it."""

import pytest
import torch

from morphem.backbones.base import Backbone
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.normalizers import SelfNormalize
from morphem.testing import ContractError, check_backbone, check_encoder, check_plugin, check_strategy
from tests.conformance import odd_parts, odd_tokens

pytestmark = pytest.mark.usefixtures("odd_plugins")


def test_a_good_backbone_passes():
    check_backbone(odd_parts.Good)
    check_plugin("backbones", "good_backbone")


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (odd_parts.NoTiny, r"NoTiny: tiny\(\) cannot be built: RuntimeError: no such thing"),
        (odd_parts.WrongShape, r"WrongShape: returned the shape .* instead of \(15, 6\)"),
        (odd_parts.Half, "returned torch.float16 for float32 input"),
        (odd_parts.Mates, "gives plane 0 another embedding alone than among 15 planes"),
        (odd_parts.Random, "gives other numbers when called again"),
        (odd_parts.DrawsNumbers, "draws from torch's global generator"),
        (odd_parts.InPlace, "gives other numbers when called again|changes its input in place"),
        (odd_parts.Blind, "gives two different inputs the same embedding"),
        (odd_parts.Unused, "no gradient reaches idle"),
        (odd_parts.Forgetful, "gives other numbers after saving and loading"),
        (odd_parts.Positional, r"takes '\*sizes: int' in __init__"),
        (odd_parts.Untyped, "does not annotate the argument 'size'"),
        (odd_parts.NotCopied, "a deep copy shares .* with the original"),
        (odd_parts.Undocumented, "has no docstring"),
        (BagOfChannels, "does not derive from morphem.backbones.base.Backbone"),
        (Backbone, "is abstract; it must define forward, tiny"),
        (odd_parts.function, "is a function, not a class"),
    ],
)
def test_a_bad_backbone_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_backbone(cls)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("function", "is a function, not a class; register the class itself"),
        ("Camel", "a short name is lower case"),
        ("bad_backbone", "has no docstring"),
        ("random", "is also registered as 'backbones/alias'; one name is enough"),
    ],
)
def test_a_bad_registration_is_caught(name, message):
    with pytest.raises(ContractError, match=message):
        check_plugin("backbones", name)


def test_a_good_strategy_passes():
    check_strategy(odd_parts.MeanOfChannels)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (odd_parts.ByPosition, "reordered together with their names"),
        (odd_parts.Padded, r"gives image \d \(1 rows\) another embedding alone than among 6 images"),
        (odd_parts.FirstOnly, r"returned the shape \(15, 6\) instead of \(6, 6\)"),
        (odd_parts.FiveOnly, r"returned the shape \(3, 6\) instead of \(6, 6\)"),
    ],
)
def test_a_bad_strategy_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_strategy(cls)


@pytest.mark.parametrize(
    ("cls", "message"),
    [
        (odd_tokens.SkipsOne, "has sequences for the rows .* of 15 embeddings"),
        (odd_tokens.LongPatches, r"has patches of \(15, 15\) for \(15, 16\) tokens"),
        (odd_tokens.BeyondGrid, r"numbers patches beyond its grid of \(4, 4\)"),
        (odd_tokens.OtherEmbedding, r"gives another class token from encode\(tokens\)"),
        (odd_tokens.NoFirstToken, r"encodes to \(15, 16, 16\) instead of \(15, 17, 16\)"),
        (odd_tokens.WholeOnly, "cannot encode some of its tokens: ValueError: 16 tokens, please"),
        (odd_tokens.Together, "encodes a sequence otherwise alone than among others"),
        (odd_tokens.OnePixel, r"gives pixels of \(15, 16, 1\) instead of \(15, 16, 64\)"),
    ],
)
def test_a_bad_strategy_on_tokens_is_caught(cls, message):
    with pytest.raises(ContractError, match=message):
        check_strategy(cls)


def test_a_good_encoder_of_a_strangers_parts_passes():
    check_encoder(Encoder(odd_parts.MeanOfChannels(odd_parts.Good()), SelfNormalize(), input_size_px=16))


@pytest.mark.parametrize(
    ("normalizer", "message"),
    [
        (odd_parts.NoisyNormalize, r"gives other numbers when called again"),
        (odd_parts.BatchNormalize, r"features\(\) gives image 'tiny-0-1' another embedding alone"),
    ],
)
def test_an_encoder_whose_normaliser_is_not_pure_is_caught(normalizer, message):
    with pytest.raises(ContractError, match=message):
        check_encoder(Encoder(odd_parts.MeanOfChannels(odd_parts.Good()), normalizer(), input_size_px=16))


def test_the_checks_leave_the_global_generator_alone():
    before = torch.random.get_rng_state()
    check_backbone(odd_parts.Good)
    check_strategy(odd_parts.MeanOfChannels)
    assert torch.equal(before, torch.random.get_rng_state())

"""The check that embeddings beat those of an untrained encoder passes what learns and catches what does not."""

import pytest
import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.base import ChannelStrategy
from morphem.channels.channel_attention import ChannelAttention
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.methods.supervised import Supervised
from morphem.normalizers import SelfNormalize
from morphem.testing import ContractError, check_gain
from morphem.testing.gain import LEAST_GAIN, Aimless, gain_of, probe_area
from morphem.testing.phenotypes import phenotype_batch
from morphem.testing.training import train
from tests.conformance import odd_methods
from tests.references.probe_area import area_under_curve

PANELS = [("nucleus",), ("nucleus", "actin")]


def over_a_transformer(cls: type, strategy: type[ChannelStrategy] = BagOfChannels) -> type:
    """The same odd method over the smallest transformer, which random weights leave much to learn."""

    def tiny(kind: type) -> object:
        encoder = Encoder(strategy.tiny(), SelfNormalize(), input_size_px=32)
        return kind(encoder, MultiCrop([ViewRecipe(count=2, size_px=32)]))

    return type(cls.__name__, (cls,), {"__doc__": cls.__doc__, "tiny": classmethod(tiny)})


@pytest.mark.slow
def test_a_method_that_learns_from_labels_passes() -> None:
    assert check_gain(Supervised, seeds=[0]) > 0.2


@pytest.mark.slow
@pytest.mark.parametrize("cls", [odd_methods.Collapsing, odd_methods.NotLearning])
def test_a_method_that_learns_nothing_of_the_phenotype_is_caught(cls: type) -> None:
    with pytest.raises(ContractError, match="do not make embeddings that tell phenotypes apart"):
        check_gain(over_a_transformer(cls), n_steps=192)


@pytest.mark.slow
@pytest.mark.xfail(strict=True, reason="large random steps mix the input so much that a linear probe finds 0.91 of 1")
def test_random_answers_far_from_zero_are_caught_too() -> None:
    with pytest.raises(ContractError, match="do not make embeddings that tell phenotypes apart"):
        check_gain(over_a_transformer(odd_methods.Idle, ChannelAttention), n_steps=192)


@pytest.mark.slow
def test_training_on_random_answers_is_no_lesson_also_where_it_beats_random_weights() -> None:
    gain = [after - before for before, after in (gain_of(Aimless, BagOfChannels, seed, 192) for seed in (0, 1))]
    assert sum(gain) / 2 > LEAST_GAIN
    with pytest.raises(ContractError, match="better than training on random answers does"):
        check_gain(Aimless, BagOfChannels, n_steps=192)


@pytest.mark.usefixtures("odd_plugins")
def test_an_encoder_that_needs_no_training_is_named() -> None:
    with pytest.raises(
        ContractError, match=r"random weights already tell the phenotypes apart \(area under the curve 0.9"
    ):
        check_gain(odd_methods.Agree, seeds=[0], n_steps=8)


@pytest.mark.parametrize("cls", [odd_methods.Idle, odd_methods.Collapsing])
@pytest.mark.usefixtures("odd_plugins")
def test_the_loss_of_a_method_that_learns_nothing_useful_falls_all_the_same(cls: type) -> None:
    losses = train(cls.tiny(), epochs=15).losses
    assert losses[-1] < 0.99 * losses[0]


def test_the_area_is_the_share_of_pairs_in_the_right_order() -> None:
    torch.manual_seed(0)
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32).eval()
    fitted, judged = phenotype_batch(PANELS, 30, 1), phenotype_batch(PANELS, 24, 2)
    assert probe_area(encoder, fitted, judged) == pytest.approx(area_under_curve(encoder, fitted, judged), abs=1e-9)


def test_the_phenotype_is_in_the_fibres_and_in_nothing_else() -> None:
    batch = phenotype_batch(PANELS, 200, 0)
    planes = batch.planes.reshape(-1, 40, 40).float()
    kinds = batch.labels[:, 0][batch.image_of_plane()]
    rough = ((planes.diff(dim=1).abs().mean((1, 2)) > planes.diff(dim=2).abs().mean((1, 2))).long() == kinds).float()
    assert float(rough.mean()) > 0.95  # the steeper direction is across the fibres
    for value in (planes.mean((1, 2)), planes.std((1, 2)), planes[:, 20, 20]):
        first, second = value[kinds == 0], value[kinds == 1]
        assert abs(float(first.mean() - second.mean())) < 0.35 * float(value.std())
    assert 0.4 < float(kinds.float().mean()) < 0.6
    panels = torch.tensor([int(count) for count in batch.offsets.diff()])
    one = batch.labels[:, 0][panels == 1].float().mean()
    assert abs(float(one - batch.labels[:, 0].float().mean())) < 0.1


def test_other_seeds_give_other_images_and_the_same_seed_the_same() -> None:
    first, again, other = (phenotype_batch(PANELS, 4, seed) for seed in (0, 0, 1))
    assert torch.equal(first.planes, again.planes)
    assert not torch.equal(first.planes, other.planes)

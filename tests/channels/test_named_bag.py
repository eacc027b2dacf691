import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.named_bag import NamedBag
from morphem.errors import ChannelError
from morphem.testing import check_strategy, dense_batch

OWN = {"Mito": "mitochondria", "band 3": "band 3"}


def _tiny() -> NamedBag:
    torch.manual_seed(0)
    return NamedBag(VisionTransformer.tiny(), ["mito", "band 3"], OWN).eval()


def test_the_contract_is_kept() -> None:
    check_strategy(NamedBag, [["rna", "nucleus", "actin"], ["nucleus"], ["r", "g"]])


def test_it_embeds_as_a_plain_bag() -> None:
    strategy, batch = _tiny(), dense_batch([["nucleus", "actin"]])
    assert torch.equal(strategy(batch), BagOfChannels(strategy.backbone).eval()(batch))


def test_names_and_numbers_of_the_authors_are_understood() -> None:
    named = [_tiny().resolve(name) for name in ("Mito", "mitotracker", "band 3", 0, "1")]
    assert named == ["mitochondria", "mitochondria", "band 3", "mitochondria", "band 3"]


def test_a_channel_that_is_not_in_the_list_is_refused() -> None:
    with pytest.raises(ChannelError, match=r"'rna' is not in the vocabulary of this encoder \(mitochondria, band 3\)"):
        _tiny().resolve("rna")

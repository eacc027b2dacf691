import pytest
import torch

from morphem.backbones.vit import VisionTransformer
from morphem.channels.rgb_bag import IMAGENET_MEAN, IMAGENET_STD, RGBBagOfChannels
from morphem.errors import ConfigError
from morphem.testing import check_strategy
from morphem.testing.batches import dense_batch


def test_the_contract_is_kept() -> None:
    check_strategy(RGBBagOfChannels)


def test_every_plane_is_a_grey_picture_with_its_colours_normalised() -> None:
    planes = torch.rand(2, 1, 3, 4)
    found = RGBBagOfChannels.tiny().pictures(planes)
    for plane in range(2):
        for colour in range(3):
            expected = (planes[plane, 0] - IMAGENET_MEAN[colour]) / IMAGENET_STD[colour]
            torch.testing.assert_close(found[plane, colour], expected)


def test_the_colours_are_no_weights() -> None:
    assert all(name.startswith("backbone.") for name in RGBBagOfChannels.tiny().state_dict())


def test_tokens_are_those_of_the_pictures() -> None:
    strategy = RGBBagOfChannels.tiny().eval()
    batch = dense_batch()
    with torch.no_grad():
        (part,) = strategy.sequences(batch)
        torch.testing.assert_close(strategy.encode(part.tokens)[:, 0], strategy(batch))


@pytest.mark.parametrize("colours", [{"mean": (0.5,)}, {"std": (1.0, 1.0)}, {"std": (1.0, 0.0, 1.0)}])
def test_colours_that_are_not_three_numbers_are_refused(colours: dict[str, tuple[float, ...]]) -> None:
    with pytest.raises(ConfigError, match="must be three numbers each"):
        RGBBagOfChannels(VisionTransformer.tiny(), **colours)

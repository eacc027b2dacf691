import pytest

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.dino import DINO
from morphem.pixel_steps import Chain, Divide, ZScore


def test_a_step_that_training_does_not_apply_is_refused() -> None:
    encoder = Encoder(BagOfChannels.tiny(), Chain([Divide(255.0)]), 16, after_resize=ZScore())
    with pytest.raises(
        ConfigError, match=r"after_resize \(ZScore\) is applied where images are embedded, not to the views"
    ):
        DINO.tiny(encoder)


def test_pixels_that_training_does_not_read_are_refused() -> None:
    encoder = Encoder(BagOfChannels.tiny(), Chain([Divide(65535.0)], input_domain="uint16"), 16)
    with pytest.raises(ConfigError, match="the encoder takes uint16 pixels, but training reads 8-bit planes"):
        DINO.tiny(encoder)

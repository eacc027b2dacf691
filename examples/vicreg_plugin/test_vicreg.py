"""The method keeps the contracts of every method: shapes, purity, save and load, resume, a falling loss."""

import pytest
from morphem_vicreg import VICReg

from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.testing import check_plugin


def test_vicreg_keeps_the_contracts() -> None:
    """All checks of `morphem plugins --check vicreg`."""
    check_plugin("methods", "vicreg")


def test_vicreg_refuses_more_than_two_views() -> None:
    """A setting without effect, or with an unclear one, is an error."""
    with pytest.raises(ConfigError, match=r"compares two views, but .* makes 3"):
        VICReg(Encoder.tiny(), MultiCrop([ViewRecipe(count=3, size_px=16)]))

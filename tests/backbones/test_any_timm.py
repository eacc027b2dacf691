import pytest
import torch

from morphem.backbones.any_timm import AnyTimm
from morphem.errors import ConfigError, DataError
from morphem.spec import from_spec, to_spec
from morphem.testing import check_backbone


def test_the_contract_is_kept() -> None:
    check_backbone(AnyTimm)


def test_settings_reach_timm_and_come_back_from_a_spec() -> None:
    network = AnyTimm("test_vit", 2, {"img_size": 32, "global_pool": "avg"})
    again = from_spec(to_spec(network))
    assert again.network.global_pool == "avg"
    assert again(torch.rand(3, 2, 32, 32)).shape == (3, again.embed_dim)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet1",), "No timm network 'resnet1'"),
        (("resnet18", 0), "in_channels=0 must be at least 1"),
        (("resnet18", 1, {"num_classes": 3}), "settings may not hold num_classes"),
        (("resnet18", 1, {"depth": 3}), "'resnet18' does not take"),
    ],
)
def test_what_timm_does_not_have_is_refused(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnyTimm(*arguments)  # type: ignore[arg-type]


def test_sizes_that_a_network_does_not_take_are_refused() -> None:
    with pytest.raises(DataError, match="does not take pictures of 40 x 32 pixels"):
        AnyTimm("test_vit", 1, {"img_size": 32})(torch.zeros(1, 1, 40, 32))

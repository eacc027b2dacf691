"""Whatever is registered keeps the contracts of its group, ours and that of every installed stranger."""

from pathlib import Path

import pytest

from morphem import registry
from morphem.testing import check_plugin, check_pretrained
from morphem.zoo.chammi75 import DINOBagOfChannels

ALL = [(group, name) for group in registry.GROUPS for name in registry.names(group)]


@pytest.mark.parametrize(("group", "name"), ALL, ids=[f"{group}-{name}" for group, name in ALL])
def test_a_registered_plugin_keeps_its_contract(group: str, name: str):
    check_plugin(group, name)


def test_every_group_that_we_ship_plugins_for_is_covered():
    assert {group for group, _ in ALL} >= {"methods", "channels", "backbones", "zoo", "sources"}


@pytest.mark.slow
def test_the_released_encoder_keeps_its_contract(golden: Path):
    assert check_pretrained(DINOBagOfChannels, golden / "morphem_hub.safetensors")

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from morphem.backbones.residual_cnn import ResidualCNN, ResidualDecoder
from morphem.errors import ConfigError, DataError
from morphem.testing import check_backbone
from tests.references.residual_cnn import decode, encode


def test_the_contract_is_kept() -> None:
    check_backbone(ResidualCNN)


def _randomised(module: torch.nn.Module) -> Mapping[str, Tensor]:
    """Give every tensor of a module a value of its own, running statistics included."""
    generator = torch.Generator().manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.is_floating_point():
            low = 0.5 if name.endswith(("running_var", "norm.weight")) else -0.5
            tensor.copy_(low + torch.rand(tensor.shape, generator=generator))
    return module.double().eval().state_dict()


def test_maps_and_embedding_are_those_of_the_plain_reference() -> None:
    network = ResidualCNN(widths=(3, 4, 5))
    weights = _randomised(network)
    planes = torch.rand(2, 1, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        maps, embedding = network.maps(planes), network(planes)
    for i in range(2):
        expected_maps, expected = encode(planes[i, 0].numpy(), weights, 3)
        for found, wanted in zip(maps, expected_maps, strict=True):
            torch.testing.assert_close(found[i], torch.from_numpy(wanted))
        torch.testing.assert_close(embedding[i], torch.from_numpy(expected))


def test_the_decoder_is_that_of_the_plain_reference() -> None:
    network, decoder = ResidualCNN(widths=(3, 4)), ResidualDecoder(widths=(3, 4))
    weights, painting = _randomised(network), _randomised(decoder)
    plane = torch.rand(1, 1, 6, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = decoder(network.maps(plane))[0, 0]
    expected = decode(*encode(plane[0, 0].numpy(), weights, 2), painting)
    torch.testing.assert_close(found, torch.from_numpy(expected))


def test_the_embedding_has_length_one() -> None:
    planes = torch.rand(3, 1, 16, 16)
    torch.testing.assert_close(ResidualCNN.tiny().eval()(planes).norm(dim=1), torch.ones(3))


def test_planes_that_no_pixel_is_left_of_are_refused() -> None:
    with pytest.raises(DataError, match="7 x 9 pixels are too small for 4 stages; both sides must be at least 8"):
        ResidualCNN()(torch.zeros(1, 1, 7, 9))


@pytest.mark.parametrize("widths", [(), (4, 0)])
def test_widths_that_make_no_network_are_refused(widths: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match="at least one number of at least 1"):
        ResidualCNN(widths)

"""The DINO head against a plain reference and against lightly's."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from morphem.heads import DINOHead
from tests.references import dino_formulas


def test_the_head_is_the_plain_formula() -> None:
    torch.manual_seed(0)
    head = DINOHead(5, n_prototypes=7, hidden_dim=6, bottleneck_dim=4).double()
    for layer in head.layers:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight)
            nn.init.normal_(layer.bias)
    x = torch.randn(3, 5, dtype=torch.float64)
    linear = [layer for layer in head.layers if isinstance(layer, nn.Linear)]
    expected = dino_formulas.head(
        x.numpy(),
        [layer.weight.detach().numpy() for layer in linear],
        [layer.bias.detach().numpy() for layer in linear],
        head.last_layer.parametrizations.weight.original1.detach().numpy(),
    )
    torch.testing.assert_close(head(x).detach(), torch.from_numpy(expected), rtol=1e-10, atol=1e-10)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_weights_of_lightlys_head_load_and_give_its_output() -> None:
    from lightly.models.modules.heads import DINOProjectionHead

    theirs = DINOProjectionHead(8, 16, 8, 32)
    mine = DINOHead(8, n_prototypes=32, hidden_dim=16, bottleneck_dim=8)
    mine.load_state_dict(theirs.state_dict())  # its keys are last_layer.weight_g and last_layer.weight_v
    x = torch.randn(4, 8)
    torch.testing.assert_close(mine(x), theirs(x))


def test_the_head_can_be_copied_after_it_was_used() -> None:
    head = DINOHead.tiny()
    x = torch.randn(2, 8)
    head(x).sum().backward()
    assert torch.equal(deepcopy(head)(x), head(x))


def test_prototypes_keep_length_one_unless_told_otherwise() -> None:
    fixed, free = DINOHead(8, 16, 16, 8), DINOHead(8, 16, 16, 8, norm_last_layer=False)
    torch.testing.assert_close(fixed.last_layer.weight.norm(dim=1), torch.ones(16))
    assert not fixed.last_layer.parametrizations.weight.original0.requires_grad
    assert free.last_layer.parametrizations.weight.original0.requires_grad


def test_scores_are_cosines() -> None:
    scores = DINOHead.tiny()(torch.randn(50, 8))
    assert scores.abs().max() <= 1 + 1e-6


def test_the_layers_start_as_published() -> None:
    torch.manual_seed(0)
    head = DINOHead(64, n_prototypes=16, hidden_dim=256, bottleneck_dim=32)
    assert float(head.layers[0].weight.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert not head.layers[0].bias.any()

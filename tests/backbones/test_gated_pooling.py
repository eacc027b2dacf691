import math

import pytest
import torch
from torch import Tensor

from morphem.backbones.gated_pooling import GatedAttentionPooling
from morphem.errors import ConfigError
from morphem.spec import from_spec, to_spec


def _plain(pooling: GatedAttentionPooling, tokens: Tensor) -> Tensor:
    """Pool the tokens of one image, (T, D), in loops."""
    gates = []
    for token in tokens:
        tanh = torch.tanh(pooling.tanh_gate.weight @ token + pooling.tanh_gate.bias)
        linear = pooling.gelu_gate.weight @ token + pooling.gelu_gate.bias
        gelu = torch.stack([x * 0.5 * (1 + math.erf(x.item() / math.sqrt(2))) for x in linear.detach()])
        gates.append(pooling.attention.weight @ (tanh * gelu) + pooling.attention.bias)
    scores = torch.stack(gates).exp()  # (T, heads)
    weights = scores / scores.sum(0)
    return torch.cat([sum(w * token for w, token in zip(column, tokens, strict=True)) for column in weights.T])


def test_pooling_is_the_formula() -> None:
    torch.manual_seed(0)
    pooling = GatedAttentionPooling(6, 5, 3).double()
    tokens = torch.randn(2, 7, 6, dtype=torch.float64)
    found = pooling(tokens)
    assert found.shape == (2, 18)
    for row, image in zip(found, tokens, strict=True):
        torch.testing.assert_close(row, _plain(pooling, image))


def test_weights_sum_to_one_and_the_order_of_tokens_is_nothing() -> None:
    torch.manual_seed(0)
    pooling, tokens = GatedAttentionPooling(6, 5, 2), torch.randn(2, 7, 6)
    torch.testing.assert_close(pooling.weights(tokens).sum(2), torch.ones(2, 2))
    torch.testing.assert_close(pooling(tokens[:, torch.randperm(7)]), pooling(tokens))


def test_a_spec_builds_it_again() -> None:
    again = from_spec(to_spec(GatedAttentionPooling(6, 5, 3)))
    assert (again.token_dim, again.embed_dim, again.tanh_gate.out_features) == (6, 18, 5)


def test_numbers_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="gated attention pooling: n_heads=0 must be at least 1"):
        GatedAttentionPooling(6, 5, 0)

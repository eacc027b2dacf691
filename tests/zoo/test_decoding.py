"""A decoder whose positions have the row first gives the same pixels when its weights are exchanged into ours."""

import pytest
import torch
from torch import Tensor, nn

from morphem import decoders
from morphem.backbones.positions import sincos_positions
from morphem.decoders import Canvas, DecoderRecipe, PerChannelDecoder, SharedDecoder
from morphem.errors import WeightsError
from morphem.zoo.decoding import load_exchanged, with_biases

TYPES = ("nucleus", "rna")
WIDTH = 8


def _decoder(kind: str) -> nn.Module:
    if kind == "shared":
        return SharedDecoder(6, 4, 2, DecoderRecipe(identity="types", width=WIDTH, depth=2, n_heads=2)).eval()
    recipe = DecoderRecipe(kind="per_channel", identity="types", channels=TYPES, width=WIDTH, depth=1, n_heads=2)
    return PerChannelDecoder(6, 4, 2, recipe).eval()


def _canvas() -> tuple[Tensor, Canvas]:
    draw = torch.Generator().manual_seed(1)
    visible = torch.tensor([[0, 3, 5, 7]])
    channels = torch.arange(2).repeat_interleave(6)[None]
    patches = torch.arange(6).repeat(2)[None]
    canvas = Canvas(visible, channels, patches, (2, 3), torch.tensor([[0, 1]]), torch.zeros(1, 12, 6))
    return torch.randn(1, 5, 6, generator=draw), canvas


@pytest.mark.parametrize("kind", ["shared", "per_channel"])
def test_exchanged_weights_give_the_same_pixels(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    theirs, ours, (encoded, canvas) = _decoder(kind), _decoder(kind), _canvas()
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.3)
    plainly = _decoder(kind)
    plainly.load_state_dict(theirs.state_dict())
    load_exchanged(ours, theirs.state_dict(), WIDTH, "test")
    with torch.no_grad():
        mine, wrong = ours(encoded, canvas), plainly(encoded, canvas)
        row_first = sincos_positions((2, 3), WIDTH)[0]
        monkeypatch.setattr(decoders, "patch_positions", lambda grid, width, device: row_first)
        expected = theirs(encoded, canvas)
    torch.testing.assert_close(mine, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(wrong, expected, atol=1e-2)


def test_weights_that_do_not_match_are_refused_with_their_names() -> None:
    state = _decoder("shared").state_dict()
    del state["norm.bias"]
    with pytest.raises(WeightsError, match=r"test does not fit this architecture: 1 missing \(norm\.bias\)"):
        load_exchanged(_decoder("shared"), state, WIDTH, "test")


def test_biases_that_are_left_out_become_zeros() -> None:
    complete = with_biases({"a.qkv.weight": torch.ones(6, 2), "b.proj.weight": torch.ones(2, 2)})
    assert complete["a.qkv.bias"].tolist() == [0.0] * 6
    assert "b.proj.bias" not in complete

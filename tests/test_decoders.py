"""Decoders: what they are given, who may look at whom, and what tells channels apart."""

import pytest
import torch
from torch import Tensor

from morphem.decoders import (
    Canvas,
    CrossAttention,
    DecoderRecipe,
    PerChannelDecoder,
    SharedDecoder,
    channel_context,
    patch_positions,
)
from morphem.errors import ConfigError
from tests.references import masked_autoencoder as plain

SMALL = {"width": 8, "depth": 1, "n_heads": 2}
D, X, N_TYPES = 6, 5, 4


def _recipe(identity: str, kind: str = "shared") -> DecoderRecipe:
    channels = ("nucleus", "actin", "rna", "mitochondria") if kind == "per_channel" else None
    return DecoderRecipe(kind=kind, identity=identity, channels=channels, **SMALL)  # type: ignore[arg-type]


def _build(identity: str, kind: str = "shared") -> SharedDecoder | PerChannelDecoder:
    torch.manual_seed(4)
    cls = PerChannelDecoder if kind == "per_channel" else SharedDecoder
    return cls(D, X, N_TYPES, _recipe(identity, kind)).eval()


def _case(n_visible: int = 3, types: tuple[tuple[int, ...], ...] = ((0, 2), (1, 3))) -> tuple[Tensor, Canvas]:
    """Two sequences of two channels on a grid of 2 x 3, with one prefix token."""
    generator = torch.Generator().manual_seed(9)
    channels = torch.arange(2).repeat_interleave(6).expand(2, -1)
    patches = torch.arange(6).repeat(2).expand(2, -1)
    visible = torch.stack([torch.randperm(12, generator=generator)[:n_visible].sort().values for _ in range(2)])
    encoded = torch.randn(2, 1 + n_visible, D, generator=generator)
    places = torch.randn(2, 12, D, generator=generator)
    context = torch.randn(2, 2, D, generator=generator)
    return encoded, Canvas(visible, channels, patches, (2, 3), torch.tensor(types), places, context)


@pytest.mark.parametrize("identity", ["none", "places", "types", "context"])
def test_visible_tokens_stand_at_their_places_and_the_mask_token_at_all_others(identity: str) -> None:
    entry = _build(identity).entry
    encoded, canvas = _case()
    with torch.no_grad():
        prefix, tokens = entry(encoded, canvas)
        expected = torch.empty(2, 12, 8, dtype=torch.float64)
        for b in range(2):
            for t in range(12):
                visible = (canvas.visible[b] == t).nonzero()
                content = entry.project(encoded[b, 1 + int(visible)]) if len(visible) else entry.mask_token
                if identity == "places":
                    expected[b, t] = content + entry.places(canvas.places[b, t])
                    continue
                row, column = divmod(int(canvas.patches[b, t]), 3)
                place = content + torch.from_numpy(plain.position(row, column, 8))
                channel = int(canvas.channels[b, t])
                if identity == "types":
                    place = place + entry.types.weight[canvas.types[b, channel]]
                elif identity == "context":
                    assert canvas.context is not None
                    place = place + entry.context(canvas.context[b, channel])
                expected[b, t] = place
        torch.testing.assert_close(tokens.double(), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(prefix, entry.project(encoded[:, :1]))


@pytest.mark.parametrize("grid", [(1, 1), (2, 3), (14, 14)])
def test_positions_are_maes(grid: tuple[int, int]) -> None:
    table = patch_positions(grid, 16, torch.device("cpu"))
    assert table.shape == (grid[0] * grid[1], 16)
    for patch in range(len(table)):
        expected = plain.position(*divmod(patch, grid[1]), 16)
        torch.testing.assert_close(table[patch].double(), torch.from_numpy(expected), atol=1e-6, rtol=0)


def test_cross_attention_is_the_formula() -> None:
    torch.manual_seed(0)
    module = CrossAttention(8, 2).double()
    queries, context = torch.randn(3, 4, 8).double(), torch.randn(3, 5, 8).double()
    with torch.no_grad():
        found = module(queries, context)
        for b in range(3):
            q, (k, v) = module.q(queries[b]), module.kv(context[b]).split(8, dim=1)
            seen = torch.from_numpy(plain.attention(q.numpy(), k.numpy(), v.numpy(), 2))
            torch.testing.assert_close(found[b], module.out(seen))


@pytest.mark.parametrize(("identity", "kind"), [("types", "shared"), ("context", "shared"), ("types", "per_channel")])
def test_hidden_patches_at_one_place_are_told_apart_by_channel(identity: str, kind: str) -> None:
    decoder = _build(identity, kind)
    encoded, canvas = _case()
    with torch.no_grad():
        predicted = decoder(encoded, canvas).unflatten(1, (2, 6))
    assert predicted.shape == (2, 2, 6, X)
    both_hidden = torch.ones(2, 12, dtype=torch.bool).scatter(1, canvas.visible, False).unflatten(1, (2, 6)).all(1)
    assert both_hidden.any()
    difference = (predicted[:, 0] - predicted[:, 1]).abs().amax(2)[both_hidden]
    assert (difference > 1e-4).all()


def test_without_identity_hidden_patches_at_one_place_get_one_prediction() -> None:
    encoded, canvas = _case()
    with torch.no_grad():
        predicted = _build("none")(encoded, canvas).unflatten(1, (2, 6))
    both_hidden = torch.ones(2, 12, dtype=torch.bool).scatter(1, canvas.visible, False).unflatten(1, (2, 6)).all(1)
    assert ((predicted[:, 0] - predicted[:, 1]).abs().amax(2)[both_hidden] < 1e-5).all()


@pytest.mark.parametrize("kind", ["shared", "per_channel"])
def test_a_sequence_is_reconstructed_alone_as_among_others_and_in_any_order_of_channels(kind: str) -> None:
    decoder = _build("types", kind)
    encoded, canvas = _case()
    swap = (torch.arange(12) + 6) % 12  # channel 1 before channel 0
    turned = canvas._replace(
        visible=(canvas.visible + 6) % 12, types=canvas.types.flip(1), places=canvas.places[:, swap]
    )
    with torch.no_grad():
        together = decoder(encoded, canvas)
        torch.testing.assert_close(decoder(encoded, turned)[:, swap], together, atol=1e-5, rtol=1e-5)
        for b in range(2):
            alone = Canvas(*(x[b : b + 1] if isinstance(x, Tensor) else x for x in canvas))
            torch.testing.assert_close(decoder(encoded[b : b + 1], alone)[0], together[b], atol=1e-5, rtol=1e-5)


def test_a_channels_own_decoder_changes_that_channel_alone_and_the_cross_attention_all() -> None:
    decoder = _build("types", "per_channel")
    encoded, canvas = _case()
    with torch.no_grad():
        before = decoder(encoded, canvas).unflatten(1, (2, 6))
        decoder.decoders[2][0].mlp.fc2.bias += 1.0
        changed = (decoder(encoded, canvas).unflatten(1, (2, 6)) - before).abs().amax((2, 3)) > 1e-4
        assert changed.tolist() == [[False, True], [False, False]]  # type 2 is the second channel of the first image
        other = encoded.clone()
        other[0, 1:] += 1.0  # visible tokens of the first image
        moved = (decoder(other, canvas).unflatten(1, (2, 6)) - decoder(encoded, canvas).unflatten(1, (2, 6))).abs()
        assert (moved.amax((2, 3)) > 1e-4).tolist() == [[True, True], [False, False]]


def test_decoders_without_work_take_part_in_training_with_no_effect() -> None:
    decoder = _build("types", "per_channel")
    encoded, canvas = _case(types=((0, 2), (2, 0)))
    with torch.no_grad():
        before = decoder(encoded, canvas)
    decoder.train()
    after = decoder(encoded, canvas)
    assert torch.equal(before, after.detach())
    after.square().sum().backward()
    idle = [parameter.grad for number in (1, 3) for parameter in decoder.decoders[number].parameters()]
    assert all(gradient is not None and not gradient.any() for gradient in idle)


def _planes() -> tuple[Tensor, Tensor, Tensor]:
    content = torch.randn(5, D, generator=torch.Generator().manual_seed(6))
    return content, torch.tensor([0, 1, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 2])


def test_context_is_the_mean_over_the_planes_of_a_type_in_the_batch() -> None:
    content, types, images = _planes()
    found = channel_context(content, types, images, 3, "batch", gather=True)
    torch.testing.assert_close(found[0], content[[0, 2, 3]].mean(0))
    torch.testing.assert_close(found[1], content[[1, 4]].mean(0))
    assert torch.equal(found[0], found[3])


def test_context_of_a_sample_looks_at_that_image_alone() -> None:
    content, types, images = _planes()
    found = channel_context(content, types, images, 3, "sample", gather=True)
    torch.testing.assert_close(found[2], content[[2, 3]].mean(0))
    torch.testing.assert_close(found[[0, 1, 4]], content[[0, 1, 4]])


def test_no_gradient_flows_through_the_context() -> None:
    content, types, images = _planes()
    assert not channel_context(content.requires_grad_(), types, images, 3, "global", gather=True).requires_grad


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "joint"}, "No choice 'joint'"),
        ({"identity": "type"}, "did you mean 'types'"),
        ({"width": 10, "n_heads": 2}, "a multiple of 4 and of n_heads"),
        ({"depth": 0}, "all must be at least 1"),
        ({"kind": "per_channel", "identity": "types"}, "needs the channel types that get a decoder"),
        ({"kind": "per_channel", "channels": ["rna"]}, "set identity: types"),
        ({"channels": ["rna"]}, "has no effect with identity: none"),
        ({"identity": "types", "channels": ["rna", "rna"]}, "must name each type once"),
        ({"context_over": "batch"}, "context_over is set but has no effect"),
    ],
)
def test_recipes_without_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecoderRecipe(**settings)  # type: ignore[arg-type]

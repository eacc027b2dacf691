"""The diversity terms agree with plain loops over pairs, and are what they are for."""

import numpy as np
import pytest
import torch

from morphem.losses.diversity import channel_confusion, token_likeness
from tests.references import diversity as plain


@pytest.mark.parametrize(("n_channels", "per_channel", "width"), [(1, 4, 3), (2, 3, 5), (4, 2, 8), (3, 1, 4)])
@pytest.mark.parametrize("hidden", [False, True])
def test_token_likeness_is_the_mean_over_all_pairs(n_channels: int, per_channel: int, width: int, hidden: bool) -> None:
    generator = np.random.default_rng([n_channels, per_channel, width])
    tokens = generator.normal(size=(2, n_channels * per_channel, width))
    channels = [generator.permutation(np.repeat(np.arange(n_channels), per_channel)).tolist() for _ in range(2)]
    seen = [(generator.random(n_channels * per_channel) < 0.6).tolist() for _ in range(2)] if hidden else None
    within, across = token_likeness(
        torch.tensor(tokens), torch.tensor(channels), n_channels, None if seen is None else torch.tensor(seen)
    )
    for image in range(2):
        visible = [True] * len(channels[image]) if seen is None else seen[image]
        expected = plain.token_likeness(tokens[image], channels[image], visible)
        assert (float(within[image]), float(across[image])) == pytest.approx(expected, abs=1e-12)


def test_equal_tokens_are_as_like_as_can_be_and_orthogonal_ones_are_not_alike() -> None:
    channels = torch.tensor([[0, 0, 1, 1]])
    same = token_likeness(torch.ones(1, 4, 6), channels, 2)
    assert [float(value) for value in same] == pytest.approx([1.0, 1.0])
    apart = token_likeness(torch.eye(4)[None], channels, 2)
    assert [float(value) for value in apart] == pytest.approx([0.0, 0.0], abs=1e-6)


def test_the_length_of_a_token_does_not_count() -> None:
    tokens, channels = torch.randn(1, 6, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([[0, 1] * 3])
    scaled = tokens * torch.arange(1.0, 7.0)[None, :, None]
    torch.testing.assert_close(token_likeness(scaled, channels, 2), token_likeness(tokens, channels, 2))


@pytest.mark.parametrize("among_present", [True, False])
@pytest.mark.parametrize("temperature", [0.07, 0.1, 1.0])
def test_channel_confusion_is_the_cross_entropy_of_finding_the_own_proxy(
    among_present: bool, temperature: float
) -> None:
    generator = np.random.default_rng(3)
    embeddings, proxies = generator.normal(size=(2, 5, 7))
    images = [{0, 1, 4}, {2}, {0, 1, 2, 3, 4}, set()]
    present = torch.tensor([[kind in types for kind in range(5)] for types in images])
    found = channel_confusion(
        torch.tensor(embeddings), torch.tensor(proxies), present, temperature, among_present=among_present
    )
    expected = [
        plain.channel_confusion(embeddings, proxies, types, temperature, among_present=among_present)
        for types in images
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-10)


def test_a_channel_alone_has_nothing_to_be_confused_with() -> None:
    embeddings, proxies = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    alone = torch.tensor([[False, True, False]])
    assert float(channel_confusion(embeddings, proxies, alone, 0.1, among_present=True)) == 0.0
    assert float(channel_confusion(embeddings, proxies, alone, 0.1, among_present=False)) > 0


def test_images_without_a_known_type_leave_finite_gradients() -> None:
    embeddings, proxies = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(1)).unbind(0)
    embeddings.requires_grad_()
    channel_confusion(embeddings, proxies, torch.zeros(2, 3).bool(), 0.1, among_present=True).sum().backward()
    assert bool(embeddings.grad.isfinite().all())


def test_following_the_gradient_moves_channel_embeddings_apart() -> None:
    embeddings = torch.ones(3, 8) + 0.1 * torch.randn(3, 8, generator=torch.Generator().manual_seed(2))
    proxies = torch.eye(3, 8)
    embeddings.requires_grad_()
    optimizer = torch.optim.SGD([embeddings], lr=1.0)

    def cosine() -> float:
        unit = torch.nn.functional.normalize(embeddings.detach(), dim=1)
        return float((unit @ unit.T)[0, 1])

    before = cosine()
    for _ in range(200):
        optimizer.zero_grad()
        channel_confusion(embeddings, proxies, torch.ones(1, 3).bool(), 1.0, among_present=True).sum().backward()
        optimizer.step()
    assert cosine() < before - 0.3

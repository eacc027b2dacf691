import math

import torch

from morphem.channels.sampling import one_seed, sample_channels

N = 4000


def _panels(n_images: int, n_channels: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    offsets = torch.arange(n_images + 1) * n_channels
    types = torch.arange(n_channels).repeat(n_images)
    return offsets, types, torch.zeros_like(types)


def _kept(chosen: torch.Tensor, n_images: int, n_channels: int) -> torch.Tensor:
    return torch.zeros(n_images * n_channels).index_fill(0, chosen, 1).reshape(n_images, n_channels)


def test_every_number_of_channels_is_as_likely_as_every_other() -> None:
    kept = _kept(sample_channels(*_panels(N, 5), torch.arange(N)), N, 5)
    shares = torch.bincount(kept.sum(1).long(), minlength=6)[1:] / N
    torch.testing.assert_close(shares, torch.full((5,), 0.2), atol=0.03, rtol=0)


def test_every_channel_is_kept_as_often_as_every_other() -> None:
    kept = _kept(sample_channels(*_panels(N, 5), torch.arange(N)), N, 5)
    torch.testing.assert_close(kept.mean(0), torch.full((5,), 0.6), atol=0.03, rtol=0)  # (1 + 2 + ... + 5) / 25


def test_images_of_one_seed_and_one_panel_keep_the_same_channels_in_any_order() -> None:
    offsets, types, repeats = torch.tensor([0, 4, 8]), torch.tensor([3, 1, 0, 2, 0, 1, 2, 3]), torch.zeros(8).long()
    for seed in range(20):
        chosen = sample_channels(offsets, types, repeats, torch.tensor([seed, seed]))
        first, second = types[chosen[chosen < 4]], types[chosen[chosen >= 4]]
        assert set(first.tolist()) == set(second.tolist())


def test_planes_of_one_type_are_drawn_one_by_one() -> None:
    types, repeats = torch.zeros(3 * N).long(), torch.arange(3).repeat(N)
    kept = _kept(sample_channels(torch.arange(N + 1) * 3, types, repeats, torch.arange(N)), N, 3)
    torch.testing.assert_close(kept.mean(0), torch.full((3,), 2 / 3), atol=0.03, rtol=0)


def test_an_image_of_one_channel_keeps_it() -> None:
    offsets = torch.tensor([0, 1, 4])
    chosen = sample_channels(offsets, torch.tensor([0, 0, 1, 2]), torch.zeros(4).long(), torch.tensor([5, 9]))
    assert chosen[0] == 0
    assert len(chosen) >= 2


def test_after_the_first_channel_the_draw_is_a_softmax_of_unlikeness() -> None:
    table = torch.tensor([[1.0, 0.0], [math.cos(0.5), math.sin(0.5)], [0.0, 1.0]])
    temperature = 0.4
    chosen = sample_channels(*_panels(12 * N, 3), torch.arange(12 * N), table=table, temperature=temperature)
    kept = _kept(chosen, 12 * N, 3)
    pairs = kept[kept.sum(1) == 2]
    looks = torch.nn.functional.normalize(table, dim=1)
    chance = torch.zeros(3)  # of the channel that a pair leaves out
    for first in range(3):
        others = [i for i in range(3) if i != first]
        weights = torch.exp((1 - looks[others] @ looks[first]) / temperature)
        for other, weight in zip(others, weights / weights.sum(), strict=True):
            chance[3 - first - other] += weight / 3
    torch.testing.assert_close(1 - pairs.mean(0), chance, atol=0.015, rtol=0)


def test_the_seed_of_a_batch_does_not_depend_on_its_order() -> None:
    seeds = torch.tensor([3, -8, 11])
    assert torch.equal(one_seed(seeds), one_seed(seeds.flip(0)))
    assert len(set(one_seed(seeds).tolist())) == 1
    assert not torch.equal(one_seed(seeds), one_seed(seeds + 1))

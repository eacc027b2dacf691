"""Block masks: rectangles, the number asked for, and nothing that depends on batch mates or order."""

import pytest
import torch
from torch import Tensor

from morphem.block_masks import block_masks, hidden_in_blocks
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_attention import ChannelAttention
from morphem.channels.fixed_channels import FixedChannels
from morphem.testing.batches import dense_batch, permute_channels, take
from morphem.types import ChannelBatch

SEEDS = torch.arange(300)


def _hidden(strategy: object, batch: ChannelBatch, *, together: bool = False, probability: float = 1.0) -> list[Tensor]:
    """Hidden patches of each sequence by plane of the batch, (P, N), for a strategy's sequences."""
    assert isinstance(strategy, BagOfChannels | ChannelAttention)
    result: dict[int, Tensor] = {}
    parts = strategy.sequences(batch)
    for part, hidden in zip(parts, hidden_in_blocks(batch, parts, probability, (0.3, 0.5), together), strict=True):
        n_patches = part.grid[0] * part.grid[1]
        for row, planes in zip(hidden, part.planes.tolist(), strict=True):
            result.update(zip(planes, row.reshape(-1, n_patches), strict=True))
    return [result[plane] for plane in sorted(result)]


@pytest.mark.parametrize("grid", [(14, 14), (6, 6), (2, 6), (4, 1), (2, 2), (1, 1)])
@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_as_many_patches_are_hidden_as_asked_for(grid: tuple[int, int], share: float) -> None:
    count = max(1, int(share * grid[0] * grid[1]))
    hidden = block_masks(SEEDS, torch.full_like(SEEDS, count), grid)
    found = hidden.sum((1, 2))
    assert hidden.shape == (300, *grid)
    assert found.max() <= count
    assert found.min() >= 1
    assert found.float().mean() > 0.93 * count


def test_no_patch_is_hidden_where_none_is_to_be() -> None:
    assert not block_masks(SEEDS, torch.zeros_like(SEEDS), (14, 14)).any()


def test_every_patch_is_hidden_at_times_and_those_inside_alike() -> None:
    seeds = torch.arange(4000)
    often = block_masks(seeds, torch.full_like(seeds, 59), (14, 14)).float().mean(0)
    assert float(often[4:10, 4:10].max() / often[4:10, 4:10].min()) < 1.3
    assert often.min() > 0.03  # corners are in few blocks


def test_hidden_patches_stand_in_blocks() -> None:
    hidden = block_masks(SEEDS, torch.full_like(SEEDS, 59), (14, 14)).float()
    neighbours = (hidden[:, 1:] * hidden[:, :-1]).sum() / hidden[:, 1:].sum()
    assert float(neighbours) > 0.7  # 0.3 if each were drawn by itself


def test_a_mask_depends_on_its_seed_and_count_alone() -> None:
    counts = torch.arange(300) % 98
    together = block_masks(SEEDS, counts, (14, 14))
    for i in (0, 7, 211):
        assert torch.equal(block_masks(SEEDS[i : i + 1], counts[i : i + 1], (14, 14))[0], together[i])
    assert not torch.equal(together[97], together[97 + 98])


@pytest.mark.parametrize("strategy", [BagOfChannels, ChannelAttention])
@pytest.mark.parametrize("together", [True, False])
def test_masks_depend_on_neither_batch_mates_nor_the_order_of_channels(strategy: type, together: bool) -> None:
    torch.manual_seed(0)
    strategy, batch = strategy.tiny(), dense_batch()
    masks = _hidden(strategy, batch, together=together)
    bounds = batch.offsets.tolist()
    for image in range(batch.n_images):
        alone = _hidden(strategy, take(batch, [image]), together=together)
        assert torch.equal(torch.stack(alone), torch.stack(masks[bounds[image] : bounds[image + 1]]))
    turned, order = permute_channels(batch)
    for plane, mask in enumerate(_hidden(strategy, turned, together=together)):
        assert torch.equal(mask, masks[int(order[plane])])


def test_channels_lose_the_same_patches_or_their_own_equally_many() -> None:
    strategy, batch = ChannelAttention.tiny(), dense_batch([("nucleus", "actin", "rna")] * 4)
    same = torch.stack(_hidden(strategy, batch, together=True)).unflatten(0, (4, 3))
    own = torch.stack(_hidden(strategy, batch)).unflatten(0, (4, 3))
    assert torch.equal(same[:, 0], same[:, 1])
    assert torch.equal(same[:, 0], same[:, 2])
    assert not torch.equal(own[:, 0], own[:, 1])
    assert torch.equal(own.sum(2).amax(1), own.sum(2).amin(1))


def test_a_token_of_all_channels_is_hidden_as_one() -> None:
    strategy = FixedChannels.tiny()
    batch = dense_batch([tuple(strategy.channels)] * 3)
    (part,) = strategy.sequences(batch)
    (hidden,) = hidden_in_blocks(batch, [part], 1.0, (0.3, 0.5), together=False)
    assert hidden.shape == part.patches.shape
    assert hidden.sum(1).min() >= 1
    assert len({tuple(row) for row in hidden.tolist()}) == 3


def test_the_share_of_images_with_hidden_patches_is_the_probability() -> None:
    strategy, batch = BagOfChannels.tiny(), dense_batch([("nucleus",)] * 400, size_px=16)
    masked = torch.stack(_hidden(strategy, batch, probability=0.25)).any(1)
    assert 0.15 < float(masked.float().mean()) < 0.35
    assert torch.stack(_hidden(strategy, batch, probability=1.0)).any(1).all()

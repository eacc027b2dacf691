"""Masks: how many patches are hidden, which, and on what that depends."""

import pytest
import torch
from torch import Tensor

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.sequences import Sequences
from morphem.errors import ConfigError
from morphem.masking import MaskRecipe, draw_masks, hidden_tokens, split_by_count
from morphem.testing.batches import PANELS, dense_batch, permute_channels, take

KINDS = {
    "independent": MaskRecipe(),
    "synchronised": MaskRecipe("synchronised", 0.8),
    "flat": MaskRecipe("flat", 0.5),
    "channels": MaskRecipe(None, channels=True),
    "both": MaskRecipe(ratio=0.25, channels=True),
    "synchronised and channels": MaskRecipe("synchronised", 0.25, channels=True),
}


def _seeds(count: int, n_channels: int) -> tuple[Tensor, Tensor]:
    planes = torch.arange(count * n_channels).reshape(count, n_channels) * 7919 + 13
    return torch.arange(count) * 104_729 + 5, planes


@pytest.mark.parametrize("n_channels", [1, 2, 5])
@pytest.mark.parametrize("kind", KINDS)
def test_every_image_keeps_some_patches_and_loses_some(kind: str, n_channels: int) -> None:
    masks = draw_masks([KINDS[kind]], *_seeds(200, n_channels), n_patches=16)
    assert masks.shape == (200, n_channels, 16)
    share = masks.flatten(1).float().mean(1)
    assert ((share > 0) & (share < 1)).all()


@pytest.mark.parametrize(
    ("n_patches", "ratio", "visible"), [(196, 0.75, 49), (64, 0.8, 12), (10, 0.9, 1), (49, 0.5, 24)]
)
def test_independent_masks_leave_the_same_number_in_every_channel(n_patches: int, ratio: float, visible: int) -> None:
    masks = draw_masks([MaskRecipe(ratio=ratio)], *_seeds(7, 3), n_patches=n_patches)
    assert ((~masks).sum(2) == visible).all()
    assert (masks[:, 0] != masks[:, 1]).any(1).all() or n_patches == 10  # ten places are often equal by chance


def test_synchronised_masks_are_the_same_in_all_channels_and_differ_between_images() -> None:
    masks = draw_masks([KINDS["synchronised"]], *_seeds(7, 3), n_patches=64)
    assert (masks == masks[:, :1]).all()
    assert len({tuple(mask.tolist()) for mask in masks[:, 0]}) == 7


def test_flat_masks_have_a_fixed_sum_but_channels_differ() -> None:
    masks = draw_masks([KINDS["flat"]], *_seeds(50, 4), n_patches=16)
    assert (masks.sum((1, 2)) == 32).all()
    assert len(masks.sum(2).unique()) > 3


def test_whole_channels_are_hidden_from_one_to_all_but_one_equally_often() -> None:
    masks = draw_masks([KINDS["channels"]], *_seeds(3000, 4), n_patches=4)
    whole = masks.all(2)
    assert torch.equal(whole, masks.any(2))
    counts = whole.sum(1).bincount(minlength=5)
    assert counts[0] == 0
    assert counts[4] == 0
    assert (counts[1:4] - 1000).abs().max() < 120  # 4.6 standard deviations
    assert (whole.float().mean(0) - 0.5).abs().max() < 0.05


def test_whole_channels_with_patches_may_hide_no_channel() -> None:
    masks = draw_masks([KINDS["both"]], *_seeds(3000, 3), n_patches=4)
    counts = masks.all(2).sum(1).bincount(minlength=4)
    assert counts[3] == 0
    assert (counts[:3] - 1000).abs().max() < 120
    assert (masks.sum(2)[~masks.all(2)] == 1).all()


def test_an_image_of_one_channel_loses_patches_where_others_lose_channels() -> None:
    masks = draw_masks([MaskRecipe(None, 0.5, channels=True)], *_seeds(20, 1), n_patches=16)
    assert (masks.sum((1, 2)) == 8).all()


def test_every_patch_is_hidden_equally_often() -> None:
    for recipe in (KINDS["independent"], KINDS["synchronised"], KINDS["flat"]):
        masks = draw_masks([recipe], *_seeds(4000, 2), n_patches=16)
        expected = masks.float().mean()
        assert (masks.float().mean(0) - expected).abs().max() < 0.035, recipe


def test_kinds_of_masks_are_drawn_by_their_weights() -> None:
    recipes = [
        MaskRecipe(ratio=0.25, weight=1.0),
        MaskRecipe(ratio=0.5, weight=3.0),
        MaskRecipe(ratio=0.75, weight=4.0),
    ]
    hidden = draw_masks(recipes, *_seeds(8000, 1), n_patches=4).sum((1, 2))
    counts = hidden.bincount(minlength=4)[1:]
    assert (counts - torch.tensor([1000, 3000, 4000])).abs().max() < 200


@pytest.mark.parametrize("kind", KINDS)
def test_a_mask_depends_neither_on_batch_mates_nor_on_the_order_of_channels(kind: str) -> None:
    strategy = BagOfChannels.tiny()
    batch = dense_batch()
    kinds = [KINDS[kind], MaskRecipe(ratio=0.5)]
    (part,) = strategy.sequences(batch)
    together = hidden_tokens(kinds, batch, part)
    for image in range(batch.n_images):
        alone = take(batch, [image])
        (part,) = strategy.sequences(alone)
        rows = slice(int(batch.offsets[image]), int(batch.offsets[image + 1]))
        assert torch.equal(hidden_tokens(kinds, alone, part), together[rows])
    turned, order = permute_channels(batch)
    (part,) = strategy.sequences(turned)
    assert torch.equal(hidden_tokens(kinds, turned, part), together[order])


def test_other_seeds_give_other_masks() -> None:
    strategy = BagOfChannels.tiny()
    batch = dense_batch()
    (part,) = strategy.sequences(batch)
    first = hidden_tokens([MaskRecipe()], batch, part)
    again = hidden_tokens([MaskRecipe()], batch._replace(seeds=batch.seeds + 1), part)
    assert (first != again).any(1).float().mean() > 0.9


def _sequences(n_channels: int, *, whole: bool) -> Sequences:
    """Tokens of one image in no order that anybody would choose, on a grid of 4 x 4."""
    shuffled = torch.randperm(16 if whole else 16 * n_channels, generator=torch.Generator().manual_seed(3))
    empty = torch.empty(1, len(shuffled), 2)
    channels = torch.full_like(shuffled, -1) if whole else shuffled // 16
    planes = torch.arange(n_channels)[None]
    return Sequences(empty, empty, channels[None], shuffled[None] % 16, planes, torch.tensor([0]), (4, 4))


def test_tokens_find_their_mask_in_any_order() -> None:
    batch = dense_batch([PANELS[0]])
    part = _sequences(5, whole=False)
    hidden = hidden_tokens([KINDS["synchronised"]], batch, part)[0]
    places = [part.patches[0][hidden & (part.channels[0] == channel)].sort().values for channel in range(5)]
    assert all(len(place) == 13 and torch.equal(place, places[0]) for place in places)


def test_tokens_of_all_channels_are_hidden_by_place() -> None:
    batch = dense_batch([PANELS[0]])
    assert hidden_tokens([MaskRecipe()], batch, _sequences(5, whole=True)).sum() == 12
    with pytest.raises(ConfigError, match=r"MaskRecipe\.channels: no channel can be hidden"):
        hidden_tokens([KINDS["channels"]], batch, _sequences(5, whole=True))


def test_sequences_are_grouped_by_what_is_left_without_losing_a_token() -> None:
    hidden = draw_masks([KINDS["both"]], *_seeds(40, 3), n_patches=4).flatten(1)
    groups = split_by_count(hidden)
    assert len(groups) == 3
    assert torch.cat([group.members for group in groups]).sort().values.tolist() == list(range(40))
    for members, visible, concealed in groups:
        for row, member in enumerate(members):
            assert visible[row].tolist() == (~hidden[member]).nonzero()[:, 0].tolist()
            assert concealed[row].tolist() == hidden[member].nonzero()[:, 0].tolist()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": 0.0}, "ratio is 0.0; it must be above 0"),
        ({"ratio": 1.0}, "ratio is 1.0; it must be above 0 and below 1"),
        ({"weight": 0.0}, "weight is 0.0; it must be above 0"),
        ({"patches": "sync"}, "did you mean 'synchronised'"),
        ({"patches": None}, "hides nothing with patches: null"),
        ({"patches": "flat", "channels": True}, "an image could lose all it has"),
    ],
)
def test_recipes_without_sense_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        MaskRecipe(**settings)  # type: ignore[arg-type]


def test_a_ratio_that_leaves_no_patch_is_refused_with_the_range_that_works() -> None:
    with pytest.raises(ConfigError, match=r"ratio=0\.99 of 4 patches leaves 0 visible.*from 0\.25 to 0\.75"):
        MaskRecipe(ratio=0.99).n_visible(4)
    with pytest.raises(ConfigError, match="of 1 patches leaves 0 visible"):
        MaskRecipe(ratio=0.5).n_visible(1)


def test_a_small_ratio_hides_one_patch() -> None:
    assert MaskRecipe(ratio=0.01).n_visible(4) == 3

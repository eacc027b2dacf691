import torch

from morphem.channels.selection import keep_planes
from morphem.testing import dense_batch, tiny_batch


def test_of_a_ragged_batch_the_pixels_names_and_offsets_of_the_kept_planes_remain() -> None:
    batch = tiny_batch([["nucleus", "actin"], ["rna"], ["r", "g", "b"]])
    kept = keep_planes(batch, torch.tensor([1, 2, 3, 5]))
    starts, areas = batch.starts().tolist(), batch.sizes.prod(1).tolist()
    expected = torch.cat([batch.planes[starts[i] : starts[i] + areas[i]] for i in (1, 2, 3, 5)])
    assert torch.equal(kept.planes, expected)
    assert kept.channel_types == ("actin", "rna", "r", "b")
    assert kept.offsets.tolist() == [0, 1, 2, 4]
    assert kept.sizes.prod(1).sum() == len(kept.planes)
    assert kept.keys == batch.keys


def test_of_a_dense_batch_the_same_planes_remain() -> None:
    batch = dense_batch([["nucleus", "actin"], ["rna"]])
    kept = keep_planes(batch, torch.tensor([0, 2]))
    assert torch.equal(kept.planes, batch.planes[[0, 2]])
    assert kept.offsets.tolist() == [0, 1, 2]

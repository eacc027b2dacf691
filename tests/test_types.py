"""ChannelBatch: the compressed-row form of images with any number of channels."""

import pickle

import pytest
import torch

from morphem.types import ChannelBatch


def make(sizes_per_image: list[list[tuple[int, int]]], first: int = 0, **kwargs) -> ChannelBatch:
    """Images whose pixels count up, so that every pixel says where it came from."""
    images, names, value = [], [], first
    for sizes in sizes_per_image:
        planes = []
        for height, width in sizes:
            planes.append((torch.arange(height * width) + value).remainder(251).to(torch.uint8).reshape(height, width))
            value += height * width
        images.append(planes)
        names.append([f"channel {i}" for i in range(len(planes))])
    return ChannelBatch.from_planes(images, names, **kwargs)


@pytest.fixture
def batch() -> ChannelBatch:
    return make([[(2, 3), (2, 3)], [(4, 1)], [(3, 3), (3, 3), (3, 3)]], keys=["a", "b", "c"], seeds=[5, 6, 7])


def test_counts_of_images_and_planes(batch):
    assert (batch.n_images, batch.n_planes, batch.ragged) == (3, 6, True)
    assert batch.offsets.tolist() == [0, 2, 3, 6]


def test_every_plane_lies_where_starts_says(batch):
    areas = batch.sizes.prod(1)
    assert batch.starts().tolist() == [0, 6, 12, 16, 25, 34]
    for start, area in zip(batch.starts().tolist(), areas.tolist(), strict=True):
        assert batch.planes[start : start + area].tolist() == [value % 251 for value in range(start, start + area)]


def test_every_plane_knows_its_image(batch):
    assert batch.image_of_plane().tolist() == [0, 0, 1, 2, 2, 2]


def test_nothing_is_padded(batch):
    assert len(batch.planes) == 6 + 6 + 4 + 27


def test_defaults_name_images_by_position_and_box_the_whole_plane():
    batch = make([[(2, 3)], [(4, 5)]])
    assert batch.keys == ("0", "1")
    assert batch.seeds.tolist() == [0, 0]
    assert batch.rows.tolist() == [0, 1]
    assert batch.boxes.tolist() == [[0, 0, 2, 3], [0, 0, 4, 5]]


def test_all_integers_are_int64(batch):
    for tensor in (batch.sizes, batch.offsets, batch.seeds, batch.boxes, batch.rows):
        assert tensor.dtype == torch.int64


def test_joining_parts_equals_building_at_once():
    whole = make([[(2, 3), (2, 3)], [(4, 1)], [(1, 1)]], keys=["a", "b", "c"], seeds=[1, 2, 3], rows=[7, 8, 9])
    left = make([[(2, 3), (2, 3)]], keys=["a"], seeds=[1], rows=[7])
    right = make([[(4, 1)], [(1, 1)]], first=12, keys=["b", "c"], seeds=[2, 3], rows=[8, 9])
    joined = ChannelBatch.cat([left, right])
    for name, value in whole._asdict().items():
        other = getattr(joined, name)
        assert torch.equal(value, other) if isinstance(value, torch.Tensor) else value == other, name


def test_joining_dense_batches_keeps_the_planes(batch):
    dense = batch._replace(planes=torch.rand(6, 1, 4, 4), sizes=torch.full((6, 2), 4))
    joined = ChannelBatch.cat([dense, dense])
    assert joined.planes.shape == (12, 1, 4, 4)
    assert joined.offsets.tolist() == [0, 2, 3, 6, 8, 9, 12]
    assert not joined.ragged


def test_joining_nothing_is_refused():
    with pytest.raises(ValueError, match="cannot join an empty list"):
        ChannelBatch.cat([])


def test_joining_different_forms_is_refused(batch):
    dense = batch._replace(planes=torch.rand(6, 1, 4, 4))
    with pytest.raises(ValueError, match="cannot join batches of planes"):
        ChannelBatch.cat([batch, dense])


def test_an_image_without_planes_is_refused():
    with pytest.raises(ValueError, match="at least one plane"):
        ChannelBatch.from_planes([[]], [[]])


def test_a_batch_without_images_is_refused():
    with pytest.raises(ValueError, match="at least one plane"):
        ChannelBatch.from_planes([], [])


def test_a_plane_without_a_channel_type_is_refused():
    with pytest.raises(ValueError, match="every plane of every image needs one channel type"):
        ChannelBatch.from_planes([[torch.zeros(2, 2)] * 2], [["nucleus"]])


def test_a_batch_is_pickled_whole(batch):
    again = pickle.loads(pickle.dumps(batch))
    assert torch.equal(again.planes, batch.planes)
    assert again.channel_types == batch.channel_types


def test_a_batch_moves_with_all_its_tensors(batch):
    moved = batch.to("meta")
    assert {value.device.type for value in moved if isinstance(value, torch.Tensor)} == {"meta"}
    assert moved.keys == batch.keys


def test_lightning_moves_a_batch_and_keeps_its_type(batch):
    from lightning.fabric.utilities import move_data_to_device

    moved = move_data_to_device(batch, torch.device("meta"))
    assert isinstance(moved, ChannelBatch)
    assert moved.planes.device.type == "meta"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_a_batch_is_pinned_with_all_its_tensors(batch):
    pinned = batch.pin_memory()
    assert all(value.is_pinned() for value in pinned if isinstance(value, torch.Tensor))

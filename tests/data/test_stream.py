from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from morphem.data.png import decode
from morphem.data.shards import ShardSet
from morphem.data.stream import CropStream
from morphem.errors import ConfigError
from morphem.rng import mix
from tests.data.records import make_image, write_set
from tests.data.streams import N_IMAGES, N_PLANES, TYPES, Seen, make_stream, seen, write_studies


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_studies(tmp_path_factory.mktemp("set"))


def epoch_of(stream: CropStream, epoch: int = 0) -> list[list[Seen]]:
    batches = [stream[epoch, step].batch for step in range(len(stream))]
    return [seen(batch) for batch in batches if batch is not None]


def samples_of(crops: list[Seen]) -> Counter[tuple[str, tuple[str, ...]]]:
    return Counter((crop.key, crop.channel_types) for crop in crops)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize(("unit", "n_samples"), [("image", N_IMAGES), ("plane", N_PLANES)])
@pytest.mark.parametrize("batch_size", [2, 4, 100])
def test_ranks_have_equal_numbers_of_batches_and_share_every_sample_once(
    root: Path, world_size: int, unit: str, n_samples: int, batch_size: int
) -> None:
    ranks = [
        epoch_of(make_stream(root, unit=unit, batch_size=batch_size, rank=rank, world_size=world_size))  # type: ignore[arg-type]
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(1 <= len(batch) <= batch_size for batches in ranks for batch in batches)
    crops = [crop for batches in ranks for batch in batches for crop in batch]
    assert len(samples_of(crops)) == len(crops) == n_samples
    assert sorted(crop.row for crop in crops) == list(range(n_samples))


def test_a_step_has_the_same_crops_for_every_world_size(root: Path) -> None:
    def global_batches(world_size: int) -> list[list[Seen]]:
        ranks = [
            epoch_of(make_stream(root, batch_size=6 // world_size, rank=rank, world_size=world_size), epoch=1)
            for rank in range(world_size)
        ]
        return [sorted(crop for batch in step for crop in batch) for step in zip(*ranks, strict=True)]

    assert global_batches(1) == global_batches(2) == global_batches(3)


def test_the_order_does_not_depend_on_how_many_shards_there_are(tmp_path: Path) -> None:
    images = [make_image(f"i{i}", seed=i) for i in range(6)]
    write_set(tmp_path / "one", images)
    write_set(tmp_path / "six", images, max_images=1)
    assert len(ShardSet(tmp_path / "six").manifest["shards"]) == 6
    assert epoch_of(make_stream(tmp_path / "one")) == epoch_of(make_stream(tmp_path / "six"))


def test_epochs_differ_in_order_and_in_crops(root: Path) -> None:
    stream = make_stream(root)
    first, second = ([crop for batch in epoch_of(stream, epoch) for crop in batch] for epoch in (0, 1))
    assert [crop.key for crop in first] != [crop.key for crop in second]
    assert samples_of(first) == samples_of(second)
    boxes = [{(crop.key, crop.channel_types): crop.box for crop in crops} for crops in (first, second)]
    assert sum(boxes[0][sample] != boxes[1][sample] for sample in boxes[0]) > N_PLANES * 0.7


def test_another_seed_gives_another_order_and_other_crops(root: Path) -> None:
    assert epoch_of(make_stream(root, seed=1)) != epoch_of(make_stream(root, seed=2))


def test_pixels_are_those_of_the_image_at_the_box(root: Path) -> None:
    shards = ShardSet(root)
    reader = shards.reader()
    rows = {(row["key"], row["imaging.channel_type"]): row for row in shards.table().to_pylist()}
    for crop in (crop for batch in epoch_of(make_stream(root, unit="image")) for crop in batch):
        y, x, height, width = crop.box
        expected = b""
        for channel_type in crop.channel_types:
            row = rows[crop.key, channel_type]
            plane = decode(reader.read(row["shard"], row["plane_offset"], row["plane_nbytes"]))
            expected += np.ascontiguousarray(plane[y : y + height, x : x + width]).tobytes()
        assert crop.pixels == expected


def test_an_image_keeps_its_channels_in_panel_order(root: Path) -> None:
    for crop in (crop for batch in epoch_of(make_stream(root, unit="image")) for crop in batch):
        assert crop.channel_types == TYPES[crop.key.split("--")[0]]


def test_the_seed_of_a_crop_depends_on_run_pass_sample_and_crop_alone(root: Path) -> None:
    stream = make_stream(root, seed=9, crops_per_image=2, shuffle=False)
    batch = stream[2, 1].batch
    assert batch is not None
    samples = [row // 2 - 2 * N_PLANES for row in batch.rows.tolist()]  # unshuffled: position in the pass
    expected = [mix(9, 2, sample, row % 2) for sample, row in zip(samples, batch.rows.tolist(), strict=True)]
    assert batch.seeds.tolist() == expected


def test_several_crops_of_a_sample_are_different_crops_of_one_decoded_plane(root: Path) -> None:
    batches = epoch_of(make_stream(root, batch_size=8, crops_per_image=4))
    assert all(1 <= len(batch) <= 8 for batch in batches)
    crops = [crop for batch in batches for crop in batch]
    assert set(samples_of(crops).values()) == {4}
    assert sorted(crop.row for crop in crops) == list(range(4 * N_PLANES))
    assert len({crop.seed for crop in crops}) == len(crops)


def test_an_epoch_of_a_given_length_goes_on_where_the_last_one_ended(root: Path) -> None:
    stream = make_stream(root, samples_per_epoch=10, batch_size=5)
    crops = [crop for epoch in range(12) for batch in epoch_of(stream, epoch) for crop in batch]
    assert len(stream) == 2
    assert [crop.row for crop in crops] == list(range(120))
    for turn in range(5):
        assert set(samples_of(crops[turn * N_PLANES : (turn + 1) * N_PLANES]).values()) == {1}


def test_a_balanced_epoch_has_every_study_equally_often_and_no_crop_twice(root: Path) -> None:
    stream = make_stream(root, unit="image", balance="cycle")
    crops = [crop for batch in epoch_of(stream) for crop in batch]
    assert Counter(crop.key.split("--")[0] for crop in crops) == {"alpha": 7, "beta": 7, "gamma": 7}
    assert len({crop.seed for crop in crops}) == 21


def test_an_image_smaller_than_its_crop_is_read_whole(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image(size=(5, 6), cells=[(0, 0), (5, 4)])])
    batch = make_stream(tmp_path, unit="image", batch_size=1)[0, 0].batch
    assert batch is not None
    assert batch.boxes.tolist() == [[0, 0, 5, 6]]


def test_crops_surround_the_cells_where_there_are_any(tmp_path: Path) -> None:
    write_set(tmp_path, [make_image(size=(80, 90), cells=[(20, 30)])])
    stream = make_stream(tmp_path)
    for epoch in range(20):
        for crop in (crop for batch in epoch_of(stream, epoch) for crop in batch):
            y, x, height, width = crop.box
            assert (y + height // 2, x + width // 2) == (30, 20)


def test_reading_draws_nothing_from_global_generators(root: Path) -> None:
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    epoch_of(make_stream(root))
    after = torch.get_rng_state(), np.random.get_state()[1].tolist()  # type: ignore[index]
    assert torch.equal(before[0], after[0])
    assert before[1] == after[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, "data.batch_size is 0"),
        ({"batch_size": 6, "crops_per_image": 4}, r"data.batch_size \(6\) is not a multiple"),
        ({"crops_per_image": 0}, "data.crops_per_image is 0"),
        ({"batch_size": 2, "crops_per_image": 4}, r"data.batch_size \(2\) is not a multiple"),
        ({"samples_per_epoch": 0}, "data.samples_per_epoch is 0"),
        ({"rank": 2, "world_size": 2}, "rank 2 is not in 0 to 1"),
    ],
)
def test_sizes_that_do_not_fit_are_refused_by_name(root: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_stream(root, **settings)


def test_pinning_copies_the_tensors_and_keeps_names_as_they_are(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", torch.Tensor.clone)  # there may be no GPU
    reading = make_stream(root)[0, 0]
    pinned = torch.utils.data._utils.pin_memory.pin_memory(reading)
    assert pinned.batch.planes.data_ptr() != reading.batch.planes.data_ptr()  # type: ignore[union-attr]
    assert seen(pinned.batch) == seen(reading.batch)  # type: ignore[arg-type]
    assert isinstance(pinned.batch.channel_types, tuple)


def damage(root: Path, key: str) -> None:
    """Flip a byte in the pixel data of the first plane of an image."""
    row = next(row for row in ShardSet(root).table().to_pylist() if row["key"] == key)
    with (root / row["shard"]).open("r+b") as file:
        file.seek(row["plane_offset"] + row["plane_nbytes"] - 30)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 255]))


def test_a_damaged_sample_is_left_out_and_named(root: Path, tmp_path: Path) -> None:
    keys = write_set(tmp_path, [make_image(f"i{i}", seed=i) for i in range(6)])
    damage(tmp_path, keys[2])
    stream = make_stream(tmp_path, unit="image", batch_size=3)
    readings = [stream[0, step] for step in range(len(stream))]
    faults = [fault for reading in readings for fault in reading.faults]
    assert [fault.member for fault in faults] == [f"study-000000.tar: {keys[2]}"]
    assert "damaged PNG" in faults[0].reason
    assert {key for reading in readings for key in reading.batch.keys} == set(keys) - {keys[2]}  # type: ignore[union-attr]
    assert [reading.n_samples for reading in readings] == [3, 3]


def test_a_batch_of_damaged_samples_alone_takes_the_next_readable_ones(tmp_path: Path) -> None:
    keys = write_set(tmp_path, [make_image(f"i{i}", seed=i, types=("actin",)) for i in range(4)])
    damage(tmp_path, keys[0])
    damage(tmp_path, keys[1])
    stream = make_stream(tmp_path, batch_size=2, shuffle=False)
    reading = stream[0, 0]
    assert reading.batch is not None
    assert reading.batch.keys == (keys[2],)
    assert (reading.n_samples, len(reading.faults)) == (3, 2)


def test_a_set_without_any_readable_sample_gives_no_batch(tmp_path: Path) -> None:
    keys = write_set(tmp_path, [make_image(f"i{i}", seed=i) for i in range(2)])
    for key in keys:
        damage(tmp_path, key)
    assert make_stream(tmp_path, unit="image", batch_size=2)[0, 0].batch is None


def test_an_epoch_of_more_ranks_than_samples_repeats_samples_instead_of_stopping(tmp_path: Path) -> None:
    keys = write_set(tmp_path, [make_image(f"i{i}", seed=i) for i in range(2)])
    batches = [epoch_of(make_stream(tmp_path, unit="image", rank=rank, world_size=5)) for rank in range(5)]
    assert [len(rank) for rank in batches] == [1] * 5
    assert {crop.key for rank in batches for crop in rank[0]} == set(keys)

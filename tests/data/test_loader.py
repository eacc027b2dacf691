import itertools
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from morphem.data.loader import DamageLog, StreamLoader
from morphem.data.stream import Fault, Reading
from morphem.errors import ConfigError, DataError
from tests.data.records import make_image, write_set
from tests.data.streams import N_PLANES, Seen, make_stream, seen, write_studies
from tests.data.test_stream import damage

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*worker processes in total"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_studies(tmp_path_factory.mktemp("set"))


def make_loader(
    root: Path, *, num_workers: int = 0, start_method: Any = None, fixed: bool = False, **settings: Any
) -> StreamLoader:
    return StreamLoader(
        make_stream(root, **settings), num_workers=num_workers, start_method=start_method, fixed_epoch=fixed
    )


def epochs(loader: StreamLoader, count: int) -> list[list[list[Seen]]]:
    return [[seen(batch) for batch in loader] for _ in range(count)]


@pytest.mark.parametrize("num_workers", [1, 3])
def test_workers_change_nothing(root: Path, num_workers: int) -> None:
    expected = epochs(make_loader(root), 3)
    assert len({str(epoch) for epoch in expected}) == 3
    assert epochs(make_loader(root, num_workers=num_workers, start_method="fork"), 3) == expected


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_all_ranks_and_workers_together_read_every_sample_once(root: Path, num_workers: int, world_size: int) -> None:
    ranks = [
        epochs(make_loader(root, num_workers=num_workers, batch_size=2, rank=rank, world_size=world_size), 1)[0]
        for rank in range(world_size)
    ]
    assert len({len(batches) for batches in ranks}) == 1
    rows = sorted(crop.row for batches in ranks for batch in batches for crop in batch)
    assert rows == list(range(N_PLANES))


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("stop", [0, 1, 5, 6])
def test_a_loader_resumes_with_exactly_the_remaining_batches(root: Path, num_workers: int, stop: int) -> None:
    whole = epochs(make_loader(root), 3)
    first = make_loader(root, num_workers=num_workers)
    epochs(first, 1)
    list(itertools.islice(first, stop))
    state = first.state_dict()
    assert all(type(value) is int for value in state.values())
    second = make_loader(root, num_workers=num_workers)
    second.load_state_dict(state)
    expected = (
        [whole[1][stop:], whole[2]] if stop else [whole[0][6:], whole[1]]
    )  # before a first batch nothing has moved
    assert epochs(second, 2) == expected


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 3])
def test_spawned_workers_change_nothing_and_resume_exactly(root: Path, num_workers: int) -> None:
    whole = epochs(make_loader(root), 2)
    first = make_loader(root, num_workers=num_workers, start_method="spawn")
    batches = [seen(batch) for batch in itertools.islice(first, 4)]
    second = make_loader(root, num_workers=num_workers, start_method="spawn")
    second.load_state_dict(first.state_dict())
    assert [batches + epochs(second, 1)[0], *epochs(second, 1)] == whole


def test_the_position_counts_batches_handed_out_and_not_those_made_ahead(root: Path) -> None:
    loader = make_loader(root, num_workers=1)
    iterator = iter(loader)
    next(iterator)
    assert loader.state_dict()["next_step"] == 1


def test_an_iteration_that_is_broken_off_leads_to_the_next_epoch(root: Path) -> None:
    whole = epochs(make_loader(root), 2)
    loader = make_loader(root, num_workers=2)
    list(itertools.islice(loader, 2))
    assert epochs(loader, 1) == [whole[1]]


def test_an_iterator_that_is_never_used_moves_nothing(root: Path) -> None:
    loader = make_loader(root)
    iter(loader)
    assert epochs(loader, 1) == epochs(make_loader(root), 1)


def test_setting_the_epoch_goes_to_its_start_and_keeps_the_place_within_it(root: Path) -> None:
    whole = epochs(make_loader(root), 4)
    loader = make_loader(root)
    loader.sampler.set_epoch(3)
    iterator = iter(loader)
    assert seen(next(iterator)) == whole[3][0]
    loader.set_epoch(3)
    assert seen(next(iterator)) == whole[3][1]
    loader.set_epoch(1)
    assert epochs(loader, 1) == [whole[1]]


def test_a_fixed_epoch_repeats_for_ever(root: Path) -> None:
    loader = make_loader(root, fixed=True)
    loader.set_epoch(5)
    first, second = epochs(loader, 2)
    assert first == second == epochs(make_loader(root), 1)[0]


def test_a_checkpoint_resumes_on_more_ranks_with_the_same_global_batch(root: Path) -> None:
    one = make_loader(root, batch_size=4)
    whole = epochs(make_loader(root, batch_size=4), 1)[0]
    list(itertools.islice(one, 2))
    rest = []
    for rank in range(2):
        loader = make_loader(root, batch_size=2, rank=rank, world_size=2)
        loader.load_state_dict(one.state_dict())
        rest.append(epochs(loader, 1)[0])
    assert [sorted(a + b) for a, b in zip(*rest, strict=True)] == [sorted(batch) for batch in whole[2:]]


@pytest.mark.parametrize("settings", [{"batch_size": 5}, {"seed": 3}, {"unit": "image"}, {"balance": "cycle"}])
def test_a_position_within_an_epoch_of_another_order_is_refused(root: Path, settings: dict[str, Any]) -> None:
    first = make_loader(root)
    list(itertools.islice(first, 2))
    with pytest.raises(ConfigError, match=r"stands at step 2 of epoch 0, .* resume with the same data, seed"):
        make_loader(root, **settings).load_state_dict(first.state_dict())


def test_at_the_end_of_an_epoch_settings_may_change(root: Path) -> None:
    first = make_loader(root)
    epochs(first, 1)
    second = make_loader(root, batch_size=8)
    second.load_state_dict(first.state_dict())
    assert epochs(second, 2) == [[], epochs(make_loader(root, batch_size=8), 2)[1]]


def test_making_batches_leaves_the_global_generator_alone(root: Path) -> None:
    before = torch.get_rng_state()
    epochs(make_loader(root, num_workers=1), 2)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_damaged_samples_are_counted_and_each_is_reported_once(tmp_path: Path, num_workers: int) -> None:
    keys = write_set(tmp_path, [make_image(f"i{i}", seed=i) for i in range(6)])
    damage(tmp_path, keys[2])
    loader = make_loader(tmp_path, num_workers=num_workers, unit="image")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        crops = [crop for epoch in epochs(loader, 3) for batch in epoch for crop in batch]
    messages = [str(warning.message) for warning in caught if issubclass(warning.category, UserWarning)]
    assert len(messages) == 1
    assert f"study-000000.tar: {keys[2]}" in messages[0]
    assert (loader.damage.n_read, loader.damage.n_skipped, len(loader.damage.members)) == (18, 3, 1)
    assert len(crops) == 15


def reading(n_samples: int, *keys: str) -> Reading:
    batch: Any = object()
    return Reading(batch, n_samples, tuple(Fault(f"a.tar: {key}", f"'{key}' is broken") for key in keys))


@pytest.mark.filterwarnings("ignore:skipped a damaged sample")
def test_too_many_damaged_samples_stop_the_run_with_the_last_name() -> None:
    log = DamageLog(max_damaged=2)
    for _ in range(50):
        log.add(reading(4, "x", "y"))  # the same two again and again
    with pytest.raises(DataError, match=r"more than data.max_damaged=2; the last: 'z' is broken"):
        log.add(reading(4, "z"))


@pytest.mark.filterwarnings("ignore:skipped a damaged sample")
def test_more_than_one_percent_of_damaged_samples_stops_the_run() -> None:
    log = DamageLog(max_damaged=100)
    log.add(reading(990, *map(str, range(50))))  # 5 %, of too few samples to tell
    with pytest.raises(DataError, match="51 samples could not be read, which is more than 1% of 1000 samples"):
        log.add(reading(10, "last"))


@pytest.mark.filterwarnings("ignore:skipped a damaged sample")
def test_a_set_without_a_readable_sample_stops_the_run(tmp_path: Path) -> None:
    keys = write_set(tmp_path, [make_image(f"i{i}", seed=i) for i in range(2)])
    for key in keys:
        damage(tmp_path, key)
    with pytest.raises(DataError, match=r"samples in a row are damaged; the last: .*study-000000.tar"):
        epochs(make_loader(tmp_path, num_workers=1, unit="image"), 1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_workers": -1}, "num_workers is -1"),
        ({"prefetch": 0}, "prefetch is 0"),
        ({"max_damaged": -1}, "max_damaged"),
    ],
)
def test_numbers_out_of_range_are_refused_by_name(root: Path, settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StreamLoader(make_stream(root), **settings)  # type: ignore[arg-type]

import threading

import pytest
import torch

from morphem.engine import engine, split_crops
from morphem.types import ChannelBatch


def _batch(n_images: int = 7) -> ChannelBatch:
    crops = [[torch.full((2, 3), 10 * i + c, dtype=torch.uint8) for c in range(3)] for i in range(n_images)]
    return ChannelBatch.from_planes(crops, [["a", "b", "c"]] * n_images)


def _first_pixels(batch: ChannelBatch) -> torch.Tensor:
    return batch.planes[batch.starts()].float()[:, None]


def test_splitting_a_batch_keeps_every_crop_and_the_bound() -> None:
    batch = _batch()
    for limit in (1, 3, 5, 9, 100):
        parts = list(split_crops(batch, limit))
        assert max(part.n_planes for part in parts) <= max(limit, 3)
        joined = ChannelBatch.cat(parts)
        assert all(
            torch.equal(mine, theirs) if isinstance(mine, torch.Tensor) else mine == theirs
            for mine, theirs in zip(joined, batch, strict=True)
        )


@pytest.mark.parametrize("side_px", [1, 100, 300, 10_000])
def test_rows_come_back_in_order_whatever_the_groups(side_px: int) -> None:
    with engine(_first_pixels, torch.device("cpu"), side_px) as network:
        assert torch.equal(network(_batch()), _first_pixels(_batch()))


def test_every_thread_works_alone_and_the_setting_comes_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    seen = set()

    def features(batch: ChannelBatch) -> torch.Tensor:
        seen.add((threading.current_thread().name, torch.get_num_threads()))
        return _first_pixels(batch)

    try:
        with engine(features, torch.device("cpu"), 10_000) as network:
            network(_batch())
        assert {count for _, count in seen} == {1}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_the_setting_comes_back_after_an_error() -> None:
    before = torch.get_num_threads()

    def fails(batch: ChannelBatch) -> torch.Tensor:
        raise RuntimeError(f"stop at {batch.n_images}")

    with pytest.raises(RuntimeError, match="stop at"), engine(fails, torch.device("cpu"), 16) as network:
        network(_batch())
    assert torch.get_num_threads() == before

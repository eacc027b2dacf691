import json
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from morphem.data.module import ShardData
from morphem.data.shards import ShardSet
from morphem.errors import ConfigError, DataError
from morphem.types import ChannelBatch
from tests.data.records import make_image, write_set
from tests.data.streams import N_IMAGES, N_PLANES, Seen, seen, write_studies

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*worker processes in total"),
    pytest.mark.filterwarnings("ignore:.*dirpath has changed"),
    pytest.mark.filterwarnings("ignore:You requested to overfit"),
]
STEPS = 6  # 24 planes in batches of 4


class Recorder(L.LightningModule):
    """Trains nothing of worth and remembers every batch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained: list[list[Seen]] = []
        self.validated: list[list[Seen]] = []

    def training_step(self, batch: ChannelBatch, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch, ChannelBatch)
        self.trained.append(seen(batch))
        return self.weight.sum()

    def validation_step(self, batch: ChannelBatch, batch_idx: int) -> None:
        self.validated.append(seen(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_studies(tmp_path_factory.mktemp("set"))


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


def make_data(root: Path, **settings: Any) -> ShardData:
    return ShardData(str(root), **{"batch_size": 4, "num_workers": 0, "default_scale": 10, **settings})


def fit(data: ShardData, folder: Path, checkpoint: Path | None = None, **settings: Any) -> Recorder:
    model = Recorder()
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        callbacks=[
            ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1, auto_insert_metric_name=False)
        ],
        **{"max_epochs": 3, **settings},
    )
    trainer.fit(model, data, ckpt_path=checkpoint, weights_only=True)
    return model


@pytest.mark.parametrize("num_workers", [0, 1, 3])
@pytest.mark.parametrize("stop", [1, 3, STEPS - 1, STEPS, STEPS + 1, 2 * STEPS])
def test_a_run_resumes_from_any_step_with_exactly_the_remaining_batches(
    root: Path, tmp_path: Path, num_workers: int, stop: int
) -> None:
    whole = fit(make_data(root), tmp_path / "whole").trained
    assert len(whole) == 3 * STEPS
    first = fit(make_data(root, num_workers=num_workers), tmp_path / "first", max_steps=stop).trained
    rest = fit(make_data(root, num_workers=num_workers), tmp_path / "rest", tmp_path / "first" / f"{stop}.ckpt").trained
    assert first + rest == whole


@pytest.mark.slow
def test_a_run_with_spawned_workers_resumes_exactly(root: Path, tmp_path: Path) -> None:
    whole = fit(make_data(root), tmp_path / "whole").trained
    spawned = {"num_workers": 2, "start_method": "spawn"}
    first = fit(make_data(root, **spawned), tmp_path / "first", max_steps=8).trained
    rest = fit(make_data(root, **spawned), tmp_path / "rest", tmp_path / "first" / "8.ckpt").trained
    assert first + rest == whole


def test_a_run_that_dies_after_its_checkpoint_resumes_from_it(root: Path, tmp_path: Path) -> None:
    whole = fit(make_data(root), tmp_path / "whole").trained
    for step in range(1, 3 * STEPS):  # every checkpoint of the whole run: those written at the end of an epoch too
        rest = fit(make_data(root), tmp_path / f"rest{step}", tmp_path / "whole" / f"{step}.ckpt").trained
        assert rest == whole[step:], step


def test_validation_between_steps_does_not_disturb_a_resume(root: Path, tmp_path: Path) -> None:
    settings = {"val_check_interval": 2}
    whole = fit(make_data(root, val_root=str(root)), tmp_path / "whole", **settings).trained
    for step in (1, 2, 3, 6, 7):
        data = make_data(root, val_root=str(root))
        rest = fit(data, tmp_path / f"rest{step}", tmp_path / "whole" / f"{step}.ckpt", **settings).trained
        assert rest == whole[step:], step


def test_validation_sees_every_sample_once_and_always_the_same_crops(root: Path, tmp_path: Path) -> None:
    data = make_data(root, unit="image", val_root=str(root), batch_size=5, max_damaged=0)
    crops = [crop for batch in fit(data, tmp_path, max_epochs=2).validated for crop in batch]
    assert len(crops) == 2 * N_IMAGES
    assert crops[:N_IMAGES] == crops[N_IMAGES:]
    assert len({crop.key for crop in crops}) == N_IMAGES


def test_without_a_validation_set_nothing_is_validated(root: Path, tmp_path: Path) -> None:
    assert not fit(make_data(root), tmp_path, max_epochs=1).validated


def test_overfitting_repeats_the_same_batches(root: Path, tmp_path: Path) -> None:
    trained = fit(make_data(root), tmp_path, overfit_batches=2).trained
    assert trained == trained[:2] * 3


def test_rank_and_world_size_come_from_the_trainer_and_not_from_the_environment(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FourthOfFive:
        global_rank = 3
        world_size = 5
        overfit_batches = 0.0
        strategy = L.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False).strategy

    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    data = make_data(root)
    data.trainer = FourthOfFive()  # type: ignore[assignment]
    stream = data.train_dataloader().stream
    assert (stream.rank, stream.world_size) == (3, 5)


class RowsToFile(L.Callback):
    """Writes the rows that each process of a run has trained on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rows = [[crop.row for crop in batch] for batch in pl_module.trained]  # type: ignore[union-attr]
        (self.folder / f"{trainer.global_rank}.json").write_text(json.dumps(rows))


@pytest.mark.slow
@pytest.mark.parametrize("start_method", ["fork", "spawn"])
def test_two_processes_share_the_global_batches_of_one(root: Path, tmp_path: Path, start_method: str) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        max_epochs=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[RowsToFile(tmp_path)],
    )
    trainer.fit(Recorder(), make_data(root, batch_size=2, num_workers=1, start_method=start_method))
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    together = [sorted(a + b) for a, b in zip(*ranks, strict=True)]
    whole = fit(make_data(root), tmp_path / "whole", max_epochs=2).trained
    assert together == [sorted(crop.row for crop in batch) for batch in whole]


def test_a_query_and_a_balance_shape_the_stream(root: Path) -> None:
    data = make_data(root, unit="image", query="imaging.channel_type == 'nucleus'", balance="cycle")
    assert len([crop for batch in data.train_dataloader() for crop in seen(batch)]) == 14
    assert "16 planes" not in data.describe()
    assert data.describe() == f"9 planes of 9 images in 2 studies ({root}), balanced over studies; 14 images an epoch"


def test_weights_and_scales_are_checked_before_the_run_starts(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data.weights: No study 'alpa'; did you mean 'alpha'"):
        make_data(root, weights={"alpa": 1}).setup("fit")
    with pytest.raises(ConfigError, match=r"data.scales: No study 'alpa'; did you mean 'alpha'"):
        make_data(root, scales={"alpa": 100}).setup("fit")


def test_a_query_that_matches_nothing_stops_before_the_run(root: Path) -> None:
    with pytest.raises(DataError, match="bright-field"):
        make_data(root, query="imaging.channel_type == 'dna'").setup("fit")


def test_a_missing_folder_is_named_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no folder '.*absent'.*morphem ingest"):
        make_data(tmp_path / "absent").setup("fit")


@pytest.mark.parametrize("cut", [0, 1000])
def test_a_missing_or_truncated_shard_stops_before_the_run(tmp_path: Path, cut: int) -> None:
    write_set(tmp_path, [make_image()])
    shard = tmp_path / ShardSet(tmp_path).manifest["shards"][0]["name"]
    shard.write_bytes(shard.read_bytes()[:cut]) if cut else shard.unlink()
    with pytest.raises(DataError, match=shard.name):
        make_data(tmp_path).setup("fit")


def test_sizes_that_do_not_fit_are_refused_at_once() -> None:
    with pytest.raises(ConfigError, match=r"data.batch_size \(4\) is not a multiple of data.crops_per_image \(8\)"):
        ShardData("nowhere", batch_size=4, crops_per_image=8)


def test_testing_without_a_validation_set_is_refused(root: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.val_root is not set"):
        make_data(root).test_dataloader()


def test_an_object_store_gives_the_same_batches_as_a_folder(root: Path) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    for path in root.glob("*.*"):
        memory.pipe_file(f"/stream-test/{path.name}", path.read_bytes())
    local, remote = (make_data(place, num_workers=0).train_dataloader() for place in (root, "memory://stream-test"))
    assert [seen(batch) for batch in local] == [seen(batch) for batch in remote]
    assert len(local) * 4 == N_PLANES

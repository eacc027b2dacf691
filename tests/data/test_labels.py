"""Labels on their way from metadata to the batches of training."""

import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pyarrow as pa
import pytest
import torch

from morphem.data.index import open_index
from morphem.data.labels import describe_difference, encode_labels, renumber
from morphem.data.module import ShardData
from morphem.data.shards import ShardSet
from morphem.errors import ConfigError, DataError
from morphem.testing.batches import take, tiny_batch
from morphem.types import ChannelBatch
from tests.data.records import make_image, write_set

pytestmark = [
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*worker processes in total"),
    pytest.mark.filterwarnings("ignore:.*Total length of `list` across ranks is zero"),
]
TREATMENTS = ["taxol", None, "dmso", "Unknown", "taxol", "dmso", "nocodazole", " taxol "]
NUMBERS = [2, -1, 0, -1, 2, 0, 1, 2]
CLASSES = ["dmso", "nocodazole", "taxol"]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path_factory.getbasetemp() / "cache-labels"))


def write(root: Path, treatments: list[str | None] = TREATMENTS, **more: Any) -> Path:
    images = [
        make_image(f"i{i}", labels={"treatment": name, "lonely": None, "site": str(i % 2), **more}, seed=i)
        for i, name in enumerate(treatments)
    ]
    write_set(root, images)
    return root


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("labelled"))


def data(root: Path | None, *labels: str, **settings: Any) -> ShardData:
    settings = {"batch_size": 4, "num_workers": 0, "default_scale": 10, "labels": list(labels), **settings}
    return ShardData(None if root is None else str(root), **settings)


def numbers_by_key(batches: Any, root: Path) -> dict[str, list[int]]:
    names = {row["key"]: row["imaging.multi_channel_id"] for row in ShardSet(root).table().to_pylist()}
    found: dict[str, list[int]] = {}
    for batch in batches:
        for key, labels in zip(batch.keys, batch.labels.tolist(), strict=True):
            assert found.setdefault(names[key], labels) == labels
    return found


def test_classes_are_numbered_by_name_and_what_is_missing_is_none() -> None:
    column = pa.chunked_array([["b", None, "a", "nan"], ["", "UNKNOWN", " b "]], pa.string())
    classes, numbers = encode_labels(column)
    assert classes == ["a", "b"]
    assert numbers.tolist() == [1, -1, 0, -1, -1, -1, 1]


def test_numbers_are_classes_too() -> None:
    classes, numbers = encode_labels(pa.chunked_array([[10, 2, None, 10]], pa.int64()))
    assert classes == ["10", "2"]
    assert numbers.tolist() == [0, 1, -1, 0]


def test_other_data_are_numbered_by_the_classes_of_training() -> None:
    assert renumber({"x": ["b", "c"]}, {"x": ["a", "b"]}) == [[1, -1, -1]]


def test_a_difference_of_classes_is_told_in_a_few_words() -> None:
    text = describe_difference({"x": ["a", "c"]}, {"x": ["a", "b"], "y": ["a"]})
    assert text == "x: 'b' is gone, 'c' is new; 'y' is not a label now"


@pytest.mark.parametrize("unit", ["plane", "image"])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_every_sample_brings_the_label_of_its_image(root: Path, unit: Any, num_workers: int) -> None:
    module = data(root, "treatment", "site", unit=unit, num_workers=num_workers)
    module.setup("fit")
    assert module.classes == {"treatment": CLASSES, "site": ["0", "1"]}
    found = numbers_by_key(module.train_dataloader(), root)
    module.teardown()
    assert found == {f"i{i}": [number, i % 2] for i, number in enumerate(NUMBERS)}


def test_without_labels_batches_have_no_label_column(root: Path) -> None:
    module = data(root)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert batch.labels.shape == (batch.n_images, 0)
    assert module.classes == {}


def test_crops_of_one_image_share_its_label(root: Path) -> None:
    module = data(root, "treatment", unit="image", crops_per_image=2)
    module.setup("fit")
    batch = next(iter(module.train_dataloader()))
    assert torch.equal(batch.labels[0::2], batch.labels[1::2])


def test_a_label_of_planes_suits_planes_alone(root: Path) -> None:
    planes = data(root, "imaging.channel_type")
    planes.setup("fit")
    assert planes.classes == {"imaging.channel_type": ["actin", "nucleus"]}
    for batch in planes.train_dataloader():
        names = [planes.classes["imaging.channel_type"][number] for number in batch.labels[:, 0].tolist()]
        assert tuple(names) == batch.channel_types
    images = data(root, "imaging.channel_type", unit="image")
    images.setup("fit")
    with pytest.raises(ConfigError, match=r"'imaging.channel_type' differs among the channel planes of the image"):
        images.train_dataloader()


def test_the_validation_set_is_numbered_by_the_training_set(root: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "val", ["taxol", "aspirin", "dmso", None])
    module = data(root, "treatment", unit="image", val_root=str(other))
    module.setup("fit")
    assert numbers_by_key(module.val_dataloader(), other) == {"i0": [2], "i1": [-1], "i2": [0], "i3": [-1]}


def test_a_validation_without_training_data_takes_the_classes_of_the_checkpoint(root: Path, tmp_path: Path) -> None:
    other = write(tmp_path / "val", ["taxol", "aspirin"])
    trained = data(root, "treatment")
    trained.setup("fit")
    module = data(None, "treatment", unit="image", val_root=str(other))
    module.setup("validate")
    with pytest.raises(ConfigError, match=r"needs the classes that training had; give data\.root, or"):
        module.test_dataloader()
    module.load_state_dict(trained.state_dict())
    assert numbers_by_key(module.test_dataloader(), other) == {"i0": [2], "i1": [-1]}


def test_a_run_goes_on_with_the_same_classes_alone(root: Path, tmp_path: Path) -> None:
    trained = data(root, "treatment")
    trained.setup("fit")
    state = pickle.loads(pickle.dumps(trained.state_dict()))
    trained.load_state_dict(state)
    other = data(write(tmp_path / "new", ["taxol", "aspirin"]), "treatment")
    other.setup("fit")
    with pytest.raises(ConfigError, match=r"other classes .*'dmso' is gone, 'nocodazole' is gone, 'aspirin' is new"):
        other.load_state_dict(state)
    with pytest.raises(ConfigError, match="trained without the label 'site'"):
        data(None, "site").load_state_dict(state)


def test_a_query_decides_which_classes_there_are(root: Path) -> None:
    module = data(root, "treatment", query="treatment != 'dmso'")
    module.setup("fit")
    assert module.classes == {"treatment": ["nocodazole", "taxol"]}


def test_a_label_that_is_missing_everywhere_stops_the_run(root: Path) -> None:
    with pytest.raises(DataError, match="has a label 'lonely': all 16 are empty or unknown; name another column"):
        data(root, "lonely").setup("fit")


def test_a_column_that_does_not_exist_is_refused_with_the_nearest(root: Path) -> None:
    with pytest.raises(DataError, match="no column 'treatmnt'; nearest: treatment"):
        data(root, "treatmnt").setup("fit")


def test_a_text_or_a_column_named_twice_is_no_list_of_labels(root: Path) -> None:
    with pytest.raises(ConfigError, match="not the text 'treatment'"):
        ShardData(str(root), labels="treatment")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="names 'treatment' twice"):
        data(root, "treatment", "treatment")


def test_an_index_with_labels_is_another_one_and_finds_the_same_samples(root: Path, tmp_path: Path) -> None:
    shards = ShardSet(root)
    plain, labelled = open_index(shards, folder=tmp_path), open_index(shards, labels=["treatment"], folder=tmp_path)
    assert plain.path != labelled.path
    assert [labelled.image(i) for i in range(8)] == [plain.image(i) for i in range(8)]
    for a, b in zip(plain.planes(0, 16), labelled.planes(0, 16), strict=True):
        assert a[:4] == b[:4]
        assert len(a.labels) == 0
        assert len(b.labels) == 1


def test_labels_survive_joining_moving_taking_and_views() -> None:
    batch = tiny_batch()
    assert batch.labels[:, 0].tolist() == [0, 1, 0, 1, 0, -1]
    assert ChannelBatch.cat([batch, batch]).labels[:, 0].tolist() == 2 * [0, 1, 0, 1, 0, -1]
    assert torch.equal(batch.to("cpu").labels, batch.labels)
    assert take(batch, [5, 1]).labels[:, 0].tolist() == [-1, 1]


def test_batches_with_and_without_labels_do_not_join() -> None:
    batch = tiny_batch()
    with pytest.raises(ValueError, match="label columns"):
        ChannelBatch.cat([batch, batch._replace(labels=batch.labels[:, :0])])


def test_a_batch_pickled_before_there_were_labels_opens() -> None:
    batch = ChannelBatch(*tiny_batch()[:8])
    assert batch.labels.shape == (0, 0)
    assert ChannelBatch.cat([batch, batch]).labels.shape == (0, 0)
    assert take(batch, [0]).labels.shape[1] == 0


def test_the_checkpoint_keeps_the_classes(root: Path, tmp_path: Path) -> None:
    class Model(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: ChannelBatch, batch_idx: int) -> torch.Tensor:
            return self.weight.sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    settings: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, default_root_dir=str(tmp_path), enable_checkpointing=False, **settings
    )
    trainer.fit(Model(), datamodule=data(root, "treatment"))
    trainer.save_checkpoint(tmp_path / "run.ckpt")
    again = data(None, "treatment", val_root=str(root))
    state = torch.load(tmp_path / "run.ckpt", weights_only=True)["ShardData"]
    again.load_state_dict(state)
    assert again.classes == {"treatment": CLASSES}

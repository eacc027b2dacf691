"""Supervised training: what it learns from, where its classes come from, and what it refuses."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.losses.classes import ProxyScores
from morphem.methods.supervised import Supervised
from morphem.normalizers import SelfNormalize
from morphem.spec import from_spec, to_spec
from morphem.testing import check_method
from morphem.testing.batches import tiny_batch
from tests.methods.labelled_runs import labelled_data, run_processes, write_labelled
from tests.references import label_losses
from tests.tiny_fit import fit

CLASSES = ["dmso", "nocodazole", "taxol"]
pytestmark = [pytest.mark.filterwarnings("ignore:.*Total length of `list` across ranks is zero")]


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path_factory.getbasetemp() / "cache-supervised"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"))


def supervised(**changes: Any) -> Supervised:
    settings: dict[str, Any] = {"lr": 1e-3, "lr_per_images": None, "warmup_epochs": 0, **changes}
    views = MultiCrop([ViewRecipe(count=2, size_px=32, area=(0.4, 1.0))])
    return Supervised(Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32), views, **settings)


@pytest.mark.slow
def test_it_keeps_the_contract_of_methods() -> None:
    check_method(Supervised)


def test_the_loss_is_the_cross_entropy_of_the_labelled_rows_of_all_views() -> None:
    method = supervised(classes=["first", "second"]).eval()
    batch = tiny_batch()
    views = method.make_views(batch)
    output = method.step(views)
    labels = batch.labels[batch.image_of_plane(), 0].tolist() * 2
    scores = torch.cat([method.head(method.encoder(view)) for view in views]).detach().double().numpy()
    assert float(output.loss.detach()) == pytest.approx(label_losses.class_loss(scores, labels, 0.0), rel=1e-5)
    assert float(output.logs["counted"]) == sum(label >= 0 for label in labels)
    assert float(output.logs["unlabelled"]) == 3  # the planes of the sixth image
    right = sum(int(row.argmax()) == label for row, label in zip(scores, labels, strict=True))
    assert float(output.logs["accuracy"]) == pytest.approx(right / float(output.logs["counted"]))


def test_a_row_without_a_label_changes_nothing() -> None:
    method = supervised(classes=["first", "second"]).eval()
    batch = tiny_batch()
    with torch.no_grad():
        first = method.step(method.make_views(batch)).loss
        other = tiny_batch(seed=3)
        starts = batch.starts()
        planes = batch.planes.clone()
        planes[int(starts[batch.offsets[5]]) :] = other.planes[int(starts[batch.offsets[5]]) :]
        second = method.step(method.make_views(batch._replace(planes=planes))).loss
    torch.testing.assert_close(first, second)


def test_a_batch_without_any_label_has_a_loss_of_zero_that_can_be_trained_on() -> None:
    method = supervised(classes=["first", "second"])
    batch = tiny_batch()
    output = method.step(method.make_views(batch._replace(labels=torch.full_like(batch.labels, -1))))
    assert float(output.loss.detach()) == 0.0
    output.loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in method.parameters())


def test_the_classes_come_from_the_data(root: Path, tmp_path: Path) -> None:
    method = supervised()
    assert not hasattr(method, "head")
    fit(method, folder=tmp_path, data=labelled_data(root, "treatment"))
    assert method.classes == tuple(CLASSES)
    assert method.head.weight.shape == (3, method.encoder.embed_dim)
    again = from_spec(to_spec(method))
    again.load_state_dict(method.state_dict())


def test_one_of_several_columns_is_chosen_by_name(root: Path, tmp_path: Path) -> None:
    method = supervised(label="plate_half")
    fit(method, folder=tmp_path, data=labelled_data(root, "treatment", "plate_half"))
    assert method.classes == ("left", "right")
    assert method.label_number == 1
    with pytest.raises(ConfigError, match=r"data\.labels names 2 .treatment, plate_half.; choose one"):
        fit(supervised(), folder=tmp_path, data=labelled_data(root, "treatment", "plate_half"))
    with pytest.raises(ConfigError, match="did you mean 'treatment'"):
        fit(supervised(label="treatmnt"), folder=tmp_path, data=labelled_data(root, "treatment"))


def test_data_without_labels_and_single_classes_are_refused_before_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="supervised trains on labels, but the data bring none along; name a column"):
        fit(supervised(), folder=tmp_path, data=labelled_data(root))
    with pytest.raises(ConfigError, match=r"label 'lonely' has one class alone \('same'\), which leaves"):
        fit(supervised(), folder=tmp_path, data=labelled_data(root, "lonely"))
    method, (view, _) = supervised(classes=["a", "b"]), supervised().make_views(tiny_batch())
    with pytest.raises(ConfigError, match="the batch has 0 label columns"):
        method.step([view._replace(labels=view.labels[:, :0])])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head": "mlp"}, "head='mlp'"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"classes": ["alone"]}, "one class alone"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        supervised(**changes)


def test_proxies_score_by_distance(root: Path, tmp_path: Path) -> None:
    method = supervised(head="proxy", temperature=0.3)
    fit(method, folder=tmp_path, data=labelled_data(root, "treatment"))
    assert isinstance(method.head, ProxyScores)
    assert method.head.temperature == 0.3


def test_first_weights_do_not_depend_on_when_the_classes_are_known() -> None:
    early = supervised(classes=CLASSES)
    late = supervised()
    torch.rand(7)
    late.take_classes(CLASSES)
    assert torch.equal(early.head.weight, late.head.weight)


def test_a_run_that_was_cut_goes_on_exactly(root: Path, tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    def new() -> Supervised:
        torch.manual_seed(0)
        return supervised()

    whole, resumed = new(), new()
    fit(whole, Save(), folder=tmp_path, data=labelled_data(root, "treatment"), max_epochs=2)
    with torch.no_grad():
        for parameter in resumed.parameters():
            parameter.mul_(0.5)
    fit(
        resumed, folder=tmp_path, data=labelled_data(root, "treatment"), max_epochs=2,
        ckpt_path=tmp_path / "middle.ckpt",
    )  # fmt: skip
    theirs = resumed.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in whole.state_dict().items())
    other = write_labelled(tmp_path / "other", ["taxol", "aspirin", "taxol", "aspirin"])
    with pytest.raises(ConfigError, match=r"trained on other classes \('dmso', .*'taxol'\) than the data have \('aspi"):
        fit(
            supervised(), folder=tmp_path, data=labelled_data(other, "treatment"), max_epochs=2,
            ckpt_path=tmp_path / "middle.ckpt",
        )  # fmt: skip


def test_a_checkpoint_alone_brings_the_classes_to_a_validation(root: Path, tmp_path: Path) -> None:
    trained = supervised()
    trainer = fit(trained, folder=tmp_path, data=labelled_data(root, "treatment"))
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    val = write_labelled(tmp_path / "val", ["taxol", "aspirin", None, "dmso"])
    fresh = supervised()
    scorer = L.Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=str(tmp_path))
    (scores,) = scorer.validate(
        fresh,
        datamodule=labelled_data(None, "treatment", val_root=str(val), batch_size=3),
        ckpt_path=tmp_path / "end.ckpt",
        weights_only=True,
        verbose=False,
    )
    assert fresh.classes == tuple(CLASSES)
    assert torch.equal(fresh.head.weight, trained.head.weight)
    # Batches hold different numbers of labelled planes; the score is the mean over the planes all the same
    data = labelled_data(root, "treatment", val_root=str(val))
    data.setup("fit")
    with torch.no_grad():
        trained.eval()
        outputs = [trained.step(trained.make_views(batch)) for batch in data.val_dataloader()]
    weights = [float(output.logs["counted"]) for output in outputs]
    assert sum(weights) == 2 * 4  # two views of two planes of two images
    mean = sum(float(o.loss) * w for o, w in zip(outputs, weights, strict=True)) / sum(weights)
    assert scores["val/loss"] == pytest.approx(mean, rel=1e-5)
    assert 0 <= scores["val/accuracy"] <= 1


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    path = "morphem.methods.supervised:Supervised"
    (alone,) = run_processes(1, tmp_path / "one", path)
    first, second = run_processes(2, tmp_path / "two", path)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for key, value in alone["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-6, msg=key)

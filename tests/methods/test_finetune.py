"""Fine-tuning: what it starts from, what moves and how fast, and the triplets of wells."""

from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError, WeightsError
from morphem.methods.finetune import Finetune
from morphem.normalizers import SelfNormalize
from morphem.testing import check_method
from morphem.testing.batches import tiny_batch
from tests.methods.labelled_runs import labelled_data, run_processes, write_labelled
from tests.references import label_losses
from tests.tiny_fit import fit


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path_factory.getbasetemp() / "cache-finetune"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("labelled"))


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrained")
    torch.manual_seed(7)
    encoder().save_pretrained(folder)
    return folder


def encoder(**normalizer: Any) -> Encoder:
    return Encoder(BagOfChannels.tiny(), SelfNormalize(**normalizer), input_size_px=32)


def finetune(own: Encoder | None = None, **changes: Any) -> Finetune:
    settings: dict[str, Any] = {"lr": 1e-3, "lr_per_images": None, "warmup_epochs": 0, **changes}
    return Finetune(own or encoder(), MultiCrop([ViewRecipe(count=1, size_px=32, area=(0.4, 1.0))]), **settings)


@pytest.mark.slow
def test_it_keeps_the_contract_of_methods() -> None:
    check_method(Finetune)


def test_it_starts_from_the_weights(root: Path, pretrained: Path, tmp_path: Path) -> None:
    class Start(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.state = {key: value.clone() for key, value in pl_module.state_dict().items()}

    start = Start()
    method = finetune(weights=str(pretrained))
    fit(method, start, folder=tmp_path, data=labelled_data(root, "treatment"))
    theirs = Encoder.from_pretrained(pretrained).state_dict()
    assert all(torch.equal(start.state[f"encoder.{key}"], value) for key, value in theirs.items())
    now = method.encoder.state_dict()
    assert any(not torch.equal(now[key], value) for key, value in theirs.items())


def test_an_untrained_encoder_is_refused_and_a_loaded_one_is_not(root: Path, pretrained: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"this one is untrained; name one with model\.weights"):
        fit(finetune(), folder=tmp_path, data=labelled_data(root, "treatment"))
    fit(finetune(Encoder.from_pretrained(pretrained)), folder=tmp_path, data=labelled_data(root, "treatment"))


def test_weights_that_expect_another_normaliser_are_refused(pretrained: Path) -> None:
    with pytest.raises(ConfigError, match=r"expect the input normaliser .* give model\.encoder\.normalizer the"):
        finetune(encoder(divide_by=1.0)).load_weights(str(pretrained))


def test_a_part_that_the_weights_lack_starts_anew_only_if_it_is_named(pretrained: Path) -> None:
    own = encoder()
    own.channels.table = torch.nn.Parameter(torch.full((3,), 5.0))
    with pytest.raises(WeightsError, match=r"1 missing \(channels\.table\)"):
        finetune(own).load_weights(str(pretrained))
    finetune(own, weights=str(pretrained), new_parts=["channels.table"]).load_weights(str(pretrained))
    assert torch.equal(own.channels.table.detach(), torch.full((3,), 5.0))
    wrong = finetune(own, weights=str(pretrained), new_parts=["channels.backbone"])
    with pytest.raises(ConfigError, match=r"new_parts names 'channels\.backbone'"):
        wrong.load_weights(str(pretrained))


def test_a_frozen_encoder_stays_as_it_was_and_the_head_learns(root: Path, pretrained: Path, tmp_path: Path) -> None:
    method = finetune(weights=str(pretrained), train="head")
    assert not any(module.training for module in method.train().encoder.modules())
    fit(method, folder=tmp_path, data=labelled_data(root, "treatment"))
    theirs = Encoder.from_pretrained(pretrained).state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in method.encoder.state_dict().items())
    fresh = finetune(train="head", classes=list(method.classes))
    assert not torch.equal(method.head.weight, fresh.head.weight)


def test_early_layers_learn_more_slowly(root: Path, pretrained: Path, tmp_path: Path) -> None:
    class Rates(L.Callback):
        def on_before_zero_grad(self, trainer: L.Trainer, pl_module: Any, optimizer: Any) -> None:
            names = {id(parameter): name for name, parameter in pl_module.named_parameters()}
            if trainer.global_step:
                self.rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
                self.peak = pl_module.lr_at(trainer.global_step - 1)

    rates = Rates()
    method = finetune(weights=str(pretrained), layer_decay=0.5)
    fit(method, rates, folder=tmp_path, data=labelled_data(root, "treatment"))
    depth = 1 + max(int(name.split("blocks.")[1].split(".")[0]) for name in rates.rates if "blocks." in name)
    assert depth >= 2
    for name, rate in rates.rates.items():
        if name.startswith("head"):
            power = 0
        elif "blocks." in name:
            power = depth - int(name.split("blocks.")[1].split(".")[0])
        else:
            power = 0 if ".norm." in name else depth + 1
        assert rate == pytest.approx(rates.peak * 0.5**power), name


def test_the_rate_grows_in_proportion_to_the_batch() -> None:
    assert finetune(lr=1e-3, lr_per_images=256).recipe.peak_lr(1024) == pytest.approx(4e-3)


def test_triplets_are_those_of_wells() -> None:
    method = finetune(objective="triplet", classes=["first", "second"], head_hidden_dim=8, head_output_dim=4).eval()
    method.group_number = 1
    batch = tiny_batch()
    wells = torch.tensor([[0], [1], [0], [2], [2], [2]])
    view = method.make_views(batch._replace(labels=torch.cat([batch.labels, wells], 1)))
    output = method.step(view)
    rows = method.head(method.encoder(view[0])).detach().double().numpy()
    image = batch.image_of_plane()
    means = label_losses.group_means(rows, batch.labels[image, 0].tolist(), wells[image, 0].tolist())
    expected = label_losses.triplet(torch.tensor([m.tolist() for _, m in means]).numpy(), [c for c, _ in means], 0.2)
    assert len(means) == 4  # classes 0 and 1, each in two wells
    assert float(output.logs["counted"]) == 4
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_wells_are_a_second_column_of_the_data(root: Path, pretrained: Path, tmp_path: Path) -> None:
    settings = {"objective": "triplet", "train": "head", "label": "treatment", "weights": str(pretrained)}
    method = finetune(average_over="plate_half", **settings)
    fit(method, folder=tmp_path, data=labelled_data(root, "plate_half", "treatment"))
    assert (method.label_number, method.group_number) == (1, 0)
    with pytest.raises(ConfigError, match=r"average_over: No label in data\.labels 'plate_halb'; did you mean"):
        fit(
            finetune(average_over="plate_halb", **settings),
            folder=tmp_path,
            data=labelled_data(root, "plate_half", "treatment"),
        )


def test_a_run_goes_on_from_its_checkpoint_and_not_from_the_weights(
    root: Path, pretrained: Path, tmp_path: Path
) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 3:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    whole, resumed = (finetune(weights=str(pretrained)) for _ in range(2))
    fit(whole, Save(), folder=tmp_path, data=labelled_data(root, "treatment"), max_epochs=2)
    fit(
        resumed,
        folder=tmp_path,
        data=labelled_data(root, "treatment"),
        max_epochs=2,
        ckpt_path=tmp_path / "middle.ckpt",
    )
    theirs = resumed.state_dict()
    assert all(torch.equal(value, theirs[key]) for key, value in whole.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "mse"}, "objective='mse' is not one of cross_entropy, proxy, triplet"),
        ({"train": "last"}, "train='last'"),
        ({"train": "head", "layer_decay": 0.9}, "layer_decay=0.9 has no effect"),
        ({"layer_decay": 1.5}, "layer_decay=1.5"),
        ({"average_over": "experiment.well"}, "average_over='experiment.well' has no effect"),
        ({"new_parts": ["channels.table"]}, "new_parts has no effect without weights"),
        ({"margin": 0.0}, "margin=0.0"),
        ({"temperature": -1.0}, "temperature=-1.0"),
        ({"label_smoothing": 1.0}, "label_smoothing=1.0"),
        ({"head_output_dim": 0}, "head_output_dim"),
    ],
)
def test_settings_out_of_range_or_without_effect_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        finetune(**changes)


class TinyTriplets(Finetune):
    """Triplets of planes, for the runs in two processes."""

    @classmethod
    def tiny(cls, encoder: Encoder | None = None) -> "TinyTriplets":
        plain = Finetune.tiny(encoder)
        return cls(
            plain.encoder,
            plain.views,
            classes=["first", "second"],
            objective="triplet",
            head_hidden_dim=16,
            head_output_dim=8,
            lr=3e-3,
            lr_per_images=None,
            warmup_epochs=0,
        )


@pytest.mark.slow
@pytest.mark.parametrize("path", ["morphem.methods.finetune:Finetune", "tests.methods.test_finetune:TinyTriplets"])
def test_two_processes_learn_what_one_does(tmp_path: Path, path: str) -> None:
    (alone,) = run_processes(1, tmp_path / "one", path)
    first, second = run_processes(2, tmp_path / "two", path)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for key, value in alone["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-6, msg=key)

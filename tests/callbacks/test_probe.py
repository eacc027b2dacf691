"""Probes: what they score, when, and that training does not notice them."""

import random
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from sklearn.metrics import balanced_accuracy_score

from morphem.callbacks import KNNProbe, LinearProbe, Probe
from morphem.embed import extract
from morphem.errors import ConfigError, DataError
from tests.callbacks.labelled_shards import write_labelled
from tests.tiny_fit import fit, tiny_dino

PROBES = [LinearProbe, KNNProbe]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_labelled(tmp_path_factory.mktemp("labelled"), cells=True)


def _clusters(n: int, seed: int, spread: float = 0.1) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    classes = np.arange(n) % 3
    centres = np.eye(3, 8) * 2
    return (centres[classes] + spread * generator.normal(size=(n, 8))).astype(np.float32), classes.astype(np.int64)


@pytest.mark.parametrize("cls", PROBES)
def test_probes_tell_clusters_apart(cls: type[Probe]) -> None:
    train, classes = _clusters(60, 0)
    test, truth = _clusters(30, 1)
    assert (cls("", "label").predict(train, classes, test, 3) == truth).all()


@pytest.mark.parametrize("cls", PROBES)
def test_probes_find_nothing_in_noise(cls: type[Probe]) -> None:
    train, test = np.random.default_rng(0).normal(size=(2, 300, 8)).astype(np.float32)
    _, classes = _clusters(300, 0)
    assert (cls("", "label").predict(train, classes, test, 3) == classes).mean() < 0.45


def test_neighbours_vote_as_the_formula_says() -> None:
    train, classes = _clusters(40, 0, spread=1.0)
    test, _ = _clusters(25, 1, spread=1.0)
    found = KNNProbe("", "label", k=7, temperature=0.2).predict(train, classes, test, 3)
    centred = [rows - train.mean(0) for rows in (train, test)]
    known, asked = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in centred)
    for row, answer in zip(asked, found, strict=True):
        similarity = known @ row
        votes = np.zeros(3)
        for neighbour in np.argsort(-similarity)[:7]:
            votes[classes[neighbour]] += np.exp(similarity[neighbour] / 0.2)
        assert answer == votes.argmax()


def test_a_constant_feature_does_no_harm() -> None:
    train, classes = _clusters(60, 0)
    train[:, 5] = 3.0
    assert (LinearProbe("", "label").predict(train, classes, train, 3) == classes).all()


@pytest.mark.parametrize("cls", PROBES)
def test_the_score_is_logged_before_and_while_training(tmp_path: Path, shards: str, cls: type[Probe]) -> None:
    probe = cls(shards, "texture", unit="image")
    logger = CSVLogger(tmp_path)
    trainer = fit(tiny_dino(), probe, folder=tmp_path, max_epochs=2, logger=logger, log_every_n_steps=1)
    assert trainer.callback_metrics[probe.name] == probe.latest
    assert probe.before is not None
    assert probe.step == 4
    text = (Path(logger.log_dir) / "metrics.csv").read_text()
    assert f"probe/{probe.kind}/texture/before" in text.splitlines()[0]


def test_the_score_is_that_of_the_features_that_embed_gives(tmp_path: Path, shards: str) -> None:
    probe, method = LinearProbe(shards, "texture", unit="image"), tiny_dino()
    fit(method, probe, folder=tmp_path)
    table = extract(method.exported_encoder(), shards, unit="image")
    assert probe.evaluate(table) == probe.latest


def test_every_score_looks_at_the_weights_of_its_step(tmp_path: Path, shards: str) -> None:
    class Keeping(LinearProbe):
        seen: list[Any] = []  # noqa: RUF012

        def evaluate(self, table: Any) -> float:
            self.seen.append((table, extract(self.method.exported_encoder(), shards, unit="image")))
            return super().evaluate(table)

        def score(self, trainer: L.Trainer, pl_module: Any) -> float:
            self.method = pl_module
            return super().score(trainer, pl_module)

    fit(tiny_dino(), Keeping(shards, "texture", unit="image"), folder=tmp_path, max_epochs=2)
    assert len(Keeping.seen) == 3
    for table, expected in Keeping.seen:
        assert (table.values == expected.values).all()
        assert table.provenance == expected.provenance
    assert (Keeping.seen[0][0].values != Keeping.seen[2][0].values).any()


def test_metrics_are_the_known_ones(tmp_path: Path) -> None:
    class Wrong(LinearProbe):
        def predict(self, train: Any, classes: Any, test: Any, n_classes: int) -> Any:
            return np.zeros(len(test), np.int64)

    uneven = write_labelled(tmp_path / "uneven", n_wells=9)
    table = extract(tiny_dino().encoder, uneven, unit="image")
    names: tuple[Any, ...] = ("accuracy", "balanced_accuracy", "macro_f1")
    scores = {name: Wrong(uneven, "texture", metric=name).evaluate(table) for name in names}
    # Tested on 2 wells of 5 and 1 of 4: always saying 'coarse' is right 4 times of 6
    truth, said = [0] * 4 + [1] * 2, [0] * 6
    assert scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(truth, said))
    assert scores["macro_f1"] == pytest.approx(0.4)


@pytest.mark.parametrize("cls", PROBES)
def test_training_does_not_notice_a_probe(tmp_path: Path, shards: str, cls: type[Probe]) -> None:
    states = []
    for probes in ([], [cls(shards, "texture", unit="image", every_n_steps=1)]):
        torch.manual_seed(0)
        method = tiny_dino(drop_path_rate=0.5)
        fit(method, *probes, folder=tmp_path, max_epochs=2)
        states.append(method.state_dict())
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


@pytest.mark.parametrize("cls", PROBES)
def test_scoring_neither_uses_nor_disturbs_global_random_numbers(tmp_path: Path, shards: str, cls: type[Probe]) -> None:
    method, probe = tiny_dino(drop_path_rate=0.5), cls(shards, "texture", unit="image", num_workers=0)
    trainer = fit(method, folder=tmp_path)
    scores = []
    for seed in range(2):
        trainer = fit(method, folder=tmp_path, max_steps=1)  # another trainer, so that features are computed again
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        scores.append(probe.score(trainer, method))
        assert torch.equal(before[0], torch.get_rng_state())
        assert (before[1] == np.random.get_state()[1]).all()
        assert before[2] == random.getstate()
        assert method.encoder.training
    table = extract(method.exported_encoder(), shards, unit="image")
    assert scores[1] == probe.evaluate(table)


def test_checkpoints_can_be_chosen_by_the_score(tmp_path: Path, shards: str) -> None:
    probe = LinearProbe(shards, "texture", unit="image")
    best = ModelCheckpoint(tmp_path / "best", monitor=probe.name, mode="max", save_on_train_epoch_end=True)
    fit(tiny_dino(), probe, best, folder=tmp_path, max_epochs=2, enable_checkpointing=True)
    assert float(best.best_model_score) <= 1.0
    assert Path(best.best_model_path).is_file()


def test_the_schedule_counts_epochs_or_steps(tmp_path: Path, shards: str) -> None:
    class Counting(LinearProbe):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.steps: list[int] = []

        def score(self, trainer: L.Trainer, pl_module: Any) -> float:
            self.steps.append(trainer.global_step)
            return super().score(trainer, pl_module)

    def steps_of(**schedule: Any) -> list[int]:
        probe = Counting(shards, "texture", unit="image", **schedule)
        fit(tiny_dino(), probe, folder=tmp_path, max_epochs=3, accumulate_grad_batches=1)
        return probe.steps

    assert steps_of(every_n_epochs=2) == [0, 4, 6]  # the last one is that of the end of the run
    assert steps_of(every_n_steps=5, at_start=False) == [5, 6]
    assert steps_of() == [0, 2, 4, 6]


def test_rows_without_a_label_are_left_out_and_counted(tmp_path: Path) -> None:
    root = write_labelled(tmp_path, labels={0: None, 1: "", 2: "unknown"})
    table = extract(tiny_dino().encoder, root, unit="image")
    probe = LinearProbe(root, "texture", unit="image")
    with pytest.warns(UserWarning, match="leaves out 3 rows without the label 'texture'"):
        score = probe.evaluate(table)
    assert 0 <= score <= 1


def test_a_class_of_a_single_well_is_left_out_and_counted(tmp_path: Path) -> None:
    root = write_labelled(tmp_path, labels={0: "rare", 1: "rare"})
    table = extract(tiny_dino().encoder, root, unit="image")
    with pytest.warns(UserWarning, match=r"2 rows of classes that only one group has \('rare'\)"):
        LinearProbe(root, "texture", unit="image").evaluate(table)


def test_data_without_any_label_are_refused(tmp_path: Path) -> None:
    root = write_labelled(tmp_path, labels=dict.fromkeys(range(12)))
    with pytest.raises(DataError, match=r"all 12 rows .* lack the label 'texture'"):
        LinearProbe(root, "texture").evaluate(extract(tiny_dino().encoder, root, unit="image"))


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    root = write_labelled(tmp_path, labels=dict.fromkeys(range(12), "same"))
    with pytest.raises(DataError, match="two classes"):
        LinearProbe(root, "texture").evaluate(extract(tiny_dino().encoder, root, unit="image"))


def test_an_unknown_label_stops_the_run_before_it_starts(tmp_path: Path, shards: str) -> None:
    class Never(L.Callback):
        def on_train_batch_start(self, *_: Any) -> None:
            raise AssertionError("a step was taken")

    probe = LinearProbe(shards, "texture_", unit="image", at_start=False)
    with pytest.raises(DataError, match="did you mean 'texture'"):
        fit(tiny_dino(), probe, Never(), folder=tmp_path)


def test_labels_of_cells_are_predicted_per_cell(shards: str) -> None:
    table = extract(tiny_dino().encoder, shards, unit="cell", crop_size_px=16)
    assert len(table) == 24
    assert 0 <= LinearProbe(shards, "phase", unit="cell", crop_size_px=16).evaluate(table) <= 1


def test_an_image_is_never_on_both_sides_without_a_group(tmp_path: Path, shards: str) -> None:
    table = extract(tiny_dino().encoder, shards, unit="cell", crop_size_px=16)
    probe = LinearProbe(shards, "phase", unit="cell", crop_size_px=16, group=[])
    assert len(set(probe._groups(table.metadata))) == 12


def test_max_images_looks_at_a_fixed_draw(tmp_path: Path, shards: str) -> None:
    probe = LinearProbe(shards, "texture", unit="image", max_images=8, group=[])
    fit(tiny_dino(), probe, folder=tmp_path)
    assert probe.latest is not None


def test_scores_survive_a_checkpoint() -> None:
    probe = LinearProbe("", "label")
    probe.before, probe.latest, probe.step = 0.25, 0.5, 7
    again = LinearProbe("", "label")
    again.load_state_dict(probe.state_dict())
    assert (again.before, again.latest, again.step) == (0.25, 0.5, 7)
    assert probe.state_key == again.state_key != LinearProbe("", "other").state_key


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"every_n_epochs": 0}, "every_n_epochs"),
        ({"every_n_epochs": 2, "every_n_steps": 5}, "exclude each other"),
        ({"test_fraction": 1.0}, "test_fraction"),
        ({"metric": "auc"}, "metric"),
        ({"combine": "none"}, "combine"),
        ({"max_images": 0}, "max_images"),
        ({"penalty": 0.0}, "penalty"),
    ],
)
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LinearProbe("shards", "label", **wrong)


def test_two_probes_of_one_name_are_refused(shards: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="two probes write their score as 'probe/linear/label'"):
        fit(tiny_dino(), LinearProbe(shards, "label"), LinearProbe(shards, "label", max_images=9), folder=tmp_path)


def test_probes_of_one_label_go_by_their_task() -> None:
    assert LinearProbe("", "label", task="blood").name == "probe/linear/blood"

"""The commands of LightningCLI, in process, on the tiny sample."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from morphem import features
from morphem.cli import main

Write = Callable[..., str]


@pytest.fixture
def trained(tiny_run: Write, tmp_path: Path) -> tuple[str, Path]:
    """A finished run of one epoch: its config and its folder."""
    config = tiny_run(**{"max_epochs: 2": "max_epochs: 1"})
    assert main(["fit", "--config", config]) == 0
    return config, tmp_path / "runs/run/version_0"


def test_fit_leaves_settings_metrics_and_a_checkpoint(trained: tuple[str, Path]) -> None:
    _, folder = trained
    checkpoint = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["morphem_config"]["data"]["init_args"]["batch_size"] == 4
    assert checkpoint["morphem"]["exported"] == "teacher_encoder."
    assert (folder / "config.yaml").is_file()
    assert "train/loss" in (folder / "metrics.csv").read_text()
    assert not list(folder.rglob("*.partial"))


def test_print_config_then_fit_is_the_same_run(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = trained
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", config, "--print_config"])
    assert stopped.value.code == 0
    printed = tmp_path / "printed.yaml"
    printed.write_text(capsys.readouterr().out)
    assert main(["fit", "--config", str(printed), "--trainer.logger.init_args.name", "again"]) == 0
    before = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
    after = torch.load(tmp_path / "runs/again/version_0/checkpoints/last.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_config_of_a_run_starts_the_same_run(trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    _, folder = trained
    assert main(["check", "--config", str(folder / "config.yaml")]) == 0
    assert "all settings resolve" in capsys.readouterr().out


def test_a_resume_with_another_setting_is_refused(
    trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = trained
    checkpoint = str(folder / "checkpoints/last.ckpt")
    assert main(["fit", "--config", config, "--ckpt_path", checkpoint, "--model.lr", "2e-3"]) == 2
    message = capsys.readouterr().err
    assert "model.init_args.lr: 0.001 in the checkpoint, 0.002 now" in message
    assert len(message.strip().splitlines()) <= 8


def test_a_resume_may_name_what_changes(
    trained: tuple[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = trained
    more = ["--trainer.max_epochs", "2", "--resume_override", "[trainer.max_epochs]"]
    assert main(["fit", "--config", config, "--ckpt_path", str(folder / "checkpoints/last.ckpt"), *more]) == 0
    assert "resume: trainer.max_epochs is now 2 (was 1)" in capsys.readouterr().out
    checkpoint = torch.load(tmp_path / "runs/run/version_1/checkpoints/last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 30


def test_an_override_without_a_checkpoint_is_refused(tiny_run: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", tiny_run(), "--resume_override", "[all]"]) == 2
    assert "has no effect without --ckpt_path" in capsys.readouterr().err


def test_a_seed_reaches_data_and_method(tiny_run: Write) -> None:
    from morphem.cli.precheck import check_arguments
    from morphem.cli.trainer_cli import CheckCLI

    cli = CheckCLI.build(check_arguments("fit", ["--config", tiny_run(), "--seed_everything", "5"]))
    assert (cli.datamodule.seed, cli.model.seed) == (5, 5)


def test_check_says_what_a_run_would_do(tiny_run: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", tiny_run()]) == 0
    report = capsys.readouterr().out
    assert "15 steps an epoch, 2 epochs" in report
    assert "BagOfChannels, 64 features" in report
    assert "60 planes of 20 images in 5 studies" in report


def test_check_writes_no_run(tiny_run: Write, tmp_path: Path) -> None:
    main(["check", "--config", tiny_run()])
    assert not (tmp_path / "runs").exists()


def test_data_root_is_asked_for(tiny_run: Write, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_run(**{"root: sample://tiny": "root: null"})
    assert main(["fit", "--config", config]) == 2
    assert "data.root is not set" in capsys.readouterr().err


def test_validate_scores_a_checkpoint(trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = trained
    checkpoint = str(folder / "checkpoints/last.ckpt")
    assert main(["validate", "--config", config, "--ckpt_path", checkpoint, "--data.val_root", "sample://tiny"]) == 0
    assert "val/loss" in capsys.readouterr().out


def test_validate_without_shards_is_refused(tiny_run: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "--config", tiny_run()]) == 2
    assert "data.val_root is not set" in capsys.readouterr().err


def test_predict_writes_the_rows_of_embed_beside_the_checkpoint(trained: tuple[str, Path], tmp_path: Path) -> None:
    config, folder = trained
    checkpoint = str(folder / "checkpoints/last.ckpt")
    assert main(["predict", "--config", config, "--ckpt_path", checkpoint]) == 0
    output = str(tmp_path / "f.parquet")
    words = ["embed", "--model", checkpoint, "--data", "sample://tiny", "--combine", "none", "--accelerator", "cpu"]
    assert main([*words, "--output", output]) == 0
    predicted, embedded = features.read(folder / "checkpoints/last.features.parquet"), features.read(output)
    np.testing.assert_allclose(predicted.values, embedded.values, atol=1e-5)
    assert predicted.metadata.equals(embedded.metadata)


def test_predict_without_a_checkpoint_is_refused(tiny_run: Write, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "--config", tiny_run()]) == 2
    assert "predict needs the path of a checkpoint" in capsys.readouterr().err


def test_a_checkpoint_of_another_architecture_is_refused(
    trained: tuple[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = trained
    more = ["--model.n_prototypes", "32", "--resume_override", "[model]"]
    assert main(["fit", "--config", config, "--ckpt_path", str(folder / "checkpoints/last.ckpt"), *more]) == 1
    message = capsys.readouterr().err
    assert "of another architecture" in message
    assert "Traceback" not in message


def test_every_documented_setting_of_a_method_changes_the_resolved_run(tiny_run: Write) -> None:
    """A typo is refused, and a right key arrives: what the parser made is what the method got."""
    from morphem.cli.precheck import check_arguments
    from morphem.cli.trainer_cli import CheckCLI

    options = ["--model.teacher_momentum", "0.5", "--model.export", "student", "--data.crops_per_image", "2"]
    cli = CheckCLI.build(check_arguments("fit", ["--config", tiny_run(), *options]))
    assert cli.model.teacher_momentum == 0.5
    assert cli.model.exported_encoder() is cli.model.encoder
    assert cli.datamodule.crops_per_image == 2


def test_a_saved_config_is_plain_yaml(trained: tuple[str, Path]) -> None:
    _, folder = trained
    settings = yaml.safe_load((folder / "config.yaml").read_text())
    assert settings["model"]["class_path"] == "morphem.methods.dino.DINO"

"""Wrong settings die early, with file, line and the nearest valid name, in at most eight lines."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from morphem.cli import main
from morphem.cli.config_files import expand, find_config, read_config
from morphem.cli.precheck import check_arguments, shipped_configs
from morphem.errors import ConfigError, PluginError

GOOD = """\
seed_everything: 0
trainer:
  max_epochs: 2
  precision: bf16-mixed
  callbacks:
    - class_path: ModelCheckpoint
      init_args: {save_last: true}
    - class_path: GracefulStop
model:
  class_path: dino
  init_args:
    lr: 5e-5
    encoder:
      class_path: Encoder
      init_args:
        input_size_px: 224
        channels:
          class_path: bag_of_channels
          init_args:
            backbone:
              class_path: vit
              init_args: {name: vit_small_patch16_224}
        normalizer:
          class_path: SelfNormalize
          init_args: {saturation_noise: true}
    views:
      class_path: MultiCrop
      init_args:
        recipes:
          - {count: 2, size_px: 224}
data:
  root: shards
  batch_size: 8
"""

BROKEN = [
    # what stands in the good config, what stands there instead, line of the fault, what the message must offer
    ("seed_everything: 0", "seed_everythin: 0", 1, "seed_everything"),
    ("trainer:", "trainers:", 2, "trainer"),
    ("model:", "modle:", 9, "model"),
    ("data:", "dat:", 29, "data"),
    ("max_epochs: 2", "max_epoch: 2", 3, "max_epochs"),
    ("max_epochs: 2", "maxepochs: 2", 3, "max_epochs"),
    ("max_epochs: 2", "max_epochs: two", 3, "int"),
    ("max_epochs: 2", "max_epochs: 2.5", 3, "int"),
    ("max_epochs: 2", "max_epochs: [2]", 3, "int"),
    ("max_epochs: 2", "max_epochs: true", 3, "int"),
    ("precision: bf16-mixed", "precison: bf16-mixed", 4, "precision"),
    ("callbacks:", "callback:", 5, "callbacks"),
    ("class_path: ModelCheckpoint", "class_path: ModelCheckpiont", 6, "ModelCheckpoint"),
    ("class_path: ModelCheckpoint", "class_pth: ModelCheckpoint", 6, "class_path"),
    ("save_last: true", "save_lst: true", 7, "save_last"),
    ("class_path: GracefulStop", "class_path: GracefullStop", 8, "GracefulStop"),
    ("class_path: dino", "class_path: dinno", 10, "dino"),
    ("class_path: dino", "class_path: DINO", 10, "dino"),
    ("class_path: dino", "class_path: nowhere.dino.DINO", 10, "install"),
    ("lr: 5e-5", "lrr: 5e-5", 12, "lr"),
    ("lr: 5e-5", "lr: fast", 12, "float"),
    ("lr: 5e-5", "lr: [5e-5]", 12, "float"),
    ("encoder:", "encode:", 13, "encoder"),
    ("class_path: Encoder", "class_path: Encodr", 14, "Encoder"),
    ("input_size_px: 224", "input_size: 224", 16, "input_size_px"),
    ("input_size_px: 224", "input_size_px: large", 16, "int"),
    ("channels:", "chanels:", 17, "channels"),
    ("class_path: bag_of_channels", "class_path: bag_of_chanels", 18, "bag_of_channels"),
    ("backbone:", "backbon:", 20, "backbone"),
    ("class_path: vit", "class_path: vitt", 21, "vit"),
    ("{name: vit_small_patch16_224}", "{nam: vit_small_patch16_224}", 22, "name"),
    ("class_path: SelfNormalize", "class_path: SelfNormalise", 24, "SelfNormalize"),
    ("{saturation_noise: true}", "{saturation_nois: true}", 25, "saturation_noise"),
    ("{saturation_noise: true}", "{saturation_noise: maybe}", 25, "bool"),
    ("views:", "view:", 26, "views"),
    ("class_path: MultiCrop", "class_path: MultiCrops", 27, "MultiCrop"),
    ("recipes:", "recipe:", 29, "recipes"),
    ("{count: 2, size_px: 224}", "{count: 2, size: 224}", 30, "size_px"),
    ("{count: 2, size_px: 224}", "{count: two, size_px: 224}", 30, "int"),
    ("root: shards", "rot: shards", 32, "root"),
    ("batch_size: 8", "batchsize: 8", 33, "batch_size"),
    ("batch_size: 8", "batch_size: many", 33, "int"),
]


def _write(folder: Path, text: str) -> str:
    path = folder / "run.yaml"
    path.write_text(text)
    return str(path)


def test_a_good_config_passes(tmp_path: Path) -> None:
    assert check_arguments("fit", ["--config", _write(tmp_path, GOOD)])


@pytest.mark.parametrize(("right", "wrong", "line", "offer"), BROKEN, ids=[f"{w}"[:40] for _, w, _, _ in BROKEN])
def test_a_broken_config_names_line_and_remedy(tmp_path: Path, right: str, wrong: str, line: int, offer: str) -> None:
    text = GOOD.replace(right, wrong, 1)
    assert text != GOOD
    line = next(number for number, row in enumerate(text.splitlines(), 1) if wrong in row)
    with pytest.raises(ConfigError) as caught:
        check_arguments("fit", ["--config", _write(tmp_path, text)])
    message = str(caught.value)
    assert f"run.yaml:{line}:" in message
    assert offer in message
    assert len(message.splitlines()) <= 8


@pytest.mark.parametrize(
    ("options", "offer"),
    [
        (["--trainer.max_epoch", "3"], "max_epochs"),
        (["--trainer.max_epochs=many"], "int"),
        (["--model.lrr", "1"], "lr"),
        (["--model.init_args.lrr", "1"], "lr"),
        (["--model", "dinno"], "dino"),
        (["--data.bath_size", "3"], "batch_size"),
        (["--modell", "dino"], "model"),
        (["--model.encoder.input_size", "3"], "input_size_px"),
    ],
)
def test_a_wrong_option_names_the_nearest(tmp_path: Path, options: list[str], offer: str) -> None:
    with pytest.raises((ConfigError, PluginError), match=offer):
        check_arguments("fit", ["--config", _write(tmp_path, GOOD), *options])


@pytest.mark.parametrize(
    "options",
    [
        ["--trainer.max_epochs", "3"],
        ["--model.lr=1e-3"],
        ["--model.init_args.lr", "1e-3"],
        ["--data.root", "/somewhere"],
        ["--data.init_args.batch_size", "3"],
        ["--trainer.callbacks+", "Throughput"],
        ["--print_config"],
        ["--ckpt_path", "last.ckpt"],
    ],
)
def test_a_right_option_passes(tmp_path: Path, options: list[str]) -> None:
    assert check_arguments("fit", ["--config", _write(tmp_path, GOOD), *options])


def test_later_files_are_checked_with_the_class_of_earlier_ones(tmp_path: Path) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("model:\n  init_args:\n    lrr: 1.0\n")
    with pytest.raises(ConfigError, match=r"overlay.yaml:3: unknown key 'model.init_args.lrr'"):
        check_arguments("fit", ["--config", _write(tmp_path, GOOD), "--config", str(overlay)])


def test_a_key_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml:2: the key 'seed_everything' stands here for the second time"):
        read_config(_write(tmp_path, "seed_everything: 0\nseed_everything: 1\n"))


def test_broken_yaml_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run\.yaml:3: this is not valid YAML"):
        read_config(_write(tmp_path, "a: 1\nb: [1, 2\nc: 3\n"))


def test_a_missing_config_offers_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'dino_boc\.yaml'"):
        find_config("dino_bok.yaml")


def test_the_working_directory_wins_over_shipped_configs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dino_boc.yaml").write_text("seed_everything: 1\n")
    monkeypatch.chdir(tmp_path)
    assert find_config("dino_boc.yaml") == tmp_path / "dino_boc.yaml"


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    assert read_config(_write(tmp_path, "a: 5e-5\nb: 1e3\n")).values == {"a": 5e-5, "b": 1000.0}


def test_short_names_expand_where_they_stand() -> None:
    expanded = expand({"model": "dino", "data": {"root": "x"}, "other": "dino"})
    assert expanded["model"] == "morphem.methods.dino.DINO"
    assert expanded["data"] == {"class_path": "morphem.data.module.ShardData", "init_args": {"root": "x"}}
    assert expanded["other"] == "dino"


@pytest.mark.parametrize("path", shipped_configs(), ids=lambda path: path.name)
def test_every_shipped_config_passes(path: Path) -> None:
    under = "dino_channelvit.yaml" if path.name == "diversity.yaml" else "dino_boc.yaml"  # an overlay of joint channels
    assert check_arguments("fit", ["--config", under, "--config", str(path)])


def test_a_wrong_key_dies_before_torch_is_imported(tmp_path: Path) -> None:
    config = _write(tmp_path, GOOD.replace("lr: 5e-5", "lrr: 5e-5"))
    code = "import sys; from morphem.cli import main; code = main(sys.argv[1:]); assert 'torch' not in sys.modules; "
    code += "sys.exit(code)"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, "fit", "--config", config], capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    assert "unknown key 'model.init_args.lrr'" in done.stderr
    assert "Traceback" not in done.stderr
    assert time.perf_counter() - start < 10  # about 0.5 s on a quiet machine


def test_an_unknown_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fitt"]) == 2
    assert "did you mean 'fit'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "key", "offer"),
    [
        ("loss: {pixel_wieght: 1}", "loss.pixel_wieght", "pixel_weight"),
        ("masks: [{ratoi: 0.5}]", "masks.0.ratoi", "ratio"),
        ("decoder: {dept: 2}", "decoder.dept", "depth"),
    ],
)
def test_a_wrong_key_inside_settings_of_an_argument_names_the_nearest(
    tmp_path: Path, settings: str, key: str, offer: str
) -> None:
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text(f"model:\n  init_args:\n    {settings}\n")
    with pytest.raises(ConfigError) as caught:
        check_arguments("fit", ["--config", "mae_boc.yaml", "--config", str(overlay)])
    message = str(caught.value)
    assert f"model.init_args.{key}" in message
    assert offer in message
    assert f"{overlay}:3" in message

"""Every shipped recipe resolves as it stands, and trains at tiny size through the command line."""

import csv
from pathlib import Path

import pytest
import torch
import yaml

from morphem.cli import main
from morphem.data import schema
from tests.recipes import shrink

RECIPES, OVERLAYS = shrink.names()
PUBLISHED = {
    "dino_boc", "mae_boc", "simclr_boc", "dino_channelvit", "mae_channelvit", "simclr_channelvit", "supervised_fixed",
    "unidino", "kim_dino", "kim_mae", "kim_simclr", "campfire", "ca_mae", "cha_mae", "supcon_channelvit",
    "chadavit_dino", "dichavit", "channel_adaptive_dino",
}  # fmt: skip
SELECTING = [name for name in OVERLAYS if "query" in shrink.read(name).get("data", {})]


def test_there_is_a_recipe_for_every_published_training() -> None:
    assert {name.removesuffix(".yaml") for name in RECIPES} == PUBLISHED


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_resolves_as_it_stands(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = shrink.shards(tmp_path / "shards", shrink.channels(recipe))
    code = main(["check", "--config", recipe, "--data.root", root, "--data.batch_size", "2"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    assert "all settings resolve" in printed.out


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains_at_tiny_size(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = shrink.shards(tmp_path / "shards", shrink.channels(recipe))
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(shrink.small(recipe), sort_keys=False))
    assert main(["fit", "--config", "small.yaml", "--data.root", root]) == 0
    checkpoint = torch.load(next(tmp_path.glob("runs/*/version_0/checkpoints/last.ckpt")), weights_only=True)
    assert checkpoint["global_step"] == 2
    assert list(tmp_path.glob("runs/*/version_0/**/model.safetensors")), "no encoder was exported"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_says_where_its_numbers_come_from(recipe: str) -> None:
    lines = (shrink.CONFIGS / recipe).read_text().splitlines()
    header = [line for line in lines[:20] if line.startswith("# ")]
    assert f"--config {recipe}" in "\n".join(header), "the header has no command to run"
    assert any(" at " in line or "arXiv" in line or "paper" in line for line in header), "the header names no source"


def test_every_overlay_says_how_it_is_used() -> None:
    for name in OVERLAYS:
        text = (shrink.CONFIGS / name).read_text()
        assert text.startswith("# An overlay"), name
        assert f"--config {name}" in text, name


@pytest.mark.parametrize("size", ["vit_s.yaml", "vit_b.yaml", "vit_l.yaml"])
def test_the_sizes_of_the_network_fit_a_recipe(
    size: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = shrink.shards(tmp_path / "shards", [["nucleus"]])
    assert (
        main(["check", "--config", "dino_boc.yaml", "--config", size, "--data.root", root, "--data.batch_size", "2"])
        == 0
    )
    width = {"vit_s.yaml": 384, "vit_b.yaml": 768, "vit_l.yaml": 1024}[size]
    assert f"BagOfChannels, {width} features" in capsys.readouterr().out


@pytest.mark.parametrize("overlay", ["gpu1.yaml", "gpu8.yaml", "nodes2x8.yaml", "ddp.yaml", "fsdp.yaml", "bf16.yaml"])
def test_the_overlays_of_devices_are_settings_that_the_trainer_knows(overlay: str) -> None:
    from morphem.cli.precheck import check_arguments

    assert check_arguments("fit", ["--config", "dino_boc.yaml", "--config", overlay])


@pytest.mark.parametrize("overlay", ["bf16.yaml", "ddp.yaml"])
def test_a_recipe_trains_with_the_overlays_that_need_no_gpu(
    overlay: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    root = shrink.shards(tmp_path / "shards", [["nucleus", "rna"]])
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(shrink.small("simclr_channelvit.yaml"), sort_keys=False))
    assert main(["fit", "--config", "small.yaml", "--config", overlay, "--data.root", root]) == 0


def test_self_supervised_dichavit_is_one_overlay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = shrink.shards(tmp_path / "shards", [["nucleus", "rna", "protein"], ["nucleus"]])
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(shrink.small("dino_channelvit.yaml"), sort_keys=False))
    more = ["--config", "diversity.yaml", "--data.root", root, "--trainer.log_every_n_steps", "1"]
    assert main(["fit", "--config", "small.yaml", *more]) == 0
    metrics = next(tmp_path.glob("runs/*/version_0/metrics.csv")).read_text()
    for term in ("within", "across", "channels"):
        assert f"train/diversity_{term}" in metrics


@pytest.mark.parametrize(
    ("overlay", "inside", "outside"),
    [
        ("ablation_modality.yaml", {"microscopy.type": "fluorescence"}, {"microscopy.type": "bright-field"}),
        ("ablation_cell_line.yaml", {"biology.cell_line": "U2OS"}, {"biology.cell_line": "HeLa"}),
        ("scaling_3ds.yaml", {"experiment.study": "wtc0001"}, {"experiment.study": "idr0002"}),
        ("scaling_10ds.yaml", {"experiment.study": "idr0002"}, {"experiment.study": "idr0020"}),
        ("scaling_74ds.yaml", {"experiment.study": "nidr0032"}, {"experiment.study": "idr0020"}),
    ],
)
def test_an_ablation_selects_what_it_names_alone(
    overlay: str, inside: dict, outside: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(shrink.small("dino_boc.yaml"), sort_keys=False))
    root = shrink.shards(tmp_path / "in", [["nucleus", "rna"]], **inside)
    assert main(["check", "--config", "small.yaml", "--config", overlay, "--data.root", root]) == 0
    assert "16 planes of 8 images" in capsys.readouterr().out
    elsewhere = shrink.shards(tmp_path / "out", [["nucleus", "rna"]], **outside)
    assert main(["check", "--config", "small.yaml", "--config", overlay, "--data.root", elsewhere]) != 0
    assert "selects no channel plane" in capsys.readouterr().err


def test_the_ablation_of_channels_keeps_the_nuclei_of_all_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(shrink.small("dino_boc.yaml"), sort_keys=False))
    root = shrink.shards(tmp_path / "shards", [["nucleus", "rna"], ["actin"]])
    more = ["--config", "ablation_channels.yaml", "--data.root", root]
    assert main(["check", "--config", "small.yaml", *more]) == 0
    assert "4 planes of 4 images" in capsys.readouterr().out
    assert main(["fit", "--config", "small.yaml", *more]) == 0


def test_the_74_studies_are_those_with_a_crop_size_but_for_the_benchmark() -> None:
    table = Path(schema.__file__).parent / "study_scales.csv"
    with table.open() as file:
        studies = {row["study"] for row in csv.DictReader(file)} - {"idr0020"}
    query = shrink.read("scaling_74ds.yaml")["data"]["query"]
    assert sorted(studies) == sorted(_studies(query))
    ten, three = ({*_studies(shrink.read(f"scaling_{n}ds.yaml")["data"]["query"])} for n in (10, 3))
    assert three < ten < studies
    assert (len(studies), len(ten), len(three)) == (74, 10, 3)


def _studies(query: str) -> list[str]:
    return query.split("[")[1].strip("]").replace("'", "").replace(" ", "").split(",")


def test_every_overlay_that_selects_data_is_tried_here() -> None:
    tried = {"ablation_modality.yaml", "ablation_cell_line.yaml", "ablation_channels.yaml"}
    assert set(SELECTING) == tried | {f"scaling_{n}ds.yaml" for n in (3, 10, 74)}

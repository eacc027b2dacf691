from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from morphem.backbones.vit import VisionTransformer
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_attention import ChannelAttention
from morphem.cli import main
from morphem.encoder import Encoder
from morphem.errors import DataError
from morphem.maps.colours import PatchColours, heat
from morphem.maps.draw import Scale, overlay, stretched
from morphem.normalizers import SelfNormalize
from tests import small_shards


def test_colours_show_the_three_directions_of_most_variance() -> None:
    generator = np.random.default_rng(0)
    tokens = (generator.normal(size=(500, 6)) * [9, 5, 3, 0.1, 0.1, 0.1]).astype(np.float32) + 7
    colours = PatchColours.fit(tokens, "w")
    _, values, directions = np.linalg.svd(tokens.astype(np.float64) - tokens.mean(0, dtype=np.float64))
    for mine, reference in zip(colours.components, directions[:3], strict=True):
        assert abs(float(mine @ reference)) == pytest.approx(1, abs=1e-5)
        assert mine[np.abs(mine).argmax()] > 0
    np.testing.assert_allclose(colours.explained, (values**2 / (values**2).sum())[:3], rtol=1e-4)
    scores = (tokens - tokens.mean(0)) @ colours.components.T
    shown = colours(tokens).astype(float)
    assert all(np.corrcoef(scores[:, i], shown[:, i])[0, 1] > 0.98 for i in range(3))
    assert shown.min() == 0
    assert shown.max() == 255


def test_the_colours_of_an_image_do_not_depend_on_the_other_images_shown(tmp_path: Path) -> None:
    tokens = np.random.default_rng(1).normal(size=(64, 5)).astype(np.float32)
    colours = PatchColours.fit(tokens, "weights")
    colours.save(tmp_path / "c.npz")
    again = PatchColours.load(tmp_path / "c.npz", "weights")
    np.testing.assert_array_equal(again(tokens[:8]), colours(tokens)[:8])
    with pytest.raises(DataError, match="fitted on tokens of other weights"):
        PatchColours.load(tmp_path / "c.npz", "others")
    (tmp_path / "d.npz").write_text("no colours")
    with pytest.raises(DataError, match="holds no colours of patch tokens"):
        PatchColours.load(tmp_path / "d.npz", "weights")


def test_too_few_tokens_have_no_colours() -> None:
    with pytest.raises(DataError, match="3 patch tokens of width 5 do not span three directions"):
        PatchColours.fit(np.eye(3, 5, dtype=np.float32), "w")


def test_more_attention_is_brighter_and_shows_the_plane_less() -> None:
    levels = heat(np.linspace(0, 1, 50, dtype=np.float32)).astype(float) @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(levels) > 0).all()
    black = np.zeros((1, 3), np.uint8)
    seen = overlay(black, np.array([[0.5, 1.0, 2.0]], np.float32), Scale(0.5, 2.0)).astype(float).sum(-1)
    assert (np.diff(seen[0]) > 0).all()


def test_a_scale_spans_the_attention_of_an_image_and_is_never_empty() -> None:
    scale = Scale.of(np.linspace(0.5, 3, 1001, dtype=np.float32))
    assert scale.low == pytest.approx(0.5125, abs=1e-3)
    assert scale(np.array([0.0, 9.0], np.float32)).tolist() == [0.0, 1.0]
    assert np.isfinite(Scale.of(np.ones(5, np.float32))(np.ones(5, np.float32))).all()


def test_a_map_is_blown_up_in_place() -> None:
    values = np.array([[0, 1], [2, 3]], np.float32)
    assert stretched(values, (4, 6), smooth=False).tolist() == np.kron(values, np.ones((2, 3))).tolist()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    images = [small_shards.image(f"i{k}", size=(40, 48)) for k in range(3)]
    return small_shards.write(tmp_path_factory.mktemp("shards"), images)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    for name in ("bag", "joint"):
        torch.manual_seed(0)
        network = VisionTransformer.tiny()
        strategy = BagOfChannels(network) if name == "bag" else ChannelAttention(network, list(small_shards.PANEL))
        Encoder(strategy, SelfNormalize(), input_size_px=32).save_pretrained(folder / name)
    return {name: str(folder / name) for name in ("bag", "joint")}


@pytest.mark.parametrize("more", [[], ["--tile-size-px", "16", "--heads", "--attention", "rollout"]])
@pytest.mark.parametrize("name", ["bag", "joint"])
def test_the_command_writes_pictures_and_a_table(
    models: dict[str, str], root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, more: list[str]
) -> None:
    output = tmp_path / "maps"
    words = ["maps", "--model", models[name], "--data", root, "--output", str(output), "--count", "2", *more]
    assert main(words) == 0
    table = pd.read_csv(output / "attribution.csv")
    assert table["image"].unique().tolist() == ["study--i0", "study--i2"]
    assert table["channel"].tolist() == [*small_shards.PANEL] * 2
    shares = table["attention_share"].to_numpy().reshape(2, 3)
    printed = capsys.readouterr().out
    if name == "bag":
        assert np.isnan(shares).all()
        assert "every channel is embedded alone" in printed
    else:
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)
        assert "nucleus" in printed
    sheet = np.asarray(Image.open(output / "study--i0.png"))
    assert sheet.std() > 20
    for channel in small_shards.PANEL:
        alone = np.asarray(Image.open(output / "study--i0" / f"attention.{channel}.png"))
        assert alone.shape == (40, 48)
        assert np.asarray(Image.open(output / "study--i0" / f"patches.{channel}.png")).shape == (40, 48, 3)
    assert (output / "study--i0.heads.png").exists() == ("--heads" in more)


def test_kept_colours_give_the_same_picture(models: dict[str, str], root: str, tmp_path: Path) -> None:
    words = ["maps", "--model", models["bag"], "--data", root]
    assert main([*words, "--output", str(tmp_path / "a"), "--image", "study--i1"]) == 0
    kept = str(tmp_path / "a" / "patch_colours.npz")
    assert main([*words, "--output", str(tmp_path / "b"), "--image", "i1", "--colours", kept]) == 0
    first, second = ((tmp_path / folder / "study--i1.png").read_bytes() for folder in "ab")
    assert first == second


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image", "i9"], "No image 'i9'; did you mean"),
        (["--image", "i1", "--count", "2"], "--count says how many images to choose"),
        (["--count", "0"], "--count must be at least 1"),
        (["--colours", "c.npz", "--reference", "2"], "--reference says on how many images"),
    ],
)
def test_a_mistake_is_one_sentence(
    models: dict[str, str],
    root: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    message: str,
) -> None:
    given = ["maps", "--model", models["bag"], "--data", root, "--output", str(tmp_path / "m"), *words]
    assert main(given) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_pictures_that_are_there_are_kept_unless_asked(
    models: dict[str, str], root: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.png").write_text("mine")
    words = ["maps", "--model", models["bag"], "--data", root, "--output", str(tmp_path), "--count", "1"]
    assert main(words) == 1
    assert "is not empty" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0
    assert (tmp_path / "mine.png").read_text() == "mine"

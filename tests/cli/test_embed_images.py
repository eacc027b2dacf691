"""`morphem embed --images`: from files to a table with one command."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch

from morphem import features
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_attention import ChannelAttention
from morphem.cli import main
from morphem.encoder import Encoder
from morphem.normalizers import SelfNormalize
from morphem.sources.omezarr import OmeZarrSource

STUDIES = Path(__file__).resolve().parents[2] / "shared" / "data"
STUDIES = STUDIES if STUDIES.is_dir() else Path(__file__).resolve().parents[3] / "shared" / "data"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    torch.manual_seed(0)
    Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=16).save_pretrained(folder)
    return str(folder)


def _plate(folder: Path, n_sites: int = 3, channels: tuple[str, ...] = ("w1", "w2"), dtype: type = np.uint16) -> Path:
    """Files as MetaXpress names them: plate, well, site, channel."""
    folder.mkdir(parents=True, exist_ok=True)
    for well in ("A01", "A02"):
        for site in range(1, n_sites + 1):
            for nth, channel in enumerate(channels):
                generator = np.random.default_rng([ord(well[-1]), site, nth])
                pixels = generator.integers(100, 4000, (40, 48)).astype(dtype)
                tifffile.imwrite(folder / f"plate1_{well}_s{site}_{channel}.tif", pixels)
    return folder


def _words(model: str, images: Path | str, output: Path, *more: str) -> list[str]:
    words = ["embed", "--model", model, "--images", str(images), "--output", str(output), "--accelerator", "cpu"]
    return [*words, "--image-workers", "1", *more]


def test_channels_may_have_commas_between(model: str, tmp_path: Path) -> None:
    plate, output = _plate(tmp_path / "plate", n_sites=1), tmp_path / "f.parquet"
    assert main(_words(model, plate, output, "--channels", "w1=nucleus, w2=actin")) == 0
    assert {entry["channel"] for entry in features.read(output).dictionary} == {"nucleus", "actin"}


def test_a_folder_of_tiffs_becomes_a_table_with_one_command(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plate, output = _plate(tmp_path / "plate"), tmp_path / "f.parquet"
    assert main(_words(model, plate, output, "--channels", "w1=nucleus", "w2=actin")) == 0
    table = features.read(output)
    assert table.metadata["Metadata_Well"].tolist() == ["A01"] * 3 + ["A02"] * 3
    assert {entry["channel"] for entry in table.dictionary} == {"nucleus", "actin"}
    assert table.provenance["data"]["root"] == str(plate)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.parquet", "plate"]
    printed = capsys.readouterr().out
    assert "6 images of" in printed
    assert "4 rows against a slow reference: largest difference" in printed


def test_images_and_shards_of_them_give_the_same_rows(model: str, tmp_path: Path) -> None:
    plate = _plate(tmp_path / "plate")
    channels = ["w1=nucleus", "w2=actin"]
    assert main(_words(model, plate, tmp_path / "f.parquet", "--tile-size-px", "16", "--channels", *channels)) == 0
    named = [word for name in channels for word in ("--channel", name)]
    assert main(["ingest", str(plate), "--output", str(tmp_path / "shards"), "--no-report", *named]) == 0
    words = ["embed", "--model", model, "--data", str(tmp_path / "shards"), "--output", str(tmp_path / "g.parquet")]
    assert main([*words, "--tile-size-px", "16", "--accelerator", "cpu"]) == 0
    straight, through = features.read(tmp_path / "f.parquet"), features.read(tmp_path / "g.parquet")
    np.testing.assert_allclose(straight.values, through.values, atol=2e-6)
    assert straight.metadata.equals(through.metadata)


def test_ome_zarr_is_read_too(model: str, tmp_path: Path) -> None:
    (tmp_path / "zarr").mkdir()
    OmeZarrSource.tiny(tmp_path / "zarr")
    assert main(_words(model, tmp_path / "zarr", tmp_path / "f.parquet", "--combine", "mean")) == 0
    assert len(features.read(tmp_path / "f.parquet")) >= 1


def test_names_in_order_are_taken_where_files_do_not_say(model: str, tmp_path: Path) -> None:
    (tmp_path / "stacks").mkdir()
    for k in range(2):
        pixels = np.random.default_rng(k).integers(0, 999, (3, 40, 48)).astype(np.uint16)
        tifffile.imwrite(tmp_path / "stacks" / f"i{k}.tif", pixels, imagej=True, metadata={"axes": "CYX"})
    output = tmp_path / "f.parquet"
    assert main(_words(model, tmp_path / "stacks", output, "--channels", "DAPI", "phalloidin", "ER")) == 0
    found = {entry["channel"] for entry in features.read(output).dictionary}
    assert found == {"nucleus", "actin", "endoplasmic reticulum"}


@pytest.mark.parametrize(
    ("channels", "message"),
    [
        ([], "it is not known what these channels show: 'w1' (6 planes), 'w2' (6 planes)"),
        (["w1=nucleus"], "it is not known what these channels show: 'w2' (6 planes)"),
        (["w1=nucleus", "w2=actn"], "No channel type 'actn'; nearest: 'actin'"),
        (["w1=nucleus", "w3=actin"], "--channels w3=...: No channel 'w3'; did you mean 'w2'"),
        (["nucleus", "actin"], "names in order could go wrong"),
        (["w1=nucleus", "actin"], "--channels mixes NAME=TYPE with names in order ('actin')"),
    ],
)
def test_a_mistake_in_the_panel_is_refused_before_a_pixel_is_read(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], channels: list[str], message: str
) -> None:
    plate = _plate(tmp_path / "plate")
    given = ["--channels", *channels] if channels else []
    assert main(_words(model, plate, tmp_path / "f.parquet", *given)) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert [path.name for path in tmp_path.iterdir()] == ["plate"]


def test_images_that_differ_in_channels_are_refused_before_a_pixel_is_read(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "stacks").mkdir()
    for k, channels in enumerate((["DAPI", "ER"], ["DAPI", "ER", "RNA"])):
        pixels = np.random.default_rng(k).integers(0, 999, (len(channels), 40, 48)).astype(np.uint16)
        metadata = {"axes": "CYX", "Channel": {"Name": channels}}
        tifffile.imwrite(tmp_path / "stacks" / f"i{k}.ome.tif", pixels, metadata=metadata)
    assert main(_words(model, tmp_path / "stacks", tmp_path / "f.parquet")) == 1
    assert "combine='concat' needs the same channels in every image" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["stacks"]
    assert main(_words(model, tmp_path / "stacks", tmp_path / "f.parquet", "--combine", "mean")) == 0


def test_an_encoder_that_does_not_know_a_channel_says_so_before_a_pixel_is_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    network = ChannelAttention(ChannelAttention.tiny().backbone, ["nucleus", "rna"])
    Encoder(network, SelfNormalize(), input_size_px=16).save_pretrained(tmp_path / "model")
    plate = _plate(tmp_path / "plate")
    words = _words(str(tmp_path / "model"), plate, tmp_path / "f.parquet", "--channels", "w1=nucleus", "w2=actin")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert "(nucleus, actin; 16 x 16 pixels at a time)" in error
    assert "actin" in error.partition(":")[2]
    assert not (tmp_path / "f.parquet.parts").exists()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: tifffile.imwrite(path, np.full((40, 48), np.nan, np.float32)), "NaN or infinite"),
        (lambda path: path.write_bytes(b""), "cannot be"),
        (lambda path: path.write_bytes(path.read_bytes()[:200]), "cannot be"),
        (lambda path: path.unlink(), "cannot be used"),
    ],
)
def test_an_image_that_cannot_be_used_stops_the_job_with_its_name(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: object, message: str
) -> None:
    plate = _plate(tmp_path / "plate")
    spoil(plate / "plate1_A02_s2_w2.tif")
    words = _words(model, plate, tmp_path / "f.parquet", "--channels", "w1=nucleus", "w2=actin")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert message in error
    assert "A02" in error
    assert not (tmp_path / "f.parquet").exists()
    assert main([*words, "--max-bad", "0.5"]) == 0
    assert len(features.read(tmp_path / "f.parquet")) == 5
    assert "LEFT OUT" in capsys.readouterr().out


def test_a_black_image_is_embedded_and_remarked(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plate = _plate(tmp_path / "plate")
    tifffile.imwrite(plate / "plate1_A02_s2_w2.tif", np.zeros((40, 48), np.uint16))
    assert main(_words(model, plate, tmp_path / "f.parquet", "--channels", "w1=nucleus", "w2=actin")) == 0
    assert "1 plane of plate show" in capsys.readouterr().out.replace("planes", "plane")
    assert np.isfinite(features.read(tmp_path / "f.parquet").values).all()


def test_several_models_write_a_file_each(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plate = _plate(tmp_path / "plate")
    torch.manual_seed(1)
    Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=16).save_pretrained(tmp_path / "other")
    words = _words(model, plate, tmp_path / "f.parquet", "--model", f"second={tmp_path / 'other'}")
    assert main([*words, "--channels", "w1=nucleus", "w2=actin"]) == 0
    tables = [features.read(tmp_path / f"f.{name}.parquet") for name in ("tiny", "second")]
    assert tables[0].metadata.equals(tables[1].metadata)
    assert not np.allclose(tables[0].values, tables[1].values)
    assert capsys.readouterr().out.count("wrote") == 2


def test_two_models_of_one_name_are_told_to_be_named(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_words(model, tmp_path, tmp_path / "f.parquet", "--model", model)) == 1
    assert "two models are called 'tiny'; name them: --model NAME=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data", "shards"], "one of the two"),
        (["--mean-over", "images"], "--mean-over images has no effect without --aggregate well"),
        (["--unit", "image", "--mask", "zero"], "mask='zero' has no effect with unit='image'"),
        (["--empty-channel", "nucleus"], "empty_channel='nucleus' has no effect"),
        (["--clip", "5"], "clip is '5'"),
        (["--set", "colour=rgb", "--source", "pattern"], "--set colour: PatternSource has no such setting"),
    ],
)
def test_words_without_effect_are_refused(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], message: str
) -> None:
    plate = _plate(tmp_path / "plate")
    given = _words(model, plate, tmp_path / "f.parquet", "--channels", "w1=nucleus", "w2=actin", *words)
    assert main(given) == 1
    assert message in capsys.readouterr().err


def test_what_belongs_to_images_is_refused_with_shards(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["embed", "--model", model, "--data", "sample://tiny", "--output", "f.parquet", "--channels", "nucleus"]
    assert main(words) == 1
    assert "--channels belongs to --images" in capsys.readouterr().err


def test_other_images_do_not_mix_with_parts_that_were_left(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plate = _plate(tmp_path / "plate")
    parts = tmp_path / "f.parquet.parts"
    parts.mkdir()
    (parts / "images.json").write_text('{"digest": "another"}')
    words = _words(model, plate, tmp_path / "f.parquet", "--channels", "w1=nucleus", "w2=actin")
    assert main(words) == 1
    assert "holds images of another job" in capsys.readouterr().err
    assert main([*words, "--overwrite"]) == 0


@pytest.mark.slow
def test_a_job_that_is_killed_again_and_again_ends_with_the_same_table(model: str, tmp_path: Path) -> None:
    plate = _plate(tmp_path / "plate", n_sites=12)
    more = ["--tile-size-px", "16", "--channels", "w1=nucleus", "w2=actin"]
    assert main(_words(model, plate, tmp_path / "whole.parquet", *more)) == 0
    output = tmp_path / "killed.parquet"
    command = [sys.executable, "-m", "morphem", *_words(model, plate, output, *more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    kills = 0
    for after in (3.0, 4.5, 6.0):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(after)
        kills += process.poll() is None
        process.send_signal(signal.SIGKILL)
        process.wait()
        if output.exists():
            break
    assert kills >= 1
    if not output.exists():
        assert subprocess.run(command, env=environment, check=False, capture_output=True).returncode == 0
    whole, killed = features.read(tmp_path / "whole.parquet"), features.read(output)
    np.testing.assert_allclose(killed.values, whole.values, atol=2e-6)
    assert killed.metadata.equals(whole.metadata)
    assert not (tmp_path / "killed.parquet.parts").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "more", "n_rows"),
    [
        ("bbbc014-nfkb", [], 2),
        ("bbbc016-transfluor", ["--aggregate", "well"], 24),
        ("bccd-blood", [], 182),
        ("hippocampal-neuron", [], 1),
        ("imc-mock", [], 15),
        ("moffat-human", ["--tile-size-px", "224", "--skip-empty", "otsu"], 9),
        ("neubias-formats", ["--combine", "mean", "--channels", "channel 1=other", "channel 2=protein"], 4),
        ("nf1-schwann", ["--crop-size-px", "64", "--mask", "background", "--aggregate", "well"], 5),
        ("pca-br00143976", ["--tile-size-px", "224", "--tiling", "grid"], 16),
    ],
)
@pytest.mark.skipif(not STUDIES.is_dir(), reason="the real studies lie outside of the repository")
def test_every_real_study_becomes_a_table(model: str, tmp_path: Path, study: str, more: list[str], n_rows: int) -> None:
    assert main(_words(model, STUDIES / study, tmp_path / "f.parquet", *more)) == 0
    table = features.read(tmp_path / "f.parquet")
    assert len(table) == n_rows
    assert np.isfinite(table.values).all()
    assert table.provenance["self_check"]["n_rows"] >= 1
    assert table.provenance["self_check"]["largest"] < 1e-4

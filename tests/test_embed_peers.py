"""Published encoders over shards, by their own recipe, against what their authors' code gave (../shared/golden)."""

from pathlib import Path

import numpy as np
import pytest
import tifffile

from morphem import features
from morphem.cli import main
from morphem.data.commit import finish_set
from morphem.data.record import ImageRecord
from morphem.data.writer import ShardWriter
from tests.references import golden

FOLDER = Path(__file__).resolve().parents[1] / "shared" / "golden"
FOLDER = FOLDER if FOLDER.is_dir() else Path(__file__).resolve().parents[2] / "shared" / "golden"
CHANNELS = ("nucleus", "actin", "microtubules", "golgi body", "mitochondria", "rna")

pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="the golden files lie outside of the repository")


def _write(root: Path, images: dict[str, np.ndarray]) -> str:
    """Write images (C, H, W) of one well as they are, uint8 or uint16, whose limits are those of their type."""
    with ShardWriter(root, "study") as writer:
        for name, planes in images.items():
            n_channels, height, width = planes.shape
            top = float(np.iinfo(planes.dtype).max)
            rows = [
                {
                    "experiment.study": "study",
                    "experiment.plate": "P1",
                    "experiment.well": "A01",
                    "imaging.multi_channel_id": name,
                    "imaging.channel": nth + 1,
                    "imaging.channel_type": CHANNELS[nth],
                    "microscopy.type": "fluorescence",
                    "geometry.height": height,
                    "geometry.width": width,
                    "geometry.channels": n_channels,
                }
                for nth in range(n_channels)
            ]
            limits = [(0.0, top)] * n_channels
            writer.add(ImageRecord(name, list(planes), rows, CHANNELS[:n_channels], clip_limits=limits))
    finish_set(root)
    return str(root)


def _embed(model: str, root: str, output: Path, *words: str) -> features.FeatureTable:
    command = ["embed", "--model", str(FOLDER / model), "--data", root, "--output", str(output), "--accelerator", "cpu"]
    assert main([*command, *words]) == 0
    return features.read(output)


def _in_order(table: features.FeatureTable, n_channels: int) -> np.ndarray:
    """Features of every channel in the order of CHANNELS, (R, C * D)."""
    columns = [
        i for name in CHANNELS[:n_channels] for i, entry in enumerate(table.dictionary) if entry["channel"] == name
    ]
    return table.values[:, columns]


def test_unidino_over_two_fields_gives_the_features_of_its_authors(tmp_path: Path) -> None:
    told = golden.tensors(FOLDER, "unidino")
    fields = {f"field{i}": told[f"two_fields.field{i}"].numpy() for i in range(2)}
    fields = {name: field.reshape(field.shape[-3:]) for name, field in fields.items()}
    root = _write(tmp_path / "shards", fields)
    n_channels = fields["field0"].shape[0]
    wells = _embed("unidino.ckpt", root, tmp_path / "w.parquet", "--aggregate", "well", "--tiling", "square_grid")
    expected = told["two_fields.features"].numpy().reshape(1, -1)
    allowed = golden.tolerance(FOLDER, "unidino", "two_fields", "features")
    np.testing.assert_allclose(_in_order(wells, n_channels), expected, atol=allowed)
    tiles = _embed("unidino.ckpt", root, tmp_path / "t.parquet")  # our own count of tiles uses the second column too
    first = tiles.values[(tiles.metadata["Metadata_Image"] == "field0").to_numpy()]
    assert len(first) == len(told["two_fields.tiles_of_field0"])
    assert len(tiles) == len(first) + 2


@pytest.mark.parametrize("case", ["blank_tile", "all_blank"])
def test_unidino_leaves_out_the_blank_tiles_that_its_authors_leave_out(tmp_path: Path, case: str) -> None:
    told = golden.tensors(FOLDER, "unidino")
    if case == "blank_tile":
        field = told["two_fields.field0"].numpy().copy()
        field = field.reshape(field.shape[-3:])
        field[0, :224, :224] = 0
    else:
        field = told["all_blank.field0"].numpy()
        field = field.reshape(field.shape[-3:])
    root = _write(tmp_path / "shards", {"field0": field})
    wells = _embed("unidino.ckpt", root, tmp_path / "w.parquet", "--aggregate", "well")
    expected = told[f"{case}.features"].numpy().reshape(1, -1)
    allowed = golden.tolerance(FOLDER, "unidino", case, "features")
    np.testing.assert_allclose(_in_order(wells, len(field)), expected, atol=allowed)
    n_tiles = (field.shape[1] // 224) * (field.shape[2] // 224)
    assert wells.provenance["tiles_left_out"] == (1 if case == "blank_tile" else n_tiles - 1)
    assert wells.metadata["Metadata_Object_Count"].tolist() == [n_tiles - wells.provenance["tiles_left_out"]]


def test_microsnoop_over_overlapping_tiles_gives_the_features_of_its_authors(tmp_path: Path) -> None:
    told = golden.tensors(FOLDER, "microsnoop")
    images = told["tiles.images"].numpy()
    root = _write(tmp_path / "shards", {f"i{k}": image for k, image in enumerate(images)})
    table = _embed("microsnoop.ckpt", root, tmp_path / "i.parquet", "--aggregate", "image")
    allowed = golden.tolerance(FOLDER, "microsnoop", "tiles", "features")
    expected = told["tiles.features"].numpy().reshape(len(images), -1)
    np.testing.assert_allclose(_in_order(table, images.shape[1]), expected, atol=allowed)


@pytest.mark.parametrize(("dtype", "remedy"), [("uint8", "stretched."), ("float32", "stretched --bit-depth 8.")])
def test_images_of_another_type_are_refused_before_all_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: str, remedy: str
) -> None:
    (tmp_path / "plate").mkdir()
    for site in range(2):
        pixels = np.random.default_rng(site).integers(0, 250, (230, 240)).astype(dtype)
        tifffile.imwrite(tmp_path / "plate" / f"plate1_A01_s{site + 1}_w1.tif", pixels)
    words = ["embed", "--model", str(FOLDER / "unidino.ckpt"), "--images", str(tmp_path / "plate"), "--accelerator"]
    words += ["cpu", "--channels", "w1=nucleus", "--output", str(tmp_path / "f.parquet"), "--image-workers", "1"]
    assert main(words) == 1
    assert f"has {dtype} pixels, and an encoder was made for 16-bit intensities" in (error := capsys.readouterr().err)
    assert remedy in error
    assert not (tmp_path / "f.parquet.parts").exists()
    assert main([*words, "--pixels", *remedy.rstrip(".").split()]) == 0


def test_8_bit_shards_are_refused_by_an_encoder_of_16_bit_unless_stretched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (2, 224, 224)).astype(np.uint8)
    root = _write(tmp_path / "shards", {"a": image})
    words = ["embed", "--model", str(FOLDER / "unidino.ckpt"), "--data", root, "--output", str(tmp_path / "f.parquet")]
    assert main([*words, "--accelerator", "cpu"]) == 1
    assert "The shards hold 8-bit levels" in capsys.readouterr().err
    assert main([*words, "--accelerator", "cpu", "--pixels", "stretched"]) == 0
    as_16_bit = _write(tmp_path / "wide", {"a": image.astype(np.uint16) * 257})
    straight = _embed("unidino.ckpt", as_16_bit, tmp_path / "g.parquet")
    np.testing.assert_allclose(features.read(tmp_path / "f.parquet").values, straight.values, atol=1e-6)

"""Shards that are missing, cut short, damaged, or written by another program."""

import io
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from morphem.data import png, writer
from tests.bad_input.cases import embed, overwrite, plane
from tests.small_shards import image, write


def test_a_missing_folder_of_shards(refused, encoder, tmp_path):
    sentence = refused(*embed(encoder, tmp_path / "nowhere"))
    assert str(tmp_path / "nowhere") in sentence


def test_a_missing_shard(refused, encoder, shards):
    name = "study-000001.tar"
    (shards / name).unlink()
    assert name in refused(*embed(encoder, shards))
    assert not Path("out.parquet").exists()


def test_a_missing_shard_stops_training_before_it_starts(refused, shards, tiny_run):
    (shards / "study-000001.tar").unlink()
    assert "study-000001.tar" in refused("fit", "--config", tiny_run(root=str(shards)))


def test_a_truncated_shard(refused, encoder, shards):
    file = shards / "study-000002.tar"
    os.truncate(file, file.stat().st_size // 2)
    assert "study-000002.tar" in refused(*embed(encoder, shards))
    assert not Path("out.parquet").exists()


def test_a_truncated_shard_stops_training(refused, shards, tiny_run):
    file = shards / "study-000002.tar"
    os.truncate(file, file.stat().st_size // 2)
    assert "study-000002.tar" in refused("fit", "--config", tiny_run(root=str(shards)))


def test_a_corrupt_png_stops_embedding_with_its_name(refused, encoder, shards):
    file, offset, nbytes = plane(shards, 4)
    overwrite(file, offset + nbytes // 2, b"\0\xff" * 20)
    sentence = refused(*embed(encoder, shards))
    assert file.name in sentence
    assert "image1" in sentence
    assert not Path("out.parquet").exists()


@pytest.mark.slow
def test_a_corrupt_png_is_skipped_counted_and_reported_in_training(command, shards, tiny_run, recwarn):
    file, offset, nbytes = plane(shards, 4)
    overwrite(file, offset + nbytes // 2, b"\0\xff" * 20)
    outcome = command("fit", "--config", tiny_run(root=str(shards)))
    assert outcome.code == 0, outcome.err
    said = outcome.err + "".join(str(warning.message) for warning in recwarn)
    assert "damaged" in said
    assert file.name in said


@pytest.mark.slow
def test_too_many_corrupt_pngs_stop_training_with_the_file(refused, shards, tiny_run):
    for number in (0, 3):  # planes of two images
        file, offset, nbytes = plane(shards, number)
        overwrite(file, offset + nbytes // 2, b"\0\xff" * 20)
    sentence = refused("fit", "--config", tiny_run(root=str(shards)), "--data.max_damaged", "1")
    assert "study-000000.tar" in sentence
    assert "max_damaged" in sentence


def foreign_png(kind: str) -> Callable[[np.ndarray], bytes]:
    """Another program's encoder."""

    def encode(pixels: np.ndarray) -> bytes:
        wide = pixels.astype(np.uint16) * 257
        picture = Image.fromarray(wide) if kind == "16-bit" else Image.fromarray(np.stack([pixels] * 3, -1))
        stream = io.BytesIO()
        picture.save(stream, "PNG")
        return stream.getvalue()

    return encode


@pytest.mark.parametrize(("kind", "said"), [("16-bit", "16"), ("RGB", "RGB")])
def test_a_plane_that_is_not_8_bit_grey(refused, encoder, tmp_path, monkeypatch, kind, said):
    with monkeypatch.context() as patch:
        patch.setattr("morphem.data.writer.png.encode", foreign_png(kind))
        write(tmp_path / "foreign", [image("image0")])
    sentence = refused(*embed(encoder, tmp_path / "foreign"))
    assert said in sentence
    assert "study-000000.tar" in sentence


def test_the_png_encoder_that_is_patched_here_is_the_one_that_writes():
    assert writer.png is png

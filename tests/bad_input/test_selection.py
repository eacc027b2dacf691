"""Queries that select nothing, images without cells, images smaller than what is cut from them."""

import numpy as np
import pandas as pd
import pytest

from tests.bad_input.cases import embed
from tests.small_shards import image, write


def test_a_query_that_nothing_matches(refused, encoder, shards):
    sentence = refused(*embed(encoder, shards, "--query", "microscopy.type == 'phase'"))
    assert "microscopy.type == 'phase'" in sentence
    assert "fluorescence" in sentence


def test_a_query_that_nothing_matches_stops_training(refused, shards, tiny_run):
    sentence = refused("fit", "--config", tiny_run(root=str(shards)), "--data.query", "experiment.well == 'Z99'")
    assert "experiment.well == 'Z99'" in sentence


def test_a_query_on_an_unknown_column(refused, encoder, shards):
    sentence = refused(*embed(encoder, shards, "--query", "microscopy.typ == 'phase'"))
    assert "microscopy.type" in sentence


def test_no_cells_at_all_where_cells_are_embedded(refused, encoder, tmp_path):
    write(tmp_path / "bare", [image("image0"), image("image1")])
    sentence = refused(*embed(encoder, tmp_path / "bare", "--unit", "cell", "--crop-size-px", 16))
    assert "cell" in sentence


def test_an_image_with_zero_cells_among_others_is_counted(command, encoder, tmp_path):
    write(tmp_path / "some", [image("image0", cells=0), image("image1", cells=3)])
    outcome = command(*embed(encoder, tmp_path / "some", "--unit", "cell", "--crop-size-px", 16))
    assert outcome.code == 0, outcome.err
    assert "1 image" in outcome.out
    assert len(pd.read_parquet("out.parquet")) == 3


@pytest.mark.slow
def test_training_where_there_are_no_cells_takes_random_crops(command, tmp_path, tiny_run):
    write(tmp_path / "bare", [image(f"image{i}", cells=0 if i % 2 else None, seed=i) for i in range(6)])
    outcome = command("fit", "--config", tiny_run(root=str(tmp_path / "bare")), "--data.default_scale", "24")
    assert outcome.code == 0, outcome.err


def test_an_image_smaller_than_the_tile_is_embedded_whole(command, encoder, shards):
    outcome = command(*embed(encoder, shards, "--tile-size-px", 4000))
    assert outcome.code == 0, outcome.err
    table = pd.read_parquet("out.parquet")
    assert len(table) == 6
    assert np.isfinite(table.filter(like="Cells_").to_numpy()).all()


@pytest.mark.slow
def test_an_image_smaller_than_the_crop_is_clamped_in_training(command, shards, tiny_run):
    outcome = command("fit", "--config", tiny_run(root=str(shards)), "--data.default_scale", "4000")
    assert outcome.code == 0, outcome.err


def test_a_crop_smaller_than_a_plain_view(refused, shards, tiny_run):
    config = tiny_run(root=str(shards), **{"size_px: 32, area: [0.4, 1.0]": "size_px: 4000, mode: plain"})
    sentence = refused("fit", "--config", config)
    assert "4000" in sentence

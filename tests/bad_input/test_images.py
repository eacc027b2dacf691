"""Images that are not what their sheet says."""

import numpy as np
import pandas as pd

from morphem.data.shards import ShardSet
from tests.bad_input.cases import RAMP, study


def test_a_16_bit_image_where_8_bit_was_promised(refused, tmp_path):
    folder = study(tmp_path / "study", RAMP, dtype="uint8")
    sentence = refused("ingest", folder, "--output", tmp_path / "out")
    assert "uint16" in sentence
    assert "uint8" in sentence
    assert "a.png" in sentence
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_an_rgb_image_where_a_grey_plane_was_promised(refused, tmp_path):
    folder = study(tmp_path / "study", np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8))
    sentence = refused("ingest", folder, "--output", tmp_path / "out")
    assert "a.png" in sentence
    assert "plane_axis" in sentence


def test_an_unknown_channel_type(refused, tmp_path):
    folder = study(tmp_path / "study", RAMP, **{"imaging.channel_type": "nucleos"})
    sentence = refused("ingest", folder, "--output", tmp_path / "out")
    assert "nucleos" in sentence
    assert "nucleus" in sentence


def test_a_study_folder_without_a_sheet(refused, tmp_path):
    (tmp_path / "study").mkdir()
    assert "metadata.csv" in refused("ingest", tmp_path / "study", "--output", tmp_path / "out")


def test_one_unreadable_image_is_left_out_and_the_others_are_kept(command, tmp_path):
    folder = study(tmp_path / "study", RAMP)
    (folder / "b.png").write_text("<html>not found</html>")
    table = pd.read_csv(folder / "metadata.csv")
    other = table.assign(**{"file": "b.png", "imaging.multi_channel_id": "b"})
    pd.concat([table, other]).to_csv(folder / "metadata.csv", index=False)
    arguments = ("ingest", folder, "--output", tmp_path / "out")
    strict = command(*arguments)
    assert strict.code == 1
    assert "b.png" in strict.out + strict.err
    assert not (tmp_path / "out" / "manifest.json").exists()
    outcome = command(*arguments, "--max-bad", "50%")
    assert outcome.code == 0
    assert "b.png" in outcome.out + outcome.err
    assert ShardSet(tmp_path / "out").table().num_rows == 1

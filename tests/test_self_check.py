from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from morphem import features, self_check
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.channels.channel_attention import ChannelAttention
from morphem.embed import EmbedSettings, embed_to_file, extract
from morphem.encoder import Encoder
from morphem.errors import DataError
from morphem.extraction import Extraction
from morphem.normalizers import SelfNormalize
from morphem.recipe import Recipe
from morphem.self_check import Checked, check_rows
from tests import small_shards


def _bag() -> Encoder:
    torch.manual_seed(0)
    return Encoder(BagOfChannels.tiny(), SelfNormalize(saturation_noise=True), input_size_px=16)


def _joint() -> Encoder:
    torch.manual_seed(0)
    network = ChannelAttention.tiny()
    return Encoder(ChannelAttention(network.backbone, list(small_shards.PANEL)), SelfNormalize(), input_size_px=16)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    images = [small_shards.image(f"i{k}", size=(40, 48), cells=k + 1) for k in range(3)]
    return small_shards.write(tmp_path_factory.mktemp("shards"), images)


SETTINGS = [
    {"unit": "tile", "tile_size_px": 16, "combine": "concat"},
    {"unit": "tile", "tile_size_px": 16, "combine": "mean"},
    {"unit": "tile", "tile_size_px": 16, "combine": "none"},
    {"unit": "cell", "crop_size_px": 20, "combine": "none"},
    {"unit": "image", "combine": "concat"},
]


@pytest.mark.parametrize("settings", SETTINGS)
def test_the_slow_reference_agrees_with_every_row(root: str, settings: dict[str, object]) -> None:
    encoder = _bag()
    table = extract(encoder, root, **settings)
    checked = check_rows(Extraction(encoder, root, EmbedSettings(**settings)), table, 1000)
    assert checked.n_rows == len(table)
    assert checked.largest < 1e-5


def test_the_slow_reference_scales_rows_where_the_recipe_does(root: str) -> None:
    torch.manual_seed(0)
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=16, recipe=Recipe(unit_length=True))
    table = extract(encoder, root, unit="image")
    np.testing.assert_allclose(np.linalg.norm(table.values, axis=1), 1, atol=1e-5)
    assert check_rows(Extraction(encoder, root, EmbedSettings("image")), table, 9).largest < 1e-5


def test_the_slow_reference_agrees_where_channels_are_joined(root: str) -> None:
    encoder = _joint()
    table = extract(encoder, root, tile_size_px=16)
    assert check_rows(Extraction(encoder, root, EmbedSettings(tile_size_px=16)), table, 9).largest < 1e-5


@pytest.mark.parametrize("settings", SETTINGS)
def test_two_rows_that_changed_places_are_named(root: str, settings: dict[str, object]) -> None:
    encoder = _bag()
    table = extract(encoder, root, **settings)
    values = table.values.copy()
    values[[0, -1]] = values[[-1, 0]]
    run = Extraction(encoder, root, EmbedSettings(**settings))
    with pytest.raises(DataError, match=r"row 0 \('study--i0'.*differs from the slow reference by [0-9.e-]+ of its"):
        check_rows(run, replace(table, values=values), 4)


def test_features_that_are_not_numbers_are_found(root: str) -> None:
    encoder = _bag()
    table = extract(encoder, root, unit="image")
    table.values[2, 5] = np.nan
    with pytest.raises(DataError, match=r"row 2 \('study--i2'\) differs from the slow reference by inf"):
        check_rows(Extraction(encoder, root, EmbedSettings("image")), table, 3)


def test_no_output_appears_after_a_mismatch_and_the_parts_stay(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "f.parquet"
    with monkeypatch.context() as broken:
        right = self_check.reference_rows
        broken.setattr(self_check, "reference_rows", lambda run, told: right(run, told) + 0.1)
        with pytest.raises(DataError, match="the output was not written"):
            embed_to_file(_bag(), root, output, EmbedSettings("image"))
    assert not output.exists()
    report = embed_to_file(_bag(), root, output, EmbedSettings("image"))
    assert report.n_resumed == 3
    assert report.checked.n_rows == 3


def test_a_table_says_what_was_compared(root: str, tmp_path: Path) -> None:
    report = embed_to_file(_bag(), root, tmp_path / "f.parquet", EmbedSettings(tile_size_px=16), n_checks=2)
    told = features.read(tmp_path / "f.parquet").provenance["self_check"]
    assert told == {"n_rows": 2, "largest": report.checked.largest, "tolerance": 5e-4}
    embed_to_file(_bag(), root, tmp_path / "g.parquet", EmbedSettings("image"), n_checks=0)
    assert features.read(tmp_path / "g.parquet").provenance["self_check"] is None


def test_a_plane_under_another_name_in_the_tar_is_found(root: str, tmp_path: Path) -> None:
    encoder = _bag()
    table = extract(encoder, root, unit="image")
    run = Extraction(encoder, root, EmbedSettings("image"))
    swapped = [3, 4, 5, 0, 1, 2, *range(6, len(run.plan.offsets))]
    run.plan.offsets, run.plan.nbytes = run.plan.offsets[swapped], run.plan.nbytes[swapped]
    with pytest.raises(DataError, match=r"holds 'study--i1\.c00\.png' at byte .* promises a plane of 'study--i0'"):
        check_rows(run, table, 1)


def test_results_of_parts_are_joined() -> None:
    assert Checked.joined([Checked(2, 1e-6, 5e-4), Checked(3, 4e-6, 5e-4)]) == Checked(5, 4e-6, 5e-4)
    assert Checked.joined([]).n_rows == 0

"""Several encoders in one pass over the pixels, and tiles that are left out."""

from pathlib import Path

import numpy as np
import pytest
import torch

from morphem import embed_job, features
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data import plan as plan_module
from morphem.data.crops import CropRule
from morphem.data.emptiness import EmptyRule
from morphem.embed import extract, merge, run_job
from morphem.embed_job import EmbedJob, Target, parts_folder
from morphem.embed_recipe import settings_for
from morphem.encoder import Encoder
from morphem.errors import ConfigError, DataError
from morphem.extraction import EmbedSettings, Extraction
from morphem.normalizers import SelfNormalize
from morphem.recipe import Recipe
from tests import small_shards

SETTINGS = [
    EmbedSettings(tile_size_px=16),
    EmbedSettings("image"),
    EmbedSettings("cell", crop_size_px=12, combine="none"),
]


def _encoder(seed: int, recipe: Recipe | None = None) -> Encoder:
    torch.manual_seed(seed)
    return Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=16, recipe=recipe)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    sizes = [(40, 48), (16, 20), (70, 33), (40, 48), (12, 12)]
    images = [small_shards.image(f"i{k}", size=size, cells=k) for k, size in enumerate(sizes)]
    return small_shards.write(tmp_path_factory.mktemp("shards"), images)


def _job(root: str, folder: Path) -> EmbedJob:
    runs: list[Extraction] = []
    for seed, settings in enumerate(SETTINGS):
        runs.append(Extraction(_encoder(seed), root, settings, beside=runs[0] if runs else None))
    targets = [Target(run, folder / f"f.{i}.parquet") for i, run in enumerate(runs)]
    return EmbedJob(targets, parts_folder(folder / "f.parquet"))


@pytest.mark.parametrize("part_planes", [1, 2048])
def test_models_that_share_a_pass_write_what_each_writes_alone(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part_planes: int
) -> None:
    monkeypatch.setattr(embed_job, "_PART_PLANES", part_planes)
    reports = run_job(_job(root, tmp_path))
    for seed, (settings, report) in enumerate(zip(SETTINGS, reports, strict=True)):
        alone = extract(
            _encoder(seed), root, unit=settings.unit, tile_size_px=settings.tile_size_px,
            crop_size_px=settings.crop_size_px, combine=settings.combine,
        )  # fmt: skip
        table = features.read(report.path)
        assert report.n_rows == len(alone)
        np.testing.assert_allclose(table.values, alone.values, atol=2e-6)
        assert table.metadata["Metadata_Key"].tolist() == alone.metadata["Metadata_Key"].tolist()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.0.parquet", "f.1.parquet", "f.2.parquet"]


def test_every_plane_is_decoded_once_for_all_models(root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[str] = []
    decode = plan_module.png.decode_many

    def counted(data: bytes, boxes: object, name: str, **rest: object) -> object:
        decoded.append(name)
        return decode(data, boxes, name, **rest)

    monkeypatch.setattr(plan_module.png, "decode_many", counted)
    run_job(_job(root, tmp_path), n_checks=0)
    assert len(decoded) == len(set(decoded)) == 5 * 3


def test_a_job_that_lost_a_file_of_one_model_makes_that_part_again(
    root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_job, "_PART_PLANES", 1)
    job = _job(root, tmp_path)
    job.open(overwrite=False)
    job.run([0, 1, 2])
    (job.folder / "part-000001.2.parquet").unlink()
    assert job.missing() == [1, 3, 4]
    assert run_job(_job(root, tmp_path))[0].n_resumed == 2


def test_models_with_another_query_do_not_share_a_pass(root: str, tmp_path: Path) -> None:
    runs = [Extraction(_encoder(0), root, EmbedSettings("image", query=q)) for q in (None, "imaging.channel == 1")]
    job = EmbedJob([Target(run, tmp_path / f"{i}.parquet") for i, run in enumerate(runs)], tmp_path / "parts")
    with pytest.raises(ConfigError, match="the same images and the same query"):
        run_job(job)


def test_two_models_do_not_write_one_file(root: str, tmp_path: Path) -> None:
    run = Extraction(_encoder(0), root, EmbedSettings("image"))
    with pytest.raises(ConfigError, match="two models would write one file"):
        EmbedJob([Target(run, tmp_path / "f.parquet"), Target(run, tmp_path / "f.parquet")], tmp_path)


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Images whose nucleus channel is black but for one tile, or wholly."""
    images = []
    for k in range(3):
        record = small_shards.image(f"i{k}", size=(40, 48), well=f"A0{k + 1}")
        record.planes[0][:] = 0
        if k < 2:
            record.planes[0][20:28, 35:40] = 200
        images.append(record)
    return small_shards.write(tmp_path_factory.mktemp("sparse"), images)


BLANK = EmptyRule(threshold="zero")


@pytest.mark.parametrize("combine", ["concat", "none"])
@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_blank_tiles_are_left_out_and_counted(sparse: str, combine: str, batch_size: int) -> None:
    settings = {"tile_size_px": 16, "tiling": "grid", "combine": combine}
    table = extract(_encoder(0), sparse, skip_empty=BLANK, batch_size=batch_size, **settings)
    every = extract(_encoder(0), sparse, **settings)
    kept = table.metadata.drop_duplicates(["Metadata_Key", "Metadata_Tile_Y", "Metadata_Tile_X"])
    places = kept[["Metadata_Tile_Y", "Metadata_Tile_X"]].to_numpy().tolist()
    assert places == [[16, 32], [16, 32], [16, 0]]  # the third image keeps its middle tile, number 3 of 6
    assert table.provenance["crops_left_out"] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 12, 13, 14, 16, 17]
    both = every.to_frame().merge(table.to_frame(), on=list(every.metadata.columns), suffixes=("", "_again"))
    assert len(both) == len(table)
    again = both[[f"{name}_again" for name in table.columns]].to_numpy()
    np.testing.assert_allclose(both[list(table.columns)].to_numpy(), again, atol=1e-6)


def test_shares_with_tiles_left_out_merge(sparse: str) -> None:
    settings = {"tile_size_px": 16, "skip_empty": BLANK}
    whole = extract(_encoder(0), sparse, **settings)
    shares = [extract(_encoder(0), sparse, rank=rank, world_size=2, **settings) for rank in range(2)]
    merged = merge(reversed(shares))
    np.testing.assert_allclose(merged.values, whole.values, atol=1e-6)
    assert merged.provenance["crops_left_out"] == whole.provenance["crops_left_out"]
    for wrong in (shares[:1], [shares[0], shares[0]]):
        with pytest.raises(DataError, match="give one table per rank"):
            merge(wrong)


def test_a_file_says_how_many_tiles_were_left_out(sparse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_job, "_PART_PLANES", 1)
    run = Extraction(_encoder(0), sparse, EmbedSettings(tile_size_px=16, skip_empty=BLANK, tiling="grid"))
    (report,) = run_job(EmbedJob([Target(run, tmp_path / "f.parquet")], tmp_path / "parts"))
    assert (report.n_rows, report.n_left_out, report.n_crops) == (3, 15, 18)
    table = features.read(tmp_path / "f.parquet")
    assert (table.provenance["tiles_left_out"], table.provenance["rows_left_out"]) == (15, 15)
    assert "crops_left_out" not in table.provenance


def test_a_part_that_lost_a_row_is_found_although_tiles_were_left_out(
    sparse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embed_job, "_PART_PLANES", 1)
    run = Extraction(_encoder(0), sparse, EmbedSettings(tile_size_px=16, skip_empty=BLANK, tiling="grid"))
    job = EmbedJob([Target(run, tmp_path / "f.parquet")], tmp_path / "parts")
    job.open(overwrite=False)
    job.run(job.missing())
    table = features.read(job.folder / "part-000000.parquet")
    features.FeatureTable(
        table.values[1:], table.metadata.iloc[1:], table.columns, table.dictionary, table.provenance
    ).write(job.folder / "part-000000.parquet")
    with pytest.raises(DataError, match=r"part-000000\.parquet has 0 rows instead of 1"):
        job.close([], 0)


def test_a_channel_that_decides_and_is_missing_is_named(sparse: str) -> None:
    with pytest.raises(DataError, match=r"3 of 3 images .* have no channel 'rna', which decides what tiles are empty"):
        extract(_encoder(0), sparse, tile_size_px=16, skip_empty=EmptyRule("rna"))


def test_what_is_left_open_follows_the_recipe() -> None:
    theirs = Recipe(CropRule("tile", 32, tiling="grid", skip_empty=BLANK))
    encoder = _encoder(0, theirs)
    assert settings_for(encoder).rule == theirs.crops
    assert settings_for(encoder, skip_empty="none").rule == CropRule("tile", 32, tiling="grid")
    assert settings_for(encoder, tile_size_px=8, tiling="cover").rule == CropRule("tile", 8, skip_empty=BLANK)
    assert settings_for(encoder, crop_size_px=8, mask="zero").rule == CropRule("cell", None, 8, mask="zero")
    assert settings_for(encoder, unit="image").rule == CropRule("image")
    assert settings_for(_encoder(0)).rule == CropRule("image")
    assert settings_for(_encoder(0), tiling="overlap").rule == CropRule("tile", 224, tiling="overlap")
    assert settings_for(encoder, empty_channel="rna").skip_empty == EmptyRule("rna", "zero")
    with pytest.raises(ConfigError, match="empty_channel='rna' has no effect"):
        settings_for(_encoder(0), empty_channel="rna")


def test_an_encoder_and_its_recipe_give_one_row_by_either_way(sparse: str) -> None:
    encoder = _encoder(0, Recipe(CropRule("tile", 16, tiling="grid", skip_empty=BLANK)))
    settings = settings_for(encoder)
    table = extract(
        encoder, sparse, tile_size_px=16, tiling=settings.tiling, skip_empty=settings.skip_empty, aggregate="image"
    )
    record = small_shards.image("i0", size=(40, 48))
    record.planes[0][:] = 0
    record.planes[0][20:28, 35:40] = 200
    alone = encoder.embed(np.stack(record.planes), list(small_shards.PANEL), key="study--i0")
    np.testing.assert_allclose(table.values[0], alone.values[0], atol=1e-6)


def test_a_well_is_the_mean_over_its_rows_or_over_its_images(tmp_path: Path) -> None:
    images = [small_shards.image("a", size=(16, 16)), small_shards.image("b", size=(48, 48))]
    root = small_shards.write(tmp_path, images)
    tiles = extract(_encoder(0), root, tile_size_px=16)
    of_a = (tiles.metadata["Metadata_Key"] == "study--a").to_numpy()
    rows = extract(_encoder(0), root, tile_size_px=16, aggregate="well")
    means = extract(_encoder(0), root, tile_size_px=16, aggregate="well", mean_over="images")
    np.testing.assert_allclose(rows.values[0], tiles.values.mean(0), atol=1e-6)
    expected = (tiles.values[of_a].mean(0) + tiles.values[~of_a].mean(0)) / 2
    np.testing.assert_allclose(means.values[0], expected, atol=1e-6)
    assert means.metadata["Metadata_Object_Count"].tolist() == rows.metadata["Metadata_Object_Count"].tolist() == [10]
    assert means.metadata["Metadata_Image_Count"].tolist() == [2]
    assert (rows.provenance["mean_over"], means.provenance["mean_over"]) == ("rows", "images")
    with pytest.raises(ConfigError, match="mean_over='images' has no effect"):
        extract(_encoder(0), root, tile_size_px=16, aggregate="image", mean_over="images")

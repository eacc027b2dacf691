import json
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from morphem import embed_job, features
from morphem.channels.bag_of_channels import BagOfChannels
from morphem.embed import EmbedSettings, embed_to_file, extract, merge
from morphem.encoder import Encoder
from morphem.errors import ConfigError, DataError
from morphem.extraction import Extraction
from morphem.features import FeatureTable
from morphem.normalizers import SelfNormalize
from tests import small_shards

SIZES = [(40, 48), (16, 20), (70, 33), (40, 48), (12, 12)]


def _image(number: int, order: tuple[int, ...] = (0, 1, 2)) -> small_shards.ImageRecord:
    record = small_shards.image(
        f"i{number}", size=SIZES[number], well=f"A0{number % 2 + 1}", cells=number, treatment=f"t{number % 2}"
    )
    rows = [{**record.rows[i], "imaging.channel": n + 1} for n, i in enumerate(order)]
    return small_shards.ImageRecord(
        record.image_id,
        [record.planes[i] for i in order],
        rows,
        [record.channel_names[i] for i in order],
        cells=record.cells,
        cell_labels=record.cell_labels,
    )


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_shards.write(tmp_path_factory.mktemp("shards"), [_image(k) for k in range(5)])


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.manual_seed(0)
    return Encoder(BagOfChannels.tiny(), SelfNormalize(saturation_noise=True), input_size_px=16)


@pytest.fixture(scope="module")
def tiles(encoder: Encoder, root: str) -> FeatureTable:
    return extract(encoder, root, tile_size_px=16)


def test_every_tile_has_a_row_in_shard_order(tiles: FeatureTable) -> None:
    assert len(tiles) == 9 + 2 + 15 + 9 + 1
    assert tiles.metadata["Metadata_Key"].drop_duplicates().tolist() == [f"study--i{k}" for k in range(5)]
    assert tiles.columns[0] == "Cells_Morphem_Actin_0000"
    assert tiles.values.shape[1] == 3 * 16


@pytest.mark.parametrize("batch_size", [1, 4, 7, 1000])
def test_the_batch_size_has_no_influence(encoder: Encoder, root: str, tiles: FeatureTable, batch_size: int) -> None:
    again = extract(encoder, root, tile_size_px=16, batch_size=batch_size)
    np.testing.assert_allclose(again.values, tiles.values, atol=1e-6)
    pd.testing.assert_frame_equal(again.metadata, tiles.metadata)


def test_reading_in_workers_has_no_influence(encoder: Encoder, root: str, tiles: FeatureTable) -> None:
    again = extract(encoder, root, tile_size_px=16, num_workers=2, batch_size=12)
    np.testing.assert_allclose(again.values, tiles.values, atol=1e-6)


def test_the_order_of_images_in_the_shards_has_no_influence(
    encoder: Encoder, tiles: FeatureTable, tmp_path: Path
) -> None:
    shuffled = small_shards.write(tmp_path, [_image(k) for k in (3, 1, 4, 0, 2)])
    again = extract(encoder, shuffled, tile_size_px=16)
    names = ["Metadata_Key", "Metadata_Tile_Y", "Metadata_Tile_X"]
    straight = tiles.to_frame().sort_values(names).filter(like="Cells_")
    np.testing.assert_allclose(again.to_frame().sort_values(names).filter(like="Cells_"), straight, atol=1e-6)


def test_the_order_of_channels_in_the_panel_has_no_influence(
    encoder: Encoder, tiles: FeatureTable, tmp_path: Path
) -> None:
    orders = [(2, 0, 1), (0, 1, 2), (1, 2, 0), (2, 1, 0), (0, 2, 1)]
    permuted = small_shards.write(tmp_path, [_image(k, order) for k, order in enumerate(orders)])
    again = extract(encoder, permuted, tile_size_px=16)
    assert again.columns == tiles.columns
    np.testing.assert_allclose(again.values, tiles.values, atol=1e-6)


def test_a_notebook_gets_the_same_numbers_from_embed(encoder: Encoder, root: str) -> None:
    table = extract(encoder, root, unit="image")
    record = _image(2)
    alone = encoder.embed(np.stack(record.planes), list(small_shards.PANEL), key="study--i2")
    np.testing.assert_allclose(table.values[2], alone.values[0], atol=1e-6)
    assert table.columns == alone.columns


@pytest.mark.parametrize("combine", ["concat", "mean", "none"])
@pytest.mark.parametrize("world_size", [2, 3, 7])
def test_the_shares_of_all_ranks_merge_into_the_whole(
    encoder: Encoder, root: str, combine: str, world_size: int
) -> None:
    whole = extract(encoder, root, tile_size_px=16, combine=combine)
    shares = [
        extract(encoder, root, tile_size_px=16, combine=combine, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]
    merged = merge(reversed(shares))
    np.testing.assert_allclose(merged.values, whole.values, atol=1e-6)
    pd.testing.assert_frame_equal(merged.metadata, whole.metadata)


def test_a_missing_or_doubled_share_is_an_error(encoder: Encoder, root: str) -> None:
    first, second = (extract(encoder, root, unit="image", rank=rank, world_size=2) for rank in range(2))
    for shares in ([first], [first, first], [first, second, second]):
        with pytest.raises(DataError, match="rows of 5, or some twice"):
            merge(shares)


def test_neither_modes_nor_random_numbers_are_touched(encoder: Encoder, root: str) -> None:
    encoder.train()
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    extract(encoder, root, unit="image", num_workers=1)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.random.get_state()[1].tolist() == states[2]
    assert encoder.training


def test_cells_give_a_row_each_with_their_labels(encoder: Encoder, root: str) -> None:
    table = extract(encoder, root, unit="cell", crop_size_px=12)
    assert len(table) == 0 + 1 + 2 + 3 + 4
    assert "Metadata_kind" in table.metadata
    assert table.provenance["images_without_cells"] == 1


def test_without_combining_there_is_a_row_per_plane(encoder: Encoder, root: str) -> None:
    planes, wide = (extract(encoder, root, unit="image", combine=how) for how in ("none", "concat"))
    assert planes.metadata["Metadata_Channel"].tolist() == ["actin", "mitochondria", "nucleus"] * 5
    np.testing.assert_allclose(planes.values.reshape(5, 48), wide.values, atol=1e-6)


def test_wells_are_the_mean_of_their_rows(encoder: Encoder, root: str, tiles: FeatureTable) -> None:
    wells = extract(encoder, root, tile_size_px=16, aggregate="well")
    assert wells.metadata["Metadata_Well"].tolist() == ["A01", "A02"]
    assert wells.metadata["Metadata_treatment"].tolist() == ["t0", "t1"]
    assert wells.metadata["Metadata_Object_Count"].sum() == len(tiles)
    mine = tiles.values[(tiles.metadata["Metadata_Well"] == "A02").to_numpy()]
    np.testing.assert_allclose(wells.values[1], mine.mean(0), atol=1e-6)


def test_wells_of_a_share_alone_are_refused(encoder: Encoder, root: str) -> None:
    with pytest.raises(ConfigError, match="needs all images at once"):
        extract(encoder, root, aggregate="well", rank=0, world_size=2)


def test_panels_that_differ_are_refused_before_anything_is_computed(encoder: Encoder, tmp_path: Path) -> None:
    mixed = [small_shards.image("a"), small_shards.image("b", channels=("bright-field",))]
    root = small_shards.write(tmp_path, mixed)
    with pytest.raises(DataError, match=r"1 x \[actin, mitochondria, nucleus\]; 1 x \[bright-field\]"):
        extract(encoder, root)
    assert len(extract(encoder, root, unit="image", combine="mean")) == 2
    only = extract(encoder, root, unit="image", query="microscopy.type == 'bright-field'")
    assert only.columns[0] == "Cells_Morphem_BrightField_0000"


def test_repeated_channels_are_numbered_by_panel_order(encoder: Encoder, tmp_path: Path) -> None:
    root = small_shards.write(tmp_path, [small_shards.image("a", channels=("protein", "nucleus", "protein"))])
    table = extract(encoder, root, unit="image")
    assert sorted({entry["channel"] for entry in table.dictionary}) == ["nucleus", "protein", "protein2"]


def test_a_damaged_plane_stops_the_job_with_its_name(encoder: Encoder, tmp_path: Path) -> None:
    root = small_shards.write(tmp_path, [small_shards.image("a")])
    table = pd.read_parquet(tmp_path / "metadata.parquet")
    shard = tmp_path / table["shard"][1]
    data = bytearray(shard.read_bytes())
    middle = int(table["plane_offset"][1] + table["plane_nbytes"][1] // 2)
    data[middle] ^= 0xFF
    shard.write_bytes(data)
    with pytest.raises(DataError, match=r"study-000000\.tar: study--a, channel actin"):
        extract(encoder, root, unit="image")


@pytest.mark.parametrize("settings", [{"batch_size": 0}, {"precision": "64"}, {"unit": "tile", "crop_size_px": 8}])
def test_settings_that_make_no_sense_are_refused(encoder: Encoder, root: str, settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(key for key in reversed(settings))):
        extract(encoder, root, **settings)


def test_a_file_holds_what_extract_gives(encoder: Encoder, root: str, tiles: FeatureTable, tmp_path: Path) -> None:
    report = embed_to_file(encoder, root, tmp_path / "f.parquet", EmbedSettings(tile_size_px=16))
    table = features.read(tmp_path / "f.parquet")
    np.testing.assert_array_equal(table.values, tiles.values)
    pd.testing.assert_frame_equal(table.metadata, tiles.metadata, check_dtype=False)
    assert table.provenance["weights_fingerprint"] == encoder.provenance()["weights_fingerprint"]
    assert table.provenance["settings"]["tile_size_px"] == 16
    assert (report.n_rows, report.n_features, report.n_images, report.n_resumed) == (36, 48, 5, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["f.parquet"]


@pytest.fixture
def parts_of_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embed_job, "_PART_PLANES", 1)


def _interrupt_after(monkeypatch: pytest.MonkeyPatch, n_parts: int) -> list[list[int]]:
    """Make the job stop like a Ctrl-C after some parts; return the images of the parts that were embedded."""
    seen: list[list[int]] = []
    tables = embed_job.tables

    def counted(runs: Sequence[Extraction], images: Sequence[int], bar: object) -> list[FeatureTable]:
        if len(seen) == n_parts:
            raise KeyboardInterrupt
        seen.append(list(images))
        return tables(runs, images, bar)

    monkeypatch.setattr(embed_job, "tables", counted)
    return seen


@pytest.mark.usefixtures("parts_of_an_image")
def test_a_job_that_was_stopped_goes_on_where_it_was(
    encoder: Encoder, root: str, tiles: FeatureTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings, output = EmbedSettings(tile_size_px=16), tmp_path / "f.parquet"
    with monkeypatch.context() as context:
        _interrupt_after(context, 2)
        with pytest.raises(KeyboardInterrupt):
            embed_to_file(encoder, root, output, settings)
    assert not output.exists()
    seen = _interrupt_after(monkeypatch, 99)
    report = embed_to_file(encoder, root, output, settings)
    assert seen == [[2], [3], [4]]
    assert report.n_resumed == 2
    np.testing.assert_allclose(features.read(output).values, tiles.values, rtol=0, atol=2e-6)


@pytest.mark.usefixtures("parts_of_an_image")
def test_parts_of_another_job_are_not_mixed_in(
    encoder: Encoder, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "f.parquet"
    with monkeypatch.context() as context:
        _interrupt_after(context, 2)
        with pytest.raises(KeyboardInterrupt):
            embed_to_file(encoder, root, output, EmbedSettings(tile_size_px=16))
    with pytest.raises(ConfigError, match="another model, data or settings"):
        embed_to_file(encoder, root, output, EmbedSettings(tile_size_px=32))
    report = embed_to_file(encoder, root, output, EmbedSettings(tile_size_px=32), overwrite=True)
    assert report.n_resumed == 0


@pytest.mark.usefixtures("parts_of_an_image")
def test_a_part_that_lost_rows_is_an_error(
    encoder: Encoder, root: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output, settings = tmp_path / "f.parquet", EmbedSettings(tile_size_px=16)
    with monkeypatch.context() as context:
        _interrupt_after(context, 2)
        with pytest.raises(KeyboardInterrupt):
            embed_to_file(encoder, root, output, settings)
    part = tmp_path / "f.parquet.parts" / "part-000000.parquet"
    table = features.read(part)
    FeatureTable(table.values[1:], table.metadata.iloc[1:], table.columns, table.dictionary).write(part)
    with pytest.raises(DataError, match=r"part-000000\.parquet has 8 rows instead of 9"):
        embed_to_file(encoder, root, output, settings)
    assert not output.exists()


@pytest.mark.usefixtures("parts_of_an_image")
def test_two_ranks_write_the_file_that_one_writes(
    encoder: Encoder, root: str, tiles: FeatureTable, tmp_path: Path
) -> None:
    from threading import Barrier, Thread

    barrier, reports = Barrier(2), {}

    def work(rank: int) -> None:
        reports[rank] = embed_to_file(
            encoder, root, tmp_path / "f.parquet", EmbedSettings(tile_size_px=16),
            rank=rank, world_size=2, barrier=lambda: barrier.wait(60),
        )  # fmt: skip

    threads = [Thread(target=work, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert reports[1] is None
    assert reports[0].n_rows == 36
    np.testing.assert_allclose(features.read(tmp_path / "f.parquet").values, tiles.values, rtol=0, atol=2e-6)


def test_wells_in_a_file_equal_wells_in_memory(encoder: Encoder, root: str, tmp_path: Path) -> None:
    report = embed_to_file(encoder, root, tmp_path / "w.parquet", EmbedSettings(tile_size_px=16), aggregate="well")
    table = features.read(tmp_path / "w.parquet")
    memory = extract(encoder, root, tile_size_px=16, aggregate="well")
    assert report.n_rows == 2
    np.testing.assert_allclose(table.values, memory.values, atol=1e-6)
    pd.testing.assert_frame_equal(table.metadata, memory.metadata, check_dtype=False)


def test_an_output_that_exists_is_kept_unless_asked(encoder: Encoder, root: str, tmp_path: Path) -> None:
    output = tmp_path / "f.parquet"
    output.write_text("mine")
    with pytest.raises(ConfigError, match=r"f\.parquet exists"):
        embed_to_file(encoder, root, output, EmbedSettings("image"))
    assert output.read_text() == "mine"
    embed_to_file(encoder, root, output, EmbedSettings("image"), overwrite=True)
    assert len(features.read(output)) == 5


def test_an_output_of_another_kind_is_refused_before_anything_is_computed(encoder: Encoder, root: str) -> None:
    with pytest.raises(ConfigError, match=r"must end in \.parquet or \.h5ad"):
        embed_to_file(encoder, root, "f.csv")


def test_provenance_is_plain_data(tiles: FeatureTable) -> None:
    assert json.loads(json.dumps(tiles.provenance)) == tiles.provenance
    assert len(tiles.provenance["data"]["content_hash"]) == 64

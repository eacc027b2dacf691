import errno
from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from morphem.data import layout, png
from morphem.data.ingest import ingest, to_uint8
from morphem.data.shards import ShardSet
from morphem.errors import DataError
from morphem.sources.sheet import SheetSource
from tests.references import clip as reference
from tests.sources.sheets import counts, write_sheet, write_study


def source(folder: Path) -> SheetSource:
    return SheetSource(str(folder))


def stored_planes(root: Path) -> list[np.ndarray]:
    shards = ShardSet(root)
    reader = shards.reader()
    rows = shards.table().to_pylist()
    return [png.decode(reader.read(row["shard"], row["plane_offset"], row["plane_nbytes"])) for row in rows]


@pytest.mark.parametrize("clip", [(0.1, 99.9), (5.0, 80.0), (0.0, 100.0)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.float32])
def test_scaling_follows_the_definition(clip: tuple[float, float], dtype: type) -> None:
    plane = (counts(3, 9, 11) % 251).astype(dtype)
    stored = to_uint8(plane, clip)
    expected = np.reshape(reference.scaled(plane.ravel().tolist(), *clip), plane.shape)
    assert np.abs(stored.plane - expected).max() <= 0.5 + 1e-9
    assert stored.low == pytest.approx(reference.percentile(plane.ravel().tolist(), clip[0]))
    assert stored.high == pytest.approx(reference.percentile(plane.ravel().tolist(), clip[1]))


def test_without_clipping_8_bit_planes_stay_as_they_are_and_others_are_refused() -> None:
    plane = np.array([[3, 9], [200, 9]], np.uint8)
    stored = to_uint8(plane, None)
    np.testing.assert_array_equal(stored.plane, plane)
    assert stored[1:] == (0.0, 255.0, False)
    with pytest.raises(DataError, match="plane is uint16; without clipping only uint8 can be kept: pass --clip 0,100"):
        to_uint8(plane.astype(np.uint16), None)


def test_a_plane_without_signal_becomes_zeros() -> None:
    plane = np.full((40, 40), 7, np.float32)
    plane[0, 0] = 9  # a hot pixel, beyond the upper percentile
    stored = to_uint8(plane, (0.1, 99.9))
    assert not stored.plane.any()
    assert stored[1:] == (7.0, 7.0, True)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_pixels_that_are_no_numbers_are_refused_and_counted(value: float) -> None:
    plane = np.ones((4, 4), np.float32)
    plane[1, :2] = value
    with pytest.raises(DataError, match="'i', channel 'x' has 2 pixels that are NaN or infinite"):
        to_uint8(plane, (0.1, 99.9), "image 'i', channel 'x'")


@pytest.mark.parametrize("plane", [np.zeros((2, 2, 3), np.uint8), np.zeros((0, 4)), np.zeros((2, 2), complex)])
def test_what_is_no_grey_plane_is_refused(plane: np.ndarray) -> None:
    with pytest.raises(DataError, match="a plane must be numbers of shape"):
        to_uint8(plane, (0.1, 99.9))


def test_a_study_is_stored_with_pixels_rows_and_limits(tmp_path: Path) -> None:
    report = ingest([source(write_study(tmp_path / "in"))], tmp_path / "out")
    for stored, seed in zip(stored_planes(tmp_path / "out"), (0, 1, 10, 11, 20, 21), strict=True):
        np.testing.assert_array_equal(stored, to_uint8(counts(seed), (0.1, 99.9)).plane)
    table = ShardSet(tmp_path / "out").table().to_pandas()
    assert table["clip_high"][0] == pytest.approx(np.percentile(counts(0), 99.9))
    assert table["imaging.channel_type"].tolist() == ["nucleus", "actin"] * 3
    assert table["channel_name"].tolist() == ["DNA", "actin"] * 3
    assert table["label"].tolist() == list("xxyyxx")
    study = report.studies[0]
    assert (study.study, study.images, study.planes, study.flat, study.failures) == ("study", 3, 6, 0, [])
    assert study.unknown["biology.organism"] == 6
    assert study.labels == ["label"]


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    ingest([source(write_study(tmp_path / "in"))], tmp_path / "out", progress=lambda *args: seen.append(args))
    assert seen == [("study", done, 3) for done in range(4)]


def test_two_channels_with_the_same_pixels_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in", 1)
    tifffile.imwrite(folder / "i0c1.tif", counts(0))
    with pytest.raises(DataError, match="image 'i0': channels 'DNA' and 'actin' have the same pixels"):
        ingest([source(folder)], tmp_path / "out")


def test_two_empty_channels_are_stored_and_counted(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in", 1)
    for name in ("i0c0.tif", "i0c1.tif"):
        tifffile.imwrite(folder / name, np.zeros((12, 16), np.uint16))
    assert ingest([source(folder)], tmp_path / "out").studies[0].flat == 2
    assert not np.any(stored_planes(tmp_path / "out"))


def test_a_damaged_image_is_left_out_counted_and_named(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in")
    (folder / "i1c1.tif").write_bytes(b"II*\0")
    report = ingest([source(folder)], tmp_path / "out")
    assert report.n_failures == 1
    ((image_id, why),) = report.studies[0].failures
    assert image_id == "i1"
    assert "i1c1.tif' cannot be read" in why
    assert ShardSet(tmp_path / "out").table(["imaging.multi_channel_id"]).column(0).to_pylist() == [
        "i0",
        "i0",
        "i2",
        "i2",
    ]


def test_too_many_damaged_images_stop_the_study_and_keep_the_others(tmp_path: Path) -> None:
    good, bad = write_study(tmp_path / "good", study="good"), write_study(tmp_path / "bad", 5, study="bad")
    for image in range(3):
        (bad / f"i{image}c0.tif").unlink()
    with pytest.raises(DataError, match=r"study 'bad': 2 of 5 images cannot be used, .*i1c0\.tif' is missing"):
        ingest([source(good), source(bad)], tmp_path / "out", max_failures=2)
    ShardSet(tmp_path / "out").verify()
    assert ShardSet(tmp_path / "out").studies == ("good",)


def test_a_study_of_damaged_images_only_is_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in", 2)
    for path in folder.glob("*c0.tif"):
        path.unlink()
    with pytest.raises(DataError, match="2 of 2 images cannot be used"):
        ingest([source(folder)], tmp_path / "out")


def test_planes_of_two_sizes_in_one_image_are_refused(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in", 1)
    tifffile.imwrite(folder / "i0c1.tif", counts(1, 12, 17))
    with pytest.raises(DataError, match="all planes of an image must be uint8 of one size"):
        ingest([source(folder)], tmp_path / "out")


def test_a_colour_file_where_grey_was_promised_is_refused(tmp_path: Path) -> None:
    Image.new("RGB", (5, 5)).save(tmp_path / "p.png")
    row = {"file": "p.png", "imaging.multi_channel_id": "p", "imaging.channel_type": "DNA"}
    with pytest.raises(DataError, match="is a colour image"):
        ingest([source(write_sheet(tmp_path, [row]))], tmp_path / "out")


def test_a_full_disk_stops_the_run_and_does_not_count_as_a_damaged_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(layout.os, "fsync", full)
    with pytest.raises(DataError, match="could not be written: the disk is full; make room and run it again"):
        ingest([source(write_study(tmp_path / "in"))], tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.tar*"))


def test_an_existing_study_is_refused_before_an_image_is_read(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in")
    ingest([source(folder)], tmp_path / "out")
    seen: list[object] = []
    with pytest.raises(DataError, match="pass --overwrite"):
        ingest([source(folder)], tmp_path / "out", progress=lambda *args: seen.append(args))
    assert not seen
    ingest([source(folder)], tmp_path / "out", overwrite=True)
    ShardSet(tmp_path / "out").verify()


def test_two_folders_of_one_study_are_refused(tmp_path: Path) -> None:
    folders = [write_study(tmp_path / name) for name in ("a", "b")]
    with pytest.raises(DataError, match="2 of the folders hold the study 'study'"):
        ingest([source(folder) for folder in folders], tmp_path / "out")


@pytest.mark.parametrize("clip", [(1.0, 1.0), (-1.0, 99.0), (0.0, 101.0), (99.0, 1.0)])
def test_wrong_percentiles_are_refused(tmp_path: Path, clip: tuple[float, float]) -> None:
    with pytest.raises(DataError, match="two rising percentiles"):
        ingest([], tmp_path, clip=clip)


@pytest.mark.slow
def test_all_real_studies_are_stored_without_loss(real_data: Path, tmp_path: Path) -> None:
    folders = sorted(path.parent for path in real_data.glob("*/metadata.csv"))
    report = ingest([source(folder) for folder in folders], tmp_path)
    assert [study.failures for study in report.studies] == [[]] * 9
    shards = ShardSet(tmp_path)
    shards.verify()
    assert shards.table(["key"]).num_rows == 710
    cells = shards.cells()
    assert cells is not None
    assert cells.num_rows == 2412 + 132
    labels = cells.filter(cells["label"].is_valid())["label"].to_pylist()
    assert {name: labels.count(name) for name in set(labels)} == {"RBC": 2059, "WBC": 186, "Platelets": 167}
    tifffile_plane = tifffile.imread(real_data / "pca-br00143976/images/r03c03f03p01-ch5sk1fk1fl1.tiff")
    row = shards.table(query="experiment.study == 'pca-br00143976' and imaging.channel_type == 'nucleus'").to_pylist()[
        0
    ]
    plane = png.decode(shards.reader().read(row["shard"], row["plane_offset"], row["plane_nbytes"]))
    np.testing.assert_array_equal(plane, to_uint8(tifffile_plane, (0.1, 99.9)).plane)

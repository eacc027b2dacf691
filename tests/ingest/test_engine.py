import errno
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile

from morphem.curation.recipe import Recipe
from morphem.data import layout, png
from morphem.data.record import ImageRecord
from morphem.data.shards import ShardSet, ShardWriter, finish_set
from morphem.errors import ConfigError, DataError
from morphem.ingest import IngestSettings, Preparation, RefusedError, StudyReport, ingest
from morphem.ingest.outcome import KEPT, REFUSED, WRITTEN
from morphem.ingest.prepare import prepare
from morphem.ingest.scaling import Percentiles, Range, to_uint8
from morphem.sources.sheet import SheetSource
from tests.ingest.studies import LOG, NamedStudy, files_of, finished_parts, images_read
from tests.sources.sheets import counts, write_study


def image_names(root: Path) -> list[str]:
    column = ShardSet(root).table(["imaging.multi_channel_id"]).column(0).to_pylist()
    return list(dict.fromkeys(column))


def test_shards_are_the_same_as_from_one_writer_that_takes_image_after_image(tmp_path: Path) -> None:
    source = NamedStudy(n_images=11)
    settings = IngestSettings(part_images=3, max_shard_images=4)
    ingest([source], tmp_path / "parts", settings)
    with ShardWriter(tmp_path / "plain", "study", max_images=4) as writer:
        for image in source.images():
            writer.add(prepare(image, Preparation()))
    finish_set(tmp_path / "plain")
    parts, plain = files_of(tmp_path / "parts"), files_of(tmp_path / "plain")
    assert {name for name in parts if name.endswith(".tar")} == {f"study-00000{n}.tar" for n in range(3)}
    assert {name: data for name, data in parts.items() if name.endswith(".tar")} == {
        name: data for name, data in plain.items() if name.endswith(".tar")
    }
    for table in ("table", "cells"):
        one, other = (getattr(ShardSet(tmp_path / name), table)() for name in ("parts", "plain"))
        assert one.to_pylist() == other.to_pylist() or str(one.to_pylist()) == str(other.to_pylist())  # NaN
    ShardSet(tmp_path / "parts").verify()


@pytest.mark.parametrize("part_images", [1, 2, 100, None])
def test_the_size_of_parts_does_not_change_a_byte(tmp_path: Path, part_images: int | None) -> None:
    for name, size in (("one", part_images), ("other", 3)):
        ingest([NamedStudy(bad=(4,))], tmp_path / name, IngestSettings(part_images=size, max_bad=0.5))
    assert files_of(tmp_path / "one") == files_of(tmp_path / "other")


def test_the_report_counts_what_was_written(tmp_path: Path) -> None:
    report = ingest([NamedStudy(bad=(4,))], tmp_path, IngestSettings(part_images=2, max_bad=0.5))
    (study,) = report.studies
    assert (study.state, study.n_found, study.images, study.planes, study.cells) == (WRITTEN, 7, 6, 12, 6)
    assert study.channel_types == {"nucleus": 6, "actin": 6}
    assert study.plates == {"plate 0": 3, "plate 1": 3}
    assert study.failures == [("image 4", "'image 4.tif' is cut off; restore it.")]
    assert study.remarks == {"every fifth": 2}
    assert study.labels == ["parity", "cell: kind"]
    assert study.unknown["biology.organism"] == 12
    assert report.n_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tar"))
    assert StudyReport.from_json(json.loads(json.dumps(study.to_json()))) == study
    assert image_names(tmp_path) == [f"image {n}" for n in (0, 1, 2, 3, 5, 6)]


def test_a_bad_image_changes_no_key_of_another(tmp_path: Path) -> None:
    for name, bad in (("all", ()), ("some", (2,))):
        ingest([NamedStudy(bad=bad)], tmp_path / name, IngestSettings(max_bad=0.5))
    keys = [ShardSet(tmp_path / name).table(["key"]).column(0).to_pylist() for name in ("all", "some")]
    assert keys[1] == [key for key in keys[0] if key != "study--image-2"]


def test_a_sheet_is_stored_with_pixels_rows_and_limits(tmp_path: Path) -> None:
    ingest([SheetSource(str(write_study(tmp_path / "in")))], tmp_path / "out")
    shards = ShardSet(tmp_path / "out")
    table = shards.table().to_pandas()
    for row, seed in zip(shards.table().to_pylist(), (0, 1, 10, 11, 20, 21), strict=True):
        stored = png.decode(shards.reader().read(row["shard"], row["plane_offset"], row["plane_nbytes"]))
        low, high = np.percentile(counts(seed), (0.1, 99.9))
        expected = np.rint((counts(seed).clip(low, high) - low) / (high - low) * 255)
        np.testing.assert_array_equal(stored, expected)
    assert table["clip_high"][0] == pytest.approx(np.percentile(counts(0), 99.9))
    assert table["imaging.channel_type"].tolist() == ["nucleus", "actin"] * 3
    assert table["channel_name"].tolist() == ["DNA", "actin"] * 3
    assert table["label"].tolist() == list("xxyyxx")


def test_progress_counts_every_image(tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    ingest([NamedStudy(n_images=3)], tmp_path, progress=lambda *args: seen.append(args))
    assert seen == [("study", done, 3) for done in range(4)]


def test_too_many_bad_images_keep_a_study_out_and_let_the_others_in(tmp_path: Path) -> None:
    studies = [NamedStudy("bad", bad=(1, 2)), NamedStudy("good")]
    with pytest.raises(
        RefusedError, match=r"study 'bad': 2 of 7 images cannot be used, .*'image 1': .*cut off.*--max-bad 28\.7%"
    ) as caught:
        ingest(studies, tmp_path, IngestSettings(max_bad=0.2))
    assert [study.state for study in caught.value.report.studies] == [REFUSED, WRITTEN]
    ShardSet(tmp_path).verify()
    assert ShardSet(tmp_path).studies == ("good",)


def test_after_a_refusal_the_same_command_reads_only_what_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = IngestSettings(part_images=2)
    source = SheetSource(str(write_study(tmp_path / "in", 6)))
    (tmp_path / "in" / "i3c1.tif").write_bytes(b"II*\0")
    with pytest.raises(RefusedError, match="'i3'"):
        ingest([source], tmp_path / "out", settings)
    assert not (tmp_path / "out" / "manifest.json").exists()
    write_study(tmp_path / "in", 6)
    read: list[str] = []
    load = SheetSource.load
    monkeypatch.setattr(SheetSource, "load", lambda self, name: read.append(name) or load(self, name))
    ingest([source], tmp_path / "out", settings)
    assert read == ["i2", "i3"]
    assert image_names(tmp_path / "out") == [f"i{n}" for n in range(6)]


def test_after_a_refusal_a_larger_share_of_bad_images_can_be_accepted(tmp_path: Path) -> None:
    with pytest.raises(RefusedError):
        ingest([NamedStudy(bad=(1,))], tmp_path)
    report = ingest([NamedStudy(bad=(1,))], tmp_path, IngestSettings(max_bad=0.15))
    assert report.studies[0].images == 6


def test_a_study_of_bad_images_only_is_refused_whatever_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="2 of 2 images"):
        ingest([NamedStudy(n_images=2, bad=(0, 1))], tmp_path, IngestSettings(max_bad=1.0))
    assert not (tmp_path / "manifest.json").exists()


def test_the_same_command_again_finds_the_study_done_and_reads_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ingest([NamedStudy()], tmp_path / "out")
    before = files_of(tmp_path / "out")
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    assert ingest([NamedStudy()], tmp_path / "out").studies[0].state == KEPT
    assert not (tmp_path / "log").exists()
    assert files_of(tmp_path / "out") == before


def test_a_study_made_otherwise_is_not_replaced_without_being_asked(tmp_path: Path) -> None:
    ingest([NamedStudy(n_images=2)], tmp_path)
    other = IngestSettings(Preparation(clip=Range(0, 9000)))
    with pytest.raises(DataError, match="has the study 'study' already; pass --overwrite"):
        ingest([NamedStudy(n_images=2)], tmp_path, other)
    ingest([NamedStudy(n_images=2)], tmp_path, IngestSettings(Preparation(clip=Range(0, 9000)), overwrite=True))
    assert set(ShardSet(tmp_path).table(["clip_high"]).column(0).to_pylist()) == {9000.0}


def stopped(monkeypatch: pytest.MonkeyPatch, root: Path, settings: IngestSettings, after: int = 3) -> None:
    """Leave a study half-done, as Ctrl-C does."""

    def stop(_: str, done: int, __: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest([NamedStudy()], root, settings, progress=stop)


def test_a_stopped_run_goes_on_and_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = IngestSettings(part_images=2)
    stopped(monkeypatch, tmp_path / "out", settings)
    assert len(finished_parts(tmp_path / "out")) == 1
    assert not list((tmp_path / "out").glob("*.tar"))
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    ingest([NamedStudy()], tmp_path / "out", settings)
    assert images_read(tmp_path / "log") == [f"image {n}" for n in range(2, 7)]
    ingest([NamedStudy()], tmp_path / "whole", settings)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_half_done_study_is_not_continued_with_other_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped(monkeypatch, tmp_path, IngestSettings(part_images=2))
    other = Preparation(bit_depth=16)
    with pytest.raises(DataError, match=r"half-done .* another bit depth \(8 before, 16 now\); .*--restart"):
        ingest([NamedStudy()], tmp_path, IngestSettings(other))
    with pytest.raises(DataError, match=r"with another source .*, the list of images"):
        ingest([NamedStudy(n_images=8)], tmp_path)
    ingest([NamedStudy()], tmp_path, IngestSettings(other, restart=True))
    ShardSet(tmp_path).verify()


def test_a_full_disk_is_no_bad_image_and_the_same_command_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(layout.os, "fsync", full)
        with pytest.raises(DataError, match="the disk is full; make room and run it again"):
            ingest([NamedStudy()], tmp_path / "out", IngestSettings(max_bad=1.0))
    assert not list((tmp_path / "out").rglob("*.tar*"))
    ingest([NamedStudy()], tmp_path / "out")
    ingest([NamedStudy()], tmp_path / "whole")
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_a_fault_of_the_program_stops_the_run_and_names_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty(self: NamedStudy, image_id: str) -> None:
        raise KeyError(image_id)

    monkeypatch.setattr(NamedStudy, "load", faulty)
    with pytest.raises(KeyError) as caught:
        ingest([NamedStudy()], tmp_path, IngestSettings(max_bad=1.0))
    assert caught.value.__notes__ == ["while reading image 'image 0' of study 'study'"]


def test_two_sources_of_one_study_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="2 of the folders hold the study 'study'"):
        ingest([NamedStudy(), NamedStudy()], tmp_path)
    with pytest.raises(DataError, match="'A b' and 'a-b' would have the same names"):
        ingest([NamedStudy("A b"), NamedStudy("a-b")], tmp_path)


def test_an_output_that_is_no_folder_is_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="could not be written"):
        ingest([NamedStudy()], tmp_path / "file")
    with pytest.raises(DataError, match="written to a local folder"):
        ingest([NamedStudy()], "s3://bucket/shards")


@pytest.mark.parametrize("wrong", [{"max_bad": 1.5}, {"part_images": 0}, {"max_shard_bytes": 0}])
def test_settings_out_of_range_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        IngestSettings(**wrong)


def test_two_channels_with_the_same_pixels_are_a_bad_image(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "in", 2)
    tifffile.imwrite(folder / "i0c1.tif", counts(0))
    with pytest.raises(RefusedError, match="image 'i0': channels 'DNA' and 'actin' have the same pixels"):
        ingest([SheetSource(str(folder))], tmp_path / "out")


def recipe(*steps: dict[str, object]) -> Recipe:
    return Recipe.from_dict({"steps": list(steps)})


def test_a_step_on_metadata_keeps_images_from_being_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(LOG, str(tmp_path / "log"))
    only = recipe({"step": "select", "keep_where": "experiment.plate == 'plate 1'"})
    report = ingest([NamedStudy()], tmp_path / "out", IngestSettings(recipe=only, pictures=False)).studies[0]
    assert images_read(tmp_path / "log") == ["image 1", "image 3", "image 5"]
    assert image_names(tmp_path / "out") == ["image 1", "image 3", "image 5"]
    assert report.curation == [{"study": "study", "step": "select", "before": 7, "removed": 4, "after": 3}]
    assert report.curated_away == {"select": ["image 0", "image 2", "image 4", "image 6"]}


def test_a_step_on_quality_selects_among_the_prepared_images(tmp_path: Path) -> None:
    mean = sorted(image.planes[0].mean() for image in NamedStudy().images())[3]
    bright = recipe(
        {"step": "quality", "keep_where": f"quality.mean > {mean - 1e-6} or imaging.channel_type == 'actin'"}
    )
    report = ingest([NamedStudy()], tmp_path / "out", IngestSettings(recipe=bright)).studies[0]
    expected = [image.image_id for image in NamedStudy().images() if image.planes[0].mean() >= mean]
    assert image_names(tmp_path / "out") == expected
    assert report.images == len(expected)
    assert report.pictures["quality"]["dropped"][0].startswith("data:image/jpeg;base64,")
    ShardSet(tmp_path / "out").verify()


def test_a_recipe_that_removes_everything_says_which_step_did(tmp_path: Path) -> None:
    nothing = recipe({"step": "select", "keep_where": "experiment.plate == 'plate 1' and parity == 'even'"})
    with pytest.raises(DataError, match=r"removes all 7 images of study 'study' \(select 7\)"):
        ingest([NamedStudy()], tmp_path, IngestSettings(recipe=nothing))


@pytest.mark.slow
def test_a_step_on_features_embeds_the_prepared_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = NamedStudy.load

    def with_copies(self: NamedStudy, image_id: str) -> ImageRecord:
        image = load(self, image_id)
        return replace(image, planes=load(self, "image 2").planes) if image_id in ("image 4", "image 5") else image

    monkeypatch.setattr(NamedStudy, "load", with_copies)
    once = recipe({"step": "near_duplicates"})
    study = ingest([NamedStudy(bad=(6,))], tmp_path, IngestSettings(recipe=once, max_bad=0.5)).studies[0]
    assert len(study.curated_away["near_duplicates"]) == 2
    assert set(study.curated_away["near_duplicates"]) < {"image 2", "image 4", "image 5"}
    assert not list(tmp_path.rglob("staged"))
    ShardSet(tmp_path).verify()


@pytest.mark.slow
def test_all_real_studies_are_stored_without_loss(real_data: Path, tmp_path: Path) -> None:
    folders = sorted(path.parent for path in real_data.glob("*/metadata.csv"))
    report = ingest([SheetSource(str(folder)) for folder in folders], tmp_path)
    assert [study.failures for study in report.studies] == [[]] * 9
    shards = ShardSet(tmp_path)
    shards.verify()
    assert shards.table(["key"]).num_rows == 710
    cells = shards.cells()
    assert cells is not None
    assert cells.num_rows == 2412 + 132
    labels = cells.filter(cells["label"].is_valid())["label"].to_pylist()
    assert {name: labels.count(name) for name in set(labels)} == {"RBC": 2059, "WBC": 186, "Platelets": 167}
    raw = tifffile.imread(real_data / "pca-br00143976/images/r03c03f03p01-ch5sk1fk1fl1.tiff")
    nucleus = "experiment.study == 'pca-br00143976' and imaging.channel_type == 'nucleus'"
    row = shards.table(query=nucleus).to_pylist()[0]
    stored = png.decode(shards.reader().read(row["shard"], row["plane_offset"], row["plane_nbytes"]))
    np.testing.assert_array_equal(stored, to_uint8(raw, Percentiles(0.1, 99.9)).plane)

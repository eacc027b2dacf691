import pickle
from pathlib import Path

import fsspec
import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from morphem.cells.readers import BACKGROUND_REMARK
from morphem.data.schema import COLUMNS
from morphem.errors import DataError
from morphem.readers.files import open_files
from morphem.sources.chammi75 import NO_FILE, NO_GUIDANCE, OTHER_ROOT, Chammi75Source
from tests.sources.chammi75_layout import GUIDANCE, TRAIN, Layout, write_layout, write_metadata


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "set").mkdir()
    return write_layout(tmp_path / "set")


def check(source: Chammi75Source, layout: Layout) -> None:
    """Compare pixels, all 22 columns and cells of a source with what was written."""
    own = [row for row in layout.rows if row["experiment.study"] == source.study]
    assert source.image_ids() == list(dict.fromkeys(row["imaging.multi_channel_id"] for row in own))
    for image in source.images():
        wanted = [row for row in own if row["imaging.multi_channel_id"] == image.image_id]
        assert len(image.planes) == len(wanted)
        for plane, row, said in zip(image.planes, image.rows, wanted, strict=True):
            assert np.array_equal(plane, layout.pixels[said["storage.path"]])
            assert plane.dtype == np.uint8
            assert {column: str(row[column]) for column in COLUMNS} == said
        assert image.cells is not None
        assert image.cells.tolist() == [[4 + int("1" in image.image_id.split("-", 1)[1][-4:]), 7], [20, 3]]
        assert BACKGROUND_REMARK in image.remarks


def test_zips_with_the_metadata_beside_give_all_studies_back(layout: Layout, tmp_path: Path) -> None:
    images, cells = tmp_path / "images.zip", tmp_path / "cells.zip"
    layout.zipped(TRAIN, images)
    layout.zipped(GUIDANCE, cells)
    sources = Chammi75Source.open(str(images), metadata=str(layout.metadata), guidance=str(cells))
    assert [source.study for source in sources] == ["hpa0018", "idr0002"]
    for source in sources:
        check(source, layout)
        assert not source.problems
        assert not source.remarks
    assert {path.name for path in tmp_path.iterdir()} == {"set", "images.zip", "cells.zip"}  # nothing is unpacked


def test_a_folder_needs_no_settings(layout: Layout) -> None:
    assert Chammi75Source.recognises(open_files(str(layout.root)))
    sources = Chammi75Source.open(str(layout.root))
    assert [source.study for source in sources] == ["hpa0018", "idr0002"]
    for source in sources:
        check(source, layout)


def test_a_zip_finds_the_metadata_beside_it(layout: Layout) -> None:
    archive = layout.zipped(TRAIN, layout.root / "images.zip")
    assert Chammi75Source.recognises(open_files(str(archive)))
    [source] = Chammi75Source.open(str(archive), guidance=str(layout.root / GUIDANCE), studies="idr0002")
    check(source, layout)


def test_a_zip_of_another_root_is_read_and_said(layout: Layout, tmp_path: Path) -> None:
    archive = layout.zipped(TRAIN, tmp_path / "small.zip", as_root="my/CHAMMI-75_small")
    source = Chammi75Source(str(archive), metadata=str(layout.metadata), study="hpa0018")
    assert source.remarks == {OTHER_ROOT: 2}
    image = source.load(source.image_ids()[0])
    assert np.array_equal(image.planes[0], layout.pixels[image.rows[0]["storage.path"]])
    assert image.rows[0]["storage.path"].startswith(TRAIN)
    assert image.cells is None


def test_a_bucket_is_read(layout: Layout) -> None:
    store = fsspec.filesystem("memory")
    for path in layout.root.rglob("*.*"):
        store.pipe(f"/chammi-test/{path.relative_to(layout.root).as_posix()}", path.read_bytes())
    try:
        where = "memory://chammi-test"
        metadata = f"{where}/{layout.metadata.name}"
        source = Chammi75Source(f"{where}/{TRAIN}", metadata=metadata, guidance=f"{where}/{GUIDANCE}", study="idr0002")
        again = pickle.loads(pickle.dumps(source))
        assert again.image_ids() == source.image_ids() != []
        check(again, layout)
    finally:
        store.rm("/chammi-test", recursive=True)


def test_percent_signs_that_a_download_left_in_names_are_understood(layout: Layout) -> None:
    for path in sorted((layout.root / TRAIN / "idr0002").rglob("*.png")):
        path.rename(path.with_name(path.name.replace("+", "%2B").replace("[", "%5B")))
    source = Chammi75Source(str(layout.root), study="idr0002")
    assert not source.problems
    assert source.image_ids()
    check(source, layout)


def test_a_path_without_a_file_leaves_its_image_out_and_is_counted(layout: Layout) -> None:
    (layout.root / TRAIN / "hpa0018" / "uuid-0-ch1.png").unlink()
    source = Chammi75Source(str(layout.root), study="hpa0018")
    assert source.image_ids() == ["hpa0018-uuid-1"]
    assert source.remarks == {NO_FILE: 1}
    [(image, reason)] = source.problems
    assert image == "hpa0018-uuid-0"
    assert "uuid-0-ch1.png" in reason


def test_missing_guidance_is_counted_and_another_plane_can_stand_in(layout: Layout) -> None:
    folder = layout.root / GUIDANCE / "hpa0018"
    for name in ("uuid-0-ch0", "uuid-1-ch0", "uuid-1-ch1", "uuid-1-ch2"):
        (folder / f"{name}.safetensors").unlink()
    source = Chammi75Source(str(layout.root), study="hpa0018")
    assert source.remarks == {NO_GUIDANCE: 1}
    first, second = source.images()
    assert first.cells is not None
    assert len(first.cells) == 2
    assert second.cells is None


def test_damaged_guidance_is_an_error_of_its_image(layout: Layout) -> None:
    (layout.root / GUIDANCE / "hpa0018" / "uuid-0-ch0.safetensors").write_bytes(b"<html>")
    source = Chammi75Source(str(layout.root), study="hpa0018")
    with pytest.raises(DataError, match=r"uuid-0-ch0\.safetensors' is no safetensors file"):
        source.load("hpa0018-uuid-0")
    assert source.load("hpa0018-uuid-1").cells is not None


def test_guidance_without_a_background_point_keeps_all_cells(layout: Layout) -> None:
    save_file(
        {"data": np.array([[1, 2], [3, 4]]), "sizes": np.array([40, 50])},
        layout.root / GUIDANCE / "hpa0018" / "uuid-0-ch0.safetensors",
    )
    image = Chammi75Source(str(layout.root), study="hpa0018").load("hpa0018-uuid-0")
    assert image.cells is not None
    assert image.cells.tolist() == [[1, 2], [3, 4]]
    assert image.remarks == []


def test_where_the_metadata_say_another_size_the_pixels_are_right(layout: Layout) -> None:
    for row in layout.rows:
        row["geometry.width"] = "1000"
    write_metadata(layout)
    image = Chammi75Source(str(layout.root), study="hpa0018").load("hpa0018-uuid-0")
    assert image.rows[0]["geometry.width"] == 30
    assert "geometry.width of the metadata is not that of the pixels" in image.remarks


def test_a_row_of_too_few_fields_is_left_out_and_named(layout: Layout) -> None:
    with layout.metadata.open("a") as file:
        file.write("hpa0018,broken\n")
    source = Chammi75Source(str(layout.root), study="hpa0018")
    assert source.count == 2
    [(row, reason)] = source.problems
    assert "hpa0018,broken" in row
    assert "has 2 fields where 22 are needed" in reason


def test_a_truncated_png_is_an_error_of_its_image(layout: Layout) -> None:
    path = layout.root / TRAIN / "hpa0018" / "uuid-0-ch2.png"
    path.write_bytes(path.read_bytes()[:90])
    source = Chammi75Source(str(layout.root), study="hpa0018")
    with pytest.raises(DataError, match=r"uuid-0-ch2\.png' cannot be read"):
        source.load("hpa0018-uuid-0")
    assert source.load("hpa0018-uuid-1").planes[2].shape == (24, 30)


def test_channels_of_another_size_are_an_error_of_their_image(layout: Layout) -> None:
    Image.fromarray(np.zeros((24, 28), np.uint8)).save(layout.root / TRAIN / "hpa0018" / "uuid-0-ch2.png")
    with pytest.raises(DataError, match="all channels need one size"):
        Chammi75Source(str(layout.root), study="hpa0018").load("hpa0018-uuid-0")


def test_several_studies_must_be_told_apart(layout: Layout) -> None:
    with pytest.raises(DataError, match="holds 2 studies"):
        Chammi75Source(str(layout.root))
    with pytest.raises(DataError, match="has no study 'hpa0019'; it holds hpa0018, idr0002"):
        Chammi75Source.open(str(layout.root), studies="hpa0018, hpa0019")
    with pytest.raises(DataError, match="has no row of study 'hpa0019'"):
        Chammi75Source(str(layout.root), study="hpa0019")


def test_a_location_without_the_files_is_refused(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"has none of the files of study 'hpa0018', for example 'CHAMMI-75_train/hpa"):
        Chammi75Source(str(tmp_path / "empty"), metadata=str(layout.metadata), study="hpa0018")
    with pytest.raises(DataError, match=r"needs one \*metadata\.csv \(none found\)"):
        Chammi75Source(str(tmp_path / "empty"))


def test_a_part_of_a_study_is_small_to_send(layout: Layout) -> None:
    source = Chammi75Source(str(layout.root), study="hpa0018")
    part = pickle.loads(pickle.dumps(source.only(["hpa0018-uuid-1"])))
    assert part.image_ids() == ["hpa0018-uuid-1"]
    assert np.array_equal(part.load("hpa0018-uuid-1").planes[0], source.load("hpa0018-uuid-1").planes[0])
    assert len(pickle.dumps(part)) < 20_000


def test_other_layouts_are_not_taken_for_it(layout: Layout, tmp_path: Path) -> None:
    assert not Chammi75Source.recognises(open_files(str(layout.root / TRAIN)))
    layout.metadata.write_text("file,imaging.multi_channel_id,imaging.channel_type,storage.path\n")
    assert not Chammi75Source.recognises(open_files(str(layout.root)))

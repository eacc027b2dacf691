from pathlib import Path

import pandas as pd
import pytest
import tifffile

from morphem.errors import ConfigError, DataError
from morphem.readers.files import open_files
from morphem.sources.pattern import Layout, PatternSource, presets
from tests.sources.planes_of import assert_image, plane

EXAMPLES = [(name, path) for name, layout in presets().items() for path in layout.examples]


def _write(root: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        tifffile.imwrite(root / name, plane(number))


@pytest.mark.parametrize(("preset", "path"), EXAMPLES)
def test_a_preset_reads_its_examples(preset: str, path: str) -> None:
    expected = {**presets()[preset].defaults, **presets()[preset].examples[path]}
    assert presets()[preset].read(path) == expected


@pytest.mark.parametrize(("preset", "path"), EXAMPLES)
def test_no_other_preset_reads_the_examples_of_one(preset: str, path: str) -> None:
    assert [name for name, layout in presets().items() if layout.read(path)] == [preset]


@pytest.mark.parametrize(("preset", "path"), EXAMPLES)
def test_the_names_alone_tell_the_preset(tmp_path: Path, preset: str, path: str) -> None:
    _write(tmp_path, path)
    assert PatternSource.recognises(open_files(str(tmp_path)))
    assert PatternSource(str(tmp_path)).image_ids() == PatternSource(str(tmp_path), preset=preset).image_ids()


def test_an_imagexpress_plate_is_read_with_every_field(tmp_path: Path) -> None:
    root = tmp_path / "25201"
    guid = "7247AC16-C2A3-41F2-B56D-0ECF158B3234"
    names = [f"TimePoint_{t}/ZStep_{z}/Exp_E04_s3_w{w}{guid}.tif" for t in (1, 2) for z in (1, 2) for w in (1, 2)]
    _write(root, *names, f"TimePoint_1/ZStep_1/Exp_E04_s3_w1_thumb{guid}.tif")

    source = PatternSource(str(root), preset="imagexpress", channel_aliases={"w1": "DAPI", "w2": "ER"})

    assert source.image_ids() == [f"25201-E04-s3-z{z}-t{t}-Exp" for z in (1, 2) for t in (1, 2)]
    expected = {
        "experiment.study": "25201",
        "experiment.plate": "25201",
        "experiment.well": "E04",
        "microscopy.fov": "3",
        "geometry.z_slice": "2",
        "geometry.timepoint": "1",
        "geometry.depth": "2",
        "imaging.panel": "w1,w2",
        "imaging.channel": ["1", "2"],
        "imaging.channel_type": ["nucleus", "endoplasmic reticulum"],
        "storage.path": names[2:4],
        "acquisition": "Exp",
    }
    assert_image(source, "25201-E04-s3-z2-t1-Exp", [plane(2), plane(3)], expected)
    assert not source.remarks
    assert not source.problems


def test_the_projection_of_a_metaxpress_stack_is_no_slice(tmp_path: Path) -> None:
    _write(tmp_path, "P/TimePoint_1/ZStep_0/E_B02_s1_w1.tif", "P/TimePoint_1/ZStep_1/E_B02_s1_w1.tif")
    table = PatternSource(str(tmp_path)).table()
    assert sorted(table["geometry.z_slice"]) == ["1", "projection"]


def test_a_cellvoyager_plate_is_read_with_every_field(tmp_path: Path) -> None:
    names = [f"Plate 1/Dest+2_K06_T0001F00{f}L01A01Z0{z}C0{c}.tif" for f in (1, 2) for z in (1, 2) for c in (1, 4)]
    _write(tmp_path, *names)

    source = PatternSource(str(tmp_path), channel_aliases={"C01": "nucleus"})

    expected = {
        "experiment.plate": "Dest+2",
        "experiment.well": "K06",
        "microscopy.fov": "2",
        "geometry.z_slice": "1",
        "geometry.timepoint": "1",
        "geometry.depth": "2",
        "imaging.panel": "C01,C04",
        "imaging.channel_type": ["nucleus", "unknown"],
        "timeline": "01",
    }
    assert_image(source, "Dest+2-K06-s2-z1-t1-01", [plane(4), plane(5)], expected)
    assert source.unrecognised == {"C04": 4}


def test_an_incell_plate_is_read_with_its_channel_names(tmp_path: Path) -> None:
    names = [f"A - 0{c}(fld 1 wv {wave}).tif" for c in (1, 2) for wave in ("UV - DAPI", "Red - Cy5")]
    _write(tmp_path / "plate7", *names)

    source = PatternSource(str(tmp_path))

    expected = {
        "experiment.plate": "plate7",
        "experiment.well": "A02",
        "microscopy.fov": "1",
        "geometry.z_slice": "unknown",
        "imaging.panel": "Red - Cy5,UV - DAPI",
        "imaging.channel_type": ["unknown", "nucleus"],
    }
    assert_image(source, "plate7-A02-s1", [plane(3), plane(2)], expected)


def test_a_pattern_without_a_slash_sees_the_file_name_alone(tmp_path: Path) -> None:
    _write(tmp_path, "deep/er/P1_B3_DAPI.tif", "deep/er/P1_B3_GFP.tif")
    source = PatternSource(str(tmp_path), pattern=r"^(?P<plate>[^_]+)_(?P<well>[^_]+)_(?P<channel>\w+)\.tif$")
    assert source.image_ids() == ["P1-B03"]


def test_further_groups_are_labels_and_columns_of_the_schema(tmp_path: Path) -> None:
    _write(tmp_path, "HeLa-10nM-DAPI.tif", "U2OS-10nM-DAPI.tif")
    pattern = r"(?P<biology__cell_line>\w+)-(?P<dose>\w+)-(?P<channel>\w+)\.tif"

    source = PatternSource(str(tmp_path), pattern=pattern)

    assert_image(source, "HeLa-10nM", [plane(0)], {"biology.cell_line": "HeLa", "dose": "10nM"})


def test_names_of_groups_that_cellprofiler_uses_are_understood(tmp_path: Path) -> None:
    _write(tmp_path, "a_B02_7_w1.tif")
    pattern = r"(?P<Plate>\w)_(?P<Well>\w+)_(?P<Field>\d)_(?P<Wavelength>w\d)"
    assert PatternSource(str(tmp_path), pattern=pattern).image_ids() == ["a-B02-s7"]


@pytest.mark.parametrize("group", ["study", "Study"])
def test_each_study_that_the_names_tell_has_a_source(tmp_path: Path, group: str) -> None:
    _write(tmp_path, "one/A01_DAPI.tif", "two/A01_DAPI.tif", "two/A02_DAPI.tif")
    pattern = rf"(?P<{group}>\w+)/(?P<well>\w\d\d)_(?P<channel>\w+)\.tif"

    sources = PatternSource.open(str(tmp_path), pattern=pattern)

    assert [(source.study, source.count) for source in sources] == [("one", 1), ("two", 2)]


def test_a_pattern_of_studies_that_fits_no_file_says_so(tmp_path: Path) -> None:
    _write(tmp_path, "a.tif")
    with pytest.raises(DataError, match="none fits"):
        PatternSource.open(str(tmp_path), pattern=r"(?P<study>\d)(?P<well>\d)")


def test_an_image_that_lacks_a_channel_is_a_problem_and_the_others_go_on(tmp_path: Path) -> None:
    _write(tmp_path, *(f"P_A0{i}_s1_w{w}.tif" for i in (1, 2, 3) for w in (1, 2) if (i, w) != (2, 2)))
    source = PatternSource(str(tmp_path), preset="imagexpress")
    assert source.image_ids() == ["P-A01-s1", "P-A03-s1"]
    assert [name for name, _ in source.problems] == ["P-A02-s1"]


def test_two_files_for_one_channel_are_a_problem(tmp_path: Path) -> None:
    _write(tmp_path, "P_A01_s1_w1.tif", "P_A01_s1_w1.tiff", "P_A02_s1_w1.tif")
    source = PatternSource(str(tmp_path), preset="imagexpress")
    assert source.image_ids() == ["P-A02-s1"]
    assert "P_A01_s1_w1.tiff" in source.problems[0][1]


def test_files_whose_names_do_not_fit_are_counted(tmp_path: Path) -> None:
    _write(tmp_path, "P_A01_s1_w1.tif", "overview.tif")
    assert PatternSource(str(tmp_path), preset="imagexpress").remarks == {
        "image files whose names do not fit the pattern": 1
    }


def test_paths_that_are_left_out_are_not_read() -> None:
    layout = Layout((r"(?P<well>[A-P]\d\d)",), leave_out="_thumb")
    assert layout.read("A01.tif") == {"well": "A01"}
    assert layout.read("A01_thumb.tif") is None


def test_a_few_names_that_fit_do_not_make_a_plate(tmp_path: Path) -> None:
    _write(tmp_path, "P_A01_s1_w1.tif", "cat.tif", "dog.tif")
    assert not PatternSource.recognises(open_files(str(tmp_path)))


def test_a_folder_of_other_names_is_not_recognised(tmp_path: Path) -> None:
    _write(tmp_path, "mouse.tif", "cat.tif")
    assert not PatternSource.recognises(open_files(str(tmp_path)))
    with pytest.raises(DataError, match=r"fit no preset .*cellvoyager"):
        PatternSource(str(tmp_path))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pattern": "(?P<well>a", "preset": None}, "no regular expression"),
        ({"pattern": "x"}, "no named group"),
        ({"pattern": r"(?P<row>\w)"}, "row without a column"),
        ({"pattern": r"(?P<biology__cellline>\w)"}, "did you mean 'biology.cell_line'"),
        ({"preset": "imagexpres"}, "did you mean 'imagexpress'"),
        ({"pattern": r"(?P<well>\w)", "preset": "incell"}, "leave one of them out"),
    ],
)
def test_a_setting_that_cannot_be_right_is_named(tmp_path: Path, settings: dict[str, str], message: str) -> None:
    _write(tmp_path, "a.tif")
    with pytest.raises(ConfigError, match=message):
        PatternSource(str(tmp_path), **settings)


def test_a_pattern_that_fits_no_file_shows_one(tmp_path: Path) -> None:
    _write(tmp_path, "a.tif")
    with pytest.raises(DataError, match=r"1 image files but none fits .*'a\.tif'"):
        PatternSource(str(tmp_path), pattern=r"(?P<well>[A-P]\d\d)")


@pytest.mark.parametrize(
    ("study", "columns"),
    [
        ("pca-br00143976", ["experiment.well", "microscopy.fov"]),
        ("nf1-schwann", ["microscopy.fov"]),
        ("moffat-human", ["experiment.plate", "experiment.well"]),
        ("bbbc016-transfluor", ["experiment.plate", "experiment.well"]),
    ],
)
def test_real_file_names_tell_what_the_sheet_says(real_data: Path, study: str, columns: list[str]) -> None:
    sheet = pd.read_csv(real_data / study / "metadata.csv", dtype=str, keep_default_na=False).set_index("file")

    table = PatternSource(str(real_data / study / "images")).table().set_index("storage.path")

    said = sheet.loc[[f"images/{name}" for name in table.index]]
    for column in columns:
        assert table[column].tolist() == said[column].tolist()
    pairs = zip(table["imaging.multi_channel_id"], said["imaging.multi_channel_id"], strict=True)
    assert len(set(pairs)) == sheet["imaging.multi_channel_id"].nunique()

"""What a dry run shows."""

from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import tifffile

from morphem.ingest.survey import format_survey, spread, survey
from morphem.readers import planes as planes_module
from morphem.sources.sheet import SheetSource
from morphem.sources.table import TableSource

CHANNELS = {"nucleus": "Hoechst", "actin": "phalloidin"}


def _plate(folder: Path, wells: tuple[str, ...] = ("A01", "A02", "B01"), **more: str) -> Path:
    """A small plate with one file per channel."""
    rows = []
    for well in wells:
        for site in ("1", "2"):
            for number, (kind, stain) in enumerate(CHANNELS.items(), 1):
                name = f"{well} s{site}+{kind}.tif"
                tifffile.imwrite(folder / name, np.full((20, 30), number, np.uint16))
                rows.append(
                    {
                        "file": name,
                        "experiment.study": "pilot",
                        "experiment.plate": "P1",
                        "experiment.well": well,
                        "microscopy.fov": site,
                        "imaging.multi_channel_id": f"{well}-{site}",
                        "imaging.channel": str(number),
                        "imaging.channel_type": kind,
                        "channel_name": stain,
                        "dose": "0.5",
                        **more,
                    }
                )
    pd.DataFrame(rows).to_csv(folder / "metadata.csv", index=False)
    return folder


def test_counts_sizes_types_and_columns_are_found(tmp_path: Path) -> None:
    found = survey(SheetSource(str(_plate(tmp_path))))
    assert (found.study, found.images, found.planes, found.n_files, found.n_headers) == ("pilot", 6, 12, 12, 12)
    assert (found.sizes, found.dtypes) == (Counter({"30 x 20": 12}), Counter({"uint16": 12}))
    assert found.n_bytes == sum(path.stat().st_size for path in tmp_path.glob("*.tif"))
    assert found.channels == [("nucleus", "Hoechst", 6), ("actin", "phalloidin", 6)]
    assert found.labels == ["dose"]
    assert "biology.organism" in found.unknown


def test_no_pixel_is_decoded_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {path: path.stat().st_mtime_ns for path in _plate(tmp_path).rglob("*")}

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pixels were read")

    source = SheetSource(str(tmp_path))
    monkeypatch.setattr(planes_module.PlaneReader, "read", refuse)
    monkeypatch.setattr(TableSource, "load", refuse)
    monkeypatch.setattr(tifffile.TiffPage, "asarray", refuse)
    format_survey(survey(source))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_no_more_headers_are_read_than_allowed(tmp_path: Path) -> None:
    found = survey(SheetSource(str(_plate(tmp_path))), max_headers=3)
    assert (found.n_headers, found.n_files) == (3, 12)
    assert survey(SheetSource(str(tmp_path)), max_headers=0).sizes == Counter()


def test_a_missing_and_a_damaged_file_are_named(tmp_path: Path) -> None:
    source = SheetSource(str(_plate(tmp_path)))
    (tmp_path / "A01 s1+nucleus.tif").unlink()
    (tmp_path / "A02 s2+actin.tif").write_bytes(b"")
    text = format_survey(survey(SheetSource(str(tmp_path))))
    assert source.count == 6
    assert "CANNOT BE USED: 2" in text
    assert "A01 s1+nucleus.tif" in text
    assert "A02 s2+actin.tif" in text


def test_mixed_sizes_and_types_are_counted(tmp_path: Path) -> None:
    _plate(tmp_path)
    tifffile.imwrite(tmp_path / "B01 s2+actin.tif", np.zeros((10, 10), np.uint8))
    text = format_survey(survey(SheetSource(str(tmp_path))))
    assert "width x height: 30 x 20 (11), 10 x 10 (1)" in text
    assert "type: uint16 (11), uint8 (1)" in text


def test_gaps_are_shown_per_well_site_and_channel(tmp_path: Path) -> None:
    _plate(tmp_path)
    sheet = pd.read_csv(tmp_path / "metadata.csv", dtype=str)
    sheet[~((sheet["experiment.well"] == "A02") & (sheet["microscopy.fov"] == "2"))].to_csv(
        tmp_path / "metadata.csv", index=False
    )
    text = format_survey(survey(SheetSource(str(tmp_path))))
    assert "plate P1: 3 wells x 2 sites x 2 channels, 2 of 12 planes missing\n    A02: site 2 missing" in text


def test_a_complete_plate_is_called_complete(tmp_path: Path) -> None:
    assert "plate P1: 3 wells x 2 sites x 2 channels, complete" in format_survey(
        survey(SheetSource(str(_plate(tmp_path))))
    )


def test_names_that_were_not_recognised_are_shown_with_the_option(tmp_path: Path) -> None:
    source = SheetSource(str(_plate(tmp_path)))
    source.unrecognised["Weird 647"] += 3
    text = format_survey(survey(source))
    assert "--channel NAME=TYPE" in text
    assert "Weird 647: 3 planes" in text


def test_the_pixel_size_of_a_file_is_shown(tmp_path: Path) -> None:
    _plate(tmp_path, wells=("A01",))
    for path in tmp_path.glob("*.tif"):
        tifffile.imwrite(path, np.zeros((20, 30), np.uint16), imagej=True, resolution=(4, 4), metadata={"unit": "um"})
    assert "pixel size, µm: 0.25" in format_survey(survey(SheetSource(str(tmp_path))))


def test_the_first_rows_are_shown_in_columns_under_each_other(tmp_path: Path) -> None:
    lines = format_survey(survey(SheetSource(str(_plate(tmp_path))))).splitlines()
    head = next(line for line in lines if line.split()[:2] == ["image", "plate"])
    row = lines[lines.index(head) + 1]
    assert head.index("well") == row.index("A01", row.index("P1"))
    assert head.index("file") == row.index("A01 s1+nucleus.tif")


def test_files_are_spread_from_the_first_to_the_last() -> None:
    names = [str(k) for k in range(101)]
    assert spread(names, 3) == ["0", "50", "100"]
    assert spread(names, 500) == names
    assert spread(names, 0) == []


@pytest.mark.parametrize("study", ["bbbc016-transfluor", "pca-br00143976"])
def test_a_real_study_is_complete(real_data: Path, study: str) -> None:
    found = survey(SheetSource(str(real_data / study)), max_headers=10)
    assert all(plate.missing == {} for plate in found.plates)
    assert found.problems == []

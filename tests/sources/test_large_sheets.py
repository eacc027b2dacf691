from pathlib import Path

import pytest

from morphem.errors import DataError
from morphem.readers.files import FolderFiles
from morphem.sources import large_sheets
from morphem.sources.large_sheets import rows_of_study, studies_of

HEADER = "experiment.study,experiment.plate,a\n"


def sheet(tmp_path: Path, text: str, header: str = HEADER) -> FolderFiles:
    (tmp_path / "m.csv").write_text(header + text, encoding="utf-8")
    return FolderFiles(tmp_path)


def test_studies_come_in_order_of_appearance(tmp_path: Path) -> None:
    assert studies_of(sheet(tmp_path, "b,1,x\na,1,x\nb,1,x\n"), "m.csv") == ["b", "a"]


def test_values_stay_texts(tmp_path: Path) -> None:
    text = 's,007,1.0\ns,NA,"x,y"\ns,,true\nt,1,1\ns,2024-01-01,μm é\n'
    rows, bad = rows_of_study(sheet(tmp_path, text), "m.csv", "s", ("a",))
    assert rows["experiment.plate"].tolist() == ["007", "NA", "", "2024-01-01"]
    assert rows["a"].tolist() == ["1.0", "x,y", "true", "μm é"]
    assert not bad


def test_rows_of_a_study_that_are_scattered_over_blocks_are_all_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_sheets, "_BLOCK_BYTES", 256)
    text = "".join(f"{'st'[i % 2]},{i},v{i}\n" for i in range(400))
    rows, _ = rows_of_study(sheet(tmp_path, text), "m.csv", "t", ())
    assert rows["a"].tolist() == [f"v{i}" for i in range(1, 400, 2)]


def test_rows_of_another_length_are_left_out_and_named(tmp_path: Path) -> None:
    rows, bad = rows_of_study(sheet(tmp_path, "s,1,x\ns,1\ns,1,x,y\ns,2,z\n"), "m.csv", "s", ())
    assert rows["a"].tolist() == ["x", "z"]
    assert [name for name, _ in bad] == ["row 's,1'", "row 's,1,x,y'"]
    assert "has 4 fields where 3 are needed" in bad[1][1]


def test_a_column_that_is_needed_and_a_study_that_is_not_there_are_named(tmp_path: Path) -> None:
    files = sheet(tmp_path, "s,1,x\n")
    with pytest.raises(DataError, match=r"m\.csv' has no column 'b'; needed: a, b"):
        rows_of_study(files, "m.csv", "s", ("a", "b"))
    with pytest.raises(DataError, match="has no row of study 'q'"):
        rows_of_study(files, "m.csv", "q", ())
    with pytest.raises(DataError, match=r"has no column 'experiment\.study'"):
        studies_of(sheet(tmp_path, "1\n", "a\n"), "m.csv")

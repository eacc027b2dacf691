import numpy as np
import pandas as pd
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import Annotate, FillMetadata, Filter, Impute, records
from tests.profiles.plates import CONTROLS, plates


@pytest.fixture
def table():
    return plates(n_plates=2, n_wells=4, n_controls=2)


def write(path, rows, **settings):
    pd.DataFrame(rows).to_csv(path, index=False, **settings)
    return str(path)


def plate_map(n_plates=2):
    return [
        {"Plate": f"P{plate}", "well_position": f"a{well}", "dose": well / 2, "gene": f"g{plate}{well}"}
        for plate in range(n_plates)
        for well in range(1, 5)
    ]


ON = {"Metadata_Plate": "Plate", "Metadata_Well": "well_position"}


def test_a_plate_map_is_joined_by_plate_and_well_in_any_spelling(table, tmp_path):
    out = Annotate(write(tmp_path / "map.csv", plate_map()), ON)(table)
    assert list(out.metadata["Metadata_gene"]) == ["g01", "g02", "g03", "g04", "g11", "g12", "g13", "g14"]
    assert list(out.metadata["Metadata_dose"][:4]) == [0.5, 1.0, 1.5, 2.0]
    assert records(out)[-1]["joined"] == {"rows_matched": 8, "entries_used": 8}
    np.testing.assert_array_equal(out.values, table.values)


@pytest.mark.parametrize("name", ["map.tsv", "map.txt", "map.csv.gz", "map.parquet"])
def test_plate_maps_are_read_in_every_form(table, tmp_path, name):
    path = tmp_path / name
    frame = pd.DataFrame(plate_map())
    if name.endswith(".parquet"):
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="," if "csv" in name else "\t")
    assert list(Annotate(str(path), ON, columns=["gene"])(table).metadata["Metadata_gene"])[-1] == "g14"


def test_plates_are_joined_by_number_or_text_without_losing_zeros(tmp_path):
    table = plates(n_plates=1, n_wells=2, n_controls=1)
    table.metadata["Metadata_Plate"] = [41744, 41744]
    path = write(tmp_path / "a.csv", [{"Metadata_Plate": "41744", "x": "007"}])
    assert list(Annotate(path, ["Metadata_Plate"])(table).metadata["Metadata_x"]) == ["007", "007"]


def test_rows_without_an_entry_are_named_or_kept(table, tmp_path):
    path = write(tmp_path / "map.csv", plate_map()[:-1])
    with pytest.raises(DataError, match=r"annotate: 1 rows have no entry in .*map.csv, first P1 A04 .*unmatched: keep"):
        Annotate(path, ON)(table)
    out = Annotate(path, ON, unmatched="keep")(table)
    assert out.metadata["Metadata_gene"].isna().tolist() == [False] * 7 + [True]
    assert "1 rows have no entry" in records(out)[-1]["remarks"][0]


def test_more_plates_in_the_metadata_than_in_the_features_are_named_or_ignored(table, tmp_path):
    path = write(tmp_path / "map.csv", plate_map(3))
    with pytest.raises(
        DataError, match=r"4 of 12 entries of .* have no row of features \(P2 A01, P2 A02, P2 A03 and 1 more\)"
    ):
        Annotate(path, ON)(table)
    assert len(Annotate(path, ON, unused="ignore")(table)) == 8


def test_a_key_that_is_there_twice_is_named(table, tmp_path):
    path = write(tmp_path / "map.csv", [*plate_map(), {**plate_map()[0], "well_position": "A01"}])
    with pytest.raises(DataError, match=r"annotate: 1 keys are in .*map.csv twice, first P0 A01"):
        Annotate(path, ON)(table)


def test_a_column_that_says_otherwise_is_an_error_unless_it_is_to_be_replaced(table, tmp_path):
    path = write(tmp_path / "map.csv", [{**row, "control_type": "poscon"} for row in plate_map()])
    with pytest.raises(
        DataError, match=r"Metadata_control_type is there already and says otherwise in 8 rows \('negcon' and"
    ):
        Annotate(path, ON)(table)
    out = Annotate(path, ON, replace=True)(table)
    assert set(out.metadata["Metadata_control_type"]) == {"poscon"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"by": ["Metadata_Plates"]}, "No metadata column 'Metadata_Plates'; did you mean 'Metadata_Plate'"),
        ({"by": {"Metadata_Plate": "plate_id"}}, r"map.csv: No column 'plate_id'"),
        ({"by": ON, "columns": ["genes"]}, r"map.csv: No column 'genes'; did you mean 'gene'"),
        ({"by": []}, "annotate: by is empty"),
        ({"by": ON, "unused": "no"}, "unused is 'no'; it must be one of error, ignore"),
        ({"by": ON, "table": "nowhere.csv"}, "annotate: there is no table 'nowhere.csv'"),
    ],
)
def test_wrong_settings_are_named(table, tmp_path, settings, message):
    path = write(tmp_path / "map.csv", plate_map())
    with pytest.raises(ConfigError, match=message):
        Annotate(**{"table": path, **settings})(table)


def test_untreated_wells_get_their_name_and_others_keep_theirs(table):
    out = FillMetadata("Metadata_broad_sample", "DMSO", "controls")(table, controls=CONTROLS)
    assert list(out.metadata["Metadata_broad_sample"][:4]) == ["DMSO", "DMSO", "BRD-0", "BRD-1"]
    assert records(out)[-1]["filled"] == 4
    assert "DMSO" not in set(FillMetadata("Metadata_broad_sample", "x")(out).metadata["Metadata_broad_sample"]) - {
        "DMSO"
    }


def test_a_column_that_is_no_metadata_is_refused():
    with pytest.raises(ConfigError, match="column is 'broad_sample'; it must start with 'Metadata_'"):
        FillMetadata("broad_sample", "DMSO")


def test_rows_are_left_out_and_counted(table):
    out = Filter("Metadata_Plate != 'P0' and Metadata_control_type == None")(table)
    assert len(out) == 2
    assert records(out)[-1]["left_out"] == 6
    with pytest.raises(DataError, match=r"filter: no row matches .*\(Metadata_Plate holds P0, P1\)"):
        Filter("Metadata_Plate == 'P7'")(table)


def test_a_query_cannot_run_code(table):
    with pytest.raises(ConfigError, match="is not allowed"):
        Filter("__import__('os').system('true') == 0")(table)


def test_missing_values_become_the_median_of_their_plate(table):
    table.values[0, 1] = np.nan
    table.values[5, 1] = np.inf
    out = Impute()(table)
    assert out.values[0, 1] == pytest.approx(np.median(table.values[1:4, 1]))
    assert out.values[5, 1] == pytest.approx(np.median(table.values[[4, 6, 7], 1]))
    assert records(out)[-1]["filled"] == 2
    others = np.isfinite(table.values)
    np.testing.assert_array_equal(out.values[others], table.values[others])


def test_a_feature_without_any_value_on_a_plate_cannot_be_filled_in(table):
    table.values[4:, 1] = np.nan
    with pytest.raises(
        DataError, match="impute: 'Cells_Feature_1' has no value at all among the rows that P1 is fitted on"
    ):
        Impute()(table)

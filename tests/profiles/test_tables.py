import json

import numpy as np
import pandas as pd
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import Standardize, from_frame, infer_features, read_table, records, write_table
from morphem.profiles.tables import read_by_plate
from tests.profiles.plates import plates

ENDINGS = [".parquet", ".csv", ".csv.gz", ".h5ad"]


def same(one, two):
    np.testing.assert_allclose(one.values, two.values, rtol=1e-6)
    assert one.columns == two.columns
    left, right = one.metadata.astype(object), two.metadata.astype(object)
    assert left.where(left.notna(), None).equals(right.where(right.notna(), None))


@pytest.mark.parametrize("ending", ENDINGS)
def test_what_is_written_is_read_back(tmp_path, ending):
    if ending == ".h5ad":
        pytest.importorskip("anndata")
    table = Standardize()(plates())
    write_table(table, tmp_path / f"t{ending}")
    back = read_table(tmp_path / f"t{ending}")
    same(back, table)
    if ending.startswith(".csv"):
        header = json.loads((tmp_path / f"t{ending}.json").read_text())
        assert header["provenance"]["profile"] == records(table)
    else:
        assert records(back) == records(table)


def test_the_files_and_their_hashes_are_in_the_provenance(tmp_path):
    import hashlib

    write_table(plates(), tmp_path / "a.parquet")
    source = read_table(tmp_path / "a.parquet").provenance["tables"]
    digest = hashlib.sha256((tmp_path / "a.parquet").read_bytes()).hexdigest()
    assert source == [{"file": "a.parquet", "sha256": digest, "rows": 72}]


def test_features_are_inferred_as_pycytominer_does():
    from pycytominer.cyto_utils import infer_cp_features

    names = ["Metadata_Plate", "Cells_A", "CellsB", "Nuclei_C", "Cytoplasm_D", "Image_E", "emb_0", "nuclei_F"]
    frame = pd.DataFrame(np.ones((2, len(names))), columns=names)
    assert infer_features(names) == infer_cp_features(frame) == ["Cells_A", "CellsB", "Nuclei_C", "Cytoplasm_D"]


def test_columns_that_are_neither_are_left_out_and_named():
    frame = plates().to_frame().assign(ImageNumber=1, Image_Count=2.0)
    assert from_frame(frame).provenance["columns_left_out"] == ["ImageNumber", "Image_Count"]


def test_features_of_other_names_are_chosen_by_pattern():
    frame = pd.DataFrame({"Metadata_Plate": ["a"], "emb_0": [1.0], "emb_1": [2.0], "loss": [3.0]})
    assert from_frame(frame, ["emb_*"]).columns == ("emb_0", "emb_1")
    with pytest.raises(
        DataError, match=r"no column that begins with Cells, Cytoplasm, Nuclei \(it has emb_0, emb_1, loss\)"
    ):
        from_frame(frame)
    with pytest.raises(ConfigError, match="no feature matches 'embed_"):
        from_frame(frame, ["embed_*"])


def test_a_feature_that_mixes_numbers_and_texts_is_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Metadata_Well,Cells_A,Cells_B\nA01,1.5,2\nA02,broken,3\nA03,lost,4\n")
    with pytest.raises(
        DataError, match=r"a.csv: feature 'Cells_A' mixes numbers and texts: row 2 says 'broken' \(2 rows"
    ):
        read_table(path)


def test_missing_and_infinite_values_of_a_csv_are_kept_as_such(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Metadata_Well,Cells_A\nA01,\nA02,NA\nA03,inf\nA04,4\n")
    values = read_table(path).values[:, 0]
    assert np.isnan(values[:2]).all()
    assert np.isinf(values[2])


def test_texts_of_metadata_become_numbers_only_where_nothing_is_lost(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(
        "Metadata_Plate,Metadata_Code,Metadata_Dose,Metadata_E,Cells_A\n41744,007,1.5e-03,12E3,1\n41744,010,2.5,1E5,2\n"
    )
    metadata = read_table(path).metadata
    assert metadata["Metadata_Plate"].tolist() == [41744, 41744]
    assert metadata["Metadata_Code"].tolist() == ["007", "010"]
    assert metadata["Metadata_Dose"].tolist() == [0.0015, 2.5]
    assert metadata["Metadata_E"].tolist() == ["12E3", "1E5"]


def test_a_folder_is_read_as_one_table_and_metadata_beside_it_is_left_alone(tmp_path):
    for i in range(2):
        (tmp_path / f"p{i}").mkdir()
        write_table(plates(n_plates=1, seed=i), tmp_path / f"p{i}" / "features.csv.gz")
    (tmp_path / "compounds.tsv").write_text("compound\tgene\na\tb\n")
    assert len(read_table(tmp_path)) == 48


def test_tables_of_two_models_are_not_joined(tmp_path):
    write_table(plates(n_plates=1), tmp_path / "a.parquet")
    write_table(plates(n_plates=1, n_features=7), tmp_path / "b.parquet")
    with pytest.raises(
        DataError, match=r"a.parquet has 5 features and .*b.parquet has 7, .*'Cells_Feature_5' is only in"
    ):
        read_table(tmp_path)


def test_a_table_of_another_width_than_the_model_is_refused(tmp_path):
    write_table(plates(), tmp_path / "a.parquet")
    expected = [f"Cells_Feature_{i}" for i in range(8)]
    with pytest.raises(DataError, match=r"the model has 8 features and .*a.parquet has 5"):
        read_table(tmp_path / "a.parquet", columns=expected)


def test_numbers_that_float32_cannot_hold_are_noted_or_refused():
    frame = pd.DataFrame({"Cells_Far": 1e7 + np.arange(10) / 10, "Cells_Near": np.arange(10.0)})
    assert (
        "float32 holds the differences between rows to less than 1 % in Cells_Far"
        in from_frame(frame).provenance["notes"][0]
    )
    with pytest.raises(DataError, match=r"'Cells_Huge' has values beyond 3.4e38"):
        from_frame(pd.DataFrame({"Cells_Huge": [1e39, 1.0]}))


def test_a_column_name_that_is_there_twice_is_refused():
    frame = pd.concat([plates().to_frame(), plates().to_frame()[["Cells_Feature_1"]]], axis=1)
    with pytest.raises(DataError, match="Cells_Feature_1 is the name of two columns"):
        from_frame(frame)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("a.parquet", b"no parquet", DataError, "is no readable Parquet file"),
        ("a.csv.gz", b"no gzip", DataError, "cannot be read as a table"),
        ("a.csv", b"", DataError, "cannot be read as a table"),
        ("a.xlsx", b"x", ConfigError, "'a.xlsx' must end in one of"),
    ],
)
def test_damaged_and_unknown_files_are_named(tmp_path, name, content, error, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(error, match=message):
        read_table(tmp_path / name)


def test_a_path_without_a_table_is_named(tmp_path):
    with pytest.raises(DataError, match="there is no table or folder"):
        read_table(tmp_path / "nothing.parquet")
    (tmp_path / "a.csv").write_text("x\n1\n")
    with pytest.raises(DataError, match=r"no table of .* \(1 files ending in"):
        read_table(tmp_path)


def test_plates_are_read_one_by_one_though_their_rows_are_mixed(tmp_path):
    table = plates()
    order = np.random.default_rng(0).permutation(72)
    frame = table.to_frame().iloc[order]
    frame.to_parquet(tmp_path / "a.parquet", row_group_size=10)
    parts = list(read_by_plate(tmp_path / "a.parquet", "Metadata_Plate"))
    assert [part.metadata["Metadata_Plate"].nunique() for part in parts] == [1, 1, 1]
    assert sum(map(len, parts)) == 72
    p0 = next(part for part in parts if part.metadata["Metadata_Plate"][0] == "P0")
    expected = frame[frame["Metadata_Plate"] == "P0"]
    np.testing.assert_allclose(p0.values, expected[list(table.columns)].to_numpy(), rtol=1e-6)


def test_an_unknown_ending_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(ConfigError, match=r"'t.xlsx' must end in one of .parquet, .h5ad, .csv, .csv.gz"):
        write_table(plates(), tmp_path / "t.xlsx")


def test_small_plates_are_read_in_packs_and_large_ones_alone(tmp_path, monkeypatch):
    from morphem.profiles import tables

    plates(n_plates=5, n_wells=10, n_controls=5).to_frame().to_parquet(tmp_path / "a.parquet", row_group_size=4)
    whole = [part.values for part in read_by_plate(tmp_path / "a.parquet", "Metadata_Plate")]
    for limit in (1, 8 * 9 * 20):  # of 9 columns: one plate, two plates
        monkeypatch.setattr(tables, "_BYTES_AT_ONCE", limit)
        parts = list(read_by_plate(tmp_path / "a.parquet", "Metadata_Plate"))
        assert [set(part.metadata["Metadata_Plate"]) for part in parts] == [{f"P{i}"} for i in range(5)]
        for one, two in zip(whole, parts, strict=True):
            np.testing.assert_array_equal(one, two.values)


def test_a_column_that_is_twice_in_a_csv_is_not_renamed(tmp_path):
    (tmp_path / "a.csv").write_text("Metadata_Well,Cells_A,Cells_A\nA01,1,2\n")
    with pytest.raises(DataError, match=r"a.csv: 'Cells_A' is the name of two columns"):
        read_table(tmp_path / "a.csv")


def test_observations_of_anndata_get_the_prefix_of_metadata(tmp_path):
    anndata = pytest.importorskip("anndata")
    observations = pd.DataFrame({"Plate": ["a", "b"], "Metadata_Well": ["A01", "A02"]}, index=["x", "y"])
    variables = pd.DataFrame(index=["emb_0", "emb_1"])
    anndata.AnnData(X=np.eye(2, dtype=np.float32), obs=observations, var=variables).write_h5ad(tmp_path / "a.h5ad")
    table = read_table(tmp_path / "a.h5ad")
    assert list(table.metadata.columns) == ["Metadata_Plate", "Metadata_Well"]
    assert table.columns == ("emb_0", "emb_1")


def test_a_csv_keeps_every_digit_of_metadata_and_features(tmp_path):
    table = plates(n_plates=1)
    table.metadata["Metadata_pubchem_cid"] = 123456789012.5
    write_table(table, tmp_path / "a.csv")
    back = read_table(tmp_path / "a.csv")
    assert set(back.metadata["Metadata_pubchem_cid"]) == {123456789012.5}
    np.testing.assert_array_equal(back.values, table.values)


def test_a_folder_of_other_feature_names_is_read_by_pattern(tmp_path):
    for name in "ab":
        frame = pd.DataFrame({"Metadata_Plate": [name], "emb_0": [1.5], "loss": ["x"]})
        frame.to_csv(tmp_path / f"{name}.csv", index=False)
    (tmp_path / "notes.csv").write_text("note\n1\n")
    assert read_table(tmp_path, ["emb_*"]).values.tolist() == [[1.5], [1.5]]
    with pytest.raises(DataError, match=r"no table of .* \(3 files .* has columns that begin with Cells"):
        read_table(tmp_path)


def test_our_own_tables_say_what_their_features_are_whatever_their_names(tmp_path):
    frame = pd.DataFrame({"Metadata_Plate": ["a"], "emb_0": [1.5]})
    write_table(from_frame(frame, ["emb_*"]), tmp_path / "a.parquet")
    assert read_table(tmp_path).columns == ("emb_0",)

import numpy as np
import pandas as pd
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import Recipe, apply, apply_to_files, check_rows_are_kept, records, write_table
from morphem.profiles import apply as run
from tests.profiles.plates import CONTROLS, plates
from tests.profiles.test_aggregate import cells

RECIPE = {
    "controls": CONTROLS,
    "held_out": "Metadata_broad_sample == 'BRD-1'",
    "steps": [
        {"step": "aggregate", "by": "well"},
        {"step": "mad_robustize", "samples": "all"},
        {"step": "sphere", "epsilon": 0.001},
        {"step": "fill_metadata", "column": "Metadata_broad_sample", "value": "DMSO", "where": "controls"},
        {"step": "consensus", "by": ["Metadata_broad_sample"]},
    ],
}


def by_name(table):
    return table.to_frame().set_index("Metadata_broad_sample").sort_index()[list(table.columns)]


@pytest.mark.parametrize("layout", ["one file", "mixed rows", "a file per plate", "csv"])
def test_files_read_plate_by_plate_give_what_the_whole_table_gives(tmp_path, layout):
    table = plates(n_plates=4, offset=2)
    frame = table.to_frame()
    if layout == "one file":
        write_table(table, tmp_path / "a.parquet")
    elif layout == "mixed rows":
        frame.sample(frac=1, random_state=0).to_parquet(tmp_path / "a.parquet", row_group_size=7, index=False)
    else:
        for name, part in frame.groupby("Metadata_Plate"):
            path = tmp_path / f"{name}"
            part.to_csv(f"{path}.csv", index=False) if layout == "csv" else part.to_parquet(f"{path}.parquet")
    whole, chunks = apply(table, RECIPE), apply(tmp_path, RECIPE)
    np.testing.assert_allclose(by_name(chunks), by_name(whole), atol=1e-4)
    for one, two in zip(records(whole), records(chunks), strict=True):
        assert {k: v for k, v in two.items() if k not in ("chunks", "remarks")} == {
            k: v for k, v in one.items() if k not in ("remarks",)
        }
    assert [record.get("chunks") for record in records(chunks)] == [4, 4, None, None, None]
    assert {source["file"].split(".")[0] for source in chunks.provenance["tables"]} <= {"a", "P0", "P1", "P2", "P3"}


def test_only_one_plate_is_in_memory_while_the_steps_allow_it(tmp_path, monkeypatch):
    write_table(cells(), tmp_path / "a.parquet")
    seen = []
    original = Recipe.run

    def spy(self, table, begin=0, end=None):
        seen.append((begin, end, len(table)))
        return original(self, table, begin, end)

    monkeypatch.setattr(Recipe, "run", spy)
    recipe = Recipe.from_dict({"steps": [{"step": "aggregate"}, {"step": "sphere", "samples": "all", "epsilon": 0.1}]})
    apply_to_files([tmp_path / "a.parquet"], recipe)
    assert seen == [(0, 1, 30), (0, 1, 30), (1, None, 8)]


def test_a_plate_in_two_files_is_not_cut_in_two(tmp_path):
    table = plates(n_plates=2)
    frame = table.to_frame()
    frame.iloc[::2].to_parquet(tmp_path / "a.parquet")
    frame.iloc[1::2].to_parquet(tmp_path / "b.parquet")
    recipe = {"steps": [{"step": "standardize"}]}
    ours, whole = apply(tmp_path, recipe), apply(table, recipe)
    key = ["Metadata_Plate", "Metadata_Well"]
    one, two = (t.to_frame().sort_values(key)[list(table.columns)].to_numpy() for t in (ours, whole))
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_a_well_that_is_in_two_files_is_named(tmp_path):
    for name in ("a", "b"):
        write_table(plates(n_plates=1), tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match="48 rows share their well with another"):
        apply(tmp_path, {"steps": [{"step": "standardize"}]})


def test_a_file_that_is_given_twice_is_an_error(tmp_path):
    write_table(plates(), tmp_path / "a.parquet")
    with pytest.raises(ConfigError, match="is given twice"):
        apply([tmp_path / "a.parquet", tmp_path], {"steps": [{"step": "standardize"}]})


def test_files_of_two_models_are_not_joined(tmp_path):
    write_table(plates(n_plates=1), tmp_path / "a.parquet")
    other = plates(n_plates=2, n_features=7)
    write_table(
        type(other)(other.values[24:], other.metadata[24:].reset_index(drop=True), other.columns, other.dictionary),
        tmp_path / "b.parquet",
    )
    for steps in ([{"step": "standardize"}], [{"step": "standardize", "per": []}]):
        with pytest.raises(DataError, match=r"has 5 features and .* has 7"):
            apply(tmp_path, {"steps": steps})


def test_a_plate_without_controls_is_named_when_plates_are_read_one_by_one(tmp_path):
    table = plates()
    table.metadata.loc[table.metadata["Metadata_Plate"] == "P2", "Metadata_control_type"] = "poscon"
    write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="step 1 of 1, mad_robustize: no row of P2 matches"):
        apply(
            tmp_path / "a.parquet", {"controls": CONTROLS, "steps": [{"step": "mad_robustize", "samples": "controls"}]}
        )


def test_leaks_of_all_plates_are_added_up(tmp_path):
    write_table(plates(), tmp_path / "a.parquet")
    record = records(apply(tmp_path / "a.parquet", RECIPE))[1]
    assert record["leaks"] == [
        {"what": "held-out rows", "rows": 9, "of_rows": 9, "query": "Metadata_broad_sample == 'BRD-1'"},
        {"what": "rows that are no controls", "rows": 36, "of_rows": 36, "query": CONTROLS},
    ]


def test_a_data_frame_is_taken_as_it_is():
    frame = plates().to_frame()
    assert isinstance(frame, pd.DataFrame)
    assert len(run(frame, RECIPE)) == 5


def test_rows_that_are_lost_between_steps_are_seen():
    table = apply(plates(), RECIPE)
    check_rows_are_kept(table)
    broken = [dict(record) for record in records(table)]
    broken[1]["rows_out"] = 71
    other = type(table)(
        table.values, table.metadata, table.columns, table.dictionary, {**table.provenance, "profile": broken}
    )
    with pytest.raises(DataError, match="mad_robustize gave 71 rows and sphere took 72"):
        check_rows_are_kept(other)


def test_a_step_that_loses_a_row_is_caught():
    from morphem.profiles import Standardize

    class Careless(Standardize):
        def run(self, table, note):
            return type(table)(table.values[1:], table.metadata[1:], table.columns, table.dictionary)

    with pytest.raises(DataError, match="72 rows went in and 71 came out"):
        Careless()(plates())


def test_a_plate_whose_doses_are_all_missing_is_read_like_the_others(tmp_path):
    frame = plates(n_plates=2).to_frame()
    frame["Metadata_Dose"] = 1.0
    frame.loc[24:, "Metadata_Dose"] = np.nan
    for name, part in frame.groupby("Metadata_Plate"):
        part.to_csv(tmp_path / f"{name}.csv", index=False)
    recipe = {
        "steps": [{"step": "fill_metadata", "column": "Metadata_X", "value": "dosed", "where": "Metadata_Dose > 0.5"}]
    }
    assert apply(tmp_path, recipe).metadata["Metadata_X"].notna().tolist() == [True] * 24 + [False] * 24


def test_profiles_go_through_pycytominer_and_copairs_as_they_are(tmp_path):
    from copairs.map import average_precision
    from pycytominer import consensus, feature_select, normalize

    table = plates(n_wells=24, n_features=12, effect=3)
    write_table(apply(table, {"controls": CONTROLS, "steps": RECIPE["steps"][:4]}), tmp_path / "p.parquet")
    frame = pd.read_parquet(tmp_path / "p.parquet")
    scaled = normalize(frame, features="infer", meta_features="infer", samples=CONTROLS, method="mad_robustize")
    assert len(feature_select(scaled, features="infer", operation="variance_threshold")) == 72
    assert len(consensus(scaled, replicate_columns=["Metadata_broad_sample"], features="infer")) == 5
    metadata = frame.filter(like="Metadata_")
    features = frame.drop(columns=metadata.columns).to_numpy()
    same = ["Metadata_broad_sample"]
    found = average_precision(metadata, features, same, [], ["Metadata_Plate"], same, progress_bar=False)
    treated = found[found["Metadata_broad_sample"] != "DMSO"]
    assert treated["average_precision"].mean() > 0.7

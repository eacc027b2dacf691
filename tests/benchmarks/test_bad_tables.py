"""Tables that do not allow a score: one sentence each, and never a silent number."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks.base import Inputs, make_table, take
from morphem.benchmarks.generic import Generic
from morphem.benchmarks.inputs import find_side_tables, join_metadata, prepare, read_features
from morphem.benchmarks.jumpcp1 import JumpCP1
from morphem.benchmarks.runner import build, score_features, score_tables
from morphem.errors import ConfigError, DataError, MorphemError
from morphem.features import FeatureTable
from tests.benchmarks.tables import plates


def _jump(change: Callable[[FeatureTable], FeatureTable] = lambda table: table, side: bool = True) -> float:
    inputs: Inputs = JumpCP1.tiny(0, 1.0)
    benchmark = JumpCP1.tiny_instance()
    table = inputs.table
    table = replace(table, metadata=table.metadata.drop(columns="Metadata_compound"))
    record = score_tables("jumpcp1", benchmark, {"table": change(table)}, inputs.side if side else {})
    return record.score.values["jump_cp1"]


def _with(table: FeatureTable, **columns: object) -> FeatureTable:
    return replace(table, metadata=table.metadata.assign(**columns))


def _values(table: FeatureTable, change: Callable[[np.ndarray], None]) -> FeatureTable:
    values = table.values.copy()
    change(values)
    return replace(table, values=values)


def _set(row: int, column: int, value: float) -> Callable[[np.ndarray], None]:
    def change(values: np.ndarray) -> None:
        values[row, column] = value

    return change


def _single(table: FeatureTable) -> FeatureTable:
    return take(
        table, ~((table.metadata["Metadata_broad_sample"] == "BRD-03") & (table.metadata["Metadata_Plate"] != "P0"))
    )


def _no_controls(table: FeatureTable) -> FeatureTable:
    return take(
        table, ~(table.metadata["Metadata_control_type"].eq("negcon") & table.metadata["Metadata_Plate"].eq("P2"))
    )


BAD = {
    "missing column": (
        lambda t: replace(t, metadata=t.metadata.drop(columns="Metadata_control_type")),
        "lacks the kind of control .*No column 'Metadata_control_type'.*--column control_type=NAME",
    ),
    "missing plate": (
        lambda t: _with(t, Metadata_Plate=[None, *t.metadata["Metadata_Plate"][1:]]),
        "1 of 110 rows have no",
    ),
    "duplicate wells": (
        lambda t: take(t, [*range(len(t)), 0]),
        "2 rows whose Metadata_Plate and Metadata_Well another row has too .*Plate P0, Well A01.*drop the repeated",
    ),
    "one replicate": (_single, "1 of 10 compounds have a single well .*BRD-03.*no replicate to find"),
    "no controls on a plate": (_no_controls, r"1 of 5 plates have fewer than 1 control rows \(P2\)"),
    "NaN": (
        lambda t: _values(t, _set(3, 2, np.nan)),
        "1 rows with NaN or infinite features .*row 3, Cells_Feature_0002 = nan",
    ),
    "infinity": (lambda t: _values(t, _set(4, 0, np.inf)), "row 4, Cells_Feature_0000 = inf"),
    "constant features": (lambda t: replace(t, values=np.ones_like(t.values)), "all 16 features are constant"),
    "rows of zeros": (
        lambda t: _values(t, lambda v: v.__setitem__(slice(0, 2), 0)),
        "2 rows of zeros only .*no cosine",
    ),
    "no compound": (
        lambda t: _with(t, Metadata_broad_sample=t.metadata["Metadata_broad_sample"].mask(t.metadata.index == 0)),
        r"1 wells are no 'negcon' control and have no compound \(first: P0 A01\)",
    ),
    "no rows": (lambda t: take(t, []), "has 0 rows and 16 features; there is nothing to score"),
    "only controls": (lambda t: _with(t, Metadata_control_type="negcon"), "all wells are controls"),
}


@pytest.mark.parametrize("name", BAD)
def test_jumpcp1_refuses(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(DataError, match=message) as caught:
        _jump(change)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500


def test_the_unchanged_table_is_scored() -> None:
    assert _jump() >= JumpCP1.tiny_finds


def test_without_targets_the_second_score_is_missing_with_its_reason_and_not_zero() -> None:
    inputs = JumpCP1.tiny(0, 1.0)
    record = score_tables("jumpcp1", JumpCP1.tiny_instance(), inputs.tables)
    assert "jump_cp2" not in record.score.values
    assert "no table of targets was found" in record.score.missing["jump_cp2"]


def test_a_feature_that_mixes_numbers_and_texts_is_refused(tmp_path: Path) -> None:
    frame = pd.DataFrame({"Metadata_label": ["a", "b"], "Cells_x": ["1.5", "high"]})
    frame.to_csv(tmp_path / "mixed.csv", index=False)
    with pytest.raises(DataError, match="feature 'Cells_x' mixes numbers and texts: row 2 says 'high'"):
        score_features("generic", tmp_path / "mixed.csv")


def test_tables_of_two_models_in_one_folder_are_refused(tmp_path: Path) -> None:
    table = plates()
    table.write(tmp_path / "a.parquet")
    narrow = make_table(table.values[:, :8], table.metadata)
    narrow.write(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"has 16 features and .* has 8, .*different models"):
        score_features("generic", tmp_path, {"label": "treatment"})


def test_a_label_of_one_class_is_refused() -> None:
    table = plates()
    known = table.metadata["Metadata_treatment"].notna()
    one = _with(table, Metadata_treatment=known.map({True: "x", False: None}))
    with pytest.raises(DataError, match="the label 'treatment' needs two classes, but all 64 rows are 'x'"):
        score_tables("generic", Generic(label="treatment"), {"table": one})


def test_a_label_without_values_or_without_its_column_is_refused() -> None:
    table = plates()
    with pytest.raises(DataError, match="all 96 rows lack the label 'treatment'"):
        score_tables("generic", Generic(label="treatment"), {"table": _with(table, Metadata_treatment=None)})
    with pytest.raises(DataError, match=r"lacks the label 'treatmet'.*did you mean"):
        score_tables("generic", Generic(label="treatmet"), {"table": table})


def test_more_plates_in_the_metadata_than_in_the_features_is_refused() -> None:
    table = plates()
    metadata = table.metadata[["Metadata_Plate", "Metadata_Well"]].assign(batch="1")
    extra = metadata.assign(Metadata_Plate="P9")
    keys = ["Metadata_Plate", "Metadata_Well"]
    with pytest.raises(DataError, match="metadata has 5 plates and the features 4: nothing was embedded of P9"):
        join_metadata(table, pd.concat([metadata, extra[:3]]), keys)
    assert join_metadata(table, metadata, keys).metadata["Metadata_batch"].eq("1").all()


def test_metadata_that_does_not_fit_the_rows_is_refused() -> None:
    table = plates()
    metadata = table.metadata[["Metadata_Plate", "Metadata_Well"]].assign(batch="1")
    keys = ["Plate", "Well"]
    with pytest.raises(DataError, match="P0, A01 is there twice in the metadata"):
        join_metadata(table, pd.concat([metadata, metadata[:1]]), keys)
    with pytest.raises(DataError, match=r"1 rows of features have no row in the metadata \(first: P0, A01\)"):
        join_metadata(table, metadata[1:], keys)
    with pytest.raises(DataError, match="the metadata have no such key"):
        join_metadata(table, metadata.drop(columns="Metadata_Well"), keys)


def test_settings_that_do_not_exist_or_make_no_sense_are_refused() -> None:
    with pytest.raises(ConfigError, match="No setting of jumpcp1 'treshold'; did you mean 'threshold'"):
        build("jumpcp1", {"treshold": 0.1})
    with pytest.raises(ConfigError, match="No variant of JumpCP1 'sphred'; did you mean 'sphered'"):
        build("jumpcp1", {"variant": "sphred"})
    with pytest.raises(ConfigError, match="epsilon has no effect with variant 'profiles'"):
        build("jumpcp1", {"epsilon": 1.0})
    with pytest.raises(ConfigError, match="n_folds=1 has to be 2 or more"):
        build("generic", {"n_folds": 1})
    with pytest.raises(MorphemError, match="did you mean 'jumpcp1'"):
        build("jumpcp")


def test_unknown_columns_parts_and_side_tables_are_named() -> None:
    table = plates()
    with pytest.raises(ConfigError, match="No column of the protocol 'Metadata_plat'; did you mean 'Metadata_Plate'"):
        prepare(Generic(label="treatment"), {"table": table}, columns={"plat": "x"})
    with pytest.raises(ConfigError, match="No part of Generic 'tabel'; did you mean 'table'"):
        prepare(Generic(), {"tabel": table})
    with pytest.raises(DataError, match=r"the part 'table' .* is missing"):
        prepare(Generic(), {})
    with pytest.raises(ConfigError, match="No side table of JumpCP1 'target'; did you mean 'targets'"):
        find_side_tables(JumpCP1(), [], {"target": Path("x")})
    with pytest.raises(DataError, match="side table 'targets': No column 'target_list'; did you mean 'targets_list'"):
        prepare(
            JumpCP1(),
            {"table": JumpCP1.tiny(0, 1).table},
            {"targets": pd.DataFrame({"broad_sample": [], "targets_list": []})},
        )


def test_two_files_for_one_side_table_are_refused(tmp_path: Path) -> None:
    for name in ("targets.csv", "targets.tsv"):
        (tmp_path / name).write_text("broad_sample,target_list\n")
    with pytest.raises(DataError, match=r"2 files .*could be the side table 'targets'.*--side targets=PATH"):
        find_side_tables(JumpCP1(), [tmp_path])


def test_no_table_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no table or folder"):
        read_features(Generic(), tmp_path / "nothing")

import numpy as np
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import DropFeatures, SelectFeatures, records
from morphem.profiles import selection as module
from tests.profiles.plates import CONTROLS, plates, shuffled
from tests.references import profiles as reference


def table_with(**columns):
    """A table of 72 wells and 12 features, some of them replaced."""
    table = plates(n_features=12)
    for name, values in columns.items():
        table.values[:, int(name[1:])] = values
    return table


def removed(table, **settings):
    out = SelectFeatures(**settings)(table)
    return [name for name in table.columns if name not in out.columns]


STEPPED = np.repeat([0.0, 1.0], [70, 2])


@pytest.mark.parametrize(
    ("operation", "theirs", "table"),
    [
        ("variance", "variance_threshold", table_with(f3=1.0, f5=np.tile([1, 1.0001], 36))),
        ("correlation", "correlation_threshold", table_with(f4=plates(n_features=12).values[:, 1] * 2 + 1)),
        ("correlation", "correlation_threshold", plates(n_wells=5, n_controls=3, n_features=12)),
        ("nan", "drop_na_columns", table_with(f2=np.where(np.arange(72) % 10 == 0, np.nan, 1.5))),
        ("frequency", "frequency_threshold", table_with(f6=STEPPED)),
        ("outliers", "drop_outliers", table_with(f7=np.where(np.arange(72) == 8, -700, 1))),
    ],
)
def test_every_operation_removes_what_pycytominers_removes(operation, theirs, table):
    from pycytominer import feature_select

    frame = table.to_frame().astype(dict.fromkeys(table.columns, "float64"))
    kept = feature_select(frame, features=list(table.columns), operation=theirs, corr_threshold=0.3)
    ours = removed(table, operations=[operation], max_correlation=0.3)
    assert ours == [name for name in table.columns if name not in kept.columns]
    assert ours, "the table must have something to remove"


@pytest.mark.parametrize("limit", [0.1, 0.2, 0.4])
@pytest.mark.parametrize("block", [1, 5, 512])
def test_correlated_features_are_those_of_the_plain_loops(limit, block, monkeypatch):
    monkeypatch.setattr(module, "_FEATURES_AT_ONCE", block)
    table = plates(n_wells=10, n_features=14)
    lost = reference.correlated(table.values.astype(float), limit)
    assert removed(table, operations=["correlation"], max_correlation=limit) == [table.columns[i] for i in sorted(lost)]
    assert 0 < len(lost) < 14


def test_features_that_mirror_each_other_are_redundant_only_where_asked():
    table = table_with(f4=-plates(n_features=12).values[:, 1])
    assert len(removed(table, operations=["correlation"], absolute=True)) == 1
    assert removed(table, operations=["correlation"]) == []


def test_a_feature_that_is_constant_on_one_plate_is_removed_per_plate():
    table = table_with(f3=np.where(np.arange(72) < 24, 1.0, np.arange(72)))
    assert removed(table, operations=["constant"], per=["Metadata_Plate"]) == ["Cells_Feature_3"]
    assert removed(table, operations=["constant"]) == []


def test_only_the_chosen_rows_are_looked_at():
    treated_only = np.where(np.arange(72) % 24 < 12, 1.0, np.arange(72))
    table = table_with(f3=treated_only)
    assert removed(table, operations=["constant"], samples=CONTROLS) == ["Cells_Feature_3"]


def test_every_removed_feature_is_in_the_record_by_operation():
    table = table_with(f3=1.0, f4=plates(n_features=12).values[:, 1])
    out = SelectFeatures()(table)
    lost = records(out)[-1]["removed"]
    assert lost["constant"] == ["Cells_Feature_3"]
    assert len(lost["correlation"]) == 1
    assert lost["correlation"][0] in {"Cells_Feature_1", "Cells_Feature_4"}
    assert [entry["column"] for entry in out.dictionary] == list(out.columns)


def test_the_order_of_rows_does_not_matter():
    table = plates(n_wells=10, n_features=14)
    settings = {"operations": ["variance", "correlation"], "max_correlation": 0.4}
    assert removed(shuffled(table)[0], **settings) == removed(table, **settings)


def test_names_and_patterns_are_dropped():
    out = DropFeatures(["Cells_Feature_1*", "Cells_Feature_3"])(plates(n_features=12))
    assert len(out.columns) == 8
    assert records(out)[-1]["removed"]["patterns"] == [f"Cells_Feature_{i}" for i in (1, 10, 11, 3)]


@pytest.mark.parametrize(
    ("step", "table", "message"),
    [
        (
            SelectFeatures(operations=["correlation"]),
            table_with(f3=1.0),
            "'Cells_Feature_3' is constant.*put 'constant'",
        ),
        (SelectFeatures(operations=["variance"], min_variance=1e9), plates(), "none of the 5 features would be left"),
        (
            SelectFeatures(operations=["variance"]),
            table_with(f3=np.inf),
            r"select_features \(variance\): 1 features have NaN",
        ),
    ],
)
def test_bad_tables_are_named(step, table, message):
    with pytest.raises(DataError, match=message):
        step(table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operations": ["varience"]}, "No operation 'varience'; did you mean 'variance'"),
        ({"operations": []}, "operations is empty"),
        ({"max_correlation": 2}, "max_correlation is 2; it must be a number at least 0 and at most 1"),
        ({"absolute": 1}, "absolute is 1; it must be true or false"),
        ({"nan_share": "all"}, "nan_share is 'all'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        SelectFeatures(**settings)


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(
        ConfigError, match="drop_features: no feature matches 'Cell_Feature_1'; the nearest column is 'Cells_Feature_1'"
    ):
        DropFeatures(["Cell_Feature_1"])(plates())

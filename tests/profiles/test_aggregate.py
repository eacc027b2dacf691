import numpy as np
import pandas as pd
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import Aggregate, Consensus, from_frame, records
from tests.profiles.plates import plates, shuffled
from tests.references import profiles as reference


def cells(n=60, seed=0):
    generator = np.random.default_rng(seed)
    frame = pd.DataFrame(
        {
            "Metadata_Plate": np.where(np.arange(n) < n // 2, "P0", "P1"),
            "Metadata_Well": [f"A{i % 4 + 1:02d}" for i in range(n)],
            "Metadata_Site": generator.integers(1, 3, n),
            "Metadata_Cell": np.arange(n),
            "Metadata_gene": [f"G{i % 4}" for i in range(n)],
            "Cells_A": generator.normal(size=n),
            "Cells_B": generator.normal(size=n),
        }
    )
    return from_frame(frame)


@pytest.mark.parametrize(("operation", "formula"), [("mean", reference.mean), ("median", reference.median)])
def test_wells_are_the_average_of_their_cells(operation, formula):
    table = cells()
    out = Aggregate(by="well", operation=operation)(table)
    assert len(out) == 8
    for i, (plate, well) in enumerate(zip(out.metadata["Metadata_Plate"], out.metadata["Metadata_Well"], strict=True)):
        rows = ((table.metadata["Metadata_Plate"] == plate) & (table.metadata["Metadata_Well"] == well)).to_numpy()
        assert out.values[i, 0] == pytest.approx(formula(table.values[rows, 0]), abs=1e-6)
        assert out.metadata["Metadata_Object_Count"][i] == rows.sum()
    assert set(out.metadata["Metadata_Unit"]) == {"well"}


@pytest.mark.parametrize("operation", ["mean", "median"])
def test_aggregate_agrees_with_pycytominer(operation):
    from pycytominer import aggregate

    table = cells()
    strata = ["Metadata_Plate", "Metadata_Well"]
    frame = table.to_frame().astype(dict.fromkeys(table.columns, "float64"))
    theirs = aggregate(frame, strata=strata, features=list(table.columns), operation=operation)
    ours = Aggregate(by="well", operation=operation)(table).to_frame().sort_values(strata)
    np.testing.assert_allclose(ours[list(table.columns)], theirs[list(table.columns)], atol=1e-6)


def test_metadata_that_agree_stay_and_the_others_are_named():
    out = Aggregate(by="well")(cells())
    assert list(out.metadata["Metadata_gene"][:4]) == ["G0", "G1", "G2", "G3"]
    assert "Metadata_Site" not in out.metadata
    assert records(out)[-1]["columns_that_vary_within_a_row"] == ["Metadata_Cell", "Metadata_Site"]


def test_a_missing_value_among_present_ones_is_a_difference():
    table = cells()
    table.metadata.loc[0, "Metadata_gene"] = None
    assert "Metadata_gene" not in Aggregate(by="well")(table).metadata


def test_counts_add_up_over_levels_and_weigh_rows_where_asked():
    table = cells()
    sites = Aggregate(by=["Metadata_Plate", "Metadata_Well", "Metadata_Site"])(table)
    direct = Aggregate(by="well")(table)
    equal, weighted = Aggregate(by="well")(sites), Aggregate(by="well", weight="count")(sites)
    assert list(weighted.metadata["Metadata_Object_Count"]) == list(direct.metadata["Metadata_Object_Count"])
    np.testing.assert_allclose(weighted.values, direct.values, atol=1e-6)
    assert np.abs(equal.values - direct.values).max() > 0.01


def test_missing_values_are_refused_or_skipped():
    table = cells()
    table.values[0, 0] = np.nan
    with pytest.raises(DataError, match="aggregate: 1 features have NaN or infinite values, first 'Cells_A'"):
        Aggregate()(table)
    out = Aggregate(nan="skip")(table)
    rows = ((table.metadata["Metadata_Plate"] == "P0") & (table.metadata["Metadata_Well"] == "A01")).to_numpy()
    assert out.values[0, 0] == pytest.approx(np.nanmean(table.values[rows, 0]), abs=1e-6)
    middle = Aggregate(nan="skip", operation="median")(table)
    assert middle.values[0, 0] == pytest.approx(np.nanmedian(table.values[rows, 0]), abs=1e-6)


def test_a_feature_that_a_whole_well_lacks_is_an_error_even_when_skipping():
    table = cells()
    table.values[(table.metadata["Metadata_Well"] == "A02").to_numpy(), 1] = np.nan
    with pytest.raises(DataError, match=r"first 'Cells_B' with 2, at row 2 \(P0 A02\)"):
        Aggregate(nan="skip")(table)


def test_the_order_of_rows_does_not_matter():
    table = cells()
    mixed, _ = shuffled(table)
    key = ["Metadata_Plate", "Metadata_Well"]
    one, two = (Aggregate()(t).to_frame().sort_values(key)[["Cells_A", "Cells_B"]].to_numpy() for t in (table, mixed))
    np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_row_without_a_well_is_an_error():
    table = cells()
    table.metadata.loc[3, "Metadata_Well"] = None
    with pytest.raises(DataError, match="aggregate: 1 rows have no Metadata_Well"):
        Aggregate()(table)


def test_plates_of_one_name_in_two_sources_are_not_mixed():
    table = cells()
    table.metadata["Metadata_Source"] = np.where(np.arange(60) % 8 < 4, "s1", "s2")
    assert len(Aggregate(by="well")(table)) == 16
    with pytest.raises(DataError, match="stands for plates of 2 values of Metadata_Source"):
        Aggregate(by=["Metadata_Plate", "Metadata_Well"])(table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"operation": "max"}, "aggregate: operation is 'max'; it must be one of mean, median"),
        ({"by": []}, "aggregate: by is empty"),
        ({"by": 3}, "by is 3; it must be a list of names"),
        ({"operation": "median", "weight": "count"}, "weight 'count' needs operation 'mean'"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Aggregate(**settings)


def test_an_unknown_level_is_named():
    with pytest.raises(ConfigError, match="aggregate: by is 'wells'; it must be one of cell, image, well"):
        Aggregate(by="wells")(cells())


def treated(**settings):
    table = plates(**settings)
    table.metadata["Metadata_broad_sample"] = table.metadata["Metadata_broad_sample"].fillna("DMSO")
    return table


@pytest.mark.parametrize("operation", ["median", "modz"])
def test_consensus_agrees_with_pycytominer(operation):
    from pycytominer import consensus

    table = treated(n_features=12)
    frame = table.to_frame().astype(dict.fromkeys(table.columns, "float64"))
    theirs = consensus(
        frame, replicate_columns=["Metadata_broad_sample"], operation=operation, features=list(table.columns)
    ).set_index("Metadata_broad_sample")
    ours = Consensus("Metadata_broad_sample", operation=operation)(table).to_frame().set_index("Metadata_broad_sample")
    columns = list(table.columns)
    np.testing.assert_allclose(ours.loc[theirs.index, columns], theirs[columns].astype(float), atol=2e-5)


def test_consensus_is_the_median_of_the_replicates():
    table = treated()
    out = Consensus(["Metadata_broad_sample"])(table)
    names = list(out.metadata["Metadata_broad_sample"])
    assert sorted(names) == ["BRD-0", "BRD-1", "BRD-2", "BRD-3", "DMSO"]
    rows = (table.metadata["Metadata_broad_sample"] == "BRD-2").to_numpy()
    expected = [reference.median(table.values[rows, f]) for f in range(5)]
    np.testing.assert_allclose(out.values[names.index("BRD-2")], expected, atol=1e-6)
    assert out.metadata["Metadata_Replicate_Count"][names.index("BRD-2")] == 9


def test_a_perturbation_with_one_replicate_is_named_dropped_or_kept():
    table = treated()
    table.metadata.loc[20, "Metadata_broad_sample"] = "lonely"
    with pytest.raises(DataError, match=r"consensus: 1 of 6 perturbations have fewer than 2 replicates \(lonely\)"):
        Consensus("Metadata_broad_sample")(table)
    dropped = Consensus("Metadata_broad_sample", too_few="drop")(table)
    assert "lonely" not in set(dropped.metadata["Metadata_broad_sample"])
    assert records(dropped)[-1]["too_few_replicates"] == ["lonely"]
    kept = Consensus("Metadata_broad_sample", too_few="keep")(table)
    row = list(kept.metadata["Metadata_broad_sample"]).index("lonely")
    np.testing.assert_array_equal(kept.values[row], table.values[20])


def test_a_perturbation_without_a_name_is_an_error():
    with pytest.raises(DataError, match="consensus: 36 rows have no Metadata_broad_sample"):
        Consensus("Metadata_broad_sample")(plates())


def test_nothing_left_is_an_error():
    with pytest.raises(DataError, match="no perturbation has 100 replicates"):
        Consensus("Metadata_broad_sample", min_replicates=100, too_few="drop")(treated())


def test_cells_become_images_wells_and_perturbations():
    table = cells(n=160)
    images = Aggregate(by="image")(table)
    wells = Aggregate(by="well")(images)
    perturbations = Consensus("Metadata_gene", operation="mean")(wells)
    assert (len(images), len(wells), len(perturbations)) == (16, 8, 4)
    assert perturbations.metadata["Metadata_Object_Count"].tolist() == [40] * 4
    assert [record["rows_out"] for record in records(perturbations)] == [16, 8, 4]
    rows = (table.metadata["Metadata_gene"] == "G1").to_numpy()
    weighted = Aggregate(by=["Metadata_gene"], weight="count")(images)
    np.testing.assert_allclose(weighted.values[1], table.values[rows].mean(0), atol=1e-6)


def test_channels_are_not_averaged_with_each_other():
    table = cells()
    table.metadata["Metadata_Channel"] = np.where(np.arange(60) % 8 < 4, "nucleus", "actin")
    out = Aggregate(by="well")(table)
    assert len(out) == 16
    assert set(out.metadata["Metadata_Channel"]) == {"nucleus", "actin"}
    with pytest.raises(DataError, match=r"one channel plane here, and P0/A01 holds 2 channels.*name Metadata_Channel"):
        Aggregate(by=["Metadata_Plate", "Metadata_Well"])(table)
    with pytest.raises(DataError, match="consensus: a row is one channel plane here"):
        Consensus("Metadata_gene")(out)

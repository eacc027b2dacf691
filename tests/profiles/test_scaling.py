import numpy as np
import pandas as pd
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import InverseNormal, MadRobustize, Robustize, Standardize, records
from tests.profiles.plates import CONTROLS, controls, plates, shuffled
from tests.references import profiles as reference

STEPS = [Standardize, Robustize, MadRobustize, InverseNormal]


def by_plate(table, formula, samples="all"):
    out = np.empty(table.values.shape)
    for plate in ("P0", "P1", "P2"):
        rows = (table.metadata["Metadata_Plate"] == plate).to_numpy()
        fit = rows & (controls(table) if samples == CONTROLS else True)
        out[rows] = formula(table.values[rows].astype(float), table.values[fit].astype(float))
    return out


@pytest.mark.parametrize("samples", ["all", CONTROLS])
@pytest.mark.parametrize(
    ("step", "formula"), [(MadRobustize, reference.mad_robustize), (Standardize, reference.standardize)]
)
def test_scaling_per_plate_equals_the_plain_formula(step, formula, samples):
    table = plates(offset=2)
    np.testing.assert_allclose(step(samples=samples)(table).values, by_plate(table, formula, samples), atol=2e-6)


@pytest.mark.parametrize(
    ("step", "method"),
    [(Standardize, "standardize"), (Robustize, "robustize"), (MadRobustize, "mad_robustize")],
)
def test_pooled_scaling_agrees_with_pycytominer(step, method):
    from pycytominer import normalize

    table = plates(offset=2)
    frame = table.to_frame().astype(dict.fromkeys(table.columns, "float64"))
    theirs = normalize(
        frame, features=list(table.columns), meta_features=list(table.metadata), samples=CONTROLS, method=method
    )
    ours = step(samples=CONTROLS, per=[])(table)
    np.testing.assert_allclose(ours.values, theirs[list(table.columns)].to_numpy(), atol=2e-6)


@pytest.mark.parametrize("step", STEPS)
def test_the_order_of_rows_does_not_matter(step):
    table = plates(offset=2)
    mixed, order = shuffled(table)
    np.testing.assert_allclose(
        step(samples=CONTROLS)(mixed).values, step(samples=CONTROLS)(table).values[order], atol=1e-6
    )


@pytest.mark.parametrize("step", STEPS)
def test_a_constant_added_to_a_plate_is_removed(step):
    table = plates()
    moved = table.values.copy()
    moved[(table.metadata["Metadata_Plate"] == "P1").to_numpy()] += np.float32(4)
    other = type(table)(moved, table.metadata, table.columns, table.dictionary)
    np.testing.assert_allclose(step()(other).values, step()(table).values, atol=1e-5)


@pytest.mark.parametrize("step", STEPS)
def test_pooled_scaling_keeps_the_differences_between_plates(step):
    table = plates(offset=5)
    means = step(per=[])(table).to_frame().groupby("Metadata_Plate")["Cells_Feature_0"].mean()
    assert means.max() - means.min() > 0.5


def test_the_record_says_what_the_step_was_fitted_on():
    record = records(MadRobustize(samples=CONTROLS)(plates()))[-1]
    assert record["fitted_on"] == {
        "samples": CONTROLS,
        "rows": 36,
        "of_rows": 72,
        "rows_without_an_answer": 36,
        "per": ["Metadata_Plate"],
        "groups": 3,
        "smallest_group": 12,
    }
    assert (record["rows_in"], record["rows_out"], record["features_out"]) == (72, 72, 5)


def test_a_fit_on_treated_or_held_out_rows_is_in_the_record():
    table = plates()
    quiet = MadRobustize(samples="controls")(table, controls=CONTROLS, held_out="Metadata_broad_sample == 'BRD-1'")
    loud = MadRobustize(samples="all")(table, controls=CONTROLS, held_out="Metadata_broad_sample == 'BRD-1'")
    assert records(quiet)[-1]["leaks"] == []
    assert records(loud)[-1]["leaks"] == [
        {"what": "held-out rows", "rows": 9, "of_rows": 9, "query": "Metadata_broad_sample == 'BRD-1'"},
        {"what": "rows that are no controls", "rows": 36, "of_rows": 36, "query": CONTROLS},
    ]


def test_a_plate_without_controls_is_named():
    table = plates()
    table.metadata.loc[table.metadata["Metadata_Plate"] == "P2", "Metadata_control_type"] = None
    with pytest.raises(
        DataError, match=r"mad_robustize: no row of P2 matches .*negcon.* \(1 of 3 groups by Metadata_Plate"
    ):
        MadRobustize(samples=CONTROLS)(table)


@pytest.mark.parametrize("step", STEPS)
def test_a_feature_that_is_constant_on_a_plate_is_named(step):
    table = plates()
    table.values[(table.metadata["Metadata_Plate"] == "P1").to_numpy(), 2] = 0.1
    with pytest.raises(
        DataError, match=r"1 features have a .* of zero among the rows that P1 is fitted on \(Cells_Feature_2\)"
    ):
        step()(table)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_value_that_is_no_number_is_named_with_its_well(step, bad):
    table = plates()
    table.values[30, 3] = bad
    with pytest.raises(
        DataError, match=r"NaN or infinite values, first 'Cells_Feature_3' with 1, at row 31 \(P1 A07\)"
    ):
        step()(table)


def test_a_column_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(
        ConfigError, match="mad_robustize: No metadata column 'Metadata_Plat'; did you mean 'Metadata_Plate'"
    ):
        MadRobustize(per=["Metadata_Plat"])(plates())


def test_a_row_without_a_plate_is_an_error():
    table = plates()
    table.metadata.loc[4, "Metadata_Plate"] = None
    with pytest.raises(DataError, match="standardize: 1 rows have no Metadata_Plate"):
        Standardize()(table)


def test_plates_of_one_name_in_two_studies_are_not_mixed():
    table = plates()
    table.metadata["Metadata_Study"] = np.where(np.arange(72) % 2, "a", "b")
    with pytest.raises(DataError, match="plate 'P0' stands for plates of 2 values of Metadata_Study"):
        Standardize()(table)
    assert len(Standardize(per=["Metadata_Study", "Metadata_Plate"])(table)) == 72


def test_inverse_normal_makes_every_feature_normal():
    table = plates(n_plates=1, n_wells=300)
    skewed = type(table)(np.exp(table.values), table.metadata, table.columns, table.dictionary)
    out = pd.DataFrame(InverseNormal()(skewed).values)
    assert abs(out.skew()).max() < 0.2
    assert out.rank().equals(pd.DataFrame(skewed.values).rank())


def test_a_plate_with_one_control_is_named():
    table = plates()
    rows = (table.metadata["Metadata_Plate"] == "P1") & (table.metadata["Metadata_Well"] > "A01")
    table.metadata.loc[rows, "Metadata_control_type"] = None
    with pytest.raises(DataError, match="mad_robustize: P1 has one row to learn from"):
        MadRobustize(samples=CONTROLS)(table)


@pytest.mark.parametrize("step", [Standardize, Robustize, MadRobustize])
def test_what_rounding_leaves_of_a_constant_is_no_spread(step):
    """1000 plus less than float32 can hold: dividing by it would turn rounding into a feature of variance one."""
    table = plates()
    noise = np.random.default_rng(0).normal(size=72) * 1e-5
    table.values[:, 2] = (1000 + noise).astype(np.float32)
    table.values[::2, 2] = np.nextafter(np.float32(1000), np.float32(2000))
    with pytest.raises(DataError, match=r"of zero among the rows that P0 is fitted on \(Cells_Feature_2\)"):
        step()(table)


def test_channels_are_not_scaled_by_each_other():
    table = plates()
    table.metadata["Metadata_Channel"] = np.where(np.arange(72) % 2, "nucleus", "actin")
    with pytest.raises(DataError, match="standardize: a row is one channel plane here, and P0 holds 2 channels"):
        Standardize()(table)
    assert records(Standardize(per=["Metadata_Plate", "Metadata_Channel"])(table))[-1]["fitted_on"]["groups"] == 6

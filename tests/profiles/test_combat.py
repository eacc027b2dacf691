import numpy as np
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import Combat, records
from tests.profiles.plates import CONTROLS, controls, plates, shuffled
from tests.references import profiles as reference


def batch_of(table):
    return [int(name[1:]) for name in table.metadata["Metadata_Plate"]]


def test_combat_equals_the_plain_formula():
    table = plates(n_plates=3, n_wells=12, offset=2)
    plain = reference.combat(table.values.astype(float), batch_of(table))
    np.testing.assert_allclose(Combat()(table).values, plain, atol=1e-5)


def test_batches_differ_less_afterwards():
    table = plates(offset=4)

    def spread(values):
        return np.std([values[np.array(batch_of(table)) == b].mean(0) for b in range(3)], axis=0).mean()

    assert spread(Combat()(table).values) < 0.1 * spread(table.values)


def test_a_feature_without_batch_effect_keeps_its_mean_and_spread():
    table = plates(n_plates=2, n_wells=200, n_features=20)
    out = Combat()(table)
    np.testing.assert_allclose(out.values.mean(0), table.values.mean(0), atol=1e-3)
    np.testing.assert_allclose(out.values.std(0), table.values.std(0), rtol=0.02)


def test_learning_from_controls_does_not_look_at_treated_rows():
    table = plates(offset=2, effect=1)
    changed = table.values.copy()
    changed[~controls(table)] *= 5
    other = type(table)(changed, table.metadata, table.columns, table.dictionary)
    step = Combat(samples=CONTROLS)
    mask = controls(table)
    np.testing.assert_allclose(step(other).values[mask], step(table).values[mask], atol=1e-6)
    assert not np.allclose(Combat()(other).values[mask], Combat()(table).values[mask], atol=1e-2)


def test_labels_to_keep_keep_their_differences_where_batches_hold_them_unevenly():
    table = plates(n_plates=2, n_wells=60, n_controls=0, n_features=30, offset=2, effect=3)
    uneven = np.array(
        [b == 0 or w % 2 == 0 or w < 10 for b, w in zip(batch_of(table), np.tile(range(60), 2), strict=True)]
    )
    table = type(table)(
        table.values[uneven], table.metadata[uneven].reset_index(drop=True), table.columns, table.dictionary
    )
    truth = plates(n_plates=2, n_wells=60, n_controls=0, n_features=30, offset=0, effect=3)
    labels = table.metadata["Metadata_broad_sample"].to_numpy()

    def effect(values, names):
        return values[names == "BRD-1"].mean(0) - values[names == "BRD-0"].mean(0)

    expected = effect(truth.values, truth.metadata["Metadata_broad_sample"].to_numpy())
    kept = Combat(keep=["Metadata_broad_sample"])(table)
    error = np.abs(effect(kept.values, labels) - expected).mean()
    assert error < np.abs(effect(Combat()(table).values, labels) - expected).mean()
    assert records(kept)[-1]["leaks"][-1]["what"] == "labels"


def test_the_order_of_rows_does_not_matter():
    table = plates(offset=2)
    mixed, order = shuffled(table)
    np.testing.assert_allclose(Combat()(mixed).values, Combat()(table).values[order], atol=1e-4)


def test_learning_from_treated_rows_is_in_the_record():
    record = records(Combat()(plates(), controls=CONTROLS))[-1]
    assert record["leaks"] == [{"what": "rows that are no controls", "rows": 36, "of_rows": 36, "query": CONTROLS}]
    assert record["fitted_on"]["groups"] == 3


def test_mean_only_shifts_and_does_not_scale():
    table = plates(offset=2)
    moved = Combat(mean_only=True)(table).values - table.values
    for b in range(3):
        part = moved[np.array(batch_of(table)) == b]
        np.testing.assert_allclose(part - part[0], 0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "change", "message"),
    [
        ({"batch": ["Metadata_control_type"]}, None, "combat: 36 rows have no Metadata_control_type"),
        ({"keep": ["Metadata_Plate"]}, None, "the batches cannot be told apart"),
        ({"keep": ["Metadata_broad_sample"]}, None, "36 rows have no Metadata_broad_sample, a label to keep"),
        ({}, "one batch", "all rows are of one batch"),
        ({}, "lonely", "combat: P9 has one row to learn from, which has no variance; use mean_only: true"),
        ({}, "flat", r"variance within batches of zero .*Cells_Feature_1"),
    ],
)
def test_bad_input_is_named(settings, change, message):
    table = plates()
    if change == "one batch":
        table.metadata["Metadata_Plate"] = "P0"
    if change == "lonely":
        table.metadata.loc[0, "Metadata_Plate"] = "P9"
    if change == "flat":
        table.values[:, 1] = np.array(batch_of(table), np.float32) / 3
    with pytest.raises(DataError, match=message):
        Combat(**settings)(table)


def test_an_empty_batch_is_refused():
    with pytest.raises(ConfigError, match="combat: batch is empty"):
        Combat(batch=[])

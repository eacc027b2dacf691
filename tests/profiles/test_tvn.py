import numpy as np
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import TVN, records
from tests.profiles.plates import CONTROLS, controls, plates, shuffled
from tests.references import profiles as reference


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize("ridge", [1.0, 0.01])
def test_tvn_equals_the_plain_formula(center, ridge):
    table = plates(offset=2, n_features=4)
    ours = TVN(samples=CONTROLS, epsilon=0.1, coral_epsilon=ridge, center=center)(table).values
    values, mask = table.values.astype(float), controls(table)
    white = reference.sphere(
        values, values[mask], correlation=False, rotate_back=False, epsilon=0.1, epsilon_on="eigenvalue"
    )
    names = table.metadata["Metadata_Plate"].to_numpy()
    parts = reference.coral(
        [white[names == p] for p in ("P0", "P1", "P2")],
        [white[(names == p) & mask] for p in ("P0", "P1", "P2")],
        ridge,
        center=center,
    )
    plain = np.concatenate(parts)
    signs = np.sign((ours * plain).sum(0))  # the sign of a component is free
    np.testing.assert_allclose(ours, plain * signs, atol=1e-4)


def test_the_controls_of_every_plate_end_up_with_the_same_mean_and_covariance():
    table = plates(n_wells=90, n_controls=80, offset=3)
    scaled = table.values.copy()
    scaled[(table.metadata["Metadata_Plate"] == "P1").to_numpy()] *= 3
    table = type(table)(scaled, table.metadata, table.columns, table.dictionary)
    out = TVN(samples=CONTROLS, epsilon=1e-6, coral_epsilon=1e-6)(table)
    parts = [
        out.values[controls(out) & (out.metadata["Metadata_Plate"] == plate).to_numpy()] for plate in ("P0", "P1", "P2")
    ]
    for part in parts:
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-4)
        np.testing.assert_allclose(np.cov(part, rowvar=False), np.cov(parts[0], rowvar=False), atol=1e-2)


def test_the_order_of_rows_does_not_matter():
    table = plates(offset=1)
    mixed, order = shuffled(table)
    ours, theirs = TVN(samples=CONTROLS)(table).values[order], TVN(samples=CONTROLS)(mixed).values
    np.testing.assert_allclose(theirs * np.sign((ours * theirs).sum(0)), ours, atol=1e-4)


def test_what_the_controls_do_not_span_is_left_out_and_said():
    table = plates(n_plates=2, n_controls=2, n_features=6)
    out = TVN(samples=CONTROLS)(table)
    assert len(out.columns) == 3
    remarks = records(out)[-1]["remarks"]
    assert remarks[0].startswith("P0, P1: fitted on no more rows than directions")
    assert "the controls span 3 of 6 directions" in remarks[1]


def test_a_plate_with_one_control_is_named():
    table = plates()
    rows = (table.metadata["Metadata_Plate"] == "P1") & (table.metadata["Metadata_Well"] > "A01")
    table.metadata.loc[rows, "Metadata_control_type"] = None
    with pytest.raises(DataError, match="tvn: P1 has one control only, and a covariance needs two"):
        TVN(samples=CONTROLS)(table)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0}, "tvn: epsilon is 0; it must be a number above 0"),
        ({"coral_epsilon": -1.0}, "coral_epsilon is -1.0"),
        ({"batch": []}, "tvn: batch is empty"),
        ({"center": "yes"}, "center is 'yes'; it must be true or false"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        TVN(**settings)

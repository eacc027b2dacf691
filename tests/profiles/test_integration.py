import importlib
import sys

import numpy as np
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import Harmony, Scanorama, apply, records
from tests.profiles.plates import CONTROLS, plates

LIBRARIES = {"harmony": "harmonypy", "scanorama": "scanorama"}


def nearest_plate(table):
    """How often the nearest other row is of the same plate."""
    distance = np.linalg.norm(table.values[:, None] - table.values[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    names = table.metadata["Metadata_Plate"].to_numpy()
    return (names[distance.argmin(1)] == names).mean()


@pytest.mark.parametrize("step", [Harmony(sigma=0.3), Scanorama()])
def test_batches_are_mixed(step):
    pytest.importorskip(LIBRARIES[step.name], reason=f"needs morphem[{step.name}]")
    table = plates(n_wells=100, n_controls=0, n_features=20, offset=1.5, effect=1)
    assert nearest_plate(table) > 0.9
    out = step(table)
    assert nearest_plate(out) < 0.6
    record = records(out)[-1]
    assert record["engine"].startswith(LIBRARIES[step.name])
    assert record["fitted_on"]["groups"] == 3


@pytest.mark.parametrize("step", [Harmony(), Scanorama()])
def test_learning_from_treated_rows_is_in_the_record(step):
    pytest.importorskip(LIBRARIES[step.name], reason=f"needs morphem[{step.name}]")
    record = records(step(plates(n_wells=40), controls=CONTROLS))[-1]
    assert record["leaks"][0]["what"] == "rows that are no controls"


@pytest.mark.parametrize("step", [Harmony(), Scanorama()])
def test_a_square_table_is_not_turned(step):
    """As many rows as features: a library that guesses which is which would guess wrong."""
    pytest.importorskip(LIBRARIES[step.name], reason=f"needs morphem[{step.name}]")
    table = plates(n_plates=2, n_wells=40, n_controls=0, n_features=80, effect=3)
    out = step(table)
    one = table.values / np.linalg.norm(table.values, axis=1, keepdims=True)
    two = out.values / np.linalg.norm(out.values, axis=1, keepdims=True)
    assert np.mean((one * two).sum(1)) > 0.9


@pytest.mark.parametrize("name", ["harmony", "scanorama"])
def test_a_library_that_is_not_there_is_named_before_a_table_is_read(name, monkeypatch):
    monkeypatch.setitem(sys.modules, LIBRARIES[name], None)
    licence = {"harmony": "GPL-3.0-or-later", "scanorama": "MIT"}[name]
    message = rf"step 1 of 1, {name}: needs {LIBRARIES[name]} \({licence}\), .*pip install 'morphem\[{name}\]'"
    with pytest.raises(ConfigError, match=message):
        apply("no_such_table.parquet", {"steps": [{"step": name}]})


def test_the_library_is_given_what_the_step_says(monkeypatch):
    """Without the library: the call, and a result of the wrong shape."""
    seen = {}

    class Library:
        @staticmethod
        def run_harmony(data, names, variables, **settings):
            seen.update(settings, shape=data.shape, batches=sorted(set(names["batch"])))
            return type("Found", (), {"Z_corr": data[:, :-1]})

    monkeypatch.setitem(sys.modules, "harmonypy", Library)
    monkeypatch.setattr(importlib.import_module("morphem.profiles.integration"), "version", lambda name: "0")
    with pytest.raises(DataError, match=r"harmony: the library returned \(71, 5\) values"):
        Harmony(theta=3, n_clusters=4, seed=7)(plates())
    assert seen["shape"] == (5, 72)
    assert seen["batches"] == ["P0", "P1", "P2"]
    assert (seen["theta"], seen["nclust"], seen["random_state"], seen["lamb"]) == (3, 4, 7, None)


@pytest.mark.parametrize("step", [Harmony(), Scanorama()])
def test_one_batch_is_an_error(step, monkeypatch):
    monkeypatch.setitem(sys.modules, LIBRARIES[step.name], object())
    with pytest.raises(DataError, match=f"{step.name}: all rows are of one batch"):
        step(plates(n_plates=1, n_wells=80))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (Harmony, {"batch": []}, "harmony: batch is empty"),
        (Harmony, {"sigma": 0}, "harmony: sigma is 0; it must be a number above 0"),
        (Scanorama, {"alpha": 2}, "scanorama: alpha is 2"),
    ],
)
def test_wrong_settings_are_named(kind, settings, message):
    with pytest.raises(ConfigError, match=message):
        kind(**settings)

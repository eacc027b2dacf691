"""The seven real plates of CPJUMP1, without edits by hand."""

import numpy as np
import pytest

from morphem.cli import main
from morphem.errors import DataError
from morphem.profiles import Annotate, apply, read_table, records
from tests.profiles.plates import controls


@pytest.fixture(scope="module")
def table(real_data):
    return read_table(real_data / "jumpcp1-profiles")


def recipe(name):
    from morphem.cli.config_files import find_config

    return find_config(name)


def test_the_published_profiles_are_read(table):
    assert table.values.shape == (2688, 904)
    assert np.isfinite(table.values).all()
    assert controls(table).sum() == 448
    assert table.metadata["Metadata_broad_sample"].nunique() == 306


def test_the_untreated_wells_are_white_in_447_directions(table):
    """The self-test of facts/chammi75-benchmarks.md 3.5: 447 eigenvalues close to 1, the others 0."""
    out = apply(table, recipe("profile_jump_cellprofiler.yaml"))
    assert len(out.columns) == 602
    assert set(out.metadata["Metadata_broad_sample"][controls(out)]) == {"DMSO"}
    values = np.linalg.eigvalsh(np.cov(out.values[controls(out)].astype(float), rowvar=False))
    assert (values > 0.994).sum() == 447
    assert values.max() < 1.001
    assert np.abs(values[:-447]).max() < 1e-6
    assert records(out)[-1]["rank"] == 447


def test_the_sphered_profiles_equal_pycytominers(table, real_data):
    from pycytominer import normalize

    out = apply(table, recipe("profile_jump_cellprofiler.yaml"))
    frame = table.to_frame()
    columns = list(out.columns)
    frame = frame.astype(dict.fromkeys(columns, "float64"))
    theirs = normalize(
        frame,
        features=columns,
        meta_features=["Metadata_Plate", "Metadata_Well"],
        samples="Metadata_control_type == 'negcon'",
        method="spherize",
        spherize_epsilon=1e-3,
    )
    np.testing.assert_allclose(out.values, theirs[columns].to_numpy(), atol=1e-3 * np.abs(out.values).max() / 100)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["jump", "kim", "unidino", "tvn", "cellprofiler", "combat"])
def test_every_recipe_runs_on_them_from_the_command_line(real_data, tmp_path, capsys, name):
    data, output = real_data / "jumpcp1-profiles", tmp_path / "profiles.parquet"
    assert main(["profile", str(data), "--recipe", f"profile_{name}.yaml", "--output", str(output)]) == 0
    out = read_table(output)
    assert len(out) == (307 if name == "cellprofiler" else 2688)
    assert np.isfinite(out.values).all()
    assert f"{len(out)} rows x {len(out.columns)} features" in capsys.readouterr().out


@pytest.mark.slow
def test_the_controls_of_every_plate_are_alike_after_tvn(table):
    out = apply(table, recipe("profile_tvn.yaml"))
    for plate in out.metadata["Metadata_Plate"].unique():
        part = out.values[controls(out) & (out.metadata["Metadata_Plate"] == plate).to_numpy()]
        np.testing.assert_allclose(part.mean(0), 0, atol=1e-4)


def test_the_published_table_of_plates_is_joined_without_edits(table, real_data):
    source = str(real_data / "jumpcp1-profiles" / "experiment-metadata.tsv")
    settings = {"table": source, "by": {"Metadata_Plate": "Assay_Plate_Barcode"}, "columns": ["Time", "Anomaly"]}
    with pytest.raises(DataError, match=r"annotate: 16 keys are in .* twice, first BR00117010.* with 'where'"):
        Annotate(**settings)(table)
    settings["where"] = "Batch == '2020_11_04_CPJUMP1'"
    out = Annotate(**settings, unused="ignore")(table)
    assert out.metadata.groupby("Metadata_Plate")["Metadata_Time"].first().to_dict()["BR00117010"] == 48
    assert len(out) == 2688
    with pytest.raises(DataError, match=r"annotate: \d+ of \d+ entries of .*experiment-metadata.tsv have no row"):
        Annotate(**settings)(table)

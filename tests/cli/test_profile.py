"""`morphem profile` from the command line: what it prints, what it refuses, and every shipped recipe."""

import numpy as np
import pandas as pd
import pytest

from morphem.cli import main
from morphem.cli.config_files import config_folders
from morphem.profiles import read_table, records, write_table
from tests.profiles.plates import plates

RECIPES = sorted(path.name for path in config_folders()[1].glob("profile_*.yaml"))


@pytest.fixture
def features(tmp_path):
    table = plates(n_plates=3, n_wells=48, n_controls=24, n_features=6, offset=1, effect=1)
    table.metadata["Metadata_Site"] = 1
    write_table(table, tmp_path / "features.parquet")
    return tmp_path / "features.parquet"


@pytest.mark.parametrize("name", RECIPES)
def test_every_shipped_recipe_runs(features, tmp_path, capsys, name):
    if name == "profile_harmony.yaml":
        pytest.importorskip("harmonypy", reason="needs morphem[harmony]")
    if name == "profile_jump_cellprofiler.yaml":
        table = read_table(features)
        names = [f"Cells_Intensity_{c}" for c in ("DNA", "Brightfield", "HighZBF", "ER", "AGP", "Mito")]
        frame = table.to_frame().rename(columns=dict(zip(table.columns, names, strict=True)))
        frame.to_parquet(features)
    assert main(["profile", str(features), "--recipe", name, "--output", str(tmp_path / "p.parquet")]) == 0
    out = read_table(tmp_path / "p.parquet")
    assert len(out) == (5 if name == "profile_cellprofiler.yaml" else 144)
    assert np.isfinite(out.values).all()
    assert records(out)
    printed = capsys.readouterr().out
    assert "read       features.parquet" in printed
    assert printed.splitlines()[-1].startswith(f"wrote      {tmp_path / 'p.parquet'}: {len(out)} rows x")


def test_there_are_recipes():
    assert len(RECIPES) >= 8


def test_the_summary_says_what_every_step_was_fitted_on(features, tmp_path, capsys):
    main(["profile", str(features), "--recipe", "profile_combat.yaml", "--output", str(tmp_path / "p.csv.gz")])
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "fitted on 72 of 144 rows (Metadata_control_type == 'negcon'), 3 groups by Metadata_Plate" in lines
    assert "fitted on 144 of 144 rows (all rows), 3 groups by Metadata_Plate" in lines
    assert "leak: learned from 72 of 72 rows that are no controls (Metadata_control_type == 'negcon')" in lines
    assert len(pd.read_csv(tmp_path / "p.csv.gz")) == 144


def test_a_setting_of_the_command_line_changes_the_recipe(features, tmp_path):
    arguments = ["profile", str(features), "--recipe", "profile_jump.yaml", "--output", str(tmp_path / "p.parquet")]
    assert main([*arguments, "--set", "sphere.epsilon=0.5", "--set", "sphere.method=ZCA"]) == 0
    settings = records(read_table(tmp_path / "p.parquet"))[-1]["settings"]
    assert (settings["epsilon"], settings["method"]) == (0.5, "ZCA")


def error(capsys, *arguments):
    assert main(["profile", *map(str, arguments)]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("morphem: error: ")
    assert printed.err.count("\n") == 1
    return printed.err


def test_an_output_that_exists_is_not_replaced_without_being_asked(features, tmp_path, capsys):
    output = tmp_path / "p.parquet"
    output.write_text("precious")
    arguments = (features, "--recipe", "profile_unidino.yaml", "--output", output)
    assert "p.parquet exists; give --overwrite" in error(capsys, *arguments)
    assert output.read_text() == "precious"
    assert main(["profile", *map(str, arguments), "--overwrite"]) == 0


def test_nothing_is_written_when_a_step_fails(features, tmp_path, capsys):
    output = tmp_path / "p.parquet"
    sentence = error(
        capsys, features, "--recipe", "profile_jump.yaml", "--output", output, "--set", "controls=Metadata_Site == 7"
    )
    assert "step 3 of 3, sphere: no row matches" in sentence
    assert "(Metadata_Site holds 1)" in sentence
    assert not output.exists()


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--recipe", "profile_jmp.yaml", "--output", "p.parquet"], "did you mean 'profile_jump.yaml'?"),
        (["--recipe", "profile_jump.yaml"], "--output is missing"),
        (["--output", "p.parquet"], "--recipe is missing"),
        (["--recipe", "profile_jump.yaml", "--output", "p.xlsx"], "must end in one of .parquet, .h5ad, .csv, .csv.gz"),
        (["--recipe", "profile_jump.yaml", "--output", "p.parquet", "--set", "a=1"], "No key 'a'"),
        (["--recipe", "dino_boc.yaml", "--output", "p.parquet"], "a recipe has a list of 'steps'"),
    ],
)
def test_wrong_options_are_one_sentence(features, tmp_path, capsys, monkeypatch, arguments, sentence):
    monkeypatch.chdir(tmp_path)
    assert sentence in error(capsys, features, *arguments)


def test_no_table_is_an_error(tmp_path, capsys):
    assert "no table of features is given" in error(
        capsys, "--recipe", "profile_jump.yaml", "--output", tmp_path / "p.parquet"
    )


def test_the_steps_are_listed_with_their_settings(capsys):
    assert main(["profile", "--steps"]) == 0
    printed = capsys.readouterr().out
    assert "sphere: Sphere all rows with a transform fitted on the chosen ones." in printed
    assert "    by: (needed)" in printed
    assert "    epsilon_on: singular value" in printed


def test_help_shows_an_example(capsys):
    with pytest.raises(SystemExit):
        main(["profile", "--help"])
    assert "morphem profile features.parquet --recipe profile_jump.yaml" in capsys.readouterr().out


def test_anndata_in_and_out(tmp_path):
    anndata = pytest.importorskip("anndata")
    table = plates(offset=1)
    write_table(table, tmp_path / "a.h5ad")
    arguments = ["profile", str(tmp_path / "a.h5ad"), "--recipe", "profile_unidino.yaml"]
    assert main([*arguments, "--output", str(tmp_path / "b.h5ad")]) == 0
    data = anndata.read_h5ad(tmp_path / "b.h5ad")
    assert data.shape == (72, 5)
    assert records(read_table(tmp_path / "b.h5ad"))[-1]["step"] == "mad_robustize"


def test_an_output_among_the_tables_is_not_read_as_one(features, tmp_path, capsys):
    """A second run would take its own result for features, and every well would be there twice."""
    arguments = ["--recipe", "profile_unidino.yaml", "--output", tmp_path / "p.parquet"]
    assert main(["profile", str(tmp_path), *map(str, arguments)]) == 0
    assert "p.parquet is one of the tables to read" in error(capsys, tmp_path, *arguments, "--overwrite")


def test_the_table_of_embed_becomes_profiles(tmp_path, capsys):
    torch = pytest.importorskip("torch")
    from morphem.encoder import Encoder
    from tests import small_shards

    wells = ("A01", "A02", "B01", "B02")
    images = [small_shards.image(f"i{k}", size=(40, 48), well=wells[k % 4]) for k in range(8)]
    torch.manual_seed(0)
    Encoder.tiny().save_pretrained(tmp_path / "model")
    words = ["embed", "--model", str(tmp_path / "model"), "--data", small_shards.write(tmp_path / "shards", images)]
    assert main([*words, "--tile-size-px", "16", "--accelerator", "cpu", "--output", str(tmp_path / "f.parquet")]) == 0
    arguments = ["--recipe", "profile_unidino.yaml", "--output", str(tmp_path / "p.parquet")]
    assert main(["profile", str(tmp_path / "f.parquet"), *arguments]) == 0
    out = read_table(tmp_path / "p.parquet")
    assert sorted(out.metadata["Metadata_Well"]) == sorted(wells)
    assert out.provenance["encoder"] == read_table(tmp_path / "f.parquet").provenance["encoder"]
    assert {entry["kind"] for entry in out.dictionary} == {"channel"}
    assert [record["step"] for record in records(out)] == ["aggregate", "mad_robustize"]
    capsys.readouterr()

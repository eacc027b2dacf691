"""What docs/profiles.md shows works, and names every step and every shipped recipe."""

import re
from pathlib import Path

import pandas as pd
import pytest

from morphem.cli.config_files import config_folders
from morphem.profiles import STEPS, Recipe, apply, records, write_table
from tests.profiles.plates import plates

PAGE = Path(__file__).resolve().parents[2] / "docs" / "profiles.md"


@pytest.fixture
def text():
    if not PAGE.is_file():
        pytest.skip(f"{PAGE} is not in this checkout")
    return PAGE.read_text()


def block(text, language):
    return re.search(rf"```{language}\n(.*?)```", text, re.DOTALL)[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table = plates()
    table.metadata["Metadata_Site"] = 1
    write_table(table, "features.parquet")
    table.metadata[["Metadata_Plate", "Metadata_Well"]].assign(dose=1.5).to_csv("platemap.csv", index=False)
    return tmp_path


def test_the_python_of_the_page_runs(text, folder, capsys):
    names: dict = {}
    exec(block(text, "python"), names)
    assert len(names["profiles"]) == len(names["scaled"]) == 72
    assert "'rows': 36" in capsys.readouterr().out


def test_the_recipe_of_the_page_runs(text, folder):
    (folder / "recipe.yaml").write_text(block(text, "yaml"))
    out = apply("features.parquet", "recipe.yaml")
    assert [record["step"] for record in records(out)] == [step.name for step in Recipe.read("recipe.yaml").steps]
    assert isinstance(out.metadata, pd.DataFrame)
    assert set(out.metadata["Metadata_dose"]) == {1.5}


@pytest.mark.parametrize("name", sorted(STEPS))
def test_every_step_is_on_the_page(text, name):
    assert f"`{name}`" in text


def test_every_shipped_recipe_is_on_the_page(text):
    for path in config_folders()[1].glob("profile_*.yaml"):
        assert f"`{path.name}`" in text

import re

import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import STEPS, Recipe, apply, records
from tests.profiles.plates import CONTROLS, plates

GOOD = f"""\
# a recipe
controls: {CONTROLS}
steps:
  - step: mad_robustize
    samples: controls
  - step: sphere
    epsilon: 0.001
"""


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


def test_a_recipe_is_read_with_its_defaults(tmp_path):
    recipe = Recipe.read(write(tmp_path, GOOD))
    assert [step.name for step in recipe.steps] == ["mad_robustize", "sphere"]
    assert recipe.to_dict()["steps"][1] == {
        "step": "sphere",
        "samples": "controls",
        "per": [],
        "method": "ZCA-cor",
        "epsilon": 0.001,
        "epsilon_on": "singular value",
    }
    assert Recipe.from_dict(recipe.to_dict()) == recipe


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("mad_robustize", "mad_robustise", r"recipe.yaml:4: No step 'mad_robustise'; did you mean 'mad_robustize'"),
        ("epsilon:", "epsilom:", r"recipe.yaml:6: sphere: unknown key 'epsilom'; did you mean 'epsilon'"),
        ("controls:", "control:", r"recipe.yaml: unknown key 'control'; did you mean 'controls'"),
        ("0.001", "-1", r"recipe.yaml:6: sphere: epsilon is -1; it must be a number at least 0"),
        ("samples: controls", "samples: 3", r"recipe.yaml:4: mad_robustize: samples is 3; it must be a text"),
        ("steps:", "stages:", "a recipe has a list of 'steps'"),
        ("  - step: sphere", "  - step: consensus", "consensus: unknown key 'epsilon'"),
        ("  - step: sphere\n    epsilon: 0.001", "  - step: consensus", "the step 'consensus' needs 'by'"),
        ("  - step: sphere", "  - steps: sphere", "every entry of 'steps' names its step"),
        ("steps:", "rows: wells\nsteps:", "rows is 'wells'; it must be one of infer, well, other"),
        ("steps:", "steps: [", "recipe.yaml:4: this is not valid YAML"),
        (CONTROLS, "all", "controls is 'all'; it must be a query"),
    ],
)
def test_a_wrong_recipe_names_file_line_and_key(tmp_path, old, new, message):
    assert old in GOOD
    with pytest.raises(ConfigError, match=message):
        Recipe.read(write(tmp_path, GOOD.replace(old, new, 1)))


def test_settings_change_a_recipe(tmp_path):
    path = write(tmp_path, GOOD)
    recipe = Recipe.read(path, ["sphere.epsilon=0.5", "mad_robustize.per=[]", "rows=other"])
    assert (recipe.steps[1].epsilon, recipe.steps[0].per, recipe.rows) == (0.5, (), "other")


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("sphere", "write KEY=VALUE"),
        ("whiten.epsilon=1", r"the recipe has no step 'whiten' \(it has mad_robustize, sphere\)"),
        ("sphere.epsilom=1", "unknown key 'epsilom'"),
        ("stages=1", "No key 'stages'"),
        ("sphere.epsilon=[", "is not valid YAML"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path, setting, message):
    with pytest.raises(ConfigError, match=message):
        Recipe.read(write(tmp_path, GOOD), [setting])


def test_a_step_that_stands_twice_cannot_be_set_by_its_name(tmp_path):
    text = GOOD + "  - step: sphere\n"
    with pytest.raises(ConfigError, match="the recipe has 2 times the step 'sphere'"):
        Recipe.read(write(tmp_path, text), ["sphere.epsilon=1"])


def test_a_plate_map_beside_the_recipe_is_found(tmp_path):
    (tmp_path / "map.csv").write_text("Metadata_Plate,gene\nP0,a\nP1,b\nP2,c\n")
    path = write(tmp_path, "steps:\n  - {step: annotate, table: map.csv, by: [Metadata_Plate]}\n")
    assert list(apply(plates(), path).metadata["Metadata_gene"].unique()) == ["a", "b", "c"]


def test_the_result_says_how_it_was_made(tmp_path):
    out = apply(plates(), write(tmp_path, GOOD))
    assert [record["step"] for record in records(out)] == ["mad_robustize", "sphere"]
    assert out.provenance["recipe"]["controls"] == CONTROLS
    assert re.fullmatch("[0-9a-f]{64}", out.provenance["recipe_sha256"])
    assert out.provenance["software"]["pycytominer"]


def test_an_error_names_the_step_and_its_place():
    table = plates()
    table.values[3, 2] = float("nan")
    with pytest.raises(
        DataError, match=r"step 2 of 2, sphere: 1 features have NaN or infinite values, first 'Cells_Feature_2'"
    ):
        apply(table, {"controls": CONTROLS, "steps": [{"step": "filter", "keep": "all"}, {"step": "sphere"}]})


def test_steps_run_in_the_order_of_the_recipe():
    scale, white = {"step": "standardize", "per": []}, {"step": "sphere", "samples": "all"}
    one = apply(plates(), {"steps": [scale, white]})
    two = apply(plates(), {"steps": [white, scale]})
    assert [r["step"] for r in records(one)] == [r["step"] for r in records(two)][::-1]


def test_a_well_that_is_there_twice_is_named():
    table = plates()
    table.metadata.loc[5, "Metadata_Well"] = "A01"
    recipe = {"steps": [{"step": "standardize"}]}
    with pytest.raises(DataError, match=r"2 rows share their well with another, first P0 A01; .* rows: other"):
        apply(table, recipe)
    assert len(apply(table, {"rows": "other", **recipe})) == 72
    table.metadata["Metadata_Cell"] = range(72)
    assert len(apply(table, recipe)) == 72
    with pytest.raises(DataError, match="2 rows share their well"):
        apply(table, {"rows": "well", **recipe})


def test_a_table_that_says_wells_may_not_hold_one_twice_whatever_else_it_has():
    table = plates()
    table.metadata["Metadata_Unit"] = "well"
    table.metadata["Metadata_Site"] = 1
    table.metadata.loc[5, "Metadata_Well"] = "A01"
    with pytest.raises(DataError, match="2 rows share their well"):
        apply(table, {"steps": [{"step": "standardize"}]})


def test_wells_that_are_asked_for_must_be_named():
    table = plates()
    del table.metadata["Metadata_Well"]
    with pytest.raises(ConfigError, match="rows is 'well', but the table has no Metadata_Plate or no Metadata_Well"):
        apply(table, {"rows": "well", "steps": [{"step": "standardize"}]})


def test_controls_of_a_column_that_is_not_there_are_named_before_the_first_step():
    with pytest.raises(ConfigError, match=r"controls: query .*there is no column 'Metadata_control'"):
        apply(plates(), {"controls": "Metadata_control == 'x'", "steps": [{"step": "standardize"}]})


def test_every_step_is_documented():
    for name, step in STEPS.items():
        assert step.__doc__, name
        assert not step.__doc__.startswith(step.__name__ + "("), f"{name}: dataclass wrote the documentation"


def test_an_empty_table_is_an_error():
    table = plates()
    empty = type(table)(table.values[:0], table.metadata.iloc[:0], table.columns, table.dictionary)
    with pytest.raises(DataError, match="standardize: the table has no rows"):
        apply(empty, {"steps": [{"step": "standardize"}]})


def test_numbers_may_be_written_as_people_write_them(tmp_path):
    recipe = Recipe.read(write(tmp_path, GOOD.replace("0.001", "1e-3")), ["mad_robustize.epsilon=5E-2"])
    assert (recipe.steps[1].epsilon, recipe.steps[0].epsilon) == (0.001, 0.05)


def test_a_recipe_may_forbid_leaks():
    recipe = {"controls": CONTROLS, "leaks": "error", "steps": [{"step": "standardize"}]}
    with pytest.raises(DataError, match=r"step 1 of 1, standardize: learned from 36 of 36 rows that are no controls"):
        apply(plates(), recipe)
    recipe["steps"][0]["samples"] = "controls"
    assert len(apply(plates(), recipe)) == 72


def test_whole_numbers_are_asked_for_where_they_are_needed():
    with pytest.raises(ConfigError, match=r"consensus: min_replicates is 2.5; it must be a whole number at least 1"):
        Recipe.from_dict({"steps": [{"step": "consensus", "by": ["Metadata_x"], "min_replicates": 2.5}]})

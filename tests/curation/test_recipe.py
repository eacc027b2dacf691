import inspect
import json
import pickle
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import pytest

from morphem.curation import STEPS, Recipe, Selection, Step, table_of
from morphem.curation.clusters import Clusters
from morphem.curation.steps_metadata import CentralZPlanes, ControlWells
from morphem.curation.steps_pixels import Intensity, Quality, Select
from morphem.errors import ConfigError, DataError
from tests.curation.plane_tables import image, names, stack, table

SHIPPED = Path(__file__).resolve().parents[2] / "configs" / "curate.yaml"


def _write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


def test_the_shipped_recipe_has_the_steps_of_the_paper_in_order() -> None:
    recipe = Recipe.read(SHIPPED)
    assert [step.name for step in recipe.steps] == [
        "central_z_planes",
        "evenly_spaced_frames",
        "control_wells",
        "intensity",
        "near_duplicates",
        "clusters",
    ]
    assert recipe.needs == {"metadata", "quality", "features"}
    assert isinstance(recipe.steps[0], CentralZPlanes)
    assert recipe.steps[0].share == 0.2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("steps: []", r"mine\.yaml: a recipe has a list of 'steps'"),
        ("- a\n", r"mine\.yaml: a recipe has a list of 'steps'"),
        ("steps: [{step: central_z_planes}]\nsead: 1\n", r"mine\.yaml: unknown key 'sead'; did you mean 'seed'\?"),
        (
            "seed: 1\nsteps:\n  - step: central_z_planes\n  - step: control_well\n    share: 1\n",
            r"mine\.yaml:4: No step 'control_well'; did you mean 'control_wells'\?",
        ),
        (
            "steps:\n  - step: central_z_planes\n    shares: 0.2\n",
            r"mine\.yaml:2: central_z_planes: unknown key 'shares'; did you mean 'share'\?",
        ),
        ("steps:\n  - step: control_wells\n", r"mine\.yaml:2: the step 'control_wells' needs 'share'"),
        (
            "steps:\n  - step: control_wells\n    share: 20%\n",
            r"mine\.yaml:2: control_wells\.share is '20%'; it must be a share above 0 and at most 1",
        ),
        ("steps:\n  - central_z_planes\n", r"mine\.yaml:2: every entry of 'steps' names its step"),
        ("steps:\n  - {step: foreground, channel_type: nukleus}\n", r"mine\.yaml:2: No channel type 'nukleus'"),
        ("steps: [a\n", r"mine\.yaml:2: this is not valid YAML"),
        ("steps: [{step: central_z_planes}]\nseed: x\n", r"mine\.yaml: seed is 'x'; it must be a whole number"),
        (
            "steps: [{step: foreground}, {step: central_z_planes}]\n",
            r"mine\.yaml: the step 'central_z_planes' reads metadata alone and stands after 'foreground'",
        ),
    ],
)
def test_a_wrong_recipe_names_file_line_key_and_the_nearest(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Recipe.read(_write(tmp_path, text))


def test_a_recipe_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml' cannot be read"):
        Recipe.read(tmp_path / "none.yaml")


def test_a_recipe_survives_plain_data_and_pickling() -> None:
    recipe = Recipe.read(SHIPPED)
    plain = json.loads(json.dumps(recipe.to_dict()))
    assert plain["steps"][0] == {"step": "central_z_planes", "share": 0.2, "by": [], "studies": []}
    assert Recipe.from_dict(plain).to_dict() == recipe.to_dict()
    assert pickle.loads(pickle.dumps(recipe)).to_dict() == recipe.to_dict()


def test_every_step_says_what_its_settings_mean() -> None:
    for name, step in STEPS.items():
        assert step.name == name
        for setting in inspect.signature(step).parameters:
            assert f"        {setting}: " in (step.__doc__ or ""), f"{name}.{setting}"


def _study(n_stacks: int = 3, depth: int = 5) -> pd.DataFrame:
    rows = [stack(f"w{k}", range(depth), experiment__well=f"A{k:02d}") for k in range(n_stacks)]
    planes = table(*(row for rows_of_one in rows for row in rows_of_one))
    planes["quality.mean"] = np.where(planes["imaging.multi_channel_id"] == "w1-z2", 1.0, 100.0)
    return planes


def test_each_step_sees_what_the_one_before_left_and_counts_it() -> None:
    recipe = Recipe((CentralZPlanes(0.6), Select("geometry.z_slice != '1'"), Intensity(deviations=3)))
    selection = recipe.apply("s", _study())
    assert selection.rows == [
        {"study": "s", "step": "central_z_planes", "before": 15, "removed": 6, "after": 9},
        {"study": "s", "step": "select", "before": 9, "removed": 3, "after": 6},
        {"study": "s", "step": "intensity", "before": 6, "removed": 1, "after": 5},
    ]
    assert selection.kept == ["w0-z2", "w0-z3", "w1-z3", "w2-z2", "w2-z3"]
    assert selection.removed["intensity"] == ["w1-z2"]
    removed = [name for names_of_one in selection.removed.values() for name in names_of_one]
    assert sorted(removed + selection.kept) == sorted(names(_study()))


def test_the_two_halves_of_a_recipe_do_together_what_the_whole_does() -> None:
    recipe = Recipe((CentralZPlanes(0.6), ControlWells(0.5), Intensity(deviations=3), Clusters(0.5, 2)), seed=7)
    planes = _study().assign(**{"experiment.control": "negative"})
    features = np.random.default_rng(0).normal(size=(15, 4))
    whole = recipe.apply("s", planes, features)
    first = recipe.before_pixels.apply("s", planes.drop(columns="quality.mean"))
    left = planes["imaging.multi_channel_id"].isin(first.kept)
    rows = [names(planes).index(name) for name in first.kept]
    second = recipe.after_pixels.apply("s", planes[left], features[rows])
    assert first.then(second) == whole
    assert whole.counts["after"].tolist() == [9, 6, 5, 3]
    # 9 in the middle of the stacks, 6 in the wells that were drawn, 5 of them bright, 2.5 rounded up


def test_a_step_that_stands_twice_is_counted_twice() -> None:
    recipe = Recipe((Quality("quality.mean > 2"), Quality("quality.mean > 1000")))
    assert recipe.apply("s", _study()).counts[["step", "after"]].to_numpy().tolist() == [
        ["quality", 14],
        ["quality 2", 0],
    ]


def test_a_step_may_look_at_some_studies_alone() -> None:
    recipe = Recipe((CentralZPlanes(0.2, studies=["a"]),))
    assert len(recipe.apply("a", _study()).kept) == 3
    other = recipe.apply("b", _study())
    assert (len(other.kept), other.rows) == (15, [])
    recipe.check_studies(["a", "b"])
    with pytest.raises(ConfigError, match=r"central_z_planes\.studies: No study 'a'; .*known: b, c"):
        recipe.check_studies(["b", "c"])


def test_the_draws_of_a_step_do_not_depend_on_the_other_steps() -> None:
    planes = _study(16, 1).assign(**{"experiment.control": "negative"})
    alone = Recipe((ControlWells(0.5),)).apply("s", planes)
    after = Recipe((Select("experiment.study == 's'"), ControlWells(0.5))).apply("s", planes)
    assert alone.kept == after.kept
    assert Recipe((ControlWells(0.5),)).apply("t", planes).kept != alone.kept
    assert Recipe((ControlWells(0.5),), seed=1).apply("s", planes).kept != alone.kept


def test_missing_features_are_an_error() -> None:
    with pytest.raises(DataError, match="the step 'clusters' needs features"):
        Recipe((Clusters(0.5, 2),)).apply("s", _study())
    with pytest.raises(DataError, match="15 images and 3 rows of features"):
        Recipe((Clusters(0.5, 2),)).apply("s", _study(), np.zeros((3, 2)))


class Odd(Step):
    """A stranger's step that answers for planes instead of images."""

    name: ClassVar = "odd"
    needs: ClassVar = "metadata"

    def keep(self, planes, features, seed):
        return np.ones(len(planes), bool)


def test_a_step_that_answers_for_another_number_of_images_is_an_error() -> None:
    with pytest.raises(DataError, match=r"the step 'odd' returned bool of shape \(30,\) for 15 images"):
        Recipe((Odd(),)).apply("s", _study())


def test_a_recipe_that_leaves_nothing_goes_on_with_nothing() -> None:
    recipe = Recipe((Select("experiment.well == 'Z99'"), CentralZPlanes(0.2)))
    assert recipe.apply("s", _study()).counts["after"].tolist() == [0, 0]


def test_a_selection_survives_json() -> None:
    selection = Recipe((CentralZPlanes(0.2), ControlWells(0.5))).apply("s", table(*stack("a", range(5)), image("b")))
    assert selection.remarks  # one image without a slice, and no controls
    assert Selection.from_json(json.loads(json.dumps(selection.to_json()))) == selection


def test_counts_of_several_studies_make_one_table() -> None:
    recipe = Recipe((CentralZPlanes(0.2),))
    counts = table_of([recipe.apply(study, _study()) for study in ("a", "b")])
    assert counts.to_numpy().tolist() == [["a", "central_z_planes", 15, 12, 3], ["b", "central_z_planes", 15, 12, 3]]


def test_the_table_may_come_in_any_index() -> None:
    planes = _study()
    planes.index = planes.index[::-1] + 100
    assert Recipe((CentralZPlanes(0.2),)).apply("s", planes).kept == ["w0-z2", "w1-z2", "w2-z2"]

from pathlib import Path

import pandas as pd
import pytest

from morphem.curation import Recipe
from morphem.curation.steps_metadata import ControlWells
from tests.curation.plane_tables import names

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "curate.yaml"
UNTOUCHED = ["bbbc014-nfkb", "bccd-blood", "hippocampal-neuron", "imc-mock", "moffat-human", "neubias-formats"]


def _planes(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "metadata.csv", dtype=str, keep_default_na=False)


@pytest.mark.parametrize("study", UNTOUCHED)
def test_real_studies_without_stacks_movies_or_controls_lose_nothing_by_their_metadata(
    real_data: Path, study: str
) -> None:
    planes = _planes(real_data / study)
    assert Recipe.read(RECIPE).before_pixels.apply(study, planes).kept == names(planes)


def test_two_of_three_control_wells_of_a_real_plate_go(real_data: Path) -> None:
    planes = _planes(real_data / "bbbc016-transfluor")
    selection = Recipe((ControlWells(0.25),)).apply("bbbc016-transfluor", planes)
    assert selection.counts[["before", "removed", "after"]].to_numpy().tolist() == [[48, 4, 44]]
    gone = planes[planes["imaging.multi_channel_id"].isin(selection.removed["control_wells"])]
    assert set(gone["experiment.control"]) == {"negative"}
    assert gone["experiment.well"].nunique() == 2

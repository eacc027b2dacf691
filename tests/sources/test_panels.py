import pandas as pd
import pytest

from morphem.sources.panels import image_name, natural, panel_text, study_name, with_panels


def test_numbers_in_names_sort_by_value() -> None:
    assert sorted(["ch10", "ch2", "B1", "A12", "A2"], key=natural) == ["A2", "A12", "B1", "ch2", "ch10"]


def test_unknown_parts_are_left_out_of_an_images_name() -> None:
    assert image_name(("", "P1"), ("", "unknown"), ("s", "3"), ("z", "")) == "P1-s3"


@pytest.mark.parametrize(
    ("location", "name"),
    [
        ("/data/plate 7/", "plate 7"),
        ("s3://bucket/a/plate.ome.zarr", "plate"),
        ("C:\\data\\stack.ome.tif", "stack"),
        ("set.zarr.zip", "set"),
        ("v1.2", "v1.2"),
    ],
)
def test_a_study_is_named_after_its_location_without_endings(location: str, name: str) -> None:
    assert study_name(location) == name


def test_a_comma_in_a_channel_name_does_not_make_two_channels() -> None:
    assert panel_text(["DAPI, 405", "GFP"]) == "DAPI  405,GFP"


def test_each_plate_has_the_panel_of_all_its_images() -> None:
    table = pd.DataFrame(
        [("i2", "P1", "ch2"), ("i10", "P1", "ch1"), ("i2", "P1", "ch1"), ("i1", "P2", "ch3")],
        columns=["imaging.multi_channel_id", "experiment.plate", "channel_name"],
    )

    done = with_panels(table)

    assert done["imaging.multi_channel_id"].tolist() == ["i1", "i2", "i2", "i10"]
    assert done["imaging.channel"].tolist() == ["1", "1", "2", "1"]
    assert done["imaging.panel"].tolist() == ["ch3", "ch1,ch2", "ch1,ch2", "ch1,ch2"]
    ordered = with_panels(table, ["ch3", "ch2", "ch1"])
    assert ordered["channel_name"].tolist() == ["ch3", "ch2", "ch1", "ch1"]
    assert ordered["imaging.panel"].tolist() == ["ch3", "ch2,ch1", "ch2,ch1", "ch2,ch1"]

"""What is missing on a plate."""

import pandas as pd

from morphem.ingest.gaps import find_gaps


def _table(*left_out: tuple[str, str, str], sites: tuple[str, ...] = ("1", "2"), **columns: str) -> pd.DataFrame:
    rows = [
        {
            "experiment.plate": "P1",
            "experiment.well": well,
            "microscopy.fov": site,
            "imaging.channel_type": channel,
            "imaging.multi_channel_id": f"{well}-{site}",
            **columns,
        }
        for well in ("A01", "A02", "A10")
        for site in sites
        for channel in ("nucleus", "actin")
        if not any(
            all(one in (other, "*") for one, other in zip(gap, (well, site, channel), strict=True)) for gap in left_out
        )
    ]
    return pd.DataFrame(rows)


def test_a_plate_with_every_site_and_channel_has_no_gap() -> None:
    (plate,) = find_gaps(_table())
    assert (plate.wells, plate.sites, plate.channels, plate.planes, plate.expected) == (3, 2, 2, 12, 12)
    assert plate.missing == {}


def test_a_missing_channel_and_a_missing_site_are_told_apart() -> None:
    (plate,) = find_gaps(_table(("A02", "1", "actin"), ("A10", "2", "*")))
    assert plate.missing == {"A02": [("1", ("actin",))], "A10": [("2", ())]}
    assert plate.expected - plate.planes == 3


def test_a_site_of_few_wells_is_not_expected_of_the_others() -> None:
    extra = _table(sites=("7",))
    (plate,) = find_gaps(pd.concat([_table(), extra[extra["experiment.well"] == "A01"]]))
    assert (plate.sites, plate.missing) == (2, {})


def test_sites_that_are_numbered_through_the_plate_are_compared_by_their_place_in_the_well() -> None:
    table = _table(("A10", "2", "*"))
    table["microscopy.fov"] = (
        (table["experiment.well"] + table["microscopy.fov"]).astype("category").cat.codes.astype(str)
    )
    (plate,) = find_gaps(table)
    assert (plate.sites, plate.missing) == (2, {"A10": [("number 2", ())]})


def test_slices_and_frames_of_a_stack_count_once() -> None:
    (plate,) = find_gaps(pd.concat([_table(**{"geometry.z_slice": str(z)}) for z in range(3)]))
    assert plate.planes == 12


def test_plates_are_apart_and_planes_without_a_well_are_left_out() -> None:
    second = _table().assign(**{"experiment.plate": "P2"})
    nowhere = _table().assign(**{"experiment.well": "unknown"})
    assert [plate.plate for plate in find_gaps(pd.concat([_table(), second, nowhere]))] == ["P1", "P2"]
    assert list(find_gaps(nowhere)) == []


def test_a_table_without_wells_has_no_plates() -> None:
    assert list(find_gaps(_table().drop(columns="experiment.well"))) == []

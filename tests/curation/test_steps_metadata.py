import numpy as np
import pytest

from morphem.curation.step import count_of
from morphem.curation.steps_metadata import CentralZPlanes, ControlWells, EvenlySpacedFrames, evenly_spaced
from morphem.errors import ConfigError, DataError
from tests.curation.plane_tables import image, kept, movie, names, stack, table


def _plate(n_negative: int, n_positive: int, n_treated: int, plate: str = "P1", n_fields: int = 2):
    kinds = ["negative"] * n_negative + ["positive"] * n_positive + ["no"] * n_treated
    return [
        image(f"{plate}-A{w:02d}-{f}", experiment__plate=plate, experiment__well=f"A{w:02d}", experiment__control=kind)
        for w, kind in enumerate(kinds, 1)
        for f in range(n_fields)
    ]


@pytest.mark.parametrize(
    ("n", "share", "expected"),
    [
        (10, 0.2, [4, 5]),
        (5, 0.2, [2]),
        (7, 0.2, [3]),
        (8, 0.2, [3, 4]),  # 1.6 is rounded to 2
        (3, 0.2, [1]),
        (1, 0.2, [0]),
        (2, 0.2, [0]),
        (15, 0.2, [6, 7, 8]),
        (5, 0.5, [1, 2, 3]),  # 2.5 is rounded up
        (4, 1.0, [0, 1, 2, 3]),
    ],
)
def test_the_central_share_of_a_stack_stays(n: int, share: float, expected: list[int]) -> None:
    planes = table(*stack("a", range(n)))
    assert kept(CentralZPlanes(share), planes) == [f"a-z{z}" for z in expected]


def test_the_middle_is_that_of_the_numbers_and_not_of_the_rows() -> None:
    planes = table(*stack("a", [10, 9, 2, 1, 30]))
    assert kept(CentralZPlanes(0.2), planes) == ["a-z9"]


def test_every_well_field_and_frame_has_a_stack_of_its_own() -> None:
    stacks = []
    for well in ("A01", "A02"):
        for fov in (1, 2):
            for t in (0, 1):
                keys = {"experiment__well": well, "microscopy__fov": fov, "geometry__timepoint": t}
                stacks += stack(f"{well}-{fov}-{t}", range(5), **keys)
    chosen = kept(CentralZPlanes(0.2), table(*stacks))
    assert chosen == [f"{well}-{fov}-{t}-z2" for well in ("A01", "A02") for fov in (1, 2) for t in (0, 1)]


def test_images_without_a_slice_number_stay_and_are_remarked() -> None:
    planes = table(*stack("a", range(5)), image("b", geometry__z_slice="all"), image("c"))
    assert kept(CentralZPlanes(0.2), planes) == ["a-z2", "b", "c"]
    assert CentralZPlanes(0.2).remark(planes) == (
        "central_z_planes: 2 of 7 images have no number in geometry.z_slice and were kept"
    )


def test_a_study_without_stacks_stays_whole_and_needs_no_remark() -> None:
    planes = table(image("a"), image("b"))
    assert kept(CentralZPlanes(0.2), planes) == ["a", "b"]
    assert CentralZPlanes(0.2).remark(planes) is None


def test_flat_images_that_all_call_their_slice_1_stay() -> None:
    planes = table(*(image(name, geometry__z_slice=1) for name in "abc"))
    assert kept(CentralZPlanes(0.2), planes) == ["a", "b", "c"]


def test_stacks_without_wells_are_told_apart_by_their_files() -> None:
    planes = table(*stack("a", range(5)), *stack("b", range(10)))
    planes["file"] = planes["imaging.multi_channel_id"].str[0] + ".ome.tif"
    assert kept(CentralZPlanes(0.2), planes) == ["a-z2", "b-z4", "b-z5"]


def test_stacks_of_one_file_are_told_apart_by_their_series() -> None:
    planes = table(*stack("a", range(5), series=0), *stack("b", range(5), series=1))
    planes["file"] = "all.lif"
    assert kept(CentralZPlanes(0.2), planes) == ["a-z2", "b-z2"]


def test_stacks_that_nothing_tells_apart_are_an_error() -> None:
    planes = table(*stack("a", range(5)), *stack("b", range(5)))  # a file per plane and no wells
    with pytest.raises(DataError, match=r"cannot tell which images belong together: 'a-z0', 'a-z1' and 8 more"):
        kept(CentralZPlanes(0.2), planes)


def test_a_column_of_the_user_tells_stacks_apart() -> None:
    planes = table(*stack("a", range(5), organoid="1"), *stack("b", range(5), organoid="2"))
    assert kept(CentralZPlanes(0.2, by=["organoid"]), planes) == ["a-z2", "b-z2"]
    with pytest.raises(
        ConfigError, match=r"central_z_planes\.by names the column 'organoids'.*did you mean 'organoid'"
    ):
        kept(CentralZPlanes(0.2, by=["organoids"]), planes)


@pytest.mark.parametrize("length", range(1, 40))
@pytest.mark.parametrize("count", [1, 2, 3, 7, 10])
def test_places_are_even_and_have_both_ends(length: int, count: int) -> None:
    if count > length:
        return
    places = evenly_spaced(length, count)
    assert len(set(places)) == count
    if count > 1:
        exact = np.linspace(0, length - 1, count)
        assert np.abs(np.array(places) - exact).max() <= 0.5
        assert (places[0], places[-1]) == (0, length - 1)


def test_frames_are_spaced_evenly_by_their_number() -> None:
    planes = table(*movie("a", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10]), *movie("b", [4, 8], experiment__well="A02"))
    assert kept(EvenlySpacedFrames(3), planes) == ["a-t0", "a-t5", "a-t10", "b-t4", "b-t8"]
    assert kept(EvenlySpacedFrames(1), planes) == ["a-t5", "b-t4"]


def test_all_slices_of_a_movie_of_stacks_keep_the_same_frames() -> None:
    planes = table(
        *(image(f"t{t}z{z}", geometry__timepoint=t, geometry__z_slice=z) for t in range(5) for z in range(2))
    )
    assert kept(EvenlySpacedFrames(2), planes) == ["t0z0", "t0z1", "t4z0", "t4z1"]


def test_a_share_of_each_kind_of_control_stays_on_every_plate() -> None:
    planes = table(*_plate(8, 2, 3), *_plate(4, 1, 2, "P2"))
    chosen = kept(ControlWells(0.25), planes)
    wells = planes.drop_duplicates("imaging.multi_channel_id").set_index("imaging.multi_channel_id").loc[chosen]
    counts = wells.groupby(["experiment.plate", "experiment.control"])["experiment.well"].nunique().to_dict()
    assert counts == {
        ("P1", "negative"): 2,
        ("P1", "positive"): 1,
        ("P1", "no"): 3,
        ("P2", "negative"): 1,
        ("P2", "positive"): 1,
        ("P2", "no"): 2,
    }
    assert len(chosen) == 2 * 10  # whole wells: both fields of each


def test_the_lot_of_a_well_depends_on_no_row_order_and_no_other_plate() -> None:
    first, second = _plate(8, 0, 1), _plate(8, 0, 1, "P2")
    both = set(kept(ControlWells(0.5), table(*second, *reversed(first)), seed=3))
    alone = set(kept(ControlWells(0.5), table(*first), seed=3))
    assert alone == {name for name in both if name.startswith("P1")}


def test_another_seed_draws_other_wells() -> None:
    planes = table(*_plate(16, 0, 0))
    draws = {tuple(kept(ControlWells(0.5), planes, seed=seed)) for seed in range(5)}
    assert len(draws) == 5


def test_no_well_is_favoured_by_the_lot() -> None:
    planes = table(*_plate(4, 0, 0, n_fields=1))
    counts = dict.fromkeys(names(planes), 0)
    for seed in range(60):
        for name in kept(ControlWells(0.25), planes, seed=seed):
            counts[name] += 1
    assert sum(counts.values()) == 60
    assert min(counts.values()) > 4  # 15 expected, standard deviation 3.4


def test_controls_without_a_well_stay_and_are_remarked() -> None:
    planes = table(image("a", experiment__control="negative"), image("b", experiment__control="no"))
    assert kept(ControlWells(0.5), planes) == ["a", "b"]
    assert ControlWells(0.5).remark(planes) == "control_wells: 1 images of controls have no well and were kept"
    assert "no image is marked as a control" in str(ControlWells(0.5).remark(table(image("a"))))


@pytest.mark.parametrize(
    ("share", "total", "expected"), [(0.2, 5, 1), (0.29, 50, 15), (0.5, 1, 1), (0.1, 4, 1), (1.0, 7, 7), (0.3, 0, 0)]
)
def test_shares_are_rounded_half_up_and_leave_at_least_one(share: float, total: int, expected: int) -> None:
    assert count_of(share, total) == expected


@pytest.mark.parametrize("share", [0, -0.1, 1.1, "0.2", True, None])
def test_a_share_is_above_0_and_at_most_1(share: object) -> None:
    with pytest.raises(ConfigError, match=r"central_z_planes\.share is .* above 0 and at most 1"):
        CentralZPlanes(share)  # type: ignore[arg-type]


def test_counts_are_whole_numbers() -> None:
    with pytest.raises(ConfigError, match=r"evenly_spaced_frames\.count is 2\.5; it must be a whole number"):
        EvenlySpacedFrames(2.5)  # type: ignore[arg-type]

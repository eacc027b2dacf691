from pathlib import Path

import numpy as np
import pytest

from morphem.cells.classical import ClassicalCells, centres_of, foreground_share
from morphem.errors import ChannelError, ConfigError
from tests.cells.images import discs, record

SPREAD = [(20, 20), (60, 30), (100, 90), (140, 50), (30, 100)]


def nearest(found: np.ndarray, wanted: list[tuple[int, int]]) -> np.ndarray:
    """Distance of each wanted point to the nearest found one."""
    return np.array([min(np.hypot(*(np.array(point) - other)) for other in found) for point in wanted])


@pytest.mark.parametrize("threshold", ["otsu", "adaptive"])
def test_each_disc_is_a_cell_with_its_centre(threshold: str) -> None:
    cells = ClassicalCells(threshold=threshold).find(record([discs(SPREAD, 9)], ["nucleus"]))
    assert cells is not None
    assert len(cells.centres) == len(SPREAD)
    assert nearest(cells.centres, SPREAD).max() <= 1
    assert cells.centres.dtype == np.int32


def test_touching_discs_are_parted() -> None:
    touching = [(40, 40), (58, 40), (49, 56), (120, 80), (136, 80)]
    centres = centres_of(ClassicalCells().segment(discs(touching, 10)))
    assert len(centres) == len(touching)
    assert nearest(centres, touching).max() <= 3


def test_a_textured_cell_stays_one() -> None:
    plane = discs([(80, 60)], 30).astype(float)
    y, x = np.mgrid[:120, :160]
    plane[(x - 80) ** 2 + (y - 60) ** 2 <= 900] *= 1 + 0.3 * np.random.default_rng(1).normal(size=2821).clip(-2, 2)
    assert len(centres_of(ClassicalCells().segment(plane))) == 1


@pytest.mark.parametrize("threshold", ["otsu", "adaptive"])
@pytest.mark.parametrize("plane", [np.random.default_rng(2).normal(500, 30, (100, 100)), np.full((100, 100), 7.0)])
def test_noise_and_a_flat_plane_have_no_cells(plane: np.ndarray, threshold: str) -> None:
    assert not ClassicalCells(threshold=threshold).segment(plane).any()


def test_objects_of_the_wrong_size_are_no_cells() -> None:
    plane = np.maximum(discs([(20, 20), (60, 30)], 5), discs([(110, 70)], 30))
    assert nearest(centres_of(ClassicalCells(min_diameter_px=20).segment(plane)), [(110, 70)]).max() <= 2
    assert len(centres_of(ClassicalCells(min_diameter_px=20).segment(plane))) == 1
    small = centres_of(ClassicalCells(min_diameter_px=6, max_diameter_px=20, diameter_px=10).segment(plane))
    assert nearest(small, [(20, 20), (60, 30)]).max() <= 1


def test_adaptive_finds_cells_under_uneven_light() -> None:
    plane = discs(SPREAD, 9, level=1500) + np.linspace(0, 3000, 160)[None, :]
    assert len(centres_of(ClassicalCells(threshold="otsu").segment(plane))) != len(SPREAD)
    centres = centres_of(ClassicalCells(threshold="adaptive", diameter_px=18).segment(plane))
    assert len(centres) == len(SPREAD)
    assert nearest(centres, SPREAD).max() <= 2


def test_adaptive_finds_a_dim_cell_beside_a_bright_one() -> None:
    plane = np.maximum(discs([(40, 60)], 9, level=4000), discs([(110, 60)], 9, level=900))
    assert len(centres_of(ClassicalCells(threshold="otsu").segment(plane))) == 1
    assert len(centres_of(ClassicalCells(threshold="adaptive").segment(plane))) == 2


def test_dark_cells_are_found_where_asked_for() -> None:
    plane = 5000 - discs(SPREAD, 9).astype(np.int32)
    assert len(centres_of(ClassicalCells(darker=True).segment(plane))) == len(SPREAD)


def test_the_first_channel_type_that_an_image_has_is_taken() -> None:
    empty, full = np.full((120, 160), 300, np.uint16), discs(SPREAD, 9)
    image = record([empty, full], ["actin", "cell body"])
    finder = ClassicalCells(channel=("DAPI", "cytoplasm", "actin"))  # aliases are channel types too
    cells = finder.find(image)
    assert cells is not None
    assert len(cells.centres) == len(SPREAD)


def test_an_image_without_the_channel_was_not_looked_at() -> None:
    assert ClassicalCells().find(record([discs(SPREAD, 9)], ["actin"])) is None


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ChannelError, match="No channel type 'nucleos'"):
        ClassicalCells(channel="nucleos")
    with pytest.raises(ConfigError, match="max_diameter_px is 5; it must be 8 or more"):
        ClassicalCells(max_diameter_px=5)
    with pytest.raises(ConfigError, match="threshold is 'li'"):
        ClassicalCells(threshold="li")  # type: ignore[arg-type]


def test_the_same_cells_are_found_whenever_asked() -> None:
    plane = discs(SPREAD, 9)
    assert np.array_equal(ClassicalCells().segment(plane), ClassicalCells().segment(plane.copy()))


def test_foreground_share_is_the_share_above_otsu() -> None:
    plane = np.zeros((10, 20), np.uint8)
    plane[:3] = 200
    assert foreground_share(plane) == pytest.approx(0.3)
    assert foreground_share(np.full((4, 4), 9)) == 0


def test_nuclei_of_real_images_are_found(real_data: Path) -> None:
    import tifffile

    plane = tifffile.imread(next((real_data / "moffat-human" / "images").glob("*d0.*")))
    count = len(centres_of(ClassicalCells().segment(plane)))
    assert 290 <= count <= 330  # in a picture of the centres each nucleus has one, but for a few in clumps


@pytest.mark.slow
def test_nuclei_that_real_masks_outline_are_found(real_data: Path) -> None:
    from scipy.optimize import linear_sum_assignment

    from morphem.sources.sheet import SheetSource

    outlined = matched = 0
    for image in SheetSource(str(real_data / "nf1-schwann")).images():
        found = ClassicalCells().find(image)
        assert found is not None
        assert image.cells is not None
        distance = np.linalg.norm(image.cells[:, None].astype(float) - found.centres[None], axis=-1)
        matched += int((distance[linear_sum_assignment(distance)] < 15).sum())
        outlined += len(image.cells)
    assert matched >= 0.93 * outlined  # the masks join some nuclei that touch, so not all can match

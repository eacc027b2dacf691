import numpy as np
import pytest

from morphem.data.pixel_kinds import check_range, to_kind
from morphem.errors import DataError

COUNTS = np.array([[0, 100, 350, 600, 65535]], np.uint16)


def test_intensities_become_what_an_encoder_was_made_for() -> None:
    seen = {kind: to_kind(COUNTS, kind, 100.0, 600.0, "p") for kind in ("levels", "counts", "stretched", "unit")}
    assert seen["counts"].tolist() == COUNTS.tolist()
    assert seen["levels"].tolist() == [[0, 0, 128, 255, 255]]  # half to even: 127.5 is 128
    assert seen["stretched"].tolist() == [[0, 0, 32768, 65535, 65535]]
    np.testing.assert_allclose(seen["unit"], [[0, 0, 0.5, 1, 1]])
    assert [seen[kind].dtype.name for kind in seen] == ["uint8", "uint16", "uint16", "float32"]


def test_levels_reach_the_full_range_of_another_kind() -> None:
    levels = np.array([[0, 51, 255]], np.uint8)
    assert to_kind(levels, "levels", 3.0, 9.0, "p") is levels
    assert to_kind(levels, "stretched", 3.0, 9.0, "p").tolist() == [[0, 51 * 257, 65535]]
    np.testing.assert_allclose(to_kind(levels, "unit", 3.0, 9.0, "p"), [[0, 0.2, 1]])


def test_a_plane_of_one_value_is_black() -> None:
    flat = np.full((2, 2), 7, np.uint16)
    for kind in ("levels", "stretched", "unit"):
        assert not to_kind(flat, kind, 7.0, 7.0, "p").any()


def test_levels_are_no_intensities() -> None:
    with pytest.raises(DataError, match=r"p: the shards hold 8-bit levels.*--bit-depth 16.*--pixels stretched"):
        to_kind(np.zeros((1, 1), np.uint8), "counts", 0.0, 1.0, "p")
    with pytest.raises(DataError, match="The shards hold 8-bit levels"):
        check_range("counts", np.array([900.0]), 8)


def test_8_bit_numbers_in_16_bit_files_are_named_and_refused() -> None:
    with pytest.raises(DataError, match=r"brightest pixels of these images are 255.*see as black.*--pixels stretched"):
        check_range("counts", np.array([200.0, 255.0]), 16)


def test_12_bit_numbers_are_remarked() -> None:
    assert "as a 12-bit camera gives them" in (check_range("counts", np.array([200.0, 4095.0]), 16) or "")
    assert check_range("counts", np.array([200.0, 40000.0]), 16) is None
    assert check_range("levels", np.array([200.0]), 8) is None


def test_planes_without_limits_are_refused_where_limits_are_needed() -> None:
    with pytest.raises(DataError, match="no clip limits"):
        to_kind(COUNTS, "stretched", float("nan"), 1.0, "p")

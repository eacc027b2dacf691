import numpy as np
import pytest

from morphem.curation.duplicates import NearDuplicates, directions, first_of_each
from morphem.errors import ConfigError


def _plain(points: np.ndarray, similarity: float) -> list[bool]:
    """The rule again, image by image."""
    stays: list[int] = []
    for i, point in enumerate(points):
        if all(float(point @ points[j]) < similarity for j in stays):
            stays.append(i)
    return [i in stays for i in range(len(points))]


def _unit(points: np.ndarray) -> np.ndarray:
    return points / np.linalg.norm(points, axis=1, keepdims=True)


@pytest.mark.parametrize("block", [1, 3, 7, 64, 1000])
@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_blocks_give_what_a_plain_loop_gives(block: int, similarity: float) -> None:
    points = _unit(np.random.default_rng(0).normal(size=(120, 3)))
    assert first_of_each(points, similarity, block).tolist() == _plain(points, similarity)


def test_the_first_of_each_group_stays() -> None:
    a, b, c = np.eye(3)
    features = np.array([a, b, a, c, b, a]) + 5.0  # what they have in common is taken away
    assert NearDuplicates(0.99).keep(None, features, 0).tolist() == [True, True, False, True, False, False]


def test_of_a_series_in_which_each_resembles_the_next_some_stay() -> None:
    angles = np.linspace(0, np.pi, 19)  # ten degrees apart
    points = np.stack([np.cos(angles), np.sin(angles)], 1)
    stays = first_of_each(points, np.cos(np.radians(25)))
    assert np.flatnonzero(stays).tolist() == [0, 3, 6, 9, 12, 15, 18]


def test_every_image_that_goes_has_one_like_it_that_stays() -> None:
    points = _unit(np.random.default_rng(1).normal(size=(300, 4)))
    stays = first_of_each(points, 0.9, block=32)
    nearest = (points[~stays] @ points[stays].T).max(axis=1)
    among = points[stays] @ points[stays].T - 2 * np.eye(int(stays.sum()))
    assert nearest.min() >= 0.9
    assert among.max() < 0.9


def test_equal_images_are_alike_at_a_similarity_of_1() -> None:
    features = np.random.default_rng(2).normal(size=(20, 50)).astype(np.float32)
    features[10:] = features[:10]
    assert NearDuplicates(1.0).keep(None, features, 0).tolist() == [True] * 10 + [False] * 10


def test_a_study_of_one_picture_keeps_one_image() -> None:
    assert NearDuplicates().keep(None, np.full((5, 3), 0.3, np.float32), 0).tolist() == [True] + [False] * 4


def test_a_similarity_above_1_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"near_duplicates\.similarity is 1\.5; it must be a number from 0 to 1"):
        NearDuplicates(1.5)


def test_directions_are_centred_and_of_length_1_and_the_mean_is_zero() -> None:
    features = np.array([[3.0, 1], [1, 1], [2, 1]], np.float32)
    assert directions(features, "s").tolist() == [[1, 0], [-1, 0], [0, 0]]
    assert not directions(np.full((4, 3), 0.1, np.float32), "s").any()

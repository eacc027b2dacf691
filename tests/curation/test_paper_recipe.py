"""The shipped recipe, after CHAMMI-75, on made-up studies: how many images each step removes, number for number."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from morphem.curation import Recipe, Selection, table_of
from tests.curation.plane_tables import image, movie, names, stack, table

RECIPE = Path(__file__).resolve().parents[2] / "configs" / "curate.yaml"


def _stacks() -> pd.DataFrame:
    """2 plates x 3 wells x 2 fields x 12 slices: 144 images, of which every stack keeps slices 5 and 6."""
    rows: list[Any] = []
    for plate in ("P1", "P2"):
        for well in ("A01", "A02", "B01"):
            for fov in ("1", "2"):
                keys = {"experiment__plate": plate, "experiment__well": well, "microscopy__fov": fov}
                rows += stack(f"{plate}-{well}-{fov}", range(1, 13), experiment__control="no", **keys)
    return table(*rows)


def _movies() -> pd.DataFrame:
    """4 wells of 37 frames and one of 8: 156 images, of which 4 x 10 + 8 stay."""
    rows: list[Any] = []
    for well in ("A01", "A02", "A03", "A04"):
        rows += movie(well, range(37), experiment__well=well)
    return table(*rows, *movie("A05", range(8), experiment__well="A05"))


def _plates() -> pd.DataFrame:
    """2 plates x (8 negative and 2 positive controls, 6 treated wells) x 3 fields: 96 images, 54 after the controls."""
    kinds = ["negative"] * 8 + ["positive"] * 2 + ["no"] * 6
    return table(
        *(
            image(
                f"{plate}-{w:02d}-{fov}",
                experiment__plate=plate,
                experiment__well=f"C{w:02d}",
                experiment__control=kind,
                microscopy__fov=fov,
            )
            for plate in ("P1", "P2")
            for w, kind in enumerate(kinds, 1)
            for fov in range(3)
        )
    )


def _dark() -> pd.DataFrame:
    """40 images of which 6 are dark in one channel and 2 in both; no wells, no stacks, no frames."""
    return table(*(image(f"f{k}") for k in range(40)))


def _copies() -> pd.DataFrame:
    """30 images, of which 9 are copies of three others."""
    return table(*(image(f"f{k}") for k in range(30)))


STUDIES = {"stacks": _stacks, "movies": _movies, "plates": _plates, "dark": _dark, "copies": _copies}

# study, step, images before, removed, after
EXPECTED = [
    ["stacks", "central_z_planes", 144, 120, 24],  # 12 stacks of 12; 20 % is 2.4, so 2 stay of each
    ["stacks", "evenly_spaced_frames", 24, 0, 24],
    ["stacks", "control_wells", 24, 0, 24],
    ["stacks", "intensity", 24, 0, 24],
    ["stacks", "near_duplicates", 24, 0, 24],
    ["stacks", "clusters", 24, 12, 12],
    ["movies", "central_z_planes", 156, 0, 156],
    ["movies", "evenly_spaced_frames", 156, 108, 48],  # 10 of 37 in four movies, all 8 of one
    ["movies", "control_wells", 48, 0, 48],
    ["movies", "intensity", 48, 0, 48],
    ["movies", "near_duplicates", 48, 0, 48],
    ["movies", "clusters", 48, 24, 24],
    ["plates", "central_z_planes", 96, 0, 96],
    ["plates", "evenly_spaced_frames", 96, 0, 96],
    ["plates", "control_wells", 96, 42, 54],  # per plate 6 of 8 negative and 1 of 2 positive wells of 3 fields go
    ["plates", "intensity", 54, 0, 54],
    ["plates", "near_duplicates", 54, 0, 54],
    ["plates", "clusters", 54, 27, 27],
    ["dark", "central_z_planes", 40, 0, 40],
    ["dark", "evenly_spaced_frames", 40, 0, 40],
    ["dark", "control_wells", 40, 0, 40],
    ["dark", "intensity", 40, 8, 32],
    ["dark", "near_duplicates", 32, 0, 32],
    ["dark", "clusters", 32, 16, 16],
    ["copies", "central_z_planes", 30, 0, 30],
    ["copies", "evenly_spaced_frames", 30, 0, 30],
    ["copies", "control_wells", 30, 0, 30],
    ["copies", "intensity", 30, 0, 30],
    ["copies", "near_duplicates", 30, 9, 21],
    ["copies", "clusters", 21, 10, 11],  # 10.5 that stay are rounded up
]


def _measured(study: str, planes: pd.DataFrame) -> pd.DataFrame:
    """The table with means: even levels from 100 to 120, and dark planes where the study has them."""
    means = np.resize(np.linspace(100, 120, 21), len(planes))
    if study == "dark":
        means[[2 * k for k in range(6)]] = 20.0  # the first channel of f0 to f5
        means[[40, 41, 42, 43]] = 10.0  # both of f20 and f21
    return planes.assign(**{"quality.mean": means})


def _features(study: str, n_images: int) -> np.ndarray:
    """Features of which no two are alike, but for the copies: f21 to f29 are f0, f1, f2, f0, ... with some noise."""
    generator = np.random.default_rng(len(study))
    features = generator.normal(size=(n_images, 64)) + 20
    if study == "copies":
        features[21:] = features[[0, 1, 2] * 3] + generator.normal(0, 0.01, (9, 64))
    return features


def _curate(study: str, recipe: Recipe) -> Selection:
    """As ingest does: metadata first, pixels of what is left."""
    planes = STUDIES[study]()
    first = recipe.before_pixels.apply(study, planes)
    left = _measured(study, planes[planes["imaging.multi_channel_id"].isin(first.kept)])
    second = recipe.after_pixels.apply(study, left, _features(study, len(first.kept)))
    return first.then(second)


@pytest.fixture(scope="module")
def selections() -> dict[str, Selection]:
    recipe = Recipe.read(RECIPE)
    return {study: _curate(study, recipe) for study in STUDIES}


def test_the_table_of_counts_is_right(selections: dict[str, Selection]) -> None:
    assert table_of(selections.values()).to_numpy().tolist() == EXPECTED


def test_every_image_is_kept_or_removed_once(selections: dict[str, Selection]) -> None:
    for study, selection in selections.items():
        removed = [name for names_of_step in selection.removed.values() for name in names_of_step]
        assert sorted(removed + selection.kept) == sorted(names(STUDIES[study]()))
        assert selection.kept == [name for name in names(STUDIES[study]()) if name in set(selection.kept)]


def test_the_right_images_go(selections: dict[str, Selection]) -> None:
    assert {name.rsplit("-", 1)[1] for name in selections["stacks"].kept} <= {"z6", "z7"}
    frames = {name for name in names(_movies()) if name not in selections["movies"].removed["evenly_spaced_frames"]}
    assert {name for name in frames if name.startswith("A01")} == {f"A01-t{t}" for t in range(0, 37, 4)}
    gone = [name.split("-")[:2] for name in selections["plates"].removed["control_wells"]]
    assert all(int(well) <= 10 for _, well in gone)
    assert selections["dark"].removed["intensity"] == ["f0", "f1", "f2", "f3", "f4", "f5", "f20", "f21"]
    assert selections["copies"].removed["near_duplicates"] == [f"f{k}" for k in range(21, 30)]


def test_the_recipe_is_seeded(selections: dict[str, Selection]) -> None:
    recipe = Recipe.read(RECIPE)
    assert {study: _curate(study, recipe) for study in STUDIES} == selections
    other = Recipe(recipe.steps, seed=1)
    assert _curate("plates", other).kept != selections["plates"].kept
    assert _curate("plates", other).counts.equals(selections["plates"].counts)


@pytest.mark.parametrize("hierarchical", [False, True])
def test_content_is_balanced_where_clusters_are_larger_than_what_is_drawn(hierarchical: bool) -> None:
    plain = Recipe.read(RECIPE).to_dict()
    levels = {"n_clusters": [3, 2], "hierarchical": True, "nearest": [5, 1]} if hierarchical else {"n_clusters": 3}
    plain["steps"][-1] |= {"share": 0.2, **levels}
    sizes = [70, 20, 10]
    content = np.repeat([0, 1, 2], sizes)
    planes = _measured("crowded", table(*(image(f"c{kind}-{k}") for k, kind in enumerate(content))))
    features = np.random.default_rng(0).normal(0, 0.1, (100, 16)) + np.array([0.0, 10.0, 100.0])[content][:, None]
    plain["steps"][-2]["similarity"] = 1.0  # the kinds of content differ far more than the images of a kind
    selection = Recipe.from_dict(plain).apply("crowded", planes, features)
    assert selection.counts["after"].tolist() == [100, 100, 100, 100, 100, 20]
    kept = Counter(name[:2] for name in selection.kept)
    # flat: 6 of each and two more; with levels: 10 of the far kind alone, and 5 of each of the two that are near
    assert sorted(kept.values()) == ([5, 5, 10] if hierarchical else [6, 7, 7])
    assert not hierarchical or kept["c2"] == 10

"""Similarity of studies: distances, recognition without the image itself, views and their picture, missing UMAP."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from morphem.benchmarks import embedding_view as views
from morphem.benchmarks.base import Inputs, make_table, take
from morphem.benchmarks.data_similarity import DataSimilarity, halves
from morphem.errors import ConfigError, DataError

HAS_UMAP = importlib.util.find_spec("umap") is not None


def _studies(centres: np.ndarray, images: int = 10, noise: float = 1.0) -> Inputs:
    random = np.random.default_rng(0)
    names = [f"study{i}" for i in range(len(centres)) for _ in range(images)]
    values = np.repeat(centres, images, axis=0) + noise * random.normal(size=(len(names), centres.shape[1]))
    return Inputs({"table": make_table(values, pd.DataFrame({"Metadata_Study": names}))})


@pytest.fixture(scope="module")
def line() -> Inputs:
    """Four studies on a line: two near each other, one further, one far."""
    centres = np.zeros((4, 6))
    centres[:, 0] = [0, 3, 10, 40]
    centres[:, 1] = 5
    return _studies(centres)


def test_distances_are_those_of_mean_features(line: Inputs) -> None:
    found = DataSimilarity("euclidean").score(line)
    table = line.table
    for i in range(4):
        for j in range(4):
            a, b = (table.values[table.metadata["Metadata_Study"] == f"study{k}"].astype(float) for k in (i, j))
            expected = sum((x - y) ** 2 for x, y in zip(a.mean(0), b.mean(0), strict=True)) ** 0.5
            assert found.details["distance"][i][j] == pytest.approx(expected, abs=1e-6)
    apart = [found.details["distance"][i][j] for i in range(4) for j in range(4) if i != j]
    assert found.values["mean_distance"] == pytest.approx(np.mean(apart))


def test_near_studies_are_named_and_stand_side_by_side(line: Inputs) -> None:
    found = DataSimilarity("euclidean").score(line)
    assert found.details["nearest"] == {"study0": "study1", "study1": "study0", "study2": "study1", "study3": "study2"}
    order = found.details["order"]
    assert abs(order.index(0) - order.index(1)) == 1
    assert order.index(3) in (0, 3)


def test_own_halves_are_nearer_than_other_studies(line: Inputs) -> None:
    found = DataSimilarity("euclidean").score(line)
    assert found.values["mean_own_distance"] < 1.5 < found.values["mean_distance"]


def test_an_image_never_meets_a_mean_that_it_is_part_of() -> None:
    """Two images a study, each its own direction: a mean with the image in it would recognise it."""
    values = np.eye(20)
    metadata = pd.DataFrame({"Metadata_Study": [f"s{i // 2}" for i in range(20)]})
    found = DataSimilarity("euclidean").score(Inputs({"table": make_table(values, metadata)}))
    assert found.values["recognised"] < 0.4


def test_halves_are_equal_and_drawn_anew_by_seed() -> None:
    studies = np.repeat([0, 1, 2], [10, 7, 2])
    half = halves(studies, 0)
    assert [int(half[studies == i].sum()) for i in range(3)] == [5, 3, 1]
    assert (halves(studies, 0) == half).all()
    assert (halves(studies, 1) != half).any()


def test_a_picture_shows_every_study_in_its_place(line: Inputs, tmp_path: Path) -> None:
    path = tmp_path / "studies.png"
    found = DataSimilarity(view="pca", picture=str(path), max_per_study=5).score(line)
    assert found.details["view"]["method"] == "pca"
    assert len(found.details["view"]["xy"]) == 20
    assert "first two principal components" in found.notes[0]
    picture = np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)
    for color in views._COLORS[:4]:
        wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture.astype(int) - wanted).sum(1) == 0).sum() > 50


def test_principal_components_are_those_of_scikit_learn_up_to_a_fixed_sign() -> None:
    from sklearn.decomposition import PCA

    values = np.random.default_rng(0).normal(size=(30, 5)) * [5, 3, 1, 1, 1]
    found = views.principal_components(values, 2)
    np.testing.assert_allclose(np.abs(found), np.abs(PCA(2).fit_transform(values)), atol=1e-9)
    np.testing.assert_allclose(views.principal_components(values[::-1], 2)[::-1], found, atol=1e-9)


def test_without_umap_auto_says_what_it_took_and_umap_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(views.importlib.util, "find_spec", lambda name: None)
    values = np.random.default_rng(0).normal(size=(10, 4))
    assert views.embedding_view(values).method == "pca"
    assert "UMAP is not installed ('morphem[umap]')" in views.embedding_view(values).note
    with pytest.raises(ConfigError, match=r"install 'morphem\[umap\]', or take view=pca"):
        views.embedding_view(values, "umap")


@pytest.mark.slow
@pytest.mark.skipif(not HAS_UMAP, reason="umap-learn is not installed ('morphem[umap]')")
def test_umap_keeps_far_studies_apart_and_is_the_same_again(line: Inputs) -> None:
    first, again = (views.embedding_view(line.table.values, "umap", seed=3, n_neighbors=8) for _ in range(2))
    np.testing.assert_array_equal(first.xy, again.xy)
    assert "8 neighbours" in first.note
    labels = line.table.metadata["Metadata_Study"].to_numpy()
    centres = {name: first.xy[labels == name].mean(0) for name in np.unique(labels)}
    spread = np.linalg.norm(first.xy[labels == "study3"] - centres["study3"], axis=1).max()
    assert min(np.linalg.norm(centres["study3"] - centres[name]) for name in ("study0", "study1", "study2")) > spread


def test_bad_tables_and_settings_are_refused(line: Inputs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="view='tsne' is one of none, auto, umap, pca"):
        DataSimilarity(view="tsne")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="picture needs a view"):
        DataSimilarity(picture="x.png")
    with pytest.raises(ConfigError, match=r"has to end in \.png"):
        DataSimilarity(view="pca", picture=str(tmp_path / "x.jpg")).score(line)
    with pytest.raises(ConfigError, match="does not exist; make it first"):
        DataSimilarity(view="pca", picture=str(tmp_path / "no" / "x.png")).score(line)
    with pytest.raises(DataError, match="study0 has one; add some"):
        DataSimilarity().score(Inputs({"table": take(line.table, [0, 10, 11, 20, 21])}))
    with pytest.raises(DataError, match="needs two classes"):
        DataSimilarity().score(Inputs({"table": take(line.table, np.arange(5))}))

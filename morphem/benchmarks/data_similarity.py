"""Data similarity: how alike the studies of a collection look to an encoder, and which of them are near each other.

Source: CHAMMI-75, appendix B.5 (mean features of studies and the distances between them).
Differs from it: the appendix shows distances alone, which have no scale of their own; here rows are divided into two
halves, so that what a study's rows vary by themselves stands beside how far it is from others.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.base import Benchmark, Column, FeatureRecipe, Inputs, Part, column, make_table, take
from morphem.benchmarks.bootstrap import generator, interval_of_mean
from morphem.benchmarks.embedding_view import METHODS, embedding_view, write_view
from morphem.benchmarks.metrics import class_numbers
from morphem.benchmarks.mixing import content_order
from morphem.benchmarks.neighbours import Ints
from morphem.benchmarks.retrieval import unit_rows
from morphem.benchmarks.score import Score
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

_STUDY = "Metadata_Study"
Doubles = NDArray[np.float64]


class DataSimilarity(Benchmark):
    """Data similarity: mean features of studies, the distances between them, and a view of all images.

    Args:
        variant: `cosine` or `euclidean` distances of mean features.
        seed: Of halves, sampling, intervals and UMAP.
        view: Positions of images in two dimensions, in the details: `none`, `umap` (needs the extra `umap`), `pca`, or
            `auto`, which takes UMAP where it is installed and says what it took.
        picture: File ending in `.png` that the view is drawn to; none where not given.
        max_per_study: Images of a study that the view shows, drawn at random, at least 3; means use all.

    Raises:
        ConfigError: If a setting is none of its values or out of range.
    """

    protocol_version = 1
    title = "Data similarity: which studies of a collection look alike"
    measures = (
        "Every study (one laboratory, microscope and assay) has a mean feature vector. Distances between these means "
        "tell which studies look alike to the encoder and which stand alone, so which would add something new to a "
        "training set. The score tells how well a study can be recognised at all: images of one half are named after "
        "the nearest mean of the other halves."
    )
    reading = (
        "The share of images named after their own study: 1 means that every study has a look of its own, 1 / studies "
        "that none has. It is no quality of an encoder: an encoder that ignores microscopes but keeps biology scores "
        "lower. A distance between two studies below their own halves' distance means that they cannot be told apart."
    )
    source = "CHAMMI-75, appendix B.5"
    parts = (
        Part(
            "table",
            "one row per image (or cell, or well) of several studies, embedded with the same channels for all",
            (Column(_STUDY, "study", ("Metadata_study", "Metadata_Source", "Metadata_label")),),
            recipe=FeatureRecipe(
                unit="image",
                combine="mean",
                differs=("features are means over channels, so that studies of different channels can be compared",),
            ),
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "recognised": "mean over studies of the share of images nearest to their own study's mean (of the other half)",
        "mean_distance": "mean distance of two studies' means",
        "mean_own_distance": "mean distance of the means of a study's two halves, the least that can be expected",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "cosine": "1 - cosine of mean features; our choice, as the appendix publishes no numbers that could be matched",
        "euclidean": "Euclidean distance of mean features",
    }
    interval_unit = "data set"
    lower_is_better = frozenset({"mean_own_distance"})
    biology = _STUDY
    tiny_finds = 0.8
    tiny_null = 0.4

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        view: Literal["none", "auto", "umap", "pca"] = "none",
        picture: str | None = None,
        max_per_study: int = 200,
    ) -> None:
        super().__init__(variant, seed)
        if view not in ("none", *METHODS) or max_per_study < 3:
            raise ConfigError(
                f"data_similarity: view='{view}' is one of none, {', '.join(METHODS)}, and max_per_study="
                f"{max_per_study} at least 3."
            )
        if picture is not None and view == "none":
            raise ConfigError("data_similarity: picture needs a view; set view to auto, umap or pca.")
        self.view = view
        self.picture = picture
        self.max_per_study = max_per_study

    def score(self, inputs: Inputs) -> Score:
        """Compare the studies."""
        table = take(inputs.table, content_order(inputs.table, (_STUDY,)))
        studies, names = class_numbers(column(table, _STUDY), "data_similarity, studies")
        counts = np.bincount(studies)
        if counts.min() < 2:
            few = ", ".join(names[i] for i in np.flatnonzero(counts < 2)[:5])
            raise DataError(f"data_similarity: a study needs two images, but {few} has one; add some, or leave it out.")
        values = table.values.astype(np.float64)
        half = halves(studies, self.seed)
        means = [study_means(values[half == side], studies[half == side], len(names)) for side in (0, 1)]
        hits = np.zeros(len(studies))
        for side in (0, 1):
            rows = half == side
            told = self._distances(values[rows], means[1 - side]).argmin(1)
            hits[rows] = told == studies[rows]
        by_study = np.bincount(studies, weights=hits) / counts
        distance = self._distances(*[study_means(values, studies, len(names))] * 2)
        own = np.diag(self._distances(means[0], means[1]))
        apart = distance[~np.eye(len(names), dtype=bool)]
        nearest = np.where(np.eye(len(names), dtype=bool), np.inf, distance).argmin(1)
        details: dict[str, Any] = {
            "studies": names,
            "distance": distance,
            "order": _leaf_order(distance),
            "own_distance": dict(zip(names, own.tolist(), strict=True)),
            "recognised": dict(zip(names, by_study.tolist(), strict=True)),
            "nearest": {name: names[near] for name, near in zip(names, nearest, strict=True)},
        }
        notes: list[str] = []
        if self.view != "none":
            details["view"], note = self._view(table, studies, names)
            notes.append(note)
        return Score(
            values={
                "recognised": float(by_study.mean()),
                "mean_distance": float(apart.mean()),
                "mean_own_distance": float(own.mean()),
            },
            details=details,
            intervals={"recognised": interval_of_mean(by_study, self.interval_unit, seed=self.seed)},
            rules={
                "distance": self.variants[self.variant],
                "split": "two random halves of every study; an image is compared with means that it is not part of",
            },
            counts={"images": len(studies), "studies": len(names)},
            notes=tuple(notes),
        )

    def _distances(self, rows: Doubles, means: Doubles) -> Doubles:
        """Return the distances of rows and means, (R, S)."""
        if self.variant == "cosine":
            return np.asarray(1 - unit_rows(rows) @ unit_rows(means).T, np.float64)
        from scipy.spatial.distance import cdist

        return np.asarray(cdist(rows, means), np.float64)

    def _view(self, table: FeatureTable, studies: Ints, names: list[str]) -> tuple[dict[str, Any], str]:
        rows = few_of_each(studies, self.max_per_study, self.seed)
        view = embedding_view(table.values[rows], self.view, seed=self.seed)  # type: ignore[arg-type]
        labels = [names[i] for i in studies[rows]]
        if self.picture is not None:
            write_view(view, labels, self.picture, f"{len(rows)} images of {len(names)} studies")
        shown = {"method": view.method, "how": view.note, "study": labels, "xy": np.round(view.xy, 4)}
        return shown, f"view: {view.note}"

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Five studies of twenty images each; the effect is how much features tell studies."""
        metadata = pd.DataFrame({_STUDY: [f"study{i}" for i in range(5) for _ in range(20)]})
        return Inputs({"table": make_table(planted(list(metadata[_STUDY]), seed=seed, effect=effect), metadata)})


def halves(studies: Ints, seed: int) -> Ints:
    """Return 0 or 1 for every row, so that both halves of every study are of equal size (or differ by one), (R,).

    Args:
        studies: (R,).
        seed: Of the draw.
    """
    half = np.empty(len(studies), np.int64)
    for study in np.unique(studies):
        own = np.flatnonzero(studies == study)
        half[generator(seed, "halves", int(study)).permutation(own)] = np.arange(len(own)) % 2
    return half


def study_means(values: Doubles, studies: Ints, n_studies: int) -> Doubles:
    """Return the mean features of every study, (S, F).

    Args:
        values: (R, F).
        studies: (R,), each of 0 to S - 1 at least once.
        n_studies: S.
    """
    sums = np.zeros((n_studies, values.shape[1]))
    np.add.at(sums, studies, values)
    return np.asarray(sums / np.bincount(studies, minlength=n_studies)[:, None], np.float64)


def few_of_each(groups: Ints, count: int, seed: int) -> Ints:
    """Return at most `count` rows of every group, drawn without replacement, sorted.

    Args:
        groups: (R,).
        count: At least 1.
        seed: Of the draw.
    """
    rows = []
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        rows.append(generator(seed, "few", int(group)).choice(own, min(count, len(own)), replace=False))
    return np.sort(np.concatenate(rows)).astype(np.int64)


def _leaf_order(distance: Doubles) -> list[int]:
    """Return the studies in the order of the leaves of an average-linkage tree, so that like ones are side by side."""
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    symmetric = np.maximum((distance + distance.T) / 2, 0)
    np.fill_diagonal(symmetric, 0)
    return [int(i) for i in leaves_list(linkage(squareform(symmetric, checks=False), "average"))]

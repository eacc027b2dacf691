"""Batch and biology: how far profiles of several laboratories mix, and how far they still tell compounds apart.

Source: Arevalo et al. 2024, Nature Communications 15:6516 (the scores for profiles, scenario 2); Luecken et al. 2022,
Nature Methods 19:41 (scIB: definitions, weights 0.4 and 0.6); Korsunsky et al. 2019, Nature Methods 16:1289 (LISI);
Buettner et al. 2019, Nature Methods 16:43 (kBET).
Differs from scIB: neighbours are exact and Euclidean; kBET tests all rows together, not label by label, as its authors
did; clusters need the extra `leiden`, and the variant `without_clusters` does without.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.base import (
    Benchmark,
    Column,
    FeatureRecipe,
    Inputs,
    Part,
    PublishedRow,
    column,
    make_table,
    take,
    with_values,
)
from morphem.benchmarks.bootstrap import interval_of_mean
from morphem.benchmarks.leiden import cluster_agreement
from morphem.benchmarks.metrics import class_numbers
from morphem.benchmarks.mixing import (
    content_order,
    graph_connectivity,
    kbet,
    lisi,
    neighbours,
    scaled_lisi,
    silhouette_batch,
    silhouette_label,
)
from morphem.benchmarks.negative_controls import is_negative_control, without_controls
from morphem.benchmarks.neighbours import Ints
from morphem.benchmarks.score import Score
from morphem.benchmarks.tiny import planted
from morphem.benchmarks.well_rows import check_pairs, check_wells
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

Correction = Literal["none", "standardize", "sphering", "tvn", "combat", "harmony", "scanorama"]
_CORRECTIONS = ("none", "standardize", "sphering", "tvn", "combat", "harmony", "scanorama")
_LABEL, _BATCH = "Metadata_label", "Metadata_Batch"
_BATCH_SCORES = ("graph_connectivity", "kbet", "ilisi", "silhouette_batch")
_BIOLOGY_SCORES = ("clisi", "silhouette_label", "leiden_ari", "leiden_nmi", "map")
_MARK = "Metadata_Morphem_Control"
_TABLE = "CHAMMI-75, appendix E"
RESOLUTIONS = tuple(round(0.1 * i, 1) for i in range(1, 21))
"""Resolutions of the clustering: 0.1 to 2, as scIB."""
Doubles = NDArray[np.float64]


class BatchBiology(Benchmark):
    """Batch and biology: is a profile like others of its compound, or like others of its laboratory?

    Args:
        variant: `scib` weighs the scores as scIB and Arevalo et al. do.
        seed: Of the bootstrap and of clustering.
        correction: What is done to profiles first: `none`, `standardize` (each batch), `sphering` or `tvn` (learn from
            controls), `combat`, `harmony` or `scanorama` (need the extras of these names). With a correction the
            details hold the scores before it too (`before`, `change`).
        n_neighbors: Of the graph and of kBET, at least 2.
        perplexity: Of LISI, above 1; three times as many neighbours are looked at. Published: 30.
        resolutions: Of the clustering; the best ARI and NMI over them count, as scIB does.

    Raises:
        ConfigError: If a setting is none of its values or out of range.
    """

    protocol_version = 1
    title = "Batch mixing and biology of profiles, before and after batch correction"
    measures = (
        "The same compounds were screened in several batches or laboratories. Batch scores ask whether profiles of "
        "different batches mix: in the neighbourhood of a well all batches should turn up as often as overall. Biology "
        "scores ask whether wells of one compound still lie together: as clusters, as neighbours, in a ranking. A "
        "correction that erases everything mixes perfectly and has no biology, so both are read together."
    )
    reading = (
        "All scores lie between 0 and 1, and 1 is best. The overall score is 0.4 times the mean batch score plus 0.6 "
        "times the mean biology score; uncorrected profiles of three laboratories gave 0.48, the best correction "
        "0.61. A batch score near 1 beside a biology score near that of shuffled labels means that nothing is left."
    )
    source = "Arevalo et al. 2024, Nature Communications 15:6516; Luecken et al. 2022, Nature Methods 19:41"
    parts = (
        Part(
            "table",
            "one row per well",
            (
                Column(
                    _LABEL,
                    "compound or other label; controls may lack it",
                    ("Metadata_Compound", "Metadata_broad_sample", "Metadata_JCP2022", "Metadata_Label"),
                    missing_allowed=True,
                ),
                Column(_BATCH, "batch, laboratory or plate", ("Metadata_batch", "Metadata_Source", "Metadata_Plate")),
                Column(
                    "Metadata_Control",
                    "negcon for controls; they are left out of the scores",
                    ("Metadata_control_type",),
                    required=False,
                    missing_allowed=True,
                ),
            ),
            recipe=FeatureRecipe(unit="tile", tile_size_px=224, aggregate="well"),
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "overall": "0.4 times batch plus 0.6 times biology",
        "batch": "mean of the batch scores",
        "biology": "mean of the biology scores",
        "graph_connectivity": "mean over labels of the share of wells in the largest connected piece of their graph",
        "kbet": "share of wells whose neighbourhood has the batches of the whole table (chi-square test, 0.05)",
        "ilisi": "effective number of batches in a neighbourhood, scaled to 0 to 1; median over wells",
        "silhouette_batch": "1 minus the size of the silhouette of batches inside a label, mean over labels",
        "clisi": "1 minus the scaled effective number of labels in a neighbourhood; median over wells",
        "silhouette_label": "silhouette of labels, scaled to 0 to 1",
        "leiden_ari": "adjusted Rand index of Leiden clusters and labels, best resolution",
        "leiden_nmi": "normalised mutual information of Leiden clusters and labels, best resolution",
        "map": "mean average precision of wells of a label among all other wells, cosine",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "scib": "weights 0.4 and 0.6; clusters by Leiden (extra `leiden`); made the published numbers",
        "without_clusters": "as scib, without ARI and NMI of clusters, so biology and overall are other numbers",
    }
    published = (
        PublishedRow(
            "DINO-BoC (MorphEm), Seurat CCA",
            {"overall": 0.61, "batch": 0.66, "biology": 0.57},
            _TABLE,
            "302 compounds, three laboratories; Seurat is not among our corrections",
        ),
        PublishedRow(
            "DINO-BoC (MorphEm), uncorrected",
            {"overall": 0.48, "batch": 0.40, "biology": 0.54},
            _TABLE,
            "302 compounds, three laboratories",
        ),
    )
    interval_unit = ""
    no_interval = (
        "scores of graphs and clusters have no unit that could be drawn alone; map has an interval over labels"
    )
    biology = _LABEL
    tiny_finds = 0.7
    tiny_null = 0.65

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        correction: Correction = "none",
        n_neighbors: int = 15,
        perplexity: float = 30.0,
        resolutions: tuple[float, ...] = RESOLUTIONS,
    ) -> None:
        super().__init__(variant, seed)
        if correction not in _CORRECTIONS:
            raise ConfigError(f"batch_biology: correction='{correction}' is one of {', '.join(_CORRECTIONS)}.")
        if n_neighbors < 2 or not perplexity > 1 or not resolutions or not min(resolutions) > 0:
            raise ConfigError(
                f"batch_biology: n_neighbors={n_neighbors} is at least 2, perplexity={perplexity} above 1, and "
                f"resolutions={resolutions} are above 0."
            )
        self.correction = correction
        self.n_neighbors = n_neighbors
        self.perplexity = perplexity
        self.resolutions = tuple(resolutions)

    def score(self, inputs: Inputs) -> Score:
        """Correct the profiles, and compute every score that the table allows, after and before."""
        check_wells(inputs.table, "batch_biology")
        check_pairs(len(inputs.table), "batch_biology")
        found = self._scores(corrected(inputs.table, self.correction, self.seed))
        details: dict[str, Any] = dict(found.details)
        notes = [f"{name} is not in the mean: {reason}" for name, reason in found.missing.items()]
        if self.correction != "none":
            before = self._scores(inputs.table).values
            details["before"] = before
            notes.append(
                f"Before the correction: overall {before['overall']:.3f}, batch {before['batch']:.3f}, biology "
                f"{before['biology']:.3f}; all scores before it are in the details."
            )
            details["change"] = {name: found.values[name] - before[name] for name in found.values if name in before}
        return Score(
            values=found.values,
            details=details,
            intervals={"map": interval_of_mean(list(found.precisions.values()), "label", seed=self.seed)},
            rules={
                "correction": self.correction,
                "neighbours": f"{self.n_neighbors} nearest wells, Euclidean; LISI looks at {found.n_looked_at}",
                "average": self.variants[self.variant],
                "p_value": "none",
                "negatives": "all wells of other labels, on all batches",
            },
            counts=found.counts | {"controls_left_out": len(inputs.table) - found.counts["wells"]},
            missing=found.missing,
            notes=tuple(notes),
        )

    def _scores(self, table: FeatureTable) -> "_Found":
        table = without_controls(table, _LABEL, "batch_biology")
        table = take(table, content_order(table, (_LABEL, _BATCH)))  # clusters do not depend on the order of rows
        labels, label_names = class_numbers(column(table, _LABEL), "batch_biology, labels")
        batches, batch_names = class_numbers(column(table, _BATCH), "batch_biology, batches")
        if len(table) <= self.n_neighbors + 1:
            raise DataError(f"batch_biology: {len(table)} wells are too few for {self.n_neighbors} neighbours of each.")
        values = table.values.astype(np.float64)
        index, distance = neighbours(values, min(max(self.n_neighbors, int(3 * self.perplexity)), len(table) - 1))
        near = index[:, : self.n_neighbors]
        scores: dict[str, float] = {}
        missing: dict[str, str] = {}
        details: dict[str, Any] = {}
        scores["graph_connectivity"] = graph_connectivity(near, labels)
        scores["kbet"] = kbet(near, batches)
        scores["ilisi"] = scaled_lisi(lisi(index, distance, batches, self.perplexity), len(batch_names))
        scores["clisi"] = 1 - scaled_lisi(lisi(index, distance, labels, self.perplexity), len(label_names))
        scores["silhouette_label"] = silhouette_label(values, labels)
        mixed = silhouette_batch(values, labels, batches)
        if mixed is None:
            missing["silhouette_batch"] = "no label has wells of two batches, and two of one"
        else:
            scores["silhouette_batch"] = mixed
        if self.variant == "without_clusters":
            missing |= dict.fromkeys(("leiden_ari", "leiden_nmi"), "the variant without_clusters leaves it out")
        else:
            agreement, details["clustering"] = cluster_agreement(near, labels, self.resolutions, self.seed)
            scores |= agreement
        precisions = {label_names[i]: value for i, value in _retrieval(values, labels).items()}
        details["map_of_labels"] = precisions
        scores["map"] = float(np.mean(list(precisions.values())))
        for name, members in (("batch", _BATCH_SCORES), ("biology", _BIOLOGY_SCORES)):
            scores[name] = float(np.mean([scores[member] for member in members if member in scores]))
        scores["overall"] = 0.4 * scores["batch"] + 0.6 * scores["biology"]
        counts = {
            "wells": len(table),
            "labels": len(label_names),
            "labels_of_one_well": int((np.bincount(labels) == 1).sum()),
            "batches": len(batch_names),
        }
        return _Found(scores, missing, details, precisions, counts, index.shape[1])

    @classmethod
    def tiny_instance(cls) -> "BatchBiology":
        """Return the protocol for few rows."""
        return cls(n_neighbors=8, perplexity=5.0, resolutions=(0.5, 1.0, 2.0))

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Eight compounds in three laboratories, four wells in each; the effect is how much features tell compounds."""
        rows = [
            {_LABEL: f"compound{i}", _BATCH: f"laboratory{j}", "Metadata_Control": "trt"}
            for i in range(8)
            for j in range(3)
            for _ in range(4)
        ]
        metadata = pd.DataFrame(rows)
        values = planted(
            list(metadata[_LABEL]), seed=seed, effect=effect, batches=list(metadata[_BATCH]), batch_effect=0.1
        )
        return Inputs({"table": make_table(values, metadata)})


@dataclass(frozen=True)
class _Found:
    """All scores of one table.

    Attributes:
        values: By name.
        missing: Reasons by name.
        details: Clusters, mAP of labels.
        precisions: mAP of every label.
        counts: Wells, labels, batches.
        n_looked_at: Neighbours that LISI looks at.
    """

    values: dict[str, float]
    missing: dict[str, str]
    details: dict[str, Any]
    precisions: dict[str, float]
    counts: dict[str, int]
    n_looked_at: int


def corrected(table: FeatureTable, correction: str, seed: int) -> FeatureTable:
    """Return a table with batches corrected by a step of `morphem.profiles`.

    Args:
        table: With the canonical columns.
        correction: See `BatchBiology`.
        seed: Of corrections that draw.

    Raises:
        ConfigError: If an extra is missing.
        DataError: If a correction needs controls and there are none.
    """
    from morphem import profiles

    if correction == "none":
        return table
    if correction == "standardize":
        return profiles.Standardize(per=(_BATCH,))(table)
    if correction == "combat":
        return profiles.Combat(batch=(_BATCH,))(table)
    if correction == "harmony":
        return profiles.Harmony(batch=(_BATCH,), seed=seed)(table)
    if correction == "scanorama":
        return profiles.Scanorama(batch=(_BATCH,), seed=seed)(table)
    controls = is_negative_control(table, _LABEL)
    if not controls.any():
        raise DataError(
            f"batch_biology: correction='{correction}' learns from controls, but no row of Metadata_Control says "
            "negcon, and no label is DMSO; name the controls, or choose another correction."
        )
    marks = np.where(controls, "yes", "no")
    marked = with_values(table, table.values, metadata=table.metadata.assign(**{_MARK: marks}))
    samples = f"{_MARK} == 'yes'"
    done = profiles.TVN(samples, batch=(_BATCH,))(marked) if correction == "tvn" else profiles.Sphere(samples)(marked)
    return with_values(done, done.values, done.columns, done.metadata.drop(columns=_MARK))


def _retrieval(values: Doubles, labels: Ints) -> dict[int, float]:
    """Return the mean average precision of every label that has two rows, by its number."""
    from morphem.benchmarks.metrics import average_precision
    from morphem.benchmarks.retrieval import unit_rows

    rows = unit_rows(values, "cosine")
    result: dict[int, float] = {}
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) > 1:
            similar = rows[own] @ rows.T
            keep = [np.arange(len(rows)) != row for row in own]
            scores = [average_precision(labels[k] == label, line[k]) for line, k in zip(similar, keep, strict=True)]
            result[int(label)] = float(np.mean(scores))
    if not result:
        raise DataError("batch_biology: every label has one well only; a score of biology needs replicates.")
    return result

"""Kim et al.: replicates, targets and gene families found again in profiles of Cell Painting, across batches.

Source: Kim et al., self-supervision for Cell Painting; Bayer-Group/CellPaintSSL at a2625b0 (metrics, aggregation).
Differs from it: the paper says cosine where the code ranks by correlation (both exist, `similarity`); queries without a
positive are left out and counted (NaN in the authors' scikit-learn, zero in newer ones); random draws have seeds.
"""

from collections.abc import Mapping
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
)
from morphem.benchmarks.bootstrap import generator, interval_of_mean
from morphem.benchmarks.checks import is_missing
from morphem.benchmarks.classifiers import standardise
from morphem.benchmarks.knn import nearest_by_rule
from morphem.benchmarks.neighbours import exclusion
from morphem.benchmarks.retrieval import unit_rows
from morphem.benchmarks.score import Interval, Score
from morphem.benchmarks.tiny import planted
from morphem.benchmarks.unidino import averaged
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

Similarity = Literal["correlation", "cosine"]
Wording = Literal["code", "words"]
KS = tuple(range(1, 50, 2))
"""Neighbours at which F1 is computed: 1, 3, ..., 49."""
_COMPOUND, _TARGET, _BATCH = "Metadata_Compound", "Metadata_Target", "Metadata_Batch"
_CONTROLS = ("dmso", "negcon", "negative")
_BLOCK = 1024
Doubles = NDArray[np.float64]


class Kim(Benchmark):
    """Kim et al.: are replicates of a perturbation, and perturbations of one target, each other's neighbours?

    Args:
        variant: `compounds`, or `orf` with gene families in place of targets and their clustering.
        seed: Of the null of percent replicating and of intervals.
        similarity: `correlation` as in the code, or `cosine` as in the paper.
        wording: `code` keeps neighbours of the same batch that have another label; `words` leaves out all of the batch.
        null_draws: Draws of the null of percent replicating, at least 20; published: 1000.
        replicates: Wells that are drawn for each of them, at least 2; published: 12.

    Raises:
        ConfigError: If a setting is none of its values or out of range.
    """

    protocol_version = 1
    title = "Kim et al.: replicates, targets and gene families across batches of Cell Painting"
    measures = (
        "Cells were treated with the same compounds (or made to express the same genes) in several batches and "
        "laboratories. The scores ask whether profiles of one treatment from other batches rank above those of all "
        "other treatments, whether treatments of one target or gene family rank above others, and whether the nearest"
        " profile from another batch is of the same treatment or target."
    )
    reading = (
        "All scores lie between 0 and 1; chance of an mAP is about the share of a compound's profiles among all, "
        "below 0.01. On several laboratories DINO features gave 29 % more perturbation mAP and 61 % more target mAP "
        "than CellProfiler's; numbers of other data cannot be compared."
    )
    source = "Kim et al., self-supervision for Cell Painting; Bayer-Group/CellPaintSSL at a2625b0"
    parts = (
        Part(
            "table",
            "one row per well, normalised; controls may be there and are left out",
            (
                Column(_COMPOUND, "perturbation", ("Metadata_compound", "Metadata_broad_sample", "Metadata_Reagent")),
                Column(
                    _TARGET,
                    "target, or gene family",
                    ("Metadata_target", "Metadata_MoA", "Metadata_gene_family"),
                    required=False,
                    missing_allowed=True,
                ),
                Column(_BATCH, "batch", ("Metadata_batch", "Metadata_Plate")),
                Column("Metadata_Source", "laboratory", ("Metadata_source",), required=False),
                Column("Metadata_Well", "position on the plate", required=False),
                Column(
                    "Metadata_Control",
                    "negcon for controls",
                    ("Metadata_control_type",),
                    required=False,
                    missing_allowed=True,
                ),
            ),
            recipe=FeatureRecipe(unit="tile", tile_size_px=224, aggregate="well"),
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "perturbation_map": "mean average precision of a perturbation's profiles, one per batch, among all others",
        "target_map": "mean average precision of a target's perturbations, one consensus profile each",
        "source_map": "mean average precision of a perturbation's profiles, one per laboratory",
        "nsb": "share of wells whose nearest allowed well (not the same batch) is of the same perturbation",
        "nsbp": "share of wells whose nearest allowed well (other batch, other perturbation) is of the same target",
        "nss": "share of wells whose nearest allowed well (other laboratory) is of the same perturbation",
        "best_f1": "largest F1 over the number of neighbours, perturbation profiles by batch",
        "percent_replicating": "share of perturbations whose replicates correlate above 95 % of random sets of wells",
        "ami": "adjusted mutual information of clusters and the 20 tightest families, maximum as normaliser (paper)",
        "ami_arithmetic": "the same with the arithmetic mean as normaliser (scikit-learn's default)",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "compounds": "compounds and their targets; made the published gains over CellProfiler",
        "orf": "over-expressed genes and their families, with clustering; made the published AMI",
    }
    published = (
        PublishedRow("DINO", {"ami": 0.51}, "Kim et al., gene families", "each model has its own 20 families"),
        PublishedRow("CellProfiler", {"ami": 0.19}, "Kim et al., gene families", "each model has its own 20 families"),
    )
    interval_unit = "perturbation"
    is_retrieval = True
    biology = _COMPOUND
    robust_to = ("Metadata_Source",)
    tiny_finds = 0.5
    tiny_null = 0.3

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        similarity: Similarity = "correlation",
        wording: Wording = "code",
        null_draws: int = 1000,
        replicates: int = 12,
    ) -> None:
        super().__init__(variant, seed)
        if similarity not in ("correlation", "cosine") or wording not in ("code", "words"):
            raise ConfigError(
                f"kim: similarity='{similarity}' is 'correlation' or 'cosine', and wording='{wording}' is 'code' or "
                "'words'."
            )
        if null_draws < 20 or replicates < 2:
            raise ConfigError(f"kim: null_draws={null_draws} is at least 20, and replicates={replicates} at least 2.")
        self.similarity = similarity
        self.wording = wording
        self.null_draws = null_draws
        self.replicates = replicates

    def score(self, inputs: Inputs) -> Score:
        """Compute every score that the table allows."""
        wells = _without_controls(inputs.table)
        compounds = column(wells, _COMPOUND).astype(str)
        if len(set(compounds)) < 2:
            raise DataError(f"kim: there are {len(set(compounds))} perturbations besides controls; two are needed.")
        values: dict[str, float] = {}
        missing: dict[str, str] = {}
        counts = {"wells": len(wells), "controls_left_out": len(inputs.table) - len(wells)}
        by_batch = averaged(wells, (_COMPOUND, _BATCH))
        found = self._map(by_batch, _COMPOUND)
        if found is None:
            raise DataError("kim: no perturbation is in two batches; perturbation mAP needs replicates across batches.")
        values["perturbation_map"] = found.mean
        counts["profiles_without_replicate"] = found.without
        intervals: dict[str, Interval] = {
            "perturbation_map": interval_of_mean(found.by_group(), self.interval_unit, seed=self.seed)
        }
        details: dict[str, Any] = {"map_of_perturbations": found.table()}
        f1 = f1_at_k(self._similarities(by_batch), column(by_batch, _COMPOUND).astype(str))
        values["best_f1"] = max(f1.values())
        details["f1_at_k"] = {str(k): value for k, value in f1.items()}
        values["percent_replicating"] = self._percent_replicating(wells, details)
        self._over_sources(wells, values, missing)
        self._targets(wells, values, missing, details, counts)
        self._neighbours(wells, values, missing, counts)
        if self.variant == "orf" and "target_map" in values:
            self._clusters(wells, values, missing, details)
        for name in self.score_names:
            if name not in values:
                missing.setdefault(name, "the variant 'orf' gives it" if name.startswith("ami") else "not asked for")
        return Score(
            values=values,
            details=details,
            intervals=intervals,
            rules={
                "similarity": self.similarity,
                "p_value": f"percent replicating: above the 95th percentile of {self.null_draws} random sets of "
                f"{self.replicates} wells; no p-value for mAP, see the interval",
                "negatives": "all profiles of other perturbations (or targets), on all plates, as published",
                "nearest": "features scaled over all wells first, cosine; " + exclusion(self._rule("nsb")).words,
            },
            counts=counts,
            missing=missing,
        )

    def _rule(self, name: str) -> str:
        return f"{name}_words" if self.wording == "words" else name

    def _similarities(self, table: FeatureTable) -> Doubles:
        unit = unit_rows(table.values, self.similarity)
        return np.asarray(unit @ unit.T, np.float64)

    def _map(self, table: FeatureTable, label: str) -> "_Precisions | None":
        """Return average precision of every profile that has a positive, or None where none has."""
        labels = column(table, label).astype(str)
        precision = ranked_precision(unit_rows(table.values, self.similarity), labels)
        legal = np.isfinite(precision)
        return _Precisions(precision[legal], labels[legal], int((~legal).sum())) if legal.any() else None

    def _over_sources(self, wells: FeatureTable, values: dict[str, float], missing: dict[str, str]) -> None:
        if "Metadata_Source" not in wells.metadata:
            missing["source_map"] = missing["nss"] = "it needs Metadata_Source"
            return
        found = self._map(averaged(wells, (_COMPOUND, "Metadata_Source")), _COMPOUND)
        if found is None:
            missing["source_map"] = "no perturbation is in two laboratories"
        else:
            values["source_map"] = found.mean

    def _targets(
        self,
        wells: FeatureTable,
        values: dict[str, float],
        missing: dict[str, str],
        details: dict[str, Any],
        counts: dict[str, int],
    ) -> None:
        if _TARGET not in wells.metadata:
            missing["target_map"] = missing["nsbp"] = f"it needs {_TARGET}"
            return
        known = take(wells, ~is_missing(wells.metadata[_TARGET]))
        found = self._map(averaged(known, (_COMPOUND, _TARGET)), _TARGET) if len(known) else None
        if found is None:
            missing["target_map"] = "no target has two perturbations"
            return
        values["target_map"] = found.mean
        details["map_of_targets"] = found.table()
        counts["perturbations_without_partner"] = found.without

    def _neighbours(
        self, wells: FeatureTable, values: dict[str, float], missing: dict[str, str], counts: dict[str, int]
    ) -> None:
        """Add the accuracies of nearest neighbours that an exclusion rule allows."""
        roles = {"compound": _COMPOUND, "batch": _BATCH, "source": "Metadata_Source", "well": "Metadata_Well"}
        for name, label in (("nsb", _COMPOUND), ("nss", _COMPOUND), ("nsbp", _TARGET)):
            rule = exclusion(self._rule(name))
            needed = {roles[role] for role in rule.roles if role != "label"} | {label}
            absent = sorted(needed - set(wells.metadata.columns))
            if absent:
                missing[name] = f"it needs {', '.join(absent)}"
                continue
            table = take(wells, ~is_missing(wells.metadata[label]))
            if not len(table):
                missing[name] = f"no well has {label}"
                continue
            labels = column(table, label).astype(str)
            columns: dict[str, Any] = {"label": labels}
            columns |= {role: column(table, at).astype(str) for role, at in roles.items() if at in table.metadata}
            scaled = standardise(table.values, table.values)[1]
            lone = ~scaled.any(1)
            if lone.any():
                raise DataError(
                    f"kim: {int(lone.sum())} wells equal the mean of all; they have no direction; drop them."
                )
            row = nearest_by_rule(scaled, rule, columns, metric="cosine").row
            legal = row >= 0
            counts[f"{name}_without_candidate"] = int((~legal).sum())
            if legal.any():
                values[name] = float((labels[legal] == labels[row[legal]]).mean())
            else:
                missing[name] = f"no well has a neighbour that the rule allows ({rule.words})"

    def _percent_replicating(self, wells: FeatureTable, details: dict[str, Any]) -> float:
        """Return the share of perturbations whose median replicate correlation exceeds 95 % of random sets."""
        unit = unit_rows(wells.values, "correlation")
        compounds = column(wells, _COMPOUND).astype(str)
        order = np.lexsort((*wells.values[:, :4].T, compounds))  # draws do not depend on the order of rows
        unit, compounds = unit[order], compounds[order]
        random = generator(self.seed, "percent replicating")
        size = min(self.replicates, len(unit))
        null = [_median_pair(unit[random.choice(len(unit), size, replace=False)]) for _ in range(self.null_draws)]
        bar = float(np.quantile(null, 0.95))
        groups = [np.flatnonzero(compounds == name) for name in np.unique(compounds)]
        medians = [_median_pair(unit[group]) for group in groups if len(group) > 1]
        if not medians:
            raise DataError("kim: every perturbation has one well only; replicates are needed.")
        details["replicating"] = {"bar": bar, "perturbations": len(medians)}
        return float(np.mean(np.asarray(medians) > bar))

    def _clusters(
        self, wells: FeatureTable, values: dict[str, float], missing: dict[str, str], details: dict[str, Any]
    ) -> None:
        """Add the agreement of clusters with the gene families that are tightest in these features."""
        from sklearn.metrics import adjusted_mutual_info_score

        known = averaged(take(wells, ~is_missing(wells.metadata[_TARGET])), (_COMPOUND, _TARGET))
        families = tightest_families(self._similarities(known), column(known, _TARGET).astype(str))
        if len(families) < 2:
            missing["ami"] = missing["ami_arithmetic"] = "fewer than two families have 4 to 10 genes"
            return
        labels = column(known, _TARGET).astype(str)
        chosen = np.isin(labels, families)
        cluster = complete_linkage(self._similarities(take(known, chosen)), len(families))
        values["ami"] = float(adjusted_mutual_info_score(labels[chosen], cluster, average_method="max"))
        values["ami_arithmetic"] = float(adjusted_mutual_info_score(labels[chosen], cluster))
        details["families"] = families

    @classmethod
    def tiny_instance(cls) -> "Kim":
        """Return the protocol with a small null."""
        return cls(null_draws=50, replicates=4)

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Eight targets of two compounds, four batches in two laboratories, and controls; features tell compounds."""
        rows = [
            {
                _COMPOUND: f"compound{i:02d}",
                _TARGET: f"target{i // 2}",
                _BATCH: f"batch{j}",
                "Metadata_Source": f"source{j % 2}",
                "Metadata_Well": f"{chr(65 + i)}{(j * 5 + i) % 12 + 1:02d}",
                "Metadata_Control": "trt",
            }
            for i in range(16)
            for j in range(4)
        ]
        controls = [
            {**rows[0], _COMPOUND: "DMSO", _TARGET: "", _BATCH: f"batch{j}", "Metadata_Control": "negcon"}
            for j in range(4)
        ]
        metadata = pd.DataFrame([*rows, *controls])
        labels = [None if name == "DMSO" else name for name in metadata[_COMPOUND]]
        values = planted(labels, seed=seed, effect=effect, batches=list(metadata[_BATCH]), batch_effect=0.2)
        shared = planted([target or None for target in metadata[_TARGET]], seed=seed + 1, effect=effect)
        if np.isinf(effect):
            return Inputs({"table": make_table(values + 0.5 * shared, metadata)})
        return Inputs({"table": make_table(values + shared, metadata)})


class _Precisions:
    """Average precision of profiles, by label.

    Args:
        values: Of the profiles that have a positive, (Q,).
        labels: Of these, (Q,).
        without: Profiles that have none, which are left out.
    """

    def __init__(self, values: Doubles, labels: NDArray[Any], without: int) -> None:
        self.values = values
        self.labels = labels
        self.without = without

    @property
    def mean(self) -> float:
        return float(np.sort(self.values).mean())

    def table(self) -> dict[str, float]:
        """Mean by label, names sorted."""
        return {str(name): float(self.values[self.labels == name].mean()) for name in np.unique(self.labels)}

    def by_group(self) -> list[float]:
        return list(self.table().values())


def ranked_precision(unit: Doubles, labels: NDArray[Any]) -> Doubles:
    """Return average precision of every row among all others, (R,); NaN where no other row has its label.

    Equal similarities are taken together, as scikit-learn does.

    Args:
        unit: Rows whose products are similarities, (R, F).
        labels: (R,).
    """
    from morphem.benchmarks.metrics import average_precision

    result = np.full(len(unit), np.nan)
    for begin in range(0, len(unit), _BLOCK):
        similar = np.round(unit[begin : begin + _BLOCK] @ unit.T, 12)
        for row, line in enumerate(similar, begin):
            others = np.arange(len(unit)) != row
            positive = labels[others] == labels[row]
            if positive.any():
                result[row] = average_precision(positive, line[others])
    return result


def f1_at_k(similar: Doubles, labels: NDArray[Any], ks: tuple[int, ...] = KS) -> dict[int, float]:
    """Return F1 of mean precision and mean recall among the k nearest rows, for every k that the table allows.

    Args:
        similar: (R, R).
        labels: (R,).
        ks: Numbers of neighbours.
    """
    counts = np.asarray([(labels == label).sum() - 1 for label in labels])
    asking = counts > 0
    ranked = similar.copy()
    np.fill_diagonal(ranked, -np.inf)
    order = np.argsort(-np.round(ranked, 12), axis=1, kind="stable")[:, :-1]
    hits = (labels[order] == labels[:, None])[asking]
    result = {}
    for k in ks:
        if k <= hits.shape[1]:
            found = hits[:, :k].sum(1)
            precision, recall = float((found / k).mean()), float((found / counts[asking]).mean())
            result[k] = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return result


def tightest_families(
    similar: Doubles, families: NDArray[Any], n: int = 20, least: int = 4, most: int = 10
) -> list[str]:
    """Return the families of highest mean correlation among their members, sorted by name.

    They are chosen in the very features that are then scored, as published, so two models have two sets of families.

    Args:
        similar: (R, R).
        families: Of the rows, (R,).
        n: How many at most.
        least: Members of a family at least.
        most: Members at most.
    """
    scored = []
    for name in np.unique(families):
        own = np.flatnonzero(families == name)
        if least <= len(own) <= most:
            pairs = similar[np.ix_(own, own)][np.triu_indices(len(own), 1)]
            scored.append((-float(pairs.mean()), str(name)))
    return sorted(name for _, name in sorted(scored)[:n])


def complete_linkage(similar: Doubles, n_clusters: int) -> NDArray[np.int64]:
    """Cluster rows by the Euclidean distance of their rows of the correlation matrix, complete linkage, (R,)."""
    from scipy.cluster.hierarchy import fcluster, linkage

    tree = linkage(similar, method="complete", metric="euclidean")
    return np.asarray(fcluster(tree, n_clusters, criterion="maxclust"), np.int64)


def _median_pair(unit: Doubles) -> float:
    return float(np.median((unit @ unit.T)[np.triu_indices(len(unit), 1)]))


def _without_controls(table: FeatureTable) -> FeatureTable:
    keep = np.ones(len(table), bool)
    for name in (_COMPOUND, "Metadata_Control"):
        if name in table.metadata:
            keep &= ~np.isin([str(value).lower() for value in column(table, name)], _CONTROLS)
    if not keep.any():
        raise DataError("kim: all rows are controls; perturbations are scored.")
    return take(table, keep)

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

from morphem.benchmarks.averaging import averaged
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
from morphem.benchmarks.hierarchy import agreement, complete_linkage, tightest_families
from morphem.benchmarks.kim_matches import add_matches
from morphem.benchmarks.kim_profiles import published_profiles
from morphem.benchmarks.label_ranking import Precisions, best_f1, f1_at_k, precision_at_r, ranked_precision, replicating
from morphem.benchmarks.mixing import content_order, mixing_beside_baselines
from morphem.benchmarks.negative_controls import without_controls
from morphem.benchmarks.neighbours import codes, exclusion
from morphem.benchmarks.retrieval import unit_rows
from morphem.benchmarks.score import Interval, Score
from morphem.benchmarks.tiny import planted
from morphem.benchmarks.well_rows import check_pairs, check_wells
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

Similarity = Literal["correlation", "cosine"]
Wording = Literal["code", "words"]
_COMPOUND, _TARGET, _BATCH = "Metadata_Compound", "Metadata_Target", "Metadata_Batch"
_PLATE = "Metadata_Plate"
Doubles = NDArray[np.float64]


class Kim(Benchmark):
    """Kim et al.: are replicates of a perturbation, and perturbations of one target, each other's neighbours?

    Args:
        variant: `compounds`, or `orf` with gene families in place of targets and their clustering; of either the form
            `..._sphered` makes profiles from features first (`kim_profiles`).
        seed: Of the null of percent replicating and of intervals.
        similarity: `correlation` as in the code, or `cosine` as in the paper.
        wording: `code` keeps neighbours of the same batch that have another label; `words` leaves out all of the batch.
        null_draws: Draws of the null of percent replicating, at least 20; published: 1000.
        replicates: Wells that are drawn for each of them, at least 2; published: 12.
        mixing: Also tell how far batches and laboratories mix among nearest wells (connectivity, LISI, silhouette,
            beside Gaussian clusters and shuffled ones), in the details; cost grows with the square of the wells.

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
            "one row per well, normalised, or with controls as an encoder gives it; controls are not scored",
            (
                Column(
                    _COMPOUND,
                    "perturbation; controls may lack it",
                    ("Metadata_compound", "Metadata_broad_sample", "Metadata_JCP2022", "Metadata_Reagent"),
                    missing_allowed=True,
                ),
                Column(
                    _TARGET,
                    "target, or gene family",
                    ("Metadata_target", "Metadata_MoA", "Metadata_gene_family"),
                    required=False,
                    missing_allowed=True,
                ),
                Column(_BATCH, "batch", ("Metadata_batch", "Metadata_Plate")),
                Column("Metadata_Source", "laboratory", ("Metadata_source",), required=False),
                Column(_PLATE, "plate, for scaling", required=False),
                Column("Metadata_Well", "position on the plate", required=False),
                Column(
                    "Metadata_Control",
                    "negcon for controls",
                    ("Metadata_control_type",),
                    required=False,
                    missing_allowed=True,
                ),
            ),
            recipe=FeatureRecipe(
                unit="tile",
                tile_size_px=224,
                aggregate="well",
                differs=(
                    "all tiles of a well are averaged, where the published pipeline leaves out those with little DNA "
                    "stain; `morphem embed` with its rule for empty tiles makes a table without them",
                ),
            ),
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
        "precision_at_r": "share of a perturbation's own profiles among as many nearest ones as it has others",
        "percent_replicating": "share of perturbations whose replicates correlate above 95 % of random sets of wells",
        "ami": "adjusted mutual information of clusters and the 20 tightest families, maximum as normaliser (paper)",
        "ami_arithmetic": "the same with the arithmetic mean as normaliser (scikit-learn's default)",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "compounds": "compounds and their targets; made the published gains over CellProfiler",
        "orf": "over-expressed genes and their families, with clustering; made the published AMI",
        "compounds_sphered": "as compounds, for features of an encoder: sphered on controls, then scaled by plate",
        "orf_sphered": "as orf, for features of an encoder: sphered on controls, then scaled by plate",
    }
    model_variant = "compounds_sphered"
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
        mixing: bool = False,
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
        self.mixing = mixing

    def adapt(self, inputs: Inputs) -> Inputs:
        """Make profiles from features, where the variant says so."""
        if not self.variant.endswith("_sphered"):
            return inputs
        return Inputs({"table": published_profiles(inputs.table, _COMPOUND)}, inputs.side)

    def score(self, inputs: Inputs) -> Score:
        """Compute every score that the table allows."""
        check_wells(inputs.table, "kim")
        wells = without_controls(inputs.table, _COMPOUND, "kim")
        compounds = column(wells, _COMPOUND).astype(str)
        if len(set(compounds)) < 2:
            raise DataError(f"kim: there are {len(set(compounds))} perturbations besides controls; two are needed.")
        values: dict[str, float] = {}
        missing: dict[str, str] = {}
        counts = {"wells": len(wells), "controls_left_out": len(inputs.table) - len(wells)}
        by_batch = averaged(wells, (_COMPOUND, _BATCH))
        check_pairs(len(by_batch), "kim, mean profiles by batch")
        found = self._map(by_batch, _COMPOUND)
        if found is None:
            raise DataError("kim: no perturbation is in two batches; perturbation mAP needs replicates across batches.")
        values["perturbation_map"] = found.mean
        counts["profiles_without_replicate"] = found.without
        intervals: dict[str, Interval] = {
            "perturbation_map": interval_of_mean(found.by_group(), self.interval_unit, seed=self.seed)
        }
        details: dict[str, Any] = {"map_of_perturbations": found.table()}
        unit, labels = unit_rows(by_batch.values, self.similarity), column(by_batch, _COMPOUND).astype(str)
        f1 = f1_at_k(unit, labels)
        values["best_f1"], details["best_k"] = best_f1(f1)
        values["precision_at_r"] = precision_at_r(unit, labels)
        details["f1_at_k"] = {str(k): value for k, value in f1.items()}
        values["percent_replicating"] = self._percent_replicating(wells, details)
        self._over_sources(wells, values, missing)
        self._targets(wells, values, missing, details, counts)
        add_matches(wells, self._rule, values, missing, counts)
        if self.variant.startswith("orf") and "target_map" in values:
            self._clusters(wells, values, missing, details)
        if self.mixing:
            details["mixing"] = self._mixing(wells)
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
                "profiles": self.variants[self.variant],
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

    def _map(self, table: FeatureTable, label: str) -> "Precisions | None":
        """Return average precision of every profile that has a positive, or None where none has."""
        labels = column(table, label).astype(str)
        precision = ranked_precision(unit_rows(table.values, self.similarity), labels)
        legal = np.isfinite(precision)
        return Precisions(precision[legal], labels[legal], int((~legal).sum())) if legal.any() else None

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

    def _percent_replicating(self, wells: FeatureTable, details: dict[str, Any]) -> float:
        """Return the share of perturbations whose median replicate correlation exceeds 95 % of random sets."""
        wells = take(wells, content_order(wells, (_COMPOUND,)))  # draws do not depend on the order of rows
        medians, bar = replicating(
            unit_rows(wells.values, "correlation"),
            column(wells, _COMPOUND).astype(str),
            random=generator(self.seed, "percent replicating"),
            null_draws=self.null_draws,
            replicates=self.replicates,
        )
        if not medians:
            raise DataError("kim: every perturbation has one well only; replicates are needed.")
        details["replicating"] = {"bar": bar, "perturbations": len(medians), "median_correlation": medians}
        return float(np.mean(np.asarray(list(medians.values())) > bar))

    def _clusters(
        self, wells: FeatureTable, values: dict[str, float], missing: dict[str, str], details: dict[str, Any]
    ) -> None:
        """Add the agreement of clusters with the gene families that are tightest in these features."""
        known = averaged(take(wells, ~is_missing(wells.metadata[_TARGET])), (_COMPOUND, _TARGET))
        families = tightest_families(self._similarities(known), column(known, _TARGET).astype(str))
        if len(families) < 2:
            missing["ami"] = missing["ami_arithmetic"] = "fewer than two families have 4 to 10 genes"
            return
        labels = column(known, _TARGET).astype(str)
        chosen = np.isin(labels, families)
        cluster = complete_linkage(self._similarities(take(known, chosen)), len(families))
        values["ami"] = agreement(labels[chosen], cluster, "max")
        values["ami_arithmetic"] = agreement(labels[chosen], cluster, "arithmetic")
        details["families"] = families

    def _mixing(self, wells: FeatureTable) -> dict[str, Any]:
        """Return how far batches and laboratories mix."""
        wells = take(wells, content_order(wells, (_COMPOUND, _BATCH)))
        result: dict[str, Any] = {}
        for name in (_BATCH, "Metadata_Source"):
            groups = codes(column(wells, name).tolist()) if name in wells.metadata else np.zeros(0, np.int64)
            if len(np.unique(groups)) > 1:
                result[name.removeprefix("Metadata_").lower()] = mixing_beside_baselines(
                    wells.values.astype(np.float64), groups, generator(self.seed, "mixing", name)
                )
        if not result:
            raise DataError("kim: mixing needs two batches or two laboratories; all wells are of one.")
        return result

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
            {
                **{_COMPOUND: "DMSO", _TARGET: "", _BATCH: f"batch{j}", "Metadata_Source": f"source{j % 2}"},
                **{"Metadata_Well": f"P{j + 1:02d}", "Metadata_Control": "negcon"},
            }
            for j in range(4)
        ]
        metadata = pd.DataFrame([*rows, *controls])
        labels = [None if name == "DMSO" else name for name in metadata[_COMPOUND]]
        values = planted(labels, seed=seed, effect=effect, batches=list(metadata[_BATCH]), batch_effect=0.2)
        shared = planted([target or None for target in metadata[_TARGET]], seed=seed + 1, effect=effect)
        if np.isinf(effect):
            return Inputs({"table": make_table(values + 0.5 * shared, metadata)})
        return Inputs({"table": make_table(values + shared, metadata)})

"""JUMP-CP1: do replicates of a compound look alike, and do compounds of one target?

Source: CHAMMI-75 paper, section 4 and Table D17; its code, CaicedoLab/CHAMMI-75 at b84a4ec, `benchmarks/JUMPCP`;
profiles of Chandrasekaran et al. 2024, doi 10.1038/s41592-024-02241-6. Where they differ: the paper says "p-value
threshold 0.05" and "ZCA"; the code, and this protocol, correct p-values (Benjamini-Hochberg) and sphere by ZCA-cor.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks import checks
from morphem.benchmarks.base import (
    Benchmark,
    Column,
    FeatureRecipe,
    Inputs,
    Part,
    PublishedRow,
    SideTable,
    column,
    make_table,
    with_values,
)
from morphem.benchmarks.bootstrap import interval_of_mean
from morphem.benchmarks.nulls import Nulls
from morphem.benchmarks.retrieval import (
    NothingToRetrieveError,
    PairRule,
    average_precision,
    mean_average_precision,
    multilabel_average_precision,
    p_value_rule,
)
from morphem.benchmarks.score import Score
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

_PLATE, _WELL, _COMPOUND, _CONTROL = "Metadata_Plate", "Metadata_Well", "Metadata_compound", "Metadata_control_type"
_NEGCON = "negcon"
_DEPENDENT = "in every row some features are sums of others, as an untrained encoder's are"
_BRIGHT_FIELD = ("ZBF", "Brightfield")
_RULE = PairRule(
    pos_sameby=(_COMPOUND,), neg_sameby=(_PLATE,), neg_diffby=("Metadata_reference",)
)  # reference: a number of its own for each control well, -1 for all others, so only controls are negatives


def _row(model: str, active: float, first: float, second: float) -> PublishedRow:
    scores = {"jump_cp1": first / 100, "jump_cp2": second / 100, "active_fraction": active / 100}
    return PublishedRow(model, scores, "CHAMMI-75, Table D17")


def _row_without_count(model: str, first: float, second: float) -> PublishedRow:
    return PublishedRow(model, {"jump_cp1": first / 100, "jump_cp2": second / 100}, "CHAMMI-75, Tables 1 and 2")


class JumpCP1(Benchmark):
    """Phenotypic activity and consistency of 306 compounds on seven plates of JUMP's pilot.

    Args:
        variant: `profiles` scores well profiles as they come (row "CellProfiler (paper)"); `sphered` spheres them first
            (all other rows); `with_brightfield` keeps CellProfiler's bright-field features.
        seed: Of the nulls and of the intervals.
        activity_null_size: Random rankings against which replicates are tested.
        consistency_null_size: Random rankings against which targets are tested.
        threshold: A compound is active, a target consistent, where its corrected p-value is below.
        epsilon: What sphering adds to singular values; with variant `sphered` only.
    """

    title: ClassVar[str] = "JUMP-CP1: phenotypic activity and consistency of compounds"
    measures: ClassVar[str] = (
        "A compound that does something to cells should look the same in every replicate well, and different from the "
        "untreated wells (DMSO) of its plate. JUMP-CP1 asks for each of 306 compounds how far up its replicates stand "
        "when wells are ranked by similarity, and counts the compounds for which that cannot be chance. JUMP-CP2 asks "
        "the same of compounds that hit one protein: do the active compounds of a target resemble each other more than "
        "compounds without a common target do?"
    )
    reading: ClassVar[str] = (
        "CellProfiler's selected features find 82 % of the compounds active, score 0.59 on JUMP-CP1 and 0.04 on "
        "JUMP-CP2; good encoders reach 94 % or more, 0.75 and 0.07. Features of noise find none active and score 0. "
        "JUMP-CP2 cannot exceed 0.56, because only 421 of 758 targets have two compounds."
    )
    source: ClassVar[str] = (
        "CHAMMI-75 paper, section 4, Table D17; https://github.com/CaicedoLab/CHAMMI-75/tree/b84a4ec/benchmarks/JUMPCP"
    )
    parts: ClassVar[tuple[Part, ...]] = (
        Part(
            "table",
            "one row per well of the plates BR00117010 to 13 and BR00117024 to 26, 384 wells each",
            (
                Column(_PLATE, "plate of a well"),
                Column(_WELL, "position of a well", ("Metadata_Well_Position",)),
                Column(
                    _COMPOUND, "compound of a well", ("Metadata_broad_sample", "Metadata_Reagent"), missing_allowed=True
                ),
                Column(
                    _CONTROL,
                    f"kind of control ('{_NEGCON}' for DMSO wells, anything else or nothing for the others)",
                    missing_allowed=True,
                ),
            ),
            source="jumpcp1",
            recipe=FeatureRecipe(
                unit="cell",
                crop_size_px=128,
                aggregate="well",
                prepare="without_noise",
                as_stored=True,
                differs=(
                    "wells average the cells of the shards; the list of cells behind the published rows is not public",
                ),
            ),
            key=(_PLATE, _WELL),
        ),
    )
    side_tables: ClassVar[tuple[SideTable, ...]] = (
        SideTable(
            "targets",
            ("JUMP-Target-1_compound_metadata_additional_annotations.tsv", "targets.tsv", "targets.csv"),
            "the targets of every compound, with | between them",
            ("broad_sample", "target_list"),
            required=False,
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "jump_cp1": "mAP of replicates, summed over active compounds, divided by all compounds",
        "jump_cp2": "mAP of compounds with a common target, summed over consistent targets, divided by all targets",
        "active_fraction": "share of compounds whose replicates are closer than chance",
        "mean_map": "mAP of replicates, mean over all compounds, whether active or not",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "profiles": "well profiles are scored as they come; made the published row 'CellProfiler (paper)'",
        "sphered": "profiles are sphered first (ZCA-cor, epsilon 1e-3 on singular values, fitted on the DMSO wells of "
        "all plates together); made all other published rows, and is what encoders get",
        "with_brightfield": "as profiles, with CellProfiler's 302 bright-field features, which the published row lacks",
    }
    model_variant: ClassVar[str | None] = "sphered"
    published: ClassVar[tuple[PublishedRow, ...]] = (
        _row("CellProfiler (paper)", 81.70, 58.71, 4.00),
        _row("CellProfiler (ours; raw features, sphered)", 99.02, 74.12, 3.61),
        _row("Cell Painting CNN", 98.04, 77.45, 6.80),
        _row("DINO-BoC", 94.44, 76.32, 6.79),
        _row("OpenPhenom", 96.08, 74.26, 4.99),
        _row("DINOv2", 94.44, 75.84, 7.03),
        _row("SubCell ViT-B", 95.42, 77.60, 7.44),
        _row("IDRCell", 93.46, 72.37, 4.98),
        _row_without_count("MCA-SSL", 61.72, 1.85),
        _row_without_count("MCA-SupC", 72.72, 5.20),
        _row_without_count("ChA-MAEViT", 74.99, 5.53),
    )
    interval_unit: ClassVar[str] = "compound"
    is_retrieval: ClassVar[bool] = True
    control: ClassVar[tuple[str, tuple[str, ...]] | None] = (_CONTROL, (_NEGCON,))
    biology: ClassVar[str | None] = _COMPOUND
    robust_to: ClassVar[tuple[str, ...]] = (_PLATE,)
    tiny_finds: ClassVar[float] = 0.6
    tiny_null: ClassVar[float] = 0.1

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        activity_null_size: int = 100_000,
        consistency_null_size: int = 20_000,
        threshold: float = 0.05,
        epsilon: float = 1e-3,
    ) -> None:
        super().__init__(variant, seed)
        self.activity_null_size = activity_null_size
        self.consistency_null_size = consistency_null_size
        self.threshold = threshold
        self.epsilon = epsilon
        for name in ("activity_null_size", "consistency_null_size"):
            if getattr(self, name) < 100:
                raise ConfigError(
                    f"jumpcp1: {name}={getattr(self, name)} is too few to tell a p-value of 0.05; 100 or more."
                )
        if self.variant != "sphered" and epsilon != 1e-3:
            raise ConfigError(f"jumpcp1: epsilon has no effect with variant '{self.variant}'; use variant 'sphered'.")

    def adapt(self, inputs: Inputs) -> Inputs:
        """Leave out CellProfiler's bright-field features, name the controls, and sphere where asked for."""
        table = inputs.table
        controls = _controls(table)
        compounds = np.where(controls, "DMSO", column(table, _COMPOUND))
        lost = checks.is_missing(pd.Series(compounds, dtype=object))
        if lost.any():
            raise DataError(
                f"{int(lost.sum())} wells are no '{_NEGCON}' control and have no compound (first: "
                f"{column(table, _PLATE)[lost][0]} {column(table, _WELL)[lost][0]}); complete the plate map."
            )
        table = replace(table, metadata=table.metadata.assign(**{_COMPOUND: compounds}))
        if self.variant != "with_brightfield":
            table = _without_bright_field(table)
        if self.variant == "sphered":
            checks.finite(table, "the table")
            table = self._sphered(table, controls)
        return replace(inputs, tables={"table": table})

    def _sphered(self, table: FeatureTable, controls: NDArray[np.bool_]) -> FeatureTable:
        from morphem.profiles.sphering import Sphering

        if not controls.any():
            raise DataError(f"sphering is fitted on the wells with {_CONTROL} '{_NEGCON}', and there are none.")
        try:
            transform = Sphering("ZCA-cor", self.epsilon).fit(table.values[controls], table.columns, "the DMSO wells")
        except DataError:
            components = _without_dependences(table.values, controls, self.epsilon)
            if components is None:
                raise
            notes = [*table.provenance.get("notes", []), f"sphered over {components.shape[1]} components: {_DEPENDENT}"]
            return replace(with_values(table, components), provenance={**table.provenance, "notes": notes})
        return with_values(table, transform.transform(table.values))

    def score(self, inputs: Inputs) -> Score:
        """Test replicates of every compound against DMSO wells, then compounds of every target against the others."""
        table = inputs.table
        controls = _controls(table)
        checks.controls_on_every(table, _PLATE, controls, "jumpcp1")
        checks.not_flat(table.values, "jumpcp1")
        compounds = column(table, _COMPOUND).astype(str)
        _check_replicates(compounds[~controls])
        activity = self._activity(table, controls, compounds)
        active = activity["significant"].to_numpy(bool)
        shares = np.where(active, activity["mean_average_precision"], 0.0)
        consistency, totals, reason = self._consistency(table, compounds, set(activity["group"][active]), inputs.side)
        values = {
            "jump_cp1": float(shares.mean()),
            "active_fraction": float(active.mean()),
            "mean_map": float(activity["mean_average_precision"].mean()),
        }
        intervals = {
            "jump_cp1": interval_of_mean(shares, "compound", seed=self.seed),
            "active_fraction": interval_of_mean(active.astype(float), "compound", seed=self.seed),
            "mean_map": interval_of_mean(activity["mean_average_precision"].to_numpy(), "compound", seed=self.seed),
        }
        if not reason:
            hits = consistency["mean_average_precision"][consistency["significant"]].to_numpy(np.float64)
            values["jump_cp2"] = float(np.sort(hits).sum() / totals)
            of_targets = np.concatenate([hits, np.zeros(totals - len(hits))])
            intervals["jump_cp2"] = interval_of_mean(of_targets, "target", seed=self.seed)
        return Score(
            values,
            details={
                "compounds": activity.to_dict("records"),
                "targets": [] if reason else consistency.to_dict("records"),
            },
            intervals=intervals,
            rules=self._rules(),
            counts={
                "wells": len(table),
                "control_wells": int(controls.sum()),
                "features": len(table.columns),
                "compounds": len(activity),
                "active_compounds": int(active.sum()),
                "targets": totals,
                "targets_with_two_active_compounds": 0 if reason else len(consistency),
                "consistent_targets": 0 if reason else int(consistency["significant"].sum()),
            },
            missing={"jump_cp2": reason} if reason else {},
            notes=tuple(str(note) for note in table.provenance.get("notes", ())),
        )

    def _activity(self, table: FeatureTable, controls: NDArray[np.bool_], compounds: NDArray[Any]) -> pd.DataFrame:
        metadata = table.metadata[[_COMPOUND, _PLATE]].assign(
            Metadata_reference=np.where(controls, np.arange(len(table)), -1)
        )
        ranked = average_precision(table.values, metadata, _RULE, queries=~controls)
        nulls = Nulls(self.activity_null_size, self.seed)
        return mean_average_precision(ranked, compounds[~controls], nulls, threshold=self.threshold, count_ties=False)

    def _consistency(
        self, table: FeatureTable, compounds: NDArray[Any], active: set[str], side: Mapping[str, pd.DataFrame]
    ) -> tuple[pd.DataFrame, int, str]:
        """Return the targets, how many there are at all, and the reason where the score cannot be given."""
        nothing = pd.DataFrame(columns=["group", "mean_average_precision", "significant"])
        if "targets" not in side:
            return nothing, 0, "no table of targets was found beside the features (side table 'targets')"
        targets = _targets_of(side["targets"])
        annotated = {name: targets[name] for name in set(compounds) if targets.get(name)}
        totals = len({target for own in annotated.values() for target in own})
        if not totals:
            return nothing, 0, "the table of targets names none of the compounds"
        members = sorted(active & set(annotated))
        empty = nothing.astype({"mean_average_precision": float, "significant": bool})
        if not members:
            return empty, totals, ""  # absent targets count as zero
        profiles = [np.median(table.values[compounds == name].astype(np.float64), axis=0) for name in members]
        labels = [annotated[name] for name in members]
        try:
            ranked = multilabel_average_precision(np.asarray(profiles), labels)
        except NothingToRetrieveError:
            return empty, totals, ""
        nulls = Nulls(self.consistency_null_size, self.seed)
        labels_of = ranked["label"].to_numpy()
        found = mean_average_precision(ranked, labels_of, nulls, threshold=self.threshold, count_ties=False)
        return found, totals, ""

    def _rules(self) -> dict[str, str]:
        sphered = f"ZCA-cor on pooled DMSO wells, epsilon {self.epsilon:g} on singular values"
        return {
            "similarity": "cosine of well profiles",
            "sphering": sphered if self.variant == "sphered" else "none: profiles are scored as they come",
            "positives": "all wells of the compound, on any plate",
            "negatives": "the DMSO wells of the same plate; for targets, active compounds that share no target",
            "p_value": p_value_rule(Nulls(self.activity_null_size, self.seed), self.threshold, count_ties=False)
            + f" ({self.consistency_null_size} draws for targets)",
            "denominators": "all compounds; all targets of these compounds, also those without two active compounds",
        }

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Five plates of 12 DMSO wells and 10 compounds; two compounds each share a target."""
        wells = [f"{row}{number:02d}" for row in "AB" for number in range(1, 12)]
        compounds = [f"BRD-{i:02d}" for i in range(10)]
        layout = [*compounds, *["DMSO"] * 12]
        metadata = pd.DataFrame(
            [
                {
                    _PLATE: f"P{plate}",
                    _WELL: well,
                    "Metadata_broad_sample": None if name == "DMSO" else name,
                    _CONTROL: _NEGCON if name == "DMSO" else None,
                }
                for plate in range(5)
                for well, name in zip(wells, layout, strict=True)
            ]
        )
        names = [None if name == "DMSO" else name for _ in range(5) for name in layout]
        groups = [None if name is None else f"T{int(name[-2:]) // 2}" for name in names]
        plates = metadata[_PLATE].to_numpy()
        values = planted(names, seed=seed, effect=effect, batches=plates, batch_effect=0.2)
        values = values + planted(groups, seed=seed + 1, effect=effect)
        targets = [f"T{i // 2}|T{i // 4}-family" for i in range(10)]
        annotations = pd.DataFrame({"broad_sample": compounds, "target_list": targets})
        table = make_table(values, metadata.assign(**{_COMPOUND: metadata["Metadata_broad_sample"]}))
        return Inputs({"table": table}, {"targets": annotations})

    @classmethod
    def tiny_instance(cls) -> Self:
        """Nulls of a few thousand draws."""
        return cls(activity_null_size=2000, consistency_null_size=2000)


def _controls(table: FeatureTable) -> NDArray[np.bool_]:
    return np.asarray(table.metadata[_CONTROL].astype("string").str.lower().eq(_NEGCON).fillna(False), bool)


def _without_dependences(
    values: NDArray[np.float32], controls: NDArray[np.bool_], epsilon: float
) -> NDArray[np.float64] | None:
    """Return sphered components where some features are sums of others in every row, or None where that is not so.

    The last layer norm of an untrained encoder makes the features of a channel sum to zero. Components without any
    variance are left out; for the others the gains are those of the protocol, and cosines those of ZCA-cor.
    """
    from morphem.profiles.sphering import gains

    known = values[controls].astype(np.float64)
    spread = known.std(0)
    if len(known) <= known.shape[1] or not (spread > 0).all():
        return None
    rows = (values - known.mean(0)) / spread
    _, singular, directions = np.linalg.svd(rows[controls], full_matrices=False)
    rank = int((singular > singular[0] * len(known) * np.finfo(np.float32).eps).sum())
    outside = rows @ directions[rank:].T
    if rank in (0, len(spread)) or np.abs(outside).max() > 1e-3 * np.abs(rows).max():
        return None
    gain, _ = gains(singular[:rank], len(known), epsilon, "singular value")
    return np.asarray((rows @ directions[:rank].T) * gain, np.float64)


def _without_bright_field(table: FeatureTable) -> FeatureTable:
    kept = [i for i, name in enumerate(table.columns) if not any(word in name for word in _BRIGHT_FIELD)]
    if len(kept) == len(table.columns):
        return table
    columns = tuple(table.columns[i] for i in kept)
    dictionary = tuple(table.dictionary[i] for i in kept)
    return FeatureTable(table.values[:, kept], table.metadata, columns, dictionary, table.provenance)


def _check_replicates(compounds: NDArray[Any]) -> None:
    names, counts = np.unique(compounds, return_counts=True)
    single = names[counts < 2]
    if not len(names):
        raise DataError("jumpcp1: all wells are controls; there is no compound to score.")
    if len(single):
        raise DataError(
            f"jumpcp1: {len(single)} of {len(names)} compounds have a single well (first: {single[0]}), so there is no "
            "replicate to find; add its other plates, or leave these wells out of the table."
        )


def _targets_of(annotations: pd.DataFrame) -> dict[str, tuple[str, ...]]:
    known = annotations[~checks.is_missing(annotations["target_list"])]
    return {
        str(name): tuple(sorted({part.strip() for part in str(text).split("|") if part.strip()}))
        for name, text in zip(known["broad_sample"], known["target_list"], strict=True)
    }

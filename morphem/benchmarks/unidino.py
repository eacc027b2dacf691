"""uniDINO's matching accuracies: is the nearest profile, after excluding the easy ones, of the same mechanism?

Source: uniDINO, Comput. Struct. Biotechnol. J. 2025; Bayer-Group/uniDINO at 03c5ee3 (aggregation, exclusion rules).
Differs from it: the released classifier cannot run as it stands (with a list of strings it excludes nothing); the rules
here are those that its code means (`code`) or that its text says (`words`). A query that has no legal neighbour is left
out and counted, where the code would take the first row.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import pandas as pd

from morphem.benchmarks import checks
from morphem.benchmarks.attribution import channel_attribution
from morphem.benchmarks.averaging import averaged
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
    take,
)
from morphem.benchmarks.hierarchy import profile_tree
from morphem.benchmarks.knn import nearest_by_rule
from morphem.benchmarks.negative_controls import is_negative_control
from morphem.benchmarks.neighbours import exclusion
from morphem.benchmarks.retrieval import unit_rows
from morphem.benchmarks.score import Interval, Score
from morphem.benchmarks.share_intervals import interval_of_share
from morphem.benchmarks.tiny import planted
from morphem.benchmarks.unidino_accuracies import (
    ACCURACIES,
    BATCH,
    COMPOUND,
    MOA,
    PLATE,
    ROLES,
    WORDED,
    Accuracy,
    Matches,
)
from morphem.benchmarks.unidino_rows import rows_in_question
from morphem.benchmarks.well_rows import plate_columns
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

Wording = Literal["code", "words"]
Normalise = Literal["mad_per_plate", "tvn", "mad_tvn", "none"]
_NORMALISE = ("mad_per_plate", "tvn", "mad_tvn", "none")


def _row(model: str, dataset: str, values: tuple[float, ...], note: str = "") -> PublishedRow:
    return PublishedRow(model, dict(zip(ACCURACIES[dataset], values, strict=True)), f"uniDINO, {dataset}", note)


_TREATED = (COMPOUND, "Metadata_Concentration", MOA)
_LOWER_BOUND = "ran without its authors' preprocessing, so this is a lower bound"


class UniDINO(Benchmark):
    """uniDINO: do profiles of one mechanism find each other when compound, batch or plate must differ?

    Args:
        variant: The data set whose accuracies are scored: `bbbc021`, `jump_target2` or `insect`.
        seed: Of the bootstrap; the protocol itself draws nothing.
        wording: `code` excludes neighbours of the same batch or plate only where they have the query's label too;
            `words` excludes all of them, as the text and the older literature say.
        normalise: `mad_per_plate` scales every plate by the median and the deviation of all its wells, as published;
            `tvn` whitens on DMSO (1 added to the eigenvalues) and aligns the batches' covariances, the supplement's
            form, and `mad_tvn` does one after the other; `none` leaves profiles that are normalised already.
        merge: Mechanisms by the name that takes their place, for example the mitochondrial complexes I to III of the
            insect data, which the paper merges.
        attribution: Count by channel the features that tell each mechanism, in the details.
        hierarchy: Cluster the mean profiles of treatments, in the details.

    Raises:
        ConfigError: If a setting is none of its values.
    """

    protocol_version = 1
    title = "uniDINO: mechanisms and compounds matched across compounds, batches, plates and sources"
    measures = (
        "Wells treated with different compounds of one mechanism should look alike. For each well (or treatment, or "
        "batch mean) the most similar other profile is looked up, after leaving out those that could match for a "
        "trivial reason: the same compound, the same batch, the same plate or well position, the same laboratory. The"
        " score is the share of profiles whose nearest neighbour has the same mechanism, target or compound."
    )
    reading = (
        "On BBBC021 (12 mechanisms) across compounds and batches: a random network gives 0.16, CellProfiler 0.50, "
        "uniDINO 0.70. On JUMP targets across compounds all methods stay near 0.03. The more is excluded, the lower "
        "and the more honest the score."
    )
    source = "uniDINO, Comput. Struct. Biotechnol. J. 2025; Bayer-Group/uniDINO at 03c5ee3"
    parts = (
        Part(
            "table",
            "one row per well",
            (
                Column(
                    COMPOUND,
                    "compound; controls may lack it",
                    ("Metadata_compound", "Metadata_broad_sample", "Metadata_JCP2022", "Metadata_Reagent"),
                    missing_allowed=True,
                ),
                Column(
                    MOA,
                    "mechanism or target",
                    ("Metadata_moa", "Metadata_Target", "Metadata_target"),
                    missing_allowed=True,
                ),
                Column("Metadata_Concentration", "dose", ("Metadata_concentration", "Metadata_dose"), required=False),
                Column("Metadata_Batch", "experiment or week", ("Metadata_batch",), required=False),
                Column("Metadata_Source", "laboratory", ("Metadata_source",), required=False),
                Column("Metadata_Plate", "plate"),
                Column("Metadata_Well", "position on the plate"),
                Column(
                    "Metadata_Control",
                    "negcon for negative controls; compounds called DMSO are known anyway",
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
                    "all tiles of a well are averaged, where the published pipeline leaves out blank ones; `morphem "
                    "embed` with its rule for empty tiles makes a table without them",
                ),
            ),
            key=("Metadata_Plate", "Metadata_Well"),
        ),
    )
    side_tables = (
        SideTable(
            "active",
            ("active*.txt", "active*.csv", "active*.tsv"),
            "active compounds, or compounds and concentrations; the others are left out",
            required=False,
        ),
        SideTable(
            "cellprofiler",
            ("cellprofiler*.parquet", "cellprofiler*.csv", "cellprofiler*.csv.gz"),
            "CellProfiler profiles scaled by median and MAD, that tell which compounds are active",
            required=False,
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "nscb_well": "mechanism, neither the same compound nor the same batch, wells",
        "nsc_treatment": "mechanism, not the same compound, means of a treatment in a batch",
        "nsc_well": "mechanism, not the same compound, wells",
        "nspw_well": "compound, neither the same plate nor the same well position, wells",
        "nsc_batch": "target, not the same compound, means of a compound in a batch",
        "nscb_batch": "target, neither the same compound nor the same batch, means of a compound in a batch",
        "nsb_well": "compound, not the same batch, wells",
        "nss_well": "compound, not the same laboratory, wells",
        "insect_nscp_well": "insect cells: mechanism, neither the same compound nor the same plate, wells",
        "insect_nsc_treatment": "insect cells: mechanism, not the same compound, means of a treatment in a batch",
        "insect_nsc_well": "insect cells: mechanism, not the same compound, wells",
        "insect_nspw_well": "insect cells: compound, neither the same plate nor the same well position, wells",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "bbbc021": "breast-cancer cells, 12 mechanisms; made the published rows of this data set",
        "jump_target2": "JUMP TARGET2 plates of four laboratories; made the published rows of this data set",
        "insect": "insect cells, mechanisms of insecticides; made the published rows of this data set",
    }
    published = (
        _row("uniDINO", "bbbc021", (0.845, 0.795, 0.697, 0.656)),
        _row("ImageNet DINO", "bbbc021", (0.786, 0.685, 0.478, 0.636), "without ImageNet mean and deviation"),
        _row("CellProfiler", "bbbc021", (0.573, 0.596, 0.496, 0.646)),
        _row("Microsnoop", "bbbc021", (0.485, 0.477, 0.226, 0.457), _LOWER_BOUND),
        _row("random ViT", "bbbc021", (0.417, 0.381, 0.157, 0.450)),
        _row("uniDINO", "jump_target2", (0.029, 0.017, 0.431, 0.045)),
        _row("CellProfiler", "jump_target2", (0.032, 0.023, 0.491, 0.111)),
        _row("uniDINO", "insect", (0.605, 0.624, 0.578, 0.748)),
    )
    interval_unit = "compound"
    biology = MOA
    robust_to = ("Metadata_Batch",)
    tiny_finds = 0.7
    tiny_null = 0.5

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        wording: Wording = "code",
        normalise: Normalise = "mad_per_plate",
        merge: dict[str, str] | None = None,
        attribution: bool = False,
        hierarchy: bool = False,
    ) -> None:
        super().__init__(variant, seed)
        if wording not in ("code", "words") or normalise not in _NORMALISE:
            raise ConfigError(
                f"unidino: wording='{wording}' is 'code' or 'words', and normalise='{normalise}' is one of "
                f"{', '.join(_NORMALISE)}."
            )
        self.wording = wording
        self.normalise = normalise
        self.merge = merge
        self.attribution = attribution
        self.hierarchy = hierarchy

    @property
    def headline(self) -> str:
        """Name of the first score that the data set has."""
        return next(name for name in self.score_names if name in ACCURACIES[self.variant])

    def adapt(self, inputs: Inputs) -> Inputs:
        """Normalise with all wells, before controls and rows of unknown mechanism are dropped."""
        from morphem.profiles import TVN, MadRobustize

        table = inputs.table
        if self.normalise in ("mad_per_plate", "mad_tvn"):
            table = MadRobustize(per=plate_columns(table))(table)
        if self.normalise in ("tvn", "mad_tvn"):
            if BATCH not in table.metadata:
                raise DataError(f"unidino: normalise='{self.normalise}' aligns batches, but {BATCH} is missing.")
            controls = is_negative_control(table, COMPOUND)
            if not controls.any():
                raise DataError(
                    f"unidino: normalise='{self.normalise}' learns from DMSO, but no compound is called DMSO and "
                    "Metadata_Control names none."
                )
            marked = table.metadata.assign(Metadata_Morphem_Control=np.where(controls, "yes", "no"))
            marked_table = FeatureTable(table.values, marked, table.columns, table.dictionary, table.provenance)
            done = TVN("Metadata_Morphem_Control == 'yes'", batch=(BATCH,), epsilon=1.0, center=False)(marked_table)
            metadata = done.metadata.drop(columns="Metadata_Morphem_Control")
            table = FeatureTable(done.values, metadata, done.columns, done.dictionary, done.provenance)
        return Inputs({"table": table}, inputs.side)

    def score(self, inputs: Inputs) -> Score:
        """Compute the accuracies of the data set."""
        values: dict[str, float] = {}
        intervals: dict[str, Interval] = {}
        details: dict[str, Any] = {}
        counts: dict[str, int] = {}
        missing: dict[str, str] = {}
        rules = {"similarity": "cosine; one nearest neighbour", "normalisation": self.normalise}
        checks.not_flat(inputs.table.values, "unidino: the table")
        table, left_out, notes = rows_in_question(inputs.table, self.variant, inputs.side, self.merge or {})
        counts |= left_out
        for name, accuracy in ACCURACIES[self.variant].items():
            rule = exclusion(self._rule(accuracy.rule))
            needed = {ROLES[role] for role in rule.roles if role != "label"} | set(accuracy.level)
            absent = sorted(needed - set(table.metadata.columns))
            if absent:
                missing[name] = f"it needs {', '.join(absent)}"
                continue
            found = self._accuracy(table, accuracy, rule.name, name)
            if not len(found.hits):
                missing[name] = f"no profile has a neighbour that the rule allows ({rule.words})"
                continue
            values[name] = found.share
            intervals[name] = interval_of_share(found.hits, found.compounds, self.interval_unit, self.seed)
            details[name] = found.details()
            counts |= {f"{name}_profiles": len(found.hits), f"{name}_without_candidate": found.without}
            rules[name] = f"{rule.words}; matches {accuracy.label.removeprefix('Metadata_')}"
        if not values:
            raise DataError(f"unidino: no accuracy of {self.variant} can be computed: {next(iter(missing.values()))}.")
        rules["p_value"] = "none; see the interval over compounds"
        rules["negatives"] = "all profiles that the exclusion rule allows, on all plates"
        if self.attribution:
            level = tuple(name for name in (PLATE, *_TREATED) if name in table.metadata)
            profiles = averaged(table, level)
            details["attribution"] = channel_attribution(profiles, column(profiles, MOA).astype(str), seed=self.seed)
        if self.hierarchy:
            details["hierarchy"] = self._tree(table)
        return Score(values, details, intervals, rules, counts, missing, notes)

    def _tree(self, table: FeatureTable) -> dict[str, Any]:
        level = tuple(name for name in _TREATED if name in table.metadata)
        profiles = averaged(table, level)
        names = [" ".join(row) for row in zip(*(column(profiles, n).astype(str) for n in level[:-1]), strict=True)]
        unit = unit_rows(profiles.values)
        return profile_tree(unit @ unit.T, names, column(profiles, MOA).astype(str))

    def _rule(self, name: str) -> str:
        return f"{name}_words" if self.wording == "words" and name in WORDED else name

    def _accuracy(self, table: FeatureTable, accuracy: Accuracy, rule: str, name: str) -> "Matches":
        kept = table
        if accuracy.without:
            kept = take(table, ~np.isin(column(table, accuracy.label).astype(str), accuracy.without))
        if accuracy.level:
            kept = averaged(kept, (*accuracy.level, accuracy.label))
        labels = column(kept, accuracy.label).astype(str)
        if len(set(labels)) < 2:
            raise DataError(
                f"unidino, {name}: {len(set(labels))} different values of {accuracy.label}; two are needed."
            )
        columns: dict[str, Any] = {"label": labels}
        columns |= {role: column(kept, at).astype(str) for role, at in ROLES.items() if at in kept.metadata}
        found = nearest_by_rule(kept.values, exclusion(rule), columns, metric="cosine").row
        legal = found >= 0
        return Matches(
            hits=labels[legal] == labels[found[legal]],
            compounds=column(kept, COMPOUND).astype(str)[legal],
            labels=labels[legal],
            without=int((~legal).sum()),
        )

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Four mechanisms of four compounds, on three batches of two plates; features tell mechanisms and batches."""
        rows = [
            {
                "Metadata_Compound": f"compound{mechanism}{compound}",
                "Metadata_MoA": f"mechanism{mechanism}",
                "Metadata_Concentration": "1",
                "Metadata_Batch": f"week{batch}",
                "Metadata_Source": f"source{batch % 2}",
                "Metadata_Plate": f"week{batch}_plate{plate}",
                "Metadata_Well": f"{chr(65 + mechanism)}{compound * 6 + (batch * 2 + plate) % 6 + 1:02d}",
            }
            for batch in range(3)
            for plate in range(2)
            for mechanism in range(4)
            for compound in range(4)
        ]
        metadata = pd.DataFrame(rows)
        values = planted(
            list(metadata["Metadata_MoA"]),
            seed=seed,
            effect=effect,
            batches=list(metadata["Metadata_Batch"]),
            batch_effect=0.2,
        )
        return Inputs({"table": make_table(values, metadata)})

"""uniDINO's matching accuracies: is the nearest profile, after excluding the easy ones, of the same mechanism?

Source: uniDINO, Comput. Struct. Biotechnol. J. 2025; Bayer-Group/uniDINO at 03c5ee3 (aggregation, exclusion rules).
Differs from it: the released classifier cannot run as it stands (with a list of strings it excludes nothing); the rules
here are those that its code means (`code`) or that its text says (`words`). A query that has no legal neighbour is left
out and counted, where the code would take the first row.
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
from morphem.benchmarks.checks import is_missing
from morphem.benchmarks.knn import nearest_by_rule
from morphem.benchmarks.neighbours import exclusion
from morphem.benchmarks.score import Interval, Score
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

Wording = Literal["code", "words"]
Normalise = Literal["mad_per_plate", "none"]
_ROLES = {
    "compound": "Metadata_Compound",
    "batch": "Metadata_Batch",
    "source": "Metadata_Source",
    "plate": "Metadata_Plate",
    "well": "Metadata_Well",
}
_WORDED = ("nsb", "nscb", "nss", "nspw", "nscp")
"""Rules of which code and words differ."""


@dataclass(frozen=True)
class Accuracy:
    """One matching accuracy.

    Attributes:
        rule: Exclusion rule: `nsc`, `nsb`, `nscb`, `nss`, `nspw` or `nscp`.
        label: Canonical column that has to match.
        level: Columns whose rows are averaged to one profile first; none for wells as they are.
        without: Values of the label that are left out.
    """

    rule: str
    label: str
    level: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


_MOA, _COMPOUND = "Metadata_MoA", "Metadata_Compound"
_TREATMENT = ("Metadata_Compound", "Metadata_Concentration", "Metadata_Batch")
_IN_ONE_BATCH = ("Cholesterol-lowering", "Kinase inhibitors")  # BBBC021: each of these mechanisms is in one batch alone
ACCURACIES: Mapping[str, Mapping[str, Accuracy]] = {
    "bbbc021": {
        "nsc_treatment": Accuracy("nsc", _MOA, _TREATMENT),
        "nsc_well": Accuracy("nsc", _MOA),
        "nscb_well": Accuracy("nscb", _MOA, without=_IN_ONE_BATCH),
        "nspw_well": Accuracy("nspw", _COMPOUND),
    },
    "jump_target2": {
        "nsc_batch": Accuracy("nsc", _MOA, ("Metadata_Compound", "Metadata_Batch")),
        "nscb_batch": Accuracy("nscb", _MOA, ("Metadata_Compound", "Metadata_Batch")),
        "nsb_well": Accuracy("nsb", _COMPOUND),
        "nss_well": Accuracy("nss", _COMPOUND),
    },
    "insect": {
        "nsc_treatment": Accuracy("nsc", _MOA, _TREATMENT),
        "nsc_well": Accuracy("nsc", _MOA),
        "nscp_well": Accuracy("nscp", _MOA),
        "nspw_well": Accuracy("nspw", _COMPOUND),
    },
}
"""The accuracies of each data set of the paper, by name of the score."""


def _row(model: str, dataset: str, values: tuple[float, ...], note: str = "") -> PublishedRow:
    return PublishedRow(model, dict(zip(ACCURACIES[dataset], values, strict=True)), f"uniDINO, {dataset}", note)


_LOWER_BOUND = "ran without its authors' preprocessing, so this is a lower bound"


class UniDINO(Benchmark):
    """uniDINO: do profiles of one mechanism find each other when compound, batch or plate must differ?

    Args:
        variant: The data set whose accuracies are scored: `bbbc021`, `jump_target2` or `insect`.
        seed: Of the bootstrap; the protocol itself draws nothing.
        wording: `code` excludes neighbours of the same batch or plate only where they have the query's label too;
            `words` excludes all of them, as the text and the older literature say.
        normalise: `mad_per_plate` scales every plate by the median and the deviation of all its wells, as published;
            `none` leaves profiles that are normalised already.

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
                Column(_COMPOUND, "compound", ("Metadata_compound", "Metadata_broad_sample", "Metadata_Reagent")),
                Column(
                    _MOA,
                    "mechanism or target",
                    ("Metadata_moa", "Metadata_Target", "Metadata_target"),
                    missing_allowed=True,
                ),
                Column("Metadata_Concentration", "dose", ("Metadata_concentration", "Metadata_dose"), required=False),
                Column("Metadata_Batch", "experiment or week", ("Metadata_batch",), required=False),
                Column("Metadata_Source", "laboratory", ("Metadata_source",), required=False),
                Column("Metadata_Plate", "plate"),
                Column("Metadata_Well", "position on the plate"),
            ),
            recipe=FeatureRecipe(unit="tile", tile_size_px=224, aggregate="well"),
            key=("Metadata_Plate", "Metadata_Well"),
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
        "nscp_well": "mechanism, neither the same compound nor the same plate, wells",
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
    biology = _MOA
    robust_to = ("Metadata_Batch",)
    tiny_finds = 0.7
    tiny_null = 0.5

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        wording: Wording = "code",
        normalise: Normalise = "mad_per_plate",
    ) -> None:
        super().__init__(variant, seed)
        if wording not in ("code", "words") or normalise not in ("mad_per_plate", "none"):
            raise ConfigError(
                f"unidino: wording='{wording}' is 'code' or 'words', and normalise='{normalise}' is 'mad_per_plate' or "
                "'none'."
            )
        self.wording = wording
        self.normalise = normalise

    def adapt(self, inputs: Inputs) -> Inputs:
        """Normalise every plate by all its wells, before rows of unknown mechanism are dropped."""
        if self.normalise == "none":
            return inputs
        from morphem.profiles import MadRobustize

        return Inputs({"table": MadRobustize(per=("Metadata_Plate",))(inputs.table)}, inputs.side)

    def score(self, inputs: Inputs) -> Score:
        """Compute the accuracies of the data set."""
        values: dict[str, float] = {}
        intervals: dict[str, Interval] = {}
        details: dict[str, Any] = {}
        counts: dict[str, int] = {}
        missing: dict[str, str] = {}
        rules = {"similarity": "cosine; one nearest neighbour", "normalisation": self.normalise}
        for name, accuracy in ACCURACIES[self.variant].items():
            rule = exclusion(self._rule(accuracy.rule))
            needed = {_ROLES[role] for role in rule.roles if role != "label"} | set(accuracy.level)
            absent = sorted(needed - set(inputs.table.metadata.columns))
            if absent:
                missing[name] = f"it needs {', '.join(absent)}"
                continue
            found = self._accuracy(inputs.table, accuracy, rule.name, name)
            values[name] = found.share
            intervals[name] = interval_of_mean(found.per_compound(), self.interval_unit, seed=self.seed)
            details[name] = found.details()
            counts |= {f"{name}_profiles": len(found.hits), f"{name}_without_candidate": found.without}
            rules[name] = f"{rule.words}; matches {accuracy.label.removeprefix('Metadata_')}"
        missing |= {
            name: f"it is no accuracy of {self.variant}" for name in self.score_names if name not in {*values, *missing}
        }
        if not values:
            raise DataError(f"unidino: no accuracy of {self.variant} can be computed: {next(iter(missing.values()))}.")
        rules["p_value"] = "none; see the interval over compounds"
        rules["negatives"] = "all profiles that the exclusion rule allows, on all plates"
        return Score(values=values, details=details, intervals=intervals, rules=rules, counts=counts, missing=missing)

    def _rule(self, name: str) -> str:
        return f"{name}_words" if self.wording == "words" and name in _WORDED else name

    def _accuracy(self, table: FeatureTable, accuracy: Accuracy, rule: str, name: str) -> "_Matches":
        known = ~is_missing(table.metadata[accuracy.label])
        known &= ~np.isin(column(table, accuracy.label).astype(str), accuracy.without)
        kept = take(table, known)
        if accuracy.level:
            kept = averaged(kept, (*accuracy.level, accuracy.label))
        labels = column(kept, accuracy.label).astype(str)
        if len(set(labels)) < 2:
            raise DataError(
                f"unidino, {name}: {len(set(labels))} different values of {accuracy.label}; two are needed."
            )
        columns: dict[str, Any] = {"label": labels}
        columns |= {role: column(kept, at).astype(str) for role, at in _ROLES.items() if at in kept.metadata}
        found = nearest_by_rule(kept.values, exclusion(rule), columns, metric="cosine").row
        legal = found >= 0
        if not legal.any():
            raise DataError(
                f"unidino, {name}: no profile has a neighbour that the rule allows ({exclusion(rule).words})."
            )
        return _Matches(
            hits=labels[legal] == labels[found[legal]],
            compounds=column(kept, _COMPOUND).astype(str)[legal],
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


@dataclass(frozen=True)
class _Matches:
    """Whether the nearest neighbour of each profile has its label.

    Attributes:
        hits: (Q,).
        compounds: Of the queries, (Q,).
        labels: Of the queries, (Q,).
        without: Queries without a legal neighbour, which are left out.
    """

    hits: NDArray[np.bool_]
    compounds: NDArray[Any]
    labels: NDArray[Any]
    without: int

    @property
    def share(self) -> float:
        return float(self.hits.mean())

    def per_compound(self) -> NDArray[np.float64]:
        """Share of hits of every compound."""
        number = np.unique(self.compounds, return_inverse=True)[1].reshape(-1)
        return np.asarray(np.bincount(number, weights=self.hits) / np.bincount(number), np.float64)

    def details(self) -> dict[str, Any]:
        by_label = {str(label): float(self.hits[self.labels == label].mean()) for label in np.unique(self.labels)}
        counted_wrong = float(self.hits.sum() / (len(self.hits) + self.without))
        chance = float((np.unique(self.labels, return_counts=True)[1] / len(self.labels)).max())
        return {
            "by_label": by_label,
            "accuracy_if_profiles_without_candidate_count_as_wrong": counted_wrong,
            "largest_class": chance,
        }


def averaged(table: FeatureTable, level: tuple[str, ...]) -> FeatureTable:
    """Return the mean of the rows that agree in some columns; of the other metadata, what the rows agree in.

    Args:
        table: Has the columns.
        level: Canonical columns.
    """
    keys = [tuple(str(value) for value in row) for row in zip(*(column(table, name) for name in level), strict=True)]
    order = sorted(set(keys))
    place = {key: i for i, key in enumerate(order)}
    number = np.asarray([place[key] for key in keys]) if keys else np.zeros(0, int)
    sums = np.zeros((len(order), table.values.shape[1]))
    np.add.at(sums, number, table.values.astype(np.float64))
    counts = np.bincount(number, minlength=len(order))
    first = np.asarray([int(np.flatnonzero(number == i)[0]) for i in range(len(order))], np.int64)
    shared = [
        name
        for name in table.metadata.columns
        if name in level or table.metadata.groupby(number)[name].nunique(dropna=False).max() == 1
    ]
    metadata = table.metadata.iloc[first][shared].reset_index(drop=True)
    return with_values(table, sums / counts[:, None], metadata=metadata)

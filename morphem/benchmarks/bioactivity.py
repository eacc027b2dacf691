"""Bioactivity: can a small network on profiles of compounds predict the outcomes of other assays?

Source: Kim et al., self-supervision for Cell Painting (three-layer network, 209 assays of ChEMBL, AUROC).
Differs from it: the authors' assay table, folds and network widths are not public; so any table of outcomes is taken,
compounds (or their scaffolds, where the table has them) are kept together in folds, and part of what is learnt from is
set aside to stop on. Numbers can be compared with the published ones in kind only.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

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
    SideTable,
    column,
    make_table,
)
from morphem.benchmarks.bootstrap import generator, interval_of_mean
from morphem.benchmarks.checks import is_missing
from morphem.benchmarks.classifiers import standardise
from morphem.benchmarks.metrics import auroc
from morphem.benchmarks.multitask_network import Truth, predict_activities
from morphem.benchmarks.neighbours import Ints
from morphem.benchmarks.score import Score
from morphem.benchmarks.splits import group_folds
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable

_COMPOUND, _SCAFFOLD = "Metadata_Compound", "Metadata_Scaffold"
_KEYS = (_COMPOUND, "Compound", "compound")
Doubles = NDArray[np.float64]


class Bioactivity(Benchmark):
    """Bioactivity: what else a compound does, read from what its cells look like.

    Args:
        variant: `three_layers`, the published kind of network, or `linear`, one layer, as a floor.
        seed: Of folds, weights, batches and intervals.
        n_folds: At least 2.
        n_hidden: Width of the two hidden layers, at least 1.
        min_per_class: Compounds of each outcome that an assay needs, at least the number of folds.
        max_epochs: At least 1.
        patience: Epochs without gain on the compounds set aside after which training stops, at least 1.

    Raises:
        ConfigError: If a number is out of range.
    """

    protocol_version = 1
    title = "Bioactivity: outcomes of other assays predicted from profiles of compounds"
    measures = (
        "Compounds were imaged once, and other laboratories measured in hundreds of assays what they do: which enzyme "
        "they block, whether they kill. A small network learns all assays at once from the mean profiles of some "
        "compounds and predicts the outcomes of others. The score asks whether active compounds get higher values than"
        " inactive ones, assay by assay."
    )
    reading = (
        "Mean AUROC over assays: 0.5 is chance; on 209 assays of ChEMBL CellProfiler gave 0.675, DINO 0.723, the best "
        "convolutional network trained on the outcomes 0.731. Assays differ widely; read them one by one."
    )
    source = "Kim et al., self-supervision for Cell Painting"
    parts = (
        Part(
            "table",
            "one row per well or per compound, normalised; rows of one compound are averaged",
            (
                Column(_COMPOUND, "compound", ("Metadata_compound", "Metadata_broad_sample", "Metadata_Reagent")),
                Column(
                    _SCAFFOLD,
                    "scaffold or cluster of the compound's structure",
                    ("Metadata_scaffold",),
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
    side_tables = (
        SideTable(
            "assays",
            ("assays*.csv", "assays*.csv.gz", "assays*.tsv", "assays*.parquet"),
            "one row per compound (column Metadata_Compound or Compound), one column of 0 and 1 per assay, empty where "
            "the compound was not tested",
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "auroc": "mean over assays of the area under the ROC curve, compounds that were not learnt from",
        "share_above_0_7": "share of assays with an AUROC above 0.7",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "three_layers": "two hidden layers and one of outcomes, all assays at once; the kind of the published numbers",
        "linear": "one layer, all assays at once",
    }
    published = tuple(
        PublishedRow(model, {"auroc": value}, "Kim et al., bioactivity", "209 assays of ChEMBL that are not public")
        for model, value in (("best CNN", 0.731), ("DINO", 0.723), ("CellProfiler", 0.675))
    )
    interval_unit = "assay"
    biology = _COMPOUND
    tiny_finds = 0.8
    tiny_null = 0.62

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        n_folds: int = 5,
        n_hidden: int = 512,
        min_per_class: int = 5,
        max_epochs: int = 200,
        patience: int = 20,
    ) -> None:
        super().__init__(variant, seed)
        if n_folds < 2 or min_per_class < n_folds or min(n_hidden, max_epochs, patience) < 1:
            raise ConfigError(
                f"bioactivity: n_folds={n_folds} is at least 2, min_per_class={min_per_class} at least n_folds, and "
                f"n_hidden={n_hidden}, max_epochs={max_epochs}, patience={patience} at least 1."
            )
        self.n_folds = n_folds
        self.n_hidden = n_hidden
        self.min_per_class = min_per_class
        self.max_epochs = max_epochs
        self.patience = patience

    def score(self, inputs: Inputs) -> Score:
        """Predict every assay for compounds that were not learnt from."""
        profiles, names, groups = _compounds(inputs.table)
        truth, assays, left_out = self._outcomes(inputs.side["assays"], names)
        known = ~np.isnan(truth).all(1)
        profiles, truth, groups = profiles[known], truth[known], groups[known]
        predicted = self._predict(profiles, truth, groups)
        scores = {
            assay: auroc(truth[tested, i] == 1, predicted[tested, i])
            for i, assay in enumerate(assays)
            for tested in [~np.isnan(truth[:, i])]
        }
        values = np.asarray(list(scores.values()))
        return Score(
            values={"auroc": float(values.mean()), "share_above_0_7": float((values > 0.7).mean())},
            details={"auroc": scores, "left_out": left_out},
            intervals={"auroc": interval_of_mean(values, self.interval_unit, seed=self.seed)},
            rules={
                "split": f"{self.n_folds} folds; no compound"
                + (" and no scaffold" if _SCAFFOLD in inputs.table.metadata else "")
                + " is learnt from and tested; predictions of all folds make one ranking per assay",
                "classifier": f"{self.variants[self.variant]}; features scaled on the compounds learnt from; AdamW, "
                f"stopped on a tenth of these, at most {self.max_epochs} epochs",
            },
            counts={
                "assays": len(assays),
                "assays_left_out": len(left_out),
                "compounds": len(profiles),
                "compounds_without_outcome": int((~known).sum()),
                "outcomes": int((~np.isnan(truth)).sum()),
            },
        )

    def _outcomes(self, frame: pd.DataFrame, names: list[str]) -> tuple[Truth, list[str], dict[str, str]]:
        """Return outcomes, (N, A), NaN where not tested, the assays, and why others were left out."""
        key = next((name for name in _KEYS if name in frame), None)
        if key is None:
            raise DataError(f"bioactivity: the table of assays has no column {' or '.join(_KEYS)}.")
        compounds = frame[key].astype(str)
        if compounds.duplicated().any():
            raise DataError(
                f"bioactivity: the table of assays has compound '{compounds[compounds.duplicated()].iloc[0]}' twice; "
                "keep one row per compound."
            )
        if not set(compounds) & set(names):
            raise DataError("bioactivity: no compound of the profiles is in the table of assays; spell them alike.")
        outcomes = frame.drop(columns=key).set_index(compounds).reindex(names)
        kept: dict[str, Doubles] = {}
        left_out: dict[str, str] = {}
        for assay in sorted(map(str, outcomes.columns)):
            values = pd.to_numeric(outcomes[assay], errors="coerce").to_numpy(np.float64)
            wrong = outcomes[assay][~np.isin(values, (0.0, 1.0)) & ~is_missing(outcomes[assay])]
            if len(wrong):
                raise DataError(
                    f"bioactivity: assay '{assay}' says '{wrong.iloc[0]}' for {wrong.index[0]}; outcomes are 0, 1 or "
                    "empty."
                )
            counts = int((values == 0).sum()), int((values == 1).sum())
            if min(counts) < self.min_per_class:
                left_out[assay] = f"{counts[1]} active and {counts[0]} inactive compounds"
            else:
                kept[assay] = values
        if not kept:
            raise DataError(
                f"bioactivity: none of {len(left_out)} assays has {self.min_per_class} active and {self.min_per_class} "
                "inactive compounds among the profiles; lower min_per_class or add compounds."
            )
        return np.stack(list(kept.values()), axis=1), list(kept), left_out

    def _predict(self, profiles: Doubles, truth: Truth, groups: NDArray[Any]) -> Doubles:
        predicted = np.full(truth.shape, np.nan)
        majority = np.nanmean(truth, axis=1) > np.nanmean(truth)
        for i, (learn, test) in enumerate(group_folds(majority, groups, self.n_folds, seed=self.seed)):
            fit, stop = _set_aside(learn, groups, self.seed + i)
            known, asked = standardise(profiles[fit], profiles)
            predicted[test] = predict_activities(
                known,
                truth[fit],
                (asked[stop], truth[stop]),
                asked[test],
                n_hidden=self.n_hidden if self.variant == "three_layers" else None,
                seed=self.seed + i,
                max_epochs=self.max_epochs,
                patience=self.patience,
            )
        return predicted

    @classmethod
    def tiny_instance(cls) -> "Bioactivity":
        """Return the protocol with a small network."""
        return cls(n_folds=3, n_hidden=64, max_epochs=80)

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Ninety compounds in six families, two wells each; four assays say which families are active."""
        names = [f"compound{i:02d}" for i in range(90)]
        family = np.arange(90) % 6
        values = planted([f"family{i}" for i in family], seed=seed, effect=effect)
        metadata = pd.DataFrame({_COMPOUND: names}).loc[np.repeat(np.arange(90), 2)].reset_index(drop=True)
        noise = 0.0 if np.isinf(effect) else 0.3
        wells = np.repeat(values, 2, axis=0) + noise * generator(seed, "wells").normal(size=(180, values.shape[1]))
        outcomes = pd.DataFrame({"Metadata_Compound": names})
        for i, active in enumerate(((0, 1, 2), (1, 3), (2, 4, 5), (0, 5))):
            outcomes[f"assay{i}"] = np.isin(family, active).astype(float)
            outcomes.loc[generator(seed, "untested", i).choice(90, 15, replace=False), f"assay{i}"] = np.nan
        return Inputs({"table": make_table(wells, metadata)}, {"assays": outcomes})


def _compounds(table: FeatureTable) -> tuple[Doubles, list[str], NDArray[Any]]:
    """Return the mean profile of every compound, sorted by name, the names, and what is kept together in folds."""
    compounds = column(table, _COMPOUND).astype(str)
    names, number = np.unique(compounds, return_inverse=True)
    number = number.reshape(-1)
    order = np.lexsort((*table.values[:, :4].T, number))
    sums = np.zeros((len(names), table.values.shape[1]))
    np.add.at(sums, number[order], table.values[order].astype(np.float64))
    groups = names.astype(object)
    if _SCAFFOLD in table.metadata:
        scaffold = column(table, _SCAFFOLD)
        lost = is_missing(table.metadata[_SCAFFOLD])
        for i in range(len(names)):
            own = sorted({str(value) for value in scaffold[(number == i) & ~lost]})
            if len(own) > 1:
                raise DataError(
                    f"bioactivity: compound '{names[i]}' has two scaffolds, {own[0]} and {own[1]}; keep one."
                )
            groups[i] = f"scaffold {own[0]}" if own else f"compound {names[i]}"
    return sums / np.bincount(number)[:, None], [str(name) for name in names], groups


def _set_aside(learn: Ints, groups: NDArray[Any], seed: int) -> tuple[Ints, Ints]:
    """Return rows to fit on and rows to stop on: a tenth of the groups, at least one."""
    own = np.unique(groups[learn].astype(str))
    if len(own) < 2:
        raise DataError("bioactivity: a fold has one group to learn from; give more compounds or fewer folds.")
    chosen = generator(seed, "bioactivity", "stop").choice(own, max(1, len(own) // 10), replace=False)
    aside = np.isin(groups[learn].astype(str), chosen)
    return learn[~aside], learn[aside]

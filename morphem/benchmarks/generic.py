"""Generic scores of any labelled table: linear probe, logistic regression, nearest neighbours, retrieval.

No paper's protocol; what one wants to know of a new data set first. Source of the parts: Alain and Bengio 2016,
arXiv:1610.01644 (linear probes); Kalinin et al. 2025, Nature Communications (mean average precision).
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks import checks, knn
from morphem.benchmarks.base import Benchmark, Column, FeatureRecipe, Inputs, Part, column, make_table, take
from morphem.benchmarks.bootstrap import interval_of_mean
from morphem.benchmarks.classifiers import linear_probe, logistic_regression
from morphem.benchmarks.intervals import interval_of_classes
from morphem.benchmarks.metrics import balanced_accuracy, class_numbers, macro_f1
from morphem.benchmarks.neighbours import Ints
from morphem.benchmarks.nulls import Nulls
from morphem.benchmarks.retrieval import (
    PAIR_LIMIT,
    NothingToRetrieveError,
    PairRule,
    average_precision,
    mean_average_precision,
    p_value_rule,
)
from morphem.benchmarks.score import Interval, Score
from morphem.benchmarks.splits import check_disjoint, group_folds
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError
from morphem.features import METADATA, FeatureTable

_LABEL, _GROUP, _PLACE = "Metadata_label", "Metadata_group", "Metadata_place"
_WELL = ("Metadata_Study", "Metadata_Plate", "Metadata_Well")
_CLASSIFIERS = ("linear_probe", "logistic_regression", "knn")


class Generic(Benchmark):
    """Four scores of any table with a label.

    Args:
        variant: `all`, or one of the four scores alone.
        seed: Of folds, nulls and intervals.
        label: Column to predict, with or without `Metadata_`.
        group: Columns that together name what must stay on one side of a split, and whose rows are no replicates of
            each other; by default study, plate and well; the image where wells are unknown. Empty: every row is one.
        within: Columns in which a negative pair agrees; by default the plate, if the table has it and plates hold
            several labels. Empty: all rows are candidates.
        n_folds: Folds of cross-validation over groups, at least 2.
        k: Neighbours that vote.
        metric: `cosine`, `correlation` or `l2`: distance of neighbours; retrieval takes cosine for `l2`.
        c: Inverse strength of the logistic regression's penalty.
        null_size: Random rankings against which retrieval is tested.
        threshold: A class is retrieved where its corrected p-value is below.
        pair_limit: Largest number of similarities of the retrieval.
    """

    title: ClassVar[str] = "Generic: how well any label can be read from features"
    measures: ClassVar[str] = (
        "Do the features know what you know about the images: the treatment, the genotype, the cell type? Three "
        "classifiers learn the label from some wells and name that of others: a linear probe, a logistic "
        "regression, and the nearest neighbours. Retrieval asks without learning whether an image's most similar "
        "images, among those of other wells, carry its label. Rows of a well are never both learnt from and tested on."
    )
    reading: ClassVar[str] = (
        "The classifiers give balanced accuracy: 1 is perfect, 1 / number of classes is guessing (0.5 for two). "
        "Retrieval (mAP) is 1 if the own kind always comes first; guessing gives about the share of the own kind among "
        "candidates, so look at the share of classes retrieved better than chance too. Compare with an untrained one."
    )
    source: ClassVar[str] = "no paper; scikit-learn's and copairs' definitions (see the docstring)"
    parts: ClassVar[tuple[Part, ...]] = (
        Part(
            "table",
            "one row per tile, cell, image or well of any study",
            (
                Column(_LABEL, "label to predict", missing_allowed=True),
                Column("Metadata_Plate", "plate", required=False, missing_allowed=True),
                Column("Metadata_Well", "well", required=False, missing_allowed=True),
            ),
            recipe=FeatureRecipe(unit="tile", tile_size_px=224, combine="concat", aggregate="image"),
        ),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "linear_probe": "balanced accuracy of least squares on standardised features, groups held out",
        "logistic_regression": "balanced accuracy of logistic regression on standardised features, groups held out",
        "knn": "balanced accuracy of a vote of the nearest neighbours, groups held out",
        "map": "mean average precision of retrieval: mean over labels, negatives within the plate",
        "retrieved_fraction": "share of labels retrieved better than chance",
    }
    variants: ClassVar[Mapping[str, str]] = {
        "all": "all scores; there is no published number",
        "linear_probe": "the linear probe alone",
        "logistic_regression": "the logistic regression alone",
        "knn": "the nearest neighbours alone",
        "map": "the retrieval alone",
    }
    interval_unit: ClassVar[str] = "group"
    is_retrieval: ClassVar[bool] = True
    biology: ClassVar[str | None] = _LABEL
    robust_to: ClassVar[tuple[str, ...]] = ("Metadata_Plate", "Metadata_Well")
    tiny_finds: ClassVar[float] = 0.8
    tiny_null: ClassVar[float] = 0.55

    def __init__(
        self,
        variant: str | None = None,
        seed: int = 0,
        label: str = "label",
        group: Sequence[str] | None = None,
        within: Sequence[str] | None = None,
        n_folds: int = 5,
        k: int = 5,
        metric: knn.Metric = "cosine",
        c: float = 1.0,
        null_size: int = 10_000,
        threshold: float = 0.05,
        pair_limit: int = PAIR_LIMIT,
    ) -> None:
        super().__init__(variant, seed)
        self.label = label
        self.group = None if group is None else tuple(group)
        self.within = None if within is None else tuple(within)
        self.n_folds = n_folds
        self.k = k
        self.metric = metric
        self.c = c
        self.null_size = null_size
        self.threshold = threshold
        self.pair_limit = pair_limit
        for name, least in (("n_folds", 2), ("k", 1), ("null_size", 100)):
            if getattr(self, name) < least:
                raise ConfigError(f"generic: {name}={getattr(self, name)} has to be {least} or more.")
        if not c > 0:
            raise ConfigError(f"generic: c={c} has to be above 0.")
        if metric not in knn.METRICS:
            raise ConfigError(f"generic: metric='{metric}' is not one of {', '.join(knn.METRICS)}.")

    @property
    def headline(self) -> str:
        """The linear probe, or the only score that the variant asks for."""
        return "linear_probe" if self.variant == "all" else self.variant

    def parts_in_use(self) -> tuple[Part, ...]:
        """Return the table with the columns that the settings name."""
        part = self.parts[0]
        others = tuple(
            Column(_long(name), "column of a group or place", missing_allowed=True)
            for name in (*(self.group or ()), *(self.within or ()))
        )
        asked = Column(_LABEL, f"label '{self.label}'", _spellings(self.label), missing_allowed=True, aliases_only=True)
        return (replace(part, columns=(asked, *part.columns[1:], *others)),)

    def adapt(self, inputs: Inputs) -> Inputs:
        """Leave out rows without a label, and name groups and places."""
        table = inputs.table
        missing = checks.is_missing(table.metadata[_LABEL])
        if missing.all():
            raise DataError(f"generic: all {len(table)} rows lack the label '{self.label}'; name another one.")
        table = take(table, ~missing)
        group = self.group if self.group is not None else _default_group(table)
        within = self.within if self.within is not None else _default_place(table)
        names = {
            _LABEL: table.metadata[_LABEL].astype(str),
            _GROUP: _joint(table, group) if group else pd.Series(_row_names(table)),
            _PLACE: _joint(table, within) if within else pd.Series(["everywhere"] * len(table)),
        }
        return Inputs({"table": replace(table, metadata=table.metadata.assign(**names))}, inputs.side)

    def score(self, inputs: Inputs) -> Score:
        """Cross-validate the classifiers over groups, and rank."""
        table = inputs.table
        classes, names = class_numbers(column(table, _LABEL), f"generic: the label '{self.label}'")
        groups = column(table, _GROUP).astype(str)
        result = _Collected()
        wanted = _CLASSIFIERS if self.variant == "all" else (self.variant,)
        kept = _learnable(classes, groups)
        for name in [name for name in _CLASSIFIERS if name in wanted]:
            if len(np.unique(classes[kept])) < 2:
                result.missing[name] = "fewer than two labels have rows in two groups, so none can be learnt and tested"
            else:
                self._classify(name, table.values[kept], classes[kept], groups[kept], names, result)
        if self.variant in ("all", "map"):
            self._retrieve(table, result)
        if self.headline not in result.values:
            raise DataError(f"generic: there is no {self.headline}: {result.missing[self.headline]}.")
        left_out = sorted({names[i] for i in classes} - {names[i] for i in classes[kept]})
        counts = {
            "rows": len(table),
            "labels": len(names),
            "groups": len(np.unique(groups)),
            "labels_of_one_group": len(left_out),
        }
        notes = [f"labels of one group only are neither learnt nor tested: {', '.join(left_out)}"] if left_out else []
        return Score(
            result.values, result.details, result.intervals, self._rules(table), counts, result.missing,
            (*notes, *result.notes),
        )  # fmt: skip

    def _rules(self, table: FeatureTable) -> dict[str, str]:
        places = column(table, _PLACE)
        chosen = self.group if self.group is not None else _default_group(table)
        group = " and ".join(name.removeprefix(METADATA) for name in chosen) or "row"
        where = "of all rows" if places[0] == "everywhere" else "of the same place (by default the plate)"
        return {
            "split": f"{self.n_folds} folds over groups ({group}), never on both sides; fits see training rows",
            "negatives": f"rows {where} with another label",
            "positives": "rows with the same label of another group",
            "p_value": p_value_rule(Nulls(self.null_size, self.seed), self.threshold),
            "metric": f"{self.metric} for neighbours, {self._similarity} for retrieval",
        }

    @property
    def _similarity(self) -> Any:
        return "cosine" if self.metric == "l2" else self.metric

    def _classify(
        self,
        name: str,
        values: NDArray[np.float32],
        classes: Ints,
        groups: NDArray[Any],
        names: list[str],
        result: "_Collected",
    ) -> None:
        predicted = np.full(len(classes), -1, np.int64)
        for train, test in group_folds(classes, groups, self.n_folds, seed=self.seed):
            check_disjoint(groups, train, test)
            if len(np.unique(classes[train])) < 2:
                raise DataError(f"generic: a fold of {name} has one label to learn from; group otherwise.")
            predicted[test] = self._predict(name, values[train], classes[train], values[test], result)
        result.values[name] = balanced_accuracy(classes, predicted)
        result.intervals[name] = interval_of_classes(classes, predicted, groups, "group", seed=self.seed)
        hits = {names[i]: float((predicted[classes == i] == i).mean()) for i in np.unique(classes)}
        result.details[name] = {
            "accuracy": float((predicted == classes).mean()),
            "macro_f1": macro_f1(classes, predicted),
            "accuracy_per_label": hits,
            "chance": 1 / len(hits),
        }

    def _predict(self, name: str, train: NDArray[Any], classes: Ints, test: NDArray[Any], result: "_Collected") -> Ints:
        if name == "linear_probe":
            return linear_probe(train, classes, test)
        if name == "logistic_regression":
            predicted, converged = logistic_regression(train, classes, test, c=self.c, class_weight="balanced")
            if not converged:
                result.note("the logistic regression stopped before it converged")
            return predicted
        return knn.vote(test, train, classes, k=self.k, metric=self.metric)

    def _retrieve(self, table: FeatureTable, result: "_Collected") -> None:
        checks.not_flat(table.values, "generic")
        rule = PairRule((_LABEL,), (_GROUP,), (_PLACE,), (_LABEL,))
        try:
            ranked = average_precision(
                table.values, table.metadata, rule, metric=self._similarity, pair_limit=self.pair_limit
            )
        except NothingToRetrieveError:
            reason = "no row has both a row of its label in another group and a row of another label in its place"
            result.missing.update({"map": reason, "retrieved_fraction": reason})
            return
        nulls = Nulls(self.null_size, self.seed)
        found = mean_average_precision(ranked, column(table, _LABEL), nulls, threshold=self.threshold)
        lost = int(ranked["average_precision"].isna().sum())
        if lost:
            result.note(f"{lost} rows have no replicate in another group or no negative, and are not ranked")
        result.values["map"] = float(found["mean_average_precision"].mean())
        result.values["retrieved_fraction"] = float(found["significant"].mean())
        for name, values in (("map", found["mean_average_precision"]), ("retrieved_fraction", found["significant"])):
            result.intervals[name] = interval_of_mean(values.to_numpy(float), "label", seed=self.seed)
        chance = (ranked["n_pos_pairs"] / ranked["n_total_pairs"].replace(0, np.nan)).mean()
        result.details["map"] = {"labels": found.to_dict("records"), "share_of_positives": float(chance)}

    @classmethod
    def tiny_instance(cls) -> Self:
        """A null of a few hundred draws."""
        return cls(null_size=500)

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Three plates of 12 wells, two images each; two labels, the same in no fixed place."""
        rows = []
        for plate in range(3):
            for well in range(12):
                rows += [(f"P{plate}", f"A{well:02d}", "treated" if (well + plate) % 2 else "control")] * 2
        metadata = pd.DataFrame(rows, columns=["Metadata_Plate", "Metadata_Well", _LABEL])
        plates = metadata["Metadata_Plate"].to_numpy()
        values = planted(metadata[_LABEL].to_numpy(), seed=seed, effect=effect, batches=plates, batch_effect=0.3)
        return Inputs({"table": make_table(values, metadata)})


class _Collected:
    """What the scores gather."""

    def __init__(self) -> None:
        self.values: dict[str, float] = {}
        self.details: dict[str, Any] = {}
        self.intervals: dict[str, Interval] = {}
        self.missing: dict[str, str] = {}
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Say something once."""
        if text not in self.notes:
            self.notes.append(text)


def _long(name: str) -> str:
    return name if name.startswith(METADATA) else METADATA + name


def _spellings(label: str) -> tuple[str, ...]:
    short = label.removeprefix(METADATA)
    return (_long(label), f"{METADATA}Cell_{short}", f"{METADATA}Label_{short}")


def _joint(table: FeatureTable, columns: Sequence[str]) -> "pd.Series[str]":
    """Return one text per row for the values of several columns."""
    frame = table.metadata[[_long(name) for name in columns]].astype(str)
    return pd.Series(["/".join(row) for row in frame.itertuples(index=False)], dtype=object)


def _row_names(table: FeatureTable) -> list[str]:
    """Return a name for every row that does not depend on its place: its features' hash, numbered where repeated."""
    import hashlib

    seen: dict[str, int] = {}
    names = []
    for row in np.ascontiguousarray(table.values):
        digest = hashlib.blake2b(row.tobytes(), digest_size=12).hexdigest()
        seen[digest] = seen.get(digest, 0) + 1
        names.append(f"{digest}-{seen[digest]}")
    return names


def _default_group(table: FeatureTable) -> tuple[str, ...]:
    """Return study, plate and well where wells are known, else what names an image, else nothing."""
    known = [name for name in (*_WELL, "Metadata_Key") if name in table.metadata]
    known = [name for name in known if not checks.is_missing(table.metadata[name]).any()]
    if "Metadata_Well" in known:
        return tuple(name for name in known if name != "Metadata_Key")
    return (
        tuple(name for name in known if name in ("Metadata_Study", "Metadata_Key")) if "Metadata_Key" in known else ()
    )


def _default_place(table: FeatureTable) -> tuple[str, ...]:
    """Return the plate where the table has it and some plate holds two labels, else nothing."""
    if "Metadata_Plate" not in table.metadata or checks.is_missing(table.metadata["Metadata_Plate"]).any():
        return ()
    labels = table.metadata.groupby("Metadata_Plate")[_LABEL].nunique()
    return ("Metadata_Plate",) if (labels > 1).any() else ()


def _learnable(classes: Ints, groups: NDArray[Any]) -> NDArray[np.bool_]:
    """Return which rows are of a class that at least two groups have."""
    pairs = pd.DataFrame({"class": classes, "group": groups}).drop_duplicates()
    counts = pairs.groupby("class").size()
    return np.isin(classes, counts.index[counts > 1])

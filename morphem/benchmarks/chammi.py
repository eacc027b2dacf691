"""CHAMMI: six out-of-domain tasks over three data sets with three, four and five channels, by the nearest neighbour.

Source: Chen et al. 2023, arXiv 2310.19224, broadinstitute/MorphEm at a5c3f38; CaicedoLab/CHAMMI-75 at b84a4ec, whose
preprocessing made the published rows. The two repositories score alike, but prepare images differently, so rows of one
cannot be compared with rows of the other; ours are CHAMMI-75's.
Differs from it: classes are numbered by name and groups are taken by name, which changes no score. Every encoder gets
squares of its own input size, resized before its normaliser acts; theirs all get 224 pixels, OpenPhenom too, whose
table of positions does not fit that size.

Cannot be identical: nothing is drawn, so that only the rounding of processors differs (0.1 points per task are expected
for MorphEm); rows of SubCell were made by code that is not public.

Shards: one set of the three studies, as one `morphem ingest` of the published folder makes it, or a folder per data set
(Allen, HPA, CP). What is missing is named, and the headline then not given.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from morphem.benchmarks.base import Benchmark, Column, FeatureRecipe, Inputs, Part, PublishedRow, column, make_table
from morphem.benchmarks.bootstrap import interval
from morphem.benchmarks.checks import is_missing
from morphem.benchmarks.knn import Metric, leave_one_group_out, nearest
from morphem.benchmarks.metrics import accuracy, f1_of_classes
from morphem.benchmarks.score import Score
from morphem.benchmarks.tiny import planted
from morphem.errors import DataError
from morphem.features import FeatureTable

_TRAIN = "Train"
_TASKS = ("Task_one", "Task_two", "Task_three", "Task_four")
Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Task:
    """One column of the published tables.

    Attributes:
        name: As the papers call it, for example `HPA3`.
        part: Data set.
        column: Boolean column that marks its test rows.
        group: Column of which one group at a time is left out; rows of the other groups then join the reference.
        in_domain: Whether the test images come from where the training images do; such tasks are not in the headline.
    """

    name: str
    part: str
    column: str
    group: str = ""
    in_domain: bool = False

    @property
    def words(self) -> str:
        """What its score is."""
        what = {"Allen": "stage of the cell cycle", "HPA": "compartment of a protein", "CP": "compound"}[self.part]
        left_out = {
            "Metadata_Cell_Type": ", one cell line left out at a time",
            "Metadata_Plate": ", one plate at a time",
        }
        where = "in-domain" if self.in_domain else "out-of-domain"
        return f"macro F1: {what}, {where}{left_out.get(self.group, '')}"


TASKS = (
    Task("WTC1", "Allen", "Metadata_Task_one", in_domain=True),
    Task("WTC2", "Allen", "Metadata_Task_two"),
    Task("HPA1", "HPA", "Metadata_Task_one", in_domain=True),
    Task("HPA2", "HPA", "Metadata_Task_two"),
    Task("HPA3", "HPA", "Metadata_Task_three", group="Metadata_Cell_Type"),
    Task("CP1", "CP", "Metadata_Task_one", in_domain=True),
    Task("CP2", "CP", "Metadata_Task_two"),
    Task("CP3", "CP", "Metadata_Task_three"),
    Task("CP4", "CP", "Metadata_Task_four", group="Metadata_Plate"),
)
"""Tasks of CHAMMI: the reference are the training images of the data set, the queries those that the column marks."""
_FIRST_RELEASE = "prepared otherwise: neither cropped nor resized, padded to whole patches, without standardisation"
_METRICS: Mapping[str, Metric] = {"knn_l2": "l2", "knn_cosine": "cosine"}


def _part(name: str, what: str, n_tasks: int, group: str = "") -> Part:
    columns = [
        Column("Metadata_Label", "label to be predicted", ("Metadata_Label_Label",)),
        Column("Metadata_Split", "split (Train, or a task)", ("Metadata_train_test_split",)),
        *(
            Column(f"Metadata_{task}", f"mark of the rows that {task} tests", required=False)
            for task in _TASKS[:n_tasks]
        ),
    ]
    if group:
        aliases = (f"Metadata_Label_{group}", f"Metadata_{group}")
        canonical = {"cell_type": "Metadata_Cell_Type", "Plate": "Metadata_Plate"}[group]
        other = tuple(alias for alias in aliases if alias != canonical)
        columns.append(
            Column(canonical, "group that is left out by turns", other, missing_allowed=True)
        )  # tested rows only
    recipe = FeatureRecipe(unit="image", prepare="square_resized_first", as_stored=True)
    return Part(name, what, tuple(columns), "chammi", recipe, required=False, study=f"chammi-{name.lower()}")


def _row(model: str, scores: tuple[float | None, ...], note: str = "", table: str = "Tables D8 to D11") -> PublishedRow:
    """Return a row of CHAMMI-75: CHAMMI score, IID mean, then the nine tasks, in percent; None is not printed."""
    names = ("chammi", "iid", *(task.name for task in TASKS))
    shares = {name: value / 100 for name, value in zip(names, scores, strict=False) if value is not None}
    return PublishedRow(model, shares, f"CHAMMI-75, {table}", note)


def _first_release(model: str, tasks: tuple[float, ...]) -> PublishedRow:
    """Return a row of the README of the first release: macro F1 with two decimals."""
    shares = {task.name: value for task, value in zip(TASKS, tasks, strict=True)}
    return PublishedRow(model, shares, "MorphEm README at a5c3f38", _FIRST_RELEASE)


class Chammi(Benchmark):
    """CHAMMI: can an encoder name cells of new microscopes, new cell lines and new plates?

    Args:
        variant: `knn_l2` made the published numbers: the class of the nearest training image, Euclidean distance.
        seed: Of the bootstrap, and of `linear_sgd`; the neighbours draw nothing.
    """

    protocol_version = 1
    title = "CHAMMI: six out-of-domain tasks over images of three, four and five channels"
    measures = (
        "Three collections of single cells: human stem cells in stages of the cell cycle (Allen), proteins of the "
        "Human Protein Atlas in their compartments (HPA), and compounds of Cell Painting screens (CP). A cell gets the "
        "label of the training cell that looks most like it. What counts are the six tasks in which the test cells "
        "differ from all training cells in more than the label, for example in the cell line or the plate. High scores "
        "mean features that see the biology through such changes."
    )
    reading = (
        "The headline is the mean over the data sets of the mean F1 of their out-of-domain tasks, from 0 to 1. Noise "
        "gives about one over the number of labels; ImageNet features 0.38; MorphEm 0.49; an encoder trained with "
        "labels on these very sets 0.55. CP4 is the hardest task: published encoders reach 0.07 to 0.18."
    )
    source = "Chen et al. 2023, arXiv 2310.19224; CaicedoLab/CHAMMI-75 at b84a4ec, scorer and preprocessing"
    parts = (
        _part("Allen", "stem cells, three channels, one row per cell; labels are stages of the cell cycle", 2),
        _part("HPA", "Human Protein Atlas, four channels, one row per cell; labels are compartments", 3, "cell_type"),
        _part("CP", "Cell Painting, five channels, one row per cell; labels are compounds", 4, "Plate"),
    )
    score_names: ClassVar[Mapping[str, str]] = {
        "chammi": "mean over the three data sets of the mean macro F1 of their out-of-domain tasks",
        "iid": "mean macro F1 of the three in-domain tasks",
        **{task.name: task.words for task in TASKS},
    }
    variants: ClassVar[Mapping[str, str]] = {
        "knn_l2": "the nearest training row by Euclidean distance; made the published numbers",
        "knn_cosine": "the nearest training row by cosine, an option of the published code",
        "linear_sgd": "a linear classifier by stochastic gradient descent (alpha 1e-3, at most 100 passes), an option "
        "of the published code; drawn by the seed",
    }
    published = (
        _row(
            "DINO-BoC ViT-S, CHAMMI-75 (MorphEm)",
            (48.75, 84.26, 72.56, 61.72, 91.31, 68.55, 43.13, 88.90, 51.73, 21.83, 12.57),
        ),
        _row("OpenPhenom ViT-S", (38.23, 75.55, 59.72, 42.80, 78.84, 50.91, 35.40, 88.09, 44.23, 23.73, 18.26)),
        _row("DINOv2 ViT-S", (37.93, 73.95, 63.56, 46.27, 70.07, 53.00, 26.33, 88.21, 49.75, 21.97, 11.88)),
        _row(
            "DINO-BoC, IDRCell100k",
            (37.38, 68.55, 56.33, 45.29, 70.86, 49.90, 30.90, 79.29, 51.43, 20.63, 7.25),
            "the paper prints an in-domain mean of 68.55; its three tasks average to 68.83",
        ),
        _row("MCA-SSL", (37.18, None, 60.16, 44.70), table="Table 2"),
        _row("MCA-SupC", (36.15,), table="Table 2"),
        _row("ChA-MAEViT", (38.72,), table="Table 2"),
        _row("supervised on CHAMMI", (54.56, 78.76, None, 65.21), "trained with the labels of these sets"),
        _row(
            "SubCell ViT-B, the best model of each set",
            (53.38, None, 78.22, 55.06, 99.05, 91.00, 62.67, 87.47, 54.91, 19.23, 10.59),
            "trained on the atlas of HPA; MAE for WTC, ViT-ProtS for HPA and CP",
            "Tables 1, D12 to D14",
        ),
        _first_release("DINOv2 ViT-S/14", (0.61, 0.46, 0.69, 0.50, 0.26, 0.81, 0.46, 0.24, 0.11)),
        _first_release("ConvNeXt-tiny", (0.55, 0.37, 0.56, 0.42, 0.25, 0.84, 0.48, 0.32, 0.14)),
        _first_release("ResNet-18", (0.54, 0.48, 0.52, 0.33, 0.21, 0.63, 0.33, 0.27, 0.09)),
    )
    interval_unit = "image"
    biology = "Metadata_Label"
    tiny_finds = 0.8
    tiny_null = 0.45

    def score(self, inputs: Inputs) -> Score:
        """Score the tasks of the data sets that are there."""
        if not inputs.tables:
            raise DataError(f"chammi needs at least one of the tables {', '.join(part.name for part in self.parts)}.")
        outcomes = {
            task.name: self._outcome(inputs.tables[task.part], task) for task in TASKS if task.part in inputs.tables
        }
        tasks_f1 = {name: outcome.f1() for name, outcome in outcomes.items()}
        values: dict[str, float] = {}
        missing: dict[str, str] = {}
        for part in self.parts:
            if part.name not in inputs.tables:
                gone = f"there is no table of {part.name}"
                missing |= {task.name: gone for task in TASKS if task.part == part.name}
        intervals = {}
        for name, in_domain in (("chammi", False), ("iid", True)):
            tasks = [task for task in TASKS if task.in_domain is in_domain]
            if any(task.name in missing for task in tasks):
                missing[name] = f"it needs {', '.join(task.name for task in tasks)}"
                continue
            pooled = _Pool([(task, outcomes[task.name]) for task in tasks])
            values[name] = pooled.mean(None)
            intervals[name] = interval(pooled.mean, pooled.n_rows, self.interval_unit, seed=self.seed)
        return Score(
            values=values | tasks_f1,
            details={name: outcome.details() for name, outcome in outcomes.items()},
            intervals=intervals,
            rules={
                "split": "the reference are the rows of split Train; where a group is left out, also the task's rows "
                "of all other groups; no query is in its own reference",
                "classifier": self.variants[self.variant],
                "average": "F1 of every class of the pooled truth, unweighted; the headline weighs data sets alike",
            },
            counts={f"{name}_queries": len(outcome.truth) for name, outcome in outcomes.items()},
            missing=missing,
        )

    def _outcome(self, table: FeatureTable, task: Task) -> "_Outcome":
        where = f"{task.part}, {task.name}"
        train = np.flatnonzero(np.asarray([str(value) == _TRAIN for value in column(table, "Metadata_Split")]))
        test = np.flatnonzero(_marked(table, task))
        if not len(train) or not len(test):
            raise DataError(
                f"{where}: {len(train)} rows are of split '{_TRAIN}' and {len(test)} are tested; both are needed; "
                f"see the columns Metadata_Split and {task.column}."
            )
        if len(np.intersect1d(train, test)):
            raise DataError(f"{where}: {len(np.intersect1d(train, test))} rows are of split '{_TRAIN}' and tested too.")
        names, label = np.unique(column(table, "Metadata_Label").astype(str), return_inverse=True)
        number = label.reshape(-1).astype(np.int64)
        if task.group:
            lost = is_missing(table.metadata[task.group].iloc[test])
            if lost.any():
                raise DataError(
                    f"{where}: {int(lost.sum())} tested rows have no {task.group}, which is left out by turns."
                )
            groups = column(table, task.group)[test].astype(str)
            predicted = self._by_group(table.values, number, train, test, groups)
        else:
            predicted = self._predict(table.values[train], number[train], table.values[test])
        return _Outcome(number[test], predicted, [str(name) for name in names])

    def _predict(self, train: NDArray[np.float32], labels: Ints, test: NDArray[np.float32]) -> Ints:
        if self.variant == "linear_sgd":
            return linear_sgd(train, labels, test, self.seed)
        return labels[nearest(test, train, metric=_METRICS[self.variant]).row]

    def _by_group(
        self, values: NDArray[np.float32], labels: Ints, train: Ints, test: Ints, groups: NDArray[Any]
    ) -> Ints:
        """Predict the tested rows, each from the training rows and those of all other groups."""
        if self.variant != "linear_sgd":
            found = leave_one_group_out(values[test], groups, always=values[train], metric=_METRICS[self.variant])
            return np.concatenate([labels[train], labels[test]])[found.row]
        predicted = np.empty(len(test), np.int64)
        for name in np.unique(groups):
            known = np.concatenate([train, test[groups != name]])
            asked = values[test[groups == name]]
            predicted[groups == name] = linear_sgd(values[known], labels[known], asked, self.seed)
        return predicted

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        """Three data sets of the published columns, four labels in each; the effect is how much features tell them."""
        tables: dict[str, FeatureTable] = {}
        for part in cls.parts:
            tasks = [task for task in TASKS if task.part == part.name]
            splits = [_TRAIN] * 60 + [task.column.removeprefix("Metadata_") for task in tasks for _ in range(40)]
            labels = [f"label{i % 4}" for i in range(len(splits))]
            metadata: dict[str, Any] = {"Metadata_Label": labels, "Metadata_Split": splits}
            metadata |= {task.column: [split == task.column[9:] for split in splits] for task in tasks}
            metadata |= {task.group: [f"group{i // 4 % 4}" for i in range(len(splits))] for task in tasks if task.group}
            values = planted(labels, seed=seed * 3 + len(tables), effect=effect)
            tables[part.name] = make_table(values, pd.DataFrame(metadata))
        return Inputs(tables)


@dataclass(frozen=True)
class _Outcome:
    """Truth and prediction of the queries of a task.

    Attributes:
        truth: (Q,).
        predicted: (Q,).
        names: Of the classes.
    """

    truth: Ints
    predicted: Ints
    names: list[str]

    def f1(self) -> float:
        return float(np.mean(list(f1_of_classes(self.truth, self.predicted).values())))

    def details(self) -> dict[str, Any]:
        classes = {self.names[kind]: value for kind, value in f1_of_classes(self.truth, self.predicted).items()}
        return {"macro_f1": self.f1(), "accuracy": accuracy(self.truth, self.predicted), "f1_of_classes": classes}


class _Pool:
    """The queries of several tasks one after another, for intervals over all of them at once."""

    def __init__(self, tasks: list[tuple[Task, _Outcome]]) -> None:
        self._tasks = tasks
        self._bounds = np.cumsum([0, *(len(outcome.truth) for _, outcome in tasks)])
        self.n_rows = int(self._bounds[-1])
        # by what is known of a query, not by its place, so that intervals do not depend on the order of rows
        self._orders = [np.lexsort((outcome.predicted, outcome.truth)) for _, outcome in tasks]

    def mean(self, rows: Ints | None) -> float:
        """Return the mean over data sets of the mean over their tasks, of all queries or of drawn ones."""
        by_part: dict[str, list[float]] = {}
        for i, (task, outcome) in enumerate(self._tasks):
            if rows is None:
                truth, predicted = outcome.truth, outcome.predicted
            else:
                drawn = rows[(rows >= self._bounds[i]) & (rows < self._bounds[i + 1])] - self._bounds[i]
                place = self._orders[i][drawn]
                truth, predicted = outcome.truth[place], outcome.predicted[place]
            by_part.setdefault(task.part, []).append(fast_macro_f1(truth, predicted, len(outcome.names)))
        return float(np.mean([np.mean(scores) for scores in by_part.values()]))


def fast_macro_f1(truth: Ints, predicted: Ints, n_classes: int) -> float:
    """Return macro F1 over the classes of the truth from counts alone; NaN without a row.

    Args:
        truth: (Q,), 0 to n_classes - 1.
        predicted: (Q,), likewise.
        n_classes: K.
    """
    true, said = np.bincount(truth, minlength=n_classes), np.bincount(predicted, minlength=n_classes)
    hits = np.bincount(truth[truth == predicted], minlength=n_classes)
    there = true > 0
    return float((2 * hits[there] / (true + said)[there]).mean()) if there.any() else float("nan")


def linear_sgd(train: NDArray[np.float32], labels: Ints, test: NDArray[np.float32], seed: int) -> Ints:
    """Predict classes by scikit-learn's linear classifier by stochastic gradient descent, as an option of the code.

    Args:
        train: (M, F); taken in an order of its own, so that the order of rows changes nothing.
        labels: (M,).
        test: (T, F).
        seed: Of the order of the steps.

    Raises:
        DataError: If there is one class only.
    """
    from sklearn.linear_model import SGDClassifier

    if len(np.unique(labels)) < 2:
        raise DataError(f"chammi: a classifier needs two labels, but all {len(labels)} training rows have the same.")
    order = np.lexsort((*train[:, :4].T, labels))
    model = SGDClassifier(alpha=1e-3, max_iter=100, random_state=seed & 0x7FFFFFFF)
    return np.asarray(model.fit(train[order], labels[order]).predict(test), np.int64)


def _marked(table: FeatureTable, task: Task) -> NDArray[np.bool_]:
    """Return which rows a task tests: those its boolean column marks, or those of the split of its name."""
    if task.column not in table.metadata:
        name = task.column.removeprefix("Metadata_")
        return np.asarray([str(value) == name for value in column(table, "Metadata_Split")])
    words = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False, "nan": False, "": False}
    values = [str(value).strip().lower() for value in column(table, task.column)]
    wrong = sorted({value for value in values if value not in words and value not in ("none", "<na>", "unknown")})
    if wrong:
        raise DataError(f"{task.part}: {task.column} holds '{wrong[0]}'; it says True or False.")
    return np.asarray([words.get(value, False) for value in values])

"""Every registered benchmark keeps the contract, and benchmarks that leak or say too little are caught."""

from typing import ClassVar

import numpy as np
import pytest

from morphem.benchmarks.base import FeatureRecipe, Inputs, Part, with_values
from morphem.benchmarks.classifiers import linear_probe, standardise
from morphem.benchmarks.generic import Generic
from morphem.benchmarks.metrics import balanced_accuracy, class_numbers
from morphem.benchmarks.score import Score
from morphem.testing import check_plugin
from morphem.testing.benchmarks import check_benchmark
from morphem.testing.contract import ContractError
from tests.benchmarks.names import NAMES


class Fair(Generic):
    """The linear probe of the generic benchmark alone, checked as it is."""

    def __init__(self, variant: str | None = "linear_probe", seed: int = 0) -> None:
        super().__init__(variant, seed)

    @classmethod
    def tiny_instance(cls) -> "Fair":
        return cls()

    is_retrieval: ClassVar[bool] = False


class LearnsTheTest(Fair):
    """Fits the probe on all rows, also those that it is tested on; only what is learnt by heart passes its bars."""

    tiny_finds: ClassVar[float] = 0.95
    tiny_null: ClassVar[float] = 0.9

    def score(self, inputs: Inputs) -> Score:
        table = inputs.table
        classes, _ = class_numbers(table.metadata["Metadata_label"], "the label")
        predicted = linear_probe(table.values, classes, table.values)
        fair = super().score(inputs)
        return Score(
            {"linear_probe": balanced_accuracy(classes, predicted)}, {}, _near(fair, classes, predicted), fair.rules
        )


def _near(fair: Score, classes: np.ndarray, predicted: np.ndarray) -> dict:
    from morphem.benchmarks.intervals import interval_of_classes

    return {"linear_probe": interval_of_classes(classes, predicted, np.arange(len(classes)), "group", seed=0)}


class SplitsRowsOfAWell(Fair):
    """Holds out rows instead of wells, in a layout in which the images of a well copy each other."""

    def __init__(self, variant: str | None = "linear_probe", seed: int = 0) -> None:
        super().__init__(variant, seed)
        self.group = ()

    @classmethod
    def tiny(cls, seed: int, effect: float) -> Inputs:
        inputs = Generic.tiny(seed, effect)
        values = inputs.table.values[::2].repeat(2, axis=0)
        return Inputs({"table": with_values(inputs.table, np.tile(values, 8))})


class SelectsFeaturesBeforehand(Fair):
    """Chooses the features that differ most between the labels, before it splits: a fit that saw the test rows."""

    def adapt(self, inputs: Inputs) -> Inputs:
        inputs = super().adapt(inputs)
        table = inputs.table
        classes, _ = class_numbers(table.metadata["Metadata_label"], "the label")
        values, _ = standardise(table.values, table.values)
        best = np.argsort(-np.abs(values[classes == 1].mean(0) - values[classes == 0].mean(0)))[:8]
        return Inputs({"table": with_values(table, table.values[:, best])})


class PlateInTheLabel(Fair):
    """Asks for the plate and calls it biology."""

    def adapt(self, inputs: Inputs) -> Inputs:
        table = inputs.table
        first = table.metadata["Metadata_Plate"].eq("P0") | (table.metadata["Metadata_label"] == "treated")
        label = first.map({True: "treated", False: "control"})
        changed = type(table)(
            table.values, table.metadata.assign(Metadata_label=label), table.columns, table.dictionary
        )
        return super().adapt(Inputs({"table": changed}))

    robust_to: ClassVar[tuple[str, ...]] = ("Metadata_Plate",)
    tiny_finds: ClassVar[float] = 0.65


class DependsOnTheOrder(Fair):
    """Scores the first half of the rows."""

    def adapt(self, inputs: Inputs) -> Inputs:
        table = inputs.table
        from morphem.benchmarks.base import take

        return super().adapt(Inputs({"table": take(table, np.arange(len(table) // 3 * 2))}))


class FindsTheNull(Fair):
    """Gives a good score to everything."""

    def score(self, inputs: Inputs) -> Score:
        fair = super().score(inputs)
        return Score({"linear_probe": 0.9}, {}, {}, fair.rules)

    interval_unit: ClassVar[str] = ""
    no_interval: ClassVar[str] = "it is made up"


class SaysNoRules(Fair):
    """Does not say how it split."""

    def score(self, inputs: Inputs) -> Score:
        fair = super().score(inputs)
        return Score(fair.values, fair.details, fair.intervals)


class RetrievalWithoutNegatives(Generic):
    """Does not name its negatives."""

    def score(self, inputs: Inputs) -> Score:
        fair = super().score(inputs)
        rules = {key: value for key, value in fair.rules.items() if key != "negatives"}
        return Score(fair.values, fair.details, fair.intervals, rules)


class SaysTooLittle(Fair):
    """Leaves out what a biologist would want to know."""

    measures: ClassVar[str] = "a score"


class PublishesUnknownScores(Fair):
    """Publishes a score of another name."""

    score_names: ClassVar = {"linear_probe": "x"}
    parts: ClassVar[tuple[Part, ...]] = (Part("table", "x", Generic.parts[0].columns, recipe=FeatureRecipe()),)

    from morphem.benchmarks.base import PublishedRow

    published: ClassVar = (PublishedRow("A model", {"linear_prob": 0.5}, "A paper, Table 1"),)


ODD = {
    LearnsTheTest: "features that only tell rows apart, so a fit saw the rows it is tested on",
    SplitsRowsOfAWell: "to features of pure noise; a null must not be found",
    SelectsFeaturesBeforehand: "features (of pure noise|that only tell rows apart|that were shuffled)",
    PlateInTheLabel: "features that hold nothing but Metadata_Plate",
    DependsOnTheOrder: "when the rows come in another order",
    FindsTheNull: "to features of pure noise; a null must not be found",
    SaysNoRules: "says no rules",
    RetrievalWithoutNegatives: r"does not say its \['negatives'\]",
    SaysTooLittle: "says too little in `measures`",
    PublishesUnknownScores: r"publishes \['linear_prob'\]",
}


def test_the_fair_one_passes() -> None:
    check_benchmark(Fair)


@pytest.mark.parametrize("cls", ODD, ids=lambda cls: cls.__name__)
def test_what_breaks_the_contract_is_caught(cls: type[Generic]) -> None:
    with pytest.raises(ContractError, match=ODD[cls]):
        check_benchmark(cls)


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_benchmark_keeps_the_contract(name: str) -> None:
    check_plugin("benchmarks", name)

"""CHAMMI: tasks against the protocol's words, leave-one-group-out without leaks, refusals."""

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks.base import Inputs, make_table, take, with_values
from morphem.benchmarks.chammi import TASKS, Chammi, fast_macro_f1
from morphem.errors import DataError
from morphem.features import FeatureTable
from tests.benchmarks.protocols import changed, score_of, with_column, with_pixel, without_column
from tests.references import chammi75_scores as plain
from tests.references.scores import macro_f1


@pytest.mark.parametrize("effect", [0.0, 0.4])
def test_every_task_is_that_of_the_protocols_words(effect: float) -> None:
    inputs = Chammi.tiny(1, effect)
    found = score_of(Chammi, inputs)
    for task in TASKS:
        table = inputs.tables[task.part]
        metadata = table.metadata
        expected = plain.chammi_task(
            table.values,
            metadata["Metadata_Label"].tolist(),
            metadata["Metadata_Split"].eq("Train").tolist(),
            metadata[task.column].tolist(),
            metadata[task.group].tolist() if task.group else None,
        )
        assert found.values[task.name] == pytest.approx(expected)


def test_the_headline_weighs_data_sets_alike() -> None:
    f1 = score_of(Chammi, Chammi.tiny(2, 0.5)).values
    out = f1["WTC2"] / 3 + (f1["HPA2"] + f1["HPA3"]) / 6 + (f1["CP2"] + f1["CP3"] + f1["CP4"]) / 9
    assert f1["chammi"] == pytest.approx(out)
    assert f1["iid"] == pytest.approx((f1["WTC1"] + f1["HPA1"] + f1["CP1"]) / 3)


def test_published_rows_agree_with_the_formulas() -> None:
    for row in Chammi.published:
        names = {task.name for task in TASKS}
        if names <= set(row.scores) and "chammi" in row.scores and "IDRCell" not in row.model:
            s = row.scores
            out = s["WTC2"] / 3 + (s["HPA2"] + s["HPA3"]) / 6 + (s["CP2"] + s["CP3"] + s["CP4"]) / 9
            assert s["chammi"] == pytest.approx(out, abs=1.5e-4), row.model
            if "iid" in s:
                assert s["iid"] == pytest.approx((s["WTC1"] + s["HPA1"] + s["CP1"]) / 3, abs=1.5e-4), row.model


def test_perfect_features_give_one_and_shuffled_labels_chance() -> None:
    assert score_of(Chammi, Chammi.tiny(0, np.inf)).values["chammi"] == 1.0
    values = []
    for seed in range(4):
        labels = lambda t, s=seed: np.random.default_rng(s).permutation(t.metadata["Metadata_Label"])  # noqa: E731
        inputs = changed(Chammi.tiny(0, 1.0), lambda t: with_column(Metadata_Label=labels(t))(t))  # noqa: B023
        values.append(score_of(Chammi, inputs).values["chammi"])
    assert np.mean(values) == pytest.approx(0.25, abs=0.06)  # four labels


def _training_rows_elsewhere(table: FeatureTable) -> FeatureTable:
    is_train = table.metadata["Metadata_Split"].eq("Train").to_numpy()[:, None]
    return with_values(table, np.where(is_train, 50 + table.values, table.values))


def _group_memory(seed: int) -> Inputs:
    """Every tested row lies on another one of its own group and label, and far from all others of its label."""
    inputs = Chammi.tiny(seed, 0.0)
    tables = dict(inputs.tables)
    for part, group in (("HPA", "Metadata_Cell_Type"), ("CP", "Metadata_Plate")):
        table = tables[part]
        keys = table.metadata[group] + table.metadata["Metadata_Label"]
        directions = {key: np.random.default_rng(i).normal(size=16) for i, key in enumerate(sorted(set(keys)))}
        tables[part] = with_values(table, np.asarray([directions[key] for key in keys]) + 1e-3 * table.values)
    return Inputs(tables)


def test_the_group_that_is_left_out_is_never_in_the_reference() -> None:
    found = score_of(Chammi, _group_memory(0)).values
    inputs = _group_memory(0)
    left_out = score_of(Chammi, changed(inputs, _training_rows_elsewhere)).values
    assert found["HPA2"] == found["CP2"] == 1.0  # training rows of the same group answer
    assert left_out["HPA3"] < 0.5
    assert left_out["CP4"] < 0.5


def test_queries_never_answer_for_each_other_where_no_group_is_left_out() -> None:
    inputs = Chammi.tiny(0, 0.0)
    table = inputs.tables["CP"]
    twins = with_values(table, table.values.copy())
    rows = np.flatnonzero(table.metadata["Metadata_Task_two"])
    labels = table.metadata["Metadata_Label"].to_numpy()
    for a in rows:
        twins.values[a] = 100 + 10 * int(labels[a][-1]) + 1e-3 * table.values[a]
    found = score_of(Chammi, Inputs({**inputs.tables, "CP": twins})).values
    assert found["CP2"] < 0.5


def test_a_class_that_is_predicted_and_never_true_adds_no_class() -> None:
    truth, said = np.array([0, 0, 1, 1]), np.array([0, 2, 1, 1])
    assert fast_macro_f1(truth, said, 3) == pytest.approx(macro_f1(truth.tolist(), said.tolist()))


def test_the_neighbour_is_that_of_scikit_learn() -> None:
    from sklearn.metrics import f1_score
    from sklearn.neighbors import KNeighborsClassifier

    table = Chammi.tiny(3, 0.3).tables["CP"]
    train = table.metadata["Metadata_Split"].eq("Train").to_numpy()
    test = table.metadata["Metadata_Task_three"].to_numpy(bool)
    labels = table.metadata["Metadata_Label"].to_numpy()
    said = (
        KNeighborsClassifier(1, algorithm="brute").fit(table.values[train], labels[train]).predict(table.values[test])
    )
    found = score_of(Chammi, Inputs({"CP": table})).values["CP3"]
    assert found == pytest.approx(f1_score(labels[test], said, average="macro"))


@pytest.mark.parametrize("variant", Chammi.variants)
def test_every_variant_finds_the_effect_whatever_the_order_of_rows(variant: str) -> None:
    inputs = Chammi.tiny(0, 1.0)
    benchmark = Chammi(variant=variant)
    found = score_of(Chammi, inputs, benchmark).values
    turned = changed(inputs, lambda t: take(t, np.random.default_rng(1).permutation(len(t))))
    assert found["chammi"] > 0.75
    assert score_of(Chammi, turned, benchmark).values == pytest.approx(found)


def test_tasks_may_be_named_by_the_split_alone() -> None:
    inputs = Chammi.tiny(0, 0.5)
    bare = changed(inputs, lambda t: without_column(*[c for c in t.metadata if "Task" in c])(t))
    assert score_of(Chammi, bare).values == score_of(Chammi, inputs).values


BAD = {
    "label": (without_column("Metadata_Label"), "the table of 'Allen' lacks the label to be predicted"),
    "nan": (with_pixel(3, np.nan), "the table of 'Allen' has 1 rows with NaN or infinite features"),
    "no train": (with_column(Metadata_Split="Task_one"), "WTC1: 0 rows are of split 'Train'"),
    "both": (with_column(Metadata_Task_one=True), "60 rows are of split 'Train' and tested too"),
    "words": (with_column(Metadata_Task_two="perhaps"), "Metadata_Task_two holds 'perhaps'; it says True or False"),
    "lost label": (with_column(Metadata_Label=None), "rows have no Metadata_Label"),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_that_do_not_allow_the_score_are_one_sentence(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(DataError, match=message) as told:
        score_of(Chammi, changed(Chammi.tiny(0, 1.0), change, "Allen"))
    assert "\n" not in str(told.value)


def test_a_tested_row_without_its_group_is_refused_and_a_training_row_is_not() -> None:
    inputs = Chammi.tiny(0, 1.0)
    groups = inputs.tables["HPA"].metadata["Metadata_Cell_Type"].astype(object)
    lost = groups.where(np.arange(len(groups)) >= 5, None)  # rows to learn from
    assert score_of(Chammi, changed(inputs, with_column(Metadata_Cell_Type=lost), "HPA")).values["HPA3"] > 0.7
    lost = groups.where(np.arange(len(groups)) < len(groups) - 3, None)
    with pytest.raises(DataError, match="HPA3: 3 tested rows have no Metadata_Cell_Type"):
        score_of(Chammi, changed(inputs, with_column(Metadata_Cell_Type=lost), "HPA"))


def test_where_all_tested_rows_are_of_one_group_training_rows_alone_answer() -> None:
    table = Chammi.tiny(0, 0.4).tables["CP"]
    one = with_column(Metadata_Plate="P1", Metadata_Task_three=table.metadata["Metadata_Task_four"])(table)
    found = score_of(Chammi, Inputs({"CP": one})).values
    assert found["CP4"] == found["CP3"]


def test_a_linear_classifier_needs_two_labels() -> None:
    frame = pd.DataFrame({"Metadata_Label": "a", "Metadata_Split": ["Train"] * 4 + ["Task_one"] * 4 + ["Task_two"] * 4})
    table = make_table(np.random.default_rng(0).normal(size=(12, 4)), frame)
    with pytest.raises(DataError, match="needs two labels, but all 4 training rows"):
        score_of(Chammi, Inputs({"Allen": table}), Chammi(variant="linear_sgd"))

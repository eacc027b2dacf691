"""HPAv23: loss and ranking scores against loops and scikit-learn, the split by antibody, refusals."""

import numpy as np
import pandas as pd
import pytest
import torch

from morphem.benchmarks.base import Inputs, take, with_values
from morphem.benchmarks.focal_classifier import focal_loss, train_classifier
from morphem.benchmarks.hpav23 import CHALLENGE, HPAv23, scores_of
from morphem.errors import ConfigError, DataError
from tests.benchmarks.protocols import changed, score_of, shuffled, with_column, with_pixel, with_side, without_column
from tests.references import chammi75_scores as plain

QUICK = {"seeds": (0,), "max_epochs": 4, "batch_size": 64}
RANDOM = np.random.default_rng(7)


@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_the_focal_loss_is_that_of_its_formula(gamma: float) -> None:
    scores, labels = RANDOM.normal(size=(9, 4)) * 3, RANDOM.random((9, 4)) < 0.4
    found = focal_loss(torch.from_numpy(scores), torch.from_numpy(labels.astype(float)), gamma=gamma)
    assert float(found) == pytest.approx(plain.focal_loss(scores, labels, gamma=gamma))


def _drawn() -> tuple[np.ndarray, np.ndarray]:
    truth = RANDOM.random((40, 6)) < 0.3
    truth[:6] |= np.eye(6, dtype=bool)
    return truth, np.round(RANDOM.random((40, 6)), 1).astype(np.float32)  # with ties


@pytest.mark.parametrize("_repeat", range(5))
def test_all_scores_are_those_of_loops_and_of_scikit_learn(_repeat: int) -> None:
    from sklearn import metrics

    truth, said = _drawn()
    found = scores_of(truth, said)
    aps = [plain.step_average_precision(truth[:, i], said[:, i]) for i in range(6)]
    ranking, coverage = plain.label_ranking(truth, said)
    assert found["macro_ap"] == pytest.approx(np.mean(aps))
    assert found["micro_ap"] == pytest.approx(plain.step_average_precision(truth.ravel(), said.ravel()))
    assert found["label_ranking_ap"] == pytest.approx(ranking)
    assert found["coverage_error"] == pytest.approx(coverage)
    assert found["auroc"] == pytest.approx(plain.macro_auroc(truth, said))
    assert found["macro_ap"] == pytest.approx(metrics.average_precision_score(truth, said, average="macro"))
    assert found["micro_ap"] == pytest.approx(metrics.average_precision_score(truth, said, average="micro"))
    assert found["auroc"] == pytest.approx(metrics.roc_auc_score(truth, said, average="macro"))
    some = truth.any(1)
    assert found["coverage_error"] == pytest.approx(metrics.coverage_error(truth[some], said[some]))
    assert found["label_ranking_ap"] == pytest.approx(
        metrics.label_ranking_average_precision_score(truth[some], said[some])
    )


def test_there_are_nineteen_and_thirty_one_categories() -> None:
    assert len(set(CHALLENGE)) == 19
    annotations = [f"place {i}" for i in range(30)] + [
        "Cleavage furrow",
        "Midbody ring",
        "Rods & Rings",
        "Microtubule ends",
    ]
    inputs = with_side(HPAv23.tiny(0, 1.0), locations=pd.DataFrame({"Original annotation": annotations}))
    names = HPAv23(variant="unique")._names(inputs, "unique")
    assert len(names) == 31
    assert names[-1] == "Negative"
    assert not {"Cleavage furrow", "Microtubule ends"} & set(names)


def _classifier(seed: int = 0, **changes: object) -> np.ndarray:
    inputs = HPAv23.tiny(0, 1.0)
    labels = pd.get_dummies(inputs.table.metadata["Metadata_Locations"]).to_numpy(bool)
    values = inputs.table.values
    given = {
        "train": values[:400], "labels": labels[:400], "valid": values[400:528],
        "judge": lambda said: scores_of(labels[400:528], said)["macro_ap"], "test": values[528:],
        "max_epochs": 3, "batch_size": 64, **changes,
    }  # fmt: skip
    return train_classifier(seed=seed, **given)


def test_the_classifier_is_drawn_by_its_seed_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = _classifier(0)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert np.array_equal(first, _classifier(0))
    assert not np.array_equal(first, _classifier(1))


def test_the_epoch_that_validates_best_is_taken_and_the_last_of_equals() -> None:
    marks = iter([0.1, 0.9, 0.9, 0.2])
    seen: list[np.ndarray] = []

    def judge(said: np.ndarray) -> float:
        seen.append(said)
        return next(marks)

    valid = HPAv23.tiny(0, 1.0).table.values[400:528]
    found = _classifier(judge=judge, max_epochs=4, valid=valid, test=valid)
    assert np.array_equal(found, seen[2])


def test_training_stops_after_so_many_epochs_without_gain() -> None:
    calls: list[int] = []

    def judge(said: np.ndarray) -> float:
        calls.append(len(said))
        return 1.0 / len(calls)

    _classifier(judge=judge, max_epochs=50, patience=5)
    assert len(calls) == 6  # the first is the best


def test_a_classifier_that_gives_no_finite_score_is_no_silent_number() -> None:
    with pytest.raises(DataError, match="no finite score on the validation split"):
        _classifier(judge=lambda said: float("nan"))


def test_a_device_that_is_not_here_is_refused() -> None:
    with pytest.raises(ConfigError, match="device='cuda:77' cannot be used"):
        _classifier(device="cuda:77")
    with pytest.raises(ConfigError, match="device='gpux' cannot be used"):
        _classifier(device="gpux")


def test_the_mean_over_seeds_and_every_seed_are_given() -> None:
    found = score_of(HPAv23, HPAv23.tiny(0, 0.5), HPAv23(**{**QUICK, "seeds": (0, 1)}))
    runs = found.details["challenge"]["seeds"]
    assert found.values["macro_ap"] == pytest.approx(np.mean([runs[seed]["macro_ap"] for seed in (0, 1)]))
    assert runs[0] != runs[1]
    assert found.details["challenge"]["chance"] == pytest.approx(0.25)
    assert found.details["challenge"]["left_out"] == [
        name for name in CHALLENGE if name not in found.details["challenge"]["categories"]
    ]


def test_perfect_features_give_one_and_shuffled_ones_chance() -> None:
    benchmark = HPAv23(seeds=(0,), max_epochs=40, batch_size=64)
    assert score_of(HPAv23, HPAv23.tiny(0, np.inf), benchmark).values["macro_ap"] > 0.999
    values = [
        score_of(HPAv23, changed(HPAv23.tiny(0, 1.0), shuffled(seed)), HPAv23(**QUICK)).values["macro_ap"]
        for seed in range(3)
    ]
    assert np.mean(values) == pytest.approx(0.25, abs=0.08)


def test_tested_antibodies_have_no_say_in_the_classifier_of_others() -> None:
    """Features that only tell antibodies apart are of no use for unseen ones."""
    inputs = HPAv23.tiny(0, 0.0)
    names = inputs.table.metadata["Metadata_Antibody"]
    codes = np.random.default_rng(0).normal(size=(90, 16)) * 5
    values = codes[names.str[3:].astype(int)] + inputs.table.values * 0.1
    found = score_of(HPAv23, changed(inputs, lambda t: with_values(t, values)), HPAv23(**{**QUICK, "max_epochs": 25}))
    assert found.values["macro_ap"] < 0.5


def test_the_order_of_rows_changes_nothing() -> None:
    inputs = HPAv23.tiny(0, 0.7)
    turned = changed(inputs, lambda t: take(t, np.random.default_rng(1).permutation(len(t))))
    first, second = (score_of(HPAv23, given, HPAv23(**QUICK)).values for given in (inputs, turned))
    assert first == second


def test_a_cell_may_be_in_several_places_and_one_without_any_is_negative() -> None:
    inputs = HPAv23.tiny(0, 1.0)
    places = inputs.table.metadata["Metadata_Locations"].tolist()
    places[::8] = ["Vesicles,Cytosol"] * len(places[::8])
    places[1::8] = [None] * len(places[1::8])
    places[2::8] = ["Rods & Rings"] * len(places[2::8])  # in no category: left out
    places[3::8] = ["Cytosol, Vesicles"] * len(places[3::8])  # the space is not trimmed, as in the published code
    found = score_of(HPAv23, changed(inputs, with_column(Metadata_Locations=places)), HPAv23(**QUICK))
    assert set(found.details["challenge"]["categories"]) == {
        "Cytosol",
        "Nucleoplasm",
        "Vesicles",
        "Mitochondria",
        "Negative",
    }
    assert found.counts["challenge_cells_without_category"] == 90


def test_antibodies_in_no_list_are_counted_and_left_out() -> None:
    inputs = HPAv23.tiny(0, 1.0)
    fewer = with_side(inputs, train=inputs.side["train"].iloc[5:])
    found = score_of(HPAv23, fewer, HPAv23(**QUICK))
    assert found.counts["cells_of_no_split"] == 40
    assert found.counts["train_cells"] == 360


@pytest.mark.slow
def test_both_sets_are_scored_together() -> None:
    inputs = with_side(
        HPAv23.tiny(0, 1.0), locations=pd.DataFrame({"Original annotation": ["Cytosol", "Vesicles", "Nucleoplasm"]})
    )
    found = score_of(HPAv23, inputs, HPAv23(variant="both", **QUICK))
    assert {"macro_ap", "unique_macro_ap", "unique_micro_ap"} <= set(found.values)
    assert not found.missing
    alone = score_of(HPAv23, inputs, HPAv23(variant="unique", **QUICK))
    assert alone.values["unique_macro_ap"] == found.values["unique_macro_ap"]
    assert "macro_ap" in alone.missing


def _side(name: str, values: list[str]) -> object:
    return lambda inputs: with_side(inputs, **{name: pd.DataFrame({"value": values})})


BAD = {
    "nan": (lambda inputs: changed(inputs, with_pixel(0, np.nan)), "1 rows with NaN or infinite features"),
    "no antibody": (lambda inputs: changed(inputs, without_column("Metadata_Antibody")), "lacks the antibody"),
    "overlap": (_side("test", ["HPA000001"]), "antibody 'HPA000001' is in the lists train and test; keep one"),
    "other data": (_side("valid", ["CAB1"]), "no row has an antibody of the valid list"),
    "other places": (
        lambda inputs: changed(inputs, with_column(Metadata_Locations="Rods & Rings")),
        "no cell of the train split has a place of the set of 19 categories",
    ),
    "no list": (
        lambda inputs: Inputs(inputs.tables),
        "side table 'train' .* was not found; put a file train_antibodies",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_that_do_not_allow_the_score_are_one_sentence(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(DataError, match=message) as told:
        score_of(HPAv23, change(HPAv23.tiny(0, 1.0)))
    assert "\n" not in str(told.value)


def test_the_larger_set_needs_its_table_of_places() -> None:
    with pytest.raises(DataError, match=r"need location_group_mapping.tsv .* or take variant 'challenge'"):
        score_of(HPAv23, HPAv23.tiny(0, 1.0), HPAv23(variant="unique", **QUICK))


def test_the_wrong_name_of_the_published_launcher_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'unique'"):
        HPAv23(variant="unique_cats")


@pytest.mark.parametrize("settings", [{"seeds": ()}, {"max_epochs": 0}, {"batch_size": 0}])
def test_settings_out_of_range_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="needs one seed at least"):
        HPAv23(**settings)

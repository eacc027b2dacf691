"""Bioactivity: outcomes are learnt from some compounds and scored on others; assay tables that do not allow it."""

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks import bioactivity as module
from morphem.benchmarks.base import Inputs, make_table
from morphem.benchmarks.bioactivity import Bioactivity
from morphem.benchmarks.multitask_network import predict_activities
from morphem.errors import ConfigError, DataError
from tests.references.scores import auroc


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Bioactivity.tiny(0, 1.0)


def _fast(**settings) -> Bioactivity:
    return Bioactivity(**{"n_folds": 3, "n_hidden": 16, "max_epochs": 15, **settings})


def test_the_score_is_the_mean_auroc_of_the_predictions(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    benchmark = _fast()
    caught = {}

    def watching(profiles, truth, groups):  # type: ignore[no-untyped-def]
        caught["predicted"] = Bioactivity._predict(benchmark, profiles, truth, groups)
        caught["truth"] = truth
        return caught["predicted"]

    monkeypatch.setattr(benchmark, "_predict", watching)
    found = benchmark.score(inputs)
    plain = []
    for truth, predicted in zip(caught["truth"].T, caught["predicted"].T, strict=True):
        known = ~np.isnan(truth)
        plain.append(auroc((truth[known] == 1).tolist(), predicted[known].tolist()))
    assert list(found.details["auroc"].values()) == pytest.approx(plain)
    assert found.values["auroc"] == pytest.approx(np.mean(plain))


def test_no_compound_and_no_scaffold_is_learnt_from_and_tested(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    table = inputs.table
    scaffold = [f"S{int(name[-2:]) % 11}" for name in table.metadata["Metadata_Compound"]]
    with_scaffold = make_table(table.values, table.metadata.assign(Metadata_Scaffold=scaffold))
    seen = []
    original = module.predict_activities

    def watching(profiles, truth, stop, asked, **settings):  # type: ignore[no-untyped-def]
        seen.append((len(profiles), len(stop[0]), len(asked)))
        return original(profiles, truth, stop, asked, **settings)

    splits = []
    original_folds = module.group_folds

    def folds(labels, groups, n_folds, *, seed):  # type: ignore[no-untyped-def]
        for learn, test in original_folds(labels, groups, n_folds, seed=seed):
            splits.append((set(groups[learn]), set(groups[test])))
            yield learn, test

    monkeypatch.setattr(module, "predict_activities", watching)
    monkeypatch.setattr(module, "group_folds", folds)
    found = _fast(max_epochs=1).score(Inputs({"table": with_scaffold}, inputs.side))
    assert all(not learn & test for learn, test in splits)
    assert len(set().union(*(test for _, test in splits))) == 11
    assert all(sum(counts) == found.counts["compounds"] for counts in seen)
    assert "no scaffold" in found.rules["split"]


def test_permuted_outcomes_give_chance(inputs: Inputs) -> None:
    scores = []
    for seed in range(4):
        frame = inputs.side["assays"].copy()
        order = np.random.default_rng(seed).permutation(len(frame))
        frame["Metadata_Compound"] = frame["Metadata_Compound"].to_numpy()[order]
        scores.append(_fast(variant="linear").score(Inputs(dict(inputs.tables), {"assays": frame})).values["auroc"])
    assert np.mean(scores) == pytest.approx(0.5, abs=0.09)


def test_training_leaves_global_random_numbers_alone_and_depends_on_the_seed() -> None:
    import torch

    random = np.random.default_rng(0)
    rows, truth = random.normal(size=(40, 6)), (random.random((40, 2)) > 0.5).astype(float)
    settings = {"n_hidden": 8, "max_epochs": 3, "patience": 3}
    before = torch.get_rng_state()
    first, again, other = (
        predict_activities(rows, truth, (rows, truth), rows, seed=seed, **settings) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_outcomes_that_were_not_tested_teach_nothing() -> None:
    """Whatever stands in a row without outcomes, the network stays the same."""
    random = np.random.default_rng(0)
    rows, truth = random.normal(size=(40, 6)), (random.random((40, 2)) > 0.5).astype(float)
    truth[:10, 0] = np.nan
    stop = (rows[20:], truth[20:])
    settings = {"n_hidden": None, "seed": 0, "max_epochs": 5, "patience": 5}
    one = predict_activities(rows, truth, stop, rows, **settings)
    changed = truth.copy()
    changed[:10, 1] = 1 - changed[:10, 1]
    two = predict_activities(rows, changed, stop, rows, **settings)
    np.testing.assert_allclose(one[:, 0], two[:, 0], atol=1e-6)
    assert np.abs(one[:, 1] - two[:, 1]).max() > 1e-4


def test_rare_assays_are_left_out_and_named(inputs: Inputs) -> None:
    frame = inputs.side["assays"].assign(rare=[1.0] * 3 + [0.0] * 87)
    found = _fast(variant="linear").score(Inputs(dict(inputs.tables), {"assays": frame}))
    assert found.details["left_out"] == {"rare": "3 active and 87 inactive compounds"}
    assert found.counts["assays_left_out"] == 1
    assert "rare" not in found.details["auroc"]


def _with(frame: pd.DataFrame, inputs: Inputs) -> Inputs:
    return Inputs(dict(inputs.tables), {"assays": frame})


def test_bad_assays_and_settings_are_refused(inputs: Inputs) -> None:
    frame = inputs.side["assays"]
    with pytest.raises(ConfigError, match="min_per_class=2 at least n_folds"):
        Bioactivity(min_per_class=2)
    with pytest.raises(DataError, match="no column Metadata_Compound or Compound"):
        _fast().score(_with(frame.rename(columns={"Metadata_Compound": "drug"}), inputs))
    with pytest.raises(DataError, match="has compound 'compound00' twice"):
        _fast().score(_with(pd.concat([frame, frame.head(1)]), inputs))
    with pytest.raises(DataError, match=r"assay 'assay0' says '0\.5' for compound03"):
        _fast().score(_with(frame.assign(assay0=np.where(np.arange(90) == 3, 0.5, frame["assay0"])), inputs))
    with pytest.raises(DataError, match="no compound of the profiles is in the table"):
        _fast().score(_with(frame.assign(Metadata_Compound=[f"x{i}" for i in range(90)]), inputs))
    with pytest.raises(DataError, match="none of 4 assays has 80 active"):
        _fast(min_per_class=80).score(inputs)
    table = inputs.table
    twice = [f"S{i}" for i in range(len(table))]
    with pytest.raises(DataError, match="compound 'compound00' has two scaffolds, S0 and S1"):
        _fast().score(
            Inputs({"table": make_table(table.values, table.metadata.assign(Metadata_Scaffold=twice))}, inputs.side)
        )

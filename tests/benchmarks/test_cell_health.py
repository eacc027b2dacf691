"""Cell health: the area against loops, folds that no job or other readout changes, readouts that cannot be scored."""

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks import cell_health as module
from morphem.benchmarks.base import Inputs, take
from morphem.benchmarks.cell_health import CellHealth, auc_of_shares, forest_r2
from morphem.errors import ConfigError, DataError
from tests.references import neighbourhoods as plain


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return CellHealth.tiny(0, 1.0)


def _fast(**settings) -> CellHealth:
    return CellHealth(**{"n_trees": 6, "n_folds": 3, **settings})


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("inclusive", [True, False])
def test_the_area_is_the_plain_one(clip: bool, inclusive: bool) -> None:
    r2 = np.asarray([-0.4, 0.0, 0.005, 0.3, 0.3, 0.995, 1.0])
    found = auc_of_shares(r2, clip=clip, inclusive=inclusive)
    assert found == pytest.approx(plain.auc_of_shares(r2.tolist(), clip, inclusive))


def test_code_and_paper_differ_where_they_are_said_to() -> None:
    nothing = np.asarray([-0.5, -0.1])
    assert auc_of_shares(nothing, clip=False, inclusive=False) == 0
    assert auc_of_shares(nothing, clip=True, inclusive=True) == pytest.approx(0.0025)  # the threshold 0 counts zeros
    perfect = np.ones(3)
    assert auc_of_shares(perfect, clip=False, inclusive=False) == pytest.approx(0.995)


def test_r2_is_the_mean_over_folds_of_forests_that_never_saw_the_fold() -> None:
    from sklearn.ensemble import RandomForestRegressor
    from sklearn.model_selection import KFold

    random = np.random.default_rng(0)
    profiles = random.normal(size=(40, 5))
    truth = profiles[:, 0] + 0.1 * random.normal(size=40)
    plainly = []
    for train, test in KFold(4, shuffle=True, random_state=7).split(profiles):
        forest = RandomForestRegressor(10, min_samples_leaf=0.01, random_state=7).fit(profiles[train], truth[train])
        told = forest.predict(profiles[test])
        plainly.append(1 - ((truth[test] - told) ** 2).sum() / ((truth[test] - truth[test].mean()) ** 2).sum())
    assert forest_r2(profiles, truth, n_trees=10, n_folds=4, seed=7) == pytest.approx(np.mean(plainly))
    shuffled = random.permutation(truth)
    assert forest_r2(profiles, shuffled, n_trees=10, n_folds=4, seed=7) < 0.2


@pytest.mark.slow
def test_parallel_jobs_change_nothing(inputs: Inputs) -> None:
    assert _fast(n_jobs=2).score(inputs).details == _fast().score(inputs).details


def test_a_readout_scores_alike_whatever_other_readouts_there_are(inputs: Inputs) -> None:
    readouts = inputs.side["readouts"]
    keys = [name for name in readouts.columns if name.startswith("Metadata_")]
    alone = _fast().score(Inputs(dict(inputs.tables), {"readouts": readouts[[*keys, "readout3"]]}))
    both = _fast().score(Inputs(dict(inputs.tables), {"readouts": readouts[["readout5", "readout3", *keys]]}))
    assert alone.details["A549"]["r2"]["readout3"] == both.details["A549"]["r2"]["readout3"]


def test_forests_learn_from_knock_outs_and_not_from_their_wells(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two wells a knock-out: on both sides of a fold they would teach the answer."""
    sizes = []
    monkeypatch.setattr(module, "forest_r2", lambda profiles, truth, **_: float(sizes.append(len(profiles)) or 0.5))
    _fast().score(inputs)
    assert set(sizes) == {45}


def test_readouts_that_do_not_vary_or_lack_values_are_left_out_and_named(inputs: Inputs) -> None:
    readouts = inputs.side["readouts"].assign(flat=1.0, rare=[1.0, 2.0] + [np.nan] * 43)
    found = _fast().score(Inputs(dict(inputs.tables), {"readouts": readouts}))
    left_out = {"flat": "all 45 values are alike", "rare": "2 values; 6 are needed"}
    assert found.details["A549"]["left_out"] == left_out
    assert found.missing["auc_s_es2"] == "ES2 has 0 matched knock-outs; 6 are needed"


def test_bad_tables_and_settings_are_refused(inputs: Inputs) -> None:
    readouts = inputs.side["readouts"]
    with pytest.raises(ConfigError, match="n_folds=1 is at least 2"):
        CellHealth(n_folds=1)
    with pytest.raises(DataError, match="has 1 repeated knock-outs"):
        _fast().score(Inputs(dict(inputs.tables), {"readouts": pd.concat([readouts, readouts.head(1)])}))
    with pytest.raises(DataError, match="no gene, line and guide of the profiles is among the readouts"):
        _fast().score(Inputs(dict(inputs.tables), {"readouts": readouts.assign(Metadata_Gene="x", Metadata_Guide=[
            str(i) for i in range(45)
        ])}))  # fmt: skip
    with pytest.raises(DataError, match="no column of numbers"):
        _fast().score(Inputs(dict(inputs.tables), {"readouts": readouts.iloc[:, :3]}))
    with pytest.raises(DataError, match="no cell line can be scored: A549 has 2 matched"):
        _fast().score(Inputs({"table": take(inputs.table, np.arange(4))}, inputs.side))


def test_by_gene_no_gene_is_learnt_from_and_tested() -> None:
    """Two guides of every gene, whose readouts are the gene's own number, and features that name the gene."""
    random = np.random.default_rng(0)
    genes = np.repeat([f"g{i}" for i in range(40)], 2)
    features = np.repeat(random.normal(size=(40, 3)), 2, axis=0) + 0.01 * random.normal(size=(80, 3))
    readout = np.repeat(random.normal(size=40), 2)
    settings = {"n_trees": 30, "n_folds": 5, "seed": 0}
    assert forest_r2(features, readout, **settings) > 0.2
    assert forest_r2(features, readout, genes=genes, **settings) < 0.1


def test_plates_are_scaled_where_the_table_names_them(inputs: Inputs) -> None:
    from morphem.benchmarks.base import make_table

    table = inputs.table
    plates = [f"P{i % 2}" for i in range(len(table))]
    shifted = table.values + np.asarray([[0.0], [50.0]])[np.arange(len(table)) % 2]
    named = Inputs({"table": make_table(shifted, table.metadata.assign(Metadata_Plate=plates))}, inputs.side)
    plain_table = Inputs({"table": make_table(table.values, named.table.metadata)}, inputs.side)
    scaled, same = (_fast().adapt(each).table.values for each in (named, plain_table))
    np.testing.assert_allclose(scaled, same, atol=1e-4)
    assert _fast().adapt(inputs).table is inputs.table
    assert _fast(normalise="none").adapt(named).table is named.table
    with pytest.raises(ConfigError, match="normalise='z' is 'mad_per_plate' or 'none'"):
        CellHealth(normalise="z")  # type: ignore[arg-type]

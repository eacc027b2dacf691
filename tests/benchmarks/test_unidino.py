"""uniDINO: accuracies under each rule against loops, which wells are in question, attribution and trees."""

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks import active_compounds
from morphem.benchmarks.attribution import channel_attribution
from morphem.benchmarks.averaging import averaged
from morphem.benchmarks.base import Inputs, column, make_table, take
from morphem.benchmarks.hierarchy import profile_tree
from morphem.benchmarks.unidino import UniDINO
from morphem.benchmarks.unidino_accuracies import ACCURACIES
from morphem.benchmarks.unidino_rows import is_taxol_control
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable, feature_columns
from tests.references import neighbourhoods as plain


def _same(columns, i: int, j: int, *names: str) -> bool:
    return all(columns[name][i] == columns[name][j] for name in names)


ALLOWED = {
    "nsc": lambda c, i, j: not _same(c, i, j, "compound"),
    "nsb": lambda c, i, j: not _same(c, i, j, "batch", "label"),
    "nsb_words": lambda c, i, j: not _same(c, i, j, "batch"),
    "nscb": lambda c, i, j: not _same(c, i, j, "compound") and not _same(c, i, j, "batch", "label"),
    "nscb_words": lambda c, i, j: not _same(c, i, j, "compound") and not _same(c, i, j, "batch"),
    "nss": lambda c, i, j: not _same(c, i, j, "source", "label"),
    "nss_words": lambda c, i, j: not _same(c, i, j, "source"),
    "nspw": lambda c, i, j: not _same(c, i, j, "well") and not _same(c, i, j, "plate", "label"),
    "nspw_words": lambda c, i, j: not _same(c, i, j, "well") and not _same(c, i, j, "plate"),
    "nscp": lambda c, i, j: not _same(c, i, j, "compound") and not _same(c, i, j, "plate", "label"),
    "nscp_words": lambda c, i, j: not _same(c, i, j, "compound") and not _same(c, i, j, "plate"),
}


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return UniDINO.tiny(0, 0.5)


@pytest.mark.parametrize("wording", ["code", "words"])
@pytest.mark.parametrize("dataset", ACCURACIES)
def test_accuracies_are_the_plain_ones(inputs: Inputs, dataset: str, wording: str) -> None:
    found = UniDINO(dataset, normalise="none", wording=wording).score(inputs)  # type: ignore[arg-type]
    for name, accuracy in ACCURACIES[dataset].items():
        table = averaged(inputs.table, (*accuracy.level, accuracy.label)) if accuracy.level else inputs.table
        roles = {"compound": "Compound", "batch": "Batch", "source": "Source", "plate": "Plate", "well": "Well"}
        columns = {
            role: column(table, f"Metadata_{at}").astype(str)
            for role, at in roles.items()
            if f"Metadata_{at}" in table.metadata
        }
        columns["label"] = column(table, accuracy.label).astype(str)
        rule = accuracy.rule if wording == "code" or accuracy.rule == "nsc" else f"{accuracy.rule}_words"
        share, without = plain.accuracy(
            table.values, columns["label"], lambda i, j, rule=rule, columns=columns: ALLOWED[rule](columns, i, j)
        )
        assert found.values[name] == pytest.approx(share), name
        assert found.counts[f"{name}_without_candidate"] == without


def test_the_words_of_a_rule_never_allow_what_the_code_excludes() -> None:
    roles = ("label", "compound", "batch", "source", "plate", "well")
    random = np.random.default_rng(0)
    columns = {role: random.integers(0, 3, 30).astype(str) for role in roles}
    for name in ("nsb", "nscb", "nss", "nspw", "nscp"):
        for i in range(30):
            for j in range(30):
                assert ALLOWED[name](columns, i, j) or not ALLOWED[f"{name}_words"](columns, i, j)


def test_queries_without_a_candidate_are_counted_and_never_scored(inputs: Inputs) -> None:
    metadata = inputs.table.metadata
    one_week = take(inputs.table, metadata["Metadata_Batch"].eq("week0").to_numpy())
    mixed = UniDINO(wording="words", normalise="none").score(Inputs({"table": one_week}))
    assert "no profile has a neighbour that the rule allows" in mixed.missing["nscb_well"]
    assert "nsc_well" in mixed.values
    few = take(inputs.table, metadata["Metadata_Plate"].eq("week0_plate0").to_numpy())
    moved = few.metadata.assign(
        Metadata_Plate=["other"] * 4 + ["week0_plate0"] * 12, Metadata_Well=["A01"] * 8 + ["B01"] * 8
    )
    found = UniDINO("insect", wording="words", normalise="none").score(Inputs({"table": make_table(few.values, moved)}))
    assert (
        found.counts["insect_nspw_well_without_candidate"] == 4
    )  # on the plate of twelve, four share the others' well
    assert found.counts["insect_nspw_well_profiles"] == 12


def test_the_headline_is_a_score_of_the_data_set() -> None:
    assert UniDINO().headline == "nscb_well"
    assert UniDINO("jump_target2").headline in ACCURACIES["jump_target2"]
    names = [set(accuracies) for accuracies in ACCURACIES.values()]
    assert (
        not names[0] & names[1] | names[1] & names[2] | names[0] & names[2]
    )  # no row is put beside another data set's


def _plate_map(**changes: object) -> FeatureTable:
    rows = [
        ("taxol", "Microtubule stabilizers", "Week1", "D03"),
        ("taxol", "Microtubule stabilizers", "Week1", "D6"),
        ("taxol", "Microtubule stabilizers", "Week10", "D04"),
        ("taxol", "Microtubule stabilizers", "Week1", "d5"),
        ("DMSO", "DMSO", "Week1", "D04"),
        ("AZ-1", "Aurora kinase inhibitors", "Week1", "B02"),
    ]
    names = ["Metadata_Compound", "Metadata_MoA", "Metadata_Batch", "Metadata_Well"]
    metadata = pd.DataFrame(rows, columns=names).assign(**{"Metadata_Plate": "P", **changes})
    return make_table(np.ones((6, 2)), metadata)


def test_taxol_is_a_treatment_in_three_wells_of_week1_alone() -> None:
    assert is_taxol_control(_plate_map()).tolist() == [False, True, True, False, False, False]
    by_plate = _plate_map(Metadata_Plate=["Week1_22123"] * 2 + ["Week10_40111"] + ["Week1_22123"] * 3)
    bare = make_table(by_plate.values, by_plate.metadata.drop(columns="Metadata_Batch"))
    assert is_taxol_control(bare).tolist() == [False, True, True, False, False, False]


def _with(table: FeatureTable, rows: pd.DataFrame, values: np.ndarray) -> Inputs:
    metadata = pd.concat([table.metadata, rows], ignore_index=True)
    return Inputs({"table": make_table(np.concatenate([table.values, values]), metadata)})


def _controls(inputs: Inputs, n: int = 24) -> Inputs:
    rows = inputs.table.metadata.iloc[:n].assign(Metadata_Compound="DMSO", Metadata_MoA="DMSO", Metadata_Well="Z01")
    rows["Metadata_Batch"] = [f"week{i % 3}" for i in range(n)]
    rows["Metadata_Source"] = [f"source{i % 3 % 2}" for i in range(n)]
    rows["Metadata_Plate"] = [f"week{i % 3}_plate{i % 2}" for i in range(n)]
    rows["Metadata_Well"] = [f"Z{i:02d}" for i in range(n)]
    return _with(inputs.table, rows, np.random.default_rng(0).normal(size=(n, inputs.table.values.shape[1])))


def test_controls_and_unknown_mechanisms_are_in_no_accuracy(inputs: Inputs) -> None:
    more = _controls(inputs)
    unknown = more.table.metadata["Metadata_MoA"].to_numpy(object).copy()
    unknown[:5] = None
    table = make_table(more.table.values, more.table.metadata.assign(Metadata_MoA=unknown))
    found = UniDINO(normalise="none").score(Inputs({"table": table}))
    assert found.counts["left_out_negative_controls"] == 24
    assert found.counts["left_out_unknown_mechanism"] == 5
    assert found.counts["nspw_well_profiles"] == 96 - 5
    without = take(inputs.table, np.arange(5, 96))
    assert found.values == pytest.approx(UniDINO(normalise="none").score(Inputs({"table": without})).values)


@pytest.mark.parametrize("normalise", ["tvn", "mad_tvn"])
def test_typical_variation_normalisation_learns_from_dmso(inputs: Inputs, normalise: str) -> None:
    benchmark = UniDINO(normalise=normalise)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="learns from DMSO, but no compound is called DMSO"):
        benchmark.adapt(inputs)
    done = benchmark.adapt(_controls(inputs)).table
    assert len(done) == 120
    assert "Metadata_Morphem_Control" not in done.metadata
    changed = _controls(inputs)
    values = changed.table.values.copy()
    values[:96] *= 3  # treated wells change, what is learnt from controls does not
    again = UniDINO(normalise="tvn").adapt(Inputs({"table": make_table(values, changed.table.metadata)})).table
    first = UniDINO(normalise="tvn").adapt(_controls(inputs)).table
    np.testing.assert_allclose(again.values[96:], first.values[96:], atol=1e-4)


def test_inactive_compounds_and_lone_targets_are_left_out_of_jump(inputs: Inputs) -> None:
    names = sorted(set(inputs.table.metadata["Metadata_Compound"]))
    listed = pd.DataFrame({"value": [name for name in names if not name.startswith("compound0") or name[-1] == "1"]})
    found = UniDINO("jump_target2", normalise="none").score(Inputs(dict(inputs.tables), {"active": listed}))
    assert found.counts["left_out_inactive_compounds"] == 3 * 6
    assert found.counts["left_out_targets_of_one_compound"] == 6
    assert not found.notes
    assert "all are scored" in UniDINO("jump_target2", normalise="none").score(inputs).notes[0]


def test_a_compound_is_active_when_more_than_a_twentieth_of_its_features_are_strong() -> None:
    frame = pd.DataFrame(np.zeros((6, 40)), columns=[f"Cells_F{i}" for i in range(40)])
    frame["Metadata_Compound"] = ["weak", "weak", "edge", "edge", "strong", "strong"]
    frame.loc[0, frame.columns[:20]] = 1.6  # the mean of two wells is 0.8: below the bar
    frame.loc[2:3, frame.columns[:2]] = -0.84  # two of forty: exactly a twentieth, not more
    frame.loc[4:5, frame.columns[:3]] = [[-0.9] * 3, [-0.9] * 3]
    assert active_compounds.active_by_profiles(frame) == ["strong"]
    with pytest.raises(DataError, match="no column of compounds"):
        active_compounds.active_by_profiles(frame.rename(columns={"Metadata_Compound": "x"}))


def test_active_concentrations_are_matched_whatever_their_spelling(inputs: Inputs) -> None:
    listed = pd.DataFrame({"Compound": [f"compound{m}{c}" for m in range(4) for c in range(4)], "Concentration": 1.0})
    listed.loc[0, "Concentration"] = 2.0
    found = UniDINO("insect", normalise="none").score(Inputs(dict(inputs.tables), {"active": listed}))
    assert found.counts["left_out_inactive_compounds"] == 6


def test_mechanisms_of_one_batch_are_left_out_where_the_batch_must_differ(inputs: Inputs) -> None:
    names = inputs.table.metadata["Metadata_MoA"].replace("mechanism3", "Kinase inhibitors")
    table = make_table(inputs.table.values, inputs.table.metadata.assign(Metadata_MoA=names))
    found = UniDINO(normalise="none").score(Inputs({"table": table}))
    assert found.counts["nscb_well_profiles"] == 72
    assert found.counts["nsc_well_profiles"] == 96


def test_merged_mechanisms_count_as_one(inputs: Inputs) -> None:
    merged = UniDINO("insect", normalise="none", merge={"mechanism1": "mechanism0"}).score(inputs)
    assert set(merged.details["insect_nsc_well"]["by_label"]) == {"mechanism0", "mechanism2", "mechanism3"}


def _channelled(seed: int = 0, effect: float = 3.0) -> tuple[FeatureTable, np.ndarray]:
    """Mechanism m shows in channel m alone."""
    labels = np.repeat(["m0", "m1", "m2"], 20)
    columns, dictionary = feature_columns(("nucleus", "tubulin", "actin"), 12, "channel")
    values = np.random.default_rng(seed).normal(size=(60, 36))
    for i in range(3):
        values[20 * i : 20 * (i + 1), 12 * i : 12 * (i + 1)] += effect
    return FeatureTable(values.astype(np.float32), pd.DataFrame(index=range(60)), columns, dictionary), labels


def test_attribution_names_the_channel_that_tells_a_mechanism_and_shuffled_labels_name_none() -> None:
    table, labels = _channelled()
    found = channel_attribution(table, labels, seed=0, n_trees=60, top=12)
    assert all(found["counts"][f"m{i}"][name] >= 8 for i, name in enumerate(("nucleus", "tubulin", "actin")))
    assert found["chance"] == {"nucleus": 4.0, "tubulin": 4.0, "actin": 4.0}
    shuffled = np.random.default_rng(1).permutation(labels)
    null = channel_attribution(table, shuffled, seed=0, n_trees=60, top=12)["counts"]
    assert max(count for counts in null.values() for count in counts.values()) <= 9
    again = channel_attribution(table, labels, seed=0, n_trees=60, top=12)
    assert again == found


def test_attribution_needs_channels(inputs: Inputs) -> None:
    with pytest.raises(DataError, match="attribution needs features of at least two channels"):
        UniDINO(normalise="none", attribution=True).score(inputs)


def test_a_tree_joins_what_is_alike() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat(["a", "b", "c"], 5)
    rows = np.repeat(random.normal(size=(3, 20)), 5, axis=0) + 0.2 * random.normal(size=(15, 20))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    tree = profile_tree(unit @ unit.T, [f"p{i}" for i in range(15)], labels)
    assert tree["ami"] == pytest.approx(1)
    assert tree["cophenetic"] > 0.9
    assert "".join(tree["labels"]) in {
        "".join(x * 5 for x in order) for order in ("abc", "acb", "bac", "bca", "cab", "cba")
    }
    assert sorted(tree["profiles"]) == sorted(f"p{i}" for i in range(15))
    noise = profile_tree(np.corrcoef(random.normal(size=(15, 20))), [f"p{i}" for i in range(15)], labels)
    assert noise["ami"] < 0.5


def test_trees_are_in_the_details_where_asked_for(inputs: Inputs) -> None:
    tree = UniDINO(normalise="none", hierarchy=True).score(inputs).details["hierarchy"]
    assert len(tree["profiles"]) == 16
    assert tree["profiles"][0].startswith("compound")


def test_permuted_mechanisms_give_chance() -> None:
    scores = []
    for seed in range(4):
        table = UniDINO.tiny(seed, 1.0).table
        pairs = table.metadata[["Metadata_Compound", "Metadata_MoA"]].drop_duplicates()
        order = np.random.default_rng(seed).permutation(16)
        moved = dict(zip(pairs["Metadata_Compound"], pairs["Metadata_MoA"].to_numpy()[order], strict=True))
        labels = table.metadata["Metadata_Compound"].map(moved)
        found = UniDINO(normalise="none", wording="words").score(
            Inputs({"table": make_table(table.values, table.metadata.assign(Metadata_MoA=labels))})
        )
        scores.append(found.values["nscb_well"])
    assert np.mean(scores) == pytest.approx(0.2, abs=0.15)  # 3 of 15 other compounds share a label


def test_bad_tables_and_settings_are_refused(inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match="normalise='z' is one of mad_per_plate, tvn, mad_tvn, none"):
        UniDINO(normalise="z")  # type: ignore[arg-type]
    table = inputs.table
    with pytest.raises(DataError, match="no row of bbbc021 is left after leaving out unknown mechanism"):
        UniDINO().score(Inputs({"table": make_table(table.values, table.metadata.assign(Metadata_MoA=None))}))
    with pytest.raises(DataError, match="1 different values of Metadata_MoA; two are needed"):
        UniDINO().score(Inputs({"table": make_table(table.values, table.metadata.assign(Metadata_MoA="one"))}))
    with pytest.raises(DataError, match="features are constant"):
        UniDINO().score(Inputs({"table": make_table(np.ones_like(table.values), table.metadata)}))
    bare = make_table(table.values, table.metadata.drop(columns=["Metadata_Batch", "Metadata_Source"]))
    found = UniDINO(normalise="none").score(Inputs({"table": bare}))
    assert found.missing["nscb_well"] == "it needs Metadata_Batch"

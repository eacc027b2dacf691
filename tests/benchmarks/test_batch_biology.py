"""Batch and biology of profiles: means, corrections before and after, clusters, and tables that do not allow them."""

import sys

import numpy as np
import pytest

from morphem.benchmarks import well_rows
from morphem.benchmarks.base import Inputs, make_table, take, with_values
from morphem.benchmarks.batch_biology import BatchBiology, corrected
from morphem.benchmarks.leiden import cluster_agreement, leiden
from morphem.benchmarks.mixing import neighbours
from morphem.benchmarks.runner import score_tables
from morphem.benchmarks.tiny import planted
from morphem.errors import ConfigError, DataError


def _with_batches(effect: float, batch_effect: float, seed: int = 0) -> Inputs:
    table = BatchBiology.tiny(seed, effect).table
    labels, batches = list(table.metadata["Metadata_label"]), list(table.metadata["Metadata_Batch"])
    return Inputs(
        {
            "table": with_values(
                table, planted(labels, seed=seed, effect=effect, batches=batches, batch_effect=batch_effect)
            )
        }
    )


def _score(inputs: Inputs, **settings):
    return BatchBiology(n_neighbors=8, perplexity=5.0, resolutions=(0.5, 1.0, 2.0), **settings).score(inputs)


def test_overall_is_the_weighted_mean_of_the_two_means() -> None:
    found = _score(_with_batches(1.0, 0.5)).values
    batch = np.mean([found[n] for n in ("graph_connectivity", "kbet", "ilisi", "silhouette_batch")])
    biology = np.mean([found[n] for n in ("clisi", "silhouette_label", "leiden_ari", "leiden_nmi", "map")])
    assert found["batch"] == pytest.approx(batch)
    assert found["biology"] == pytest.approx(biology)
    assert found["overall"] == pytest.approx(0.4 * batch + 0.6 * biology)


@pytest.mark.parametrize("correction", ["combat", "standardize"])
def test_a_correction_mixes_batches_and_keeps_biology_and_the_record_shows_before(correction: str) -> None:
    found = _score(_with_batches(1.0, 1.5), correction=correction)
    assert found.values["batch"] > found.details["before"]["batch"] + 0.2
    assert found.values["biology"] > found.details["before"]["biology"]
    assert found.details["change"]["batch"] == pytest.approx(found.values["batch"] - found.details["before"]["batch"])
    assert any(note.startswith("Before the correction: overall 0.") for note in found.notes)
    assert found.details["before"]["overall"] == pytest.approx(_score(_with_batches(1.0, 1.5)).values["overall"])


def test_mixing_everything_does_not_pass_for_biology() -> None:
    noise = _score(_with_batches(0.0, 0.0)).values
    assert noise["batch"] > 0.6
    assert noise["map"] < 0.3
    assert noise["leiden_ari"] < 0.2


@pytest.mark.parametrize("correction", ["sphering", "tvn"])
def test_corrections_on_controls_learn_from_them_and_say_where_there_are_none(correction: str) -> None:
    inputs = _with_batches(1.0, 1.0)
    with pytest.raises(DataError, match=f"correction='{correction}' learns from controls.*negcon"):
        _score(inputs, correction=correction)
    control = ["negcon" if i % 4 == 0 else "trt" for i in range(len(inputs.table))]
    table = inputs.table
    marked = type(table)(table.values, table.metadata.assign(Metadata_Control=control), table.columns, table.dictionary)
    found = _score(Inputs({"table": marked}), correction=correction)
    assert found.counts["controls_left_out"] == 24
    assert found.counts["wells"] == 72


def test_controls_are_known_by_jumps_number_and_may_lack_a_name() -> None:
    table = _with_batches(1.0, 0.5).table
    names = table.metadata["Metadata_label"].replace("compound0", "JCP2022_033924")
    named = make_table(table.values, table.metadata.assign(Metadata_label=names))
    assert _score(Inputs({"table": named})).counts["controls_left_out"] == 12
    names = names.where(names != "JCP2022_033924")
    lost = make_table(table.values, table.metadata.assign(Metadata_label=names))
    with pytest.raises(DataError, match="12 rows have no Metadata_label and do not say that they are controls"):
        _score(Inputs({"table": lost}))
    marked = names.isna().map({True: "negcon", False: "trt"})
    told = make_table(table.values, lost.metadata.assign(Metadata_Control=marked))
    assert _score(Inputs({"table": told})).counts["controls_left_out"] == 12
    record = score_tables("batch_biology", BatchBiology(n_neighbors=8, perplexity=5.0), {"table": told})
    assert record.score.counts["wells"] == 84


def test_correction_happens_with_the_controls_and_keeps_the_rows() -> None:
    table = _with_batches(1.0, 1.0).table
    assert len(corrected(table, "combat", 0)) == len(table)
    assert corrected(table, "none", 0) is table


def test_leiden_clusters_are_the_groups_that_lie_apart() -> None:
    labels = np.repeat(np.arange(4), 15)
    apart = 50.0 * np.eye(4)[labels] + np.random.default_rng(0).normal(size=(60, 4))
    near, _ = neighbours(apart, 8)
    values, details = cluster_agreement(near, labels, (0.5, 1.0), 0)
    assert values == {"leiden_ari": pytest.approx(1), "leiden_nmi": pytest.approx(1)}
    assert details["leiden_ari"]["clusters"] == 4
    shuffled, _ = cluster_agreement(near, np.random.default_rng(1).permutation(labels), (0.5, 1.0), 0)
    assert shuffled["leiden_ari"] < 0.15
    assert (leiden()(near, 1.0, 3) == leiden()(near, 1.0, 3)).all()


def test_the_order_of_rows_does_not_change_clusters() -> None:
    inputs = _with_batches(0.6, 0.5)
    turned = Inputs({"table": take(inputs.table, np.random.default_rng(2).permutation(96))})
    assert _score(inputs).values == pytest.approx(_score(turned).values)


def test_without_igraph_the_error_names_the_extra_and_the_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "igraph", None)
    with pytest.raises(ConfigError, match=r"install 'morphem\[leiden\]', or take the variant without_clusters"):
        _score(_with_batches(1.0, 0.5))
    found = _score(_with_batches(1.0, 0.5), variant="without_clusters")
    assert set(found.missing) == {"leiden_ari", "leiden_nmi"}
    assert any("leiden_ari is not in the mean" in note for note in found.notes)


def test_a_table_that_would_take_for_ever_is_refused_before_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(well_rows, "PAIR_LIMIT", 9000)
    with pytest.raises(ConfigError, match=r"96 rows make 9\.22e\+03 pairs, more than the limit of 9e\+03"):
        _score(_with_batches(1.0, 0.5))


@pytest.mark.parametrize(("correction", "package"), [("harmony", "harmonypy"), ("scanorama", "scanorama")])
def test_a_correction_that_is_not_installed_names_its_extra(
    correction: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=rf"morphem\[{correction}\]"):
        _score(_with_batches(1.0, 0.5), correction=correction)


def test_bad_tables_and_settings_are_refused_in_one_sentence() -> None:
    table = BatchBiology.tiny(0, 1.0).table
    with pytest.raises(ConfigError, match="correction='cca' is one of none, standardize"):
        BatchBiology(correction="cca")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_neighbors=1 is at least 2"):
        BatchBiology(n_neighbors=1)
    with pytest.raises(DataError, match="needs two classes, but all 96 rows are 'one'"):
        _score(
            Inputs({"table": type(table)(
                table.values, table.metadata.assign(Metadata_Batch="one"), table.columns, table.dictionary
            )})
        )  # fmt: skip
    with pytest.raises(DataError, match="9 wells are too few for 8 neighbours"):
        _score(Inputs({"table": take(table, [0, 1, 4, 5, 12, 13, 16, 17, 20])}))
    with pytest.raises(DataError, match="features are constant"):
        _score(Inputs({"table": with_values(table, np.ones_like(table.values))}))
    broken = table.values.copy()
    broken[3, 2] = np.nan
    with pytest.raises(DataError, match="1 rows with NaN or infinite features"):
        score_tables("batch_biology", BatchBiology(), {"table": with_values(table, broken)})

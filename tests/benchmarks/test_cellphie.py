"""CellPHIE: components and classifiers against plain ones, nothing learnt from tested neurons, refusals."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks.base import Inputs, make_table, take, with_values
from morphem.benchmarks.cellphie import CONTROL, LEFT_OUT_GENES, CellPhie, components
from morphem.errors import ConfigError, DataError
from morphem.features import FeatureTable
from tests.benchmarks.protocols import changed, score_of, shuffled, with_column, with_pixel, without_column
from tests.references import chammi75_scores as plain
from tests.references.scores import auroc


def _plain_scores(table: FeatureTable, per_channel: int | None) -> dict[str, list[float]]:
    """AUC, precision and recall of every gene from the protocol's words."""
    genes = table.metadata["Metadata_Gene"].to_numpy()
    kept = ~np.isin(genes, LEFT_OUT_GENES)
    genes, values = genes[kept], table.values[kept].astype(np.float64)
    train = table.metadata["Metadata_Train"].to_numpy()[kept] == 1
    channels = np.asarray([entry["channel"] for entry in table.dictionary])
    blocks = [channels == name for name in sorted(set(channels))] if per_channel else [np.ones(len(channels), bool)]
    if per_channel:
        parts = [plain.principal_components(values[train][:, b], values[:, b], per_channel) for b in blocks]
        values = np.concatenate(parts, axis=1)
    values = (values - values[train].mean(0)) / values[train].std(0)
    found: dict[str, list[float]] = {"auc": [], "precision": [], "recall": [], "f1": []}
    for gene in sorted(set(genes) - {CONTROL}):
        rows = np.isin(genes, (gene, CONTROL))
        target = genes == gene
        said = plain.binary_logistic(values[rows & train], target[rows & train], values[rows & ~train])
        truth = target[rows & ~train]
        found["auc"].append(auroc(truth.tolist(), said.tolist()))
        hits = sum((said > 0.5) & truth)
        precision, recall = hits / max(1, sum(said > 0.5)), hits / sum(truth)
        found["precision"].append(precision)
        found["recall"].append(recall)
        found["f1"].append(2 * precision * recall / (precision + recall) if hits else 0.0)
    return found


@pytest.mark.parametrize(("variant", "per_channel"), [("none", None), ("per_channel_20", 6)])
@pytest.mark.parametrize("effect", [0.25, 0.7])
def test_every_score_is_that_of_plain_components_and_a_general_optimiser(
    variant: str, per_channel: int | None, effect: float
) -> None:
    inputs = CellPhie.tiny(0, effect)
    found = score_of(CellPhie, inputs, CellPhie(variant=variant, max_iter=5000)).values
    expected = _plain_scores(inputs.table, per_channel)
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values), abs=0.006), name


@pytest.mark.parametrize("shape", [(40, 9), (12, 30)])
def test_components_are_exact_and_the_same_on_every_run(shape: tuple[int, int]) -> None:
    random = np.random.default_rng(0)
    train, values = (
        random.normal(size=shape) @ np.diag(np.linspace(3, 0.5, shape[1])),
        random.normal(size=(7, shape[1])),
    )
    found = components(train, values, 4)
    expected = plain.principal_components(train, values, 4)
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-8)
    assert np.array_equal(found, components(train.copy(), values.copy(), 4))


def test_components_are_those_of_scikit_learn() -> None:
    from sklearn.decomposition import PCA

    train = np.random.default_rng(1).normal(size=(50, 8))
    expected = PCA(5, svd_solver="full").fit(train).transform(train)
    np.testing.assert_allclose(np.abs(components(train, train, 5)), np.abs(expected), atol=1e-9)


def test_there_are_twenty_components_of_every_channel() -> None:
    genes = [CONTROL] * 60 + ["HTT"] * 60
    metadata = pd.DataFrame({"Metadata_Gene": genes, "Metadata_Train": [i % 3 > 0 for i in range(120)]})
    table = make_table(np.random.default_rng(0).normal(size=(120, 14 * 24)), metadata)
    dictionary = tuple(
        {**entry, "channel": f"stain{i // 24:02d}", "kind": "channel"} for i, entry in enumerate(table.dictionary)
    )
    found = score_of(CellPhie, Inputs({"table": replace(table, dictionary=dictionary)}))
    assert set(found.details["reduction"].values()) == {20}
    assert len(found.details["reduction"]) == 14
    assert not any("channels" in note for note in found.notes)


def test_perfect_features_give_one_and_shuffled_ones_chance() -> None:
    assert score_of(CellPhie, CellPhie.tiny(0, np.inf)).values["auc"] == 1.0
    values = [score_of(CellPhie, changed(CellPhie.tiny(0, 1.0), shuffled(seed))).values["auc"] for seed in range(6)]
    assert np.mean(values) == pytest.approx(0.5, abs=0.08)


def test_a_tested_neuron_has_no_say_in_components_scales_and_classifiers() -> None:
    inputs = CellPhie.tiny(0, 0.7)
    tested = inputs.table.metadata["Metadata_Train"].eq(0).to_numpy()
    genes = inputs.table.metadata["Metadata_Gene"]
    wild = (tested & genes.eq("HRAS").to_numpy())[:, None]
    after = changed(inputs, lambda t: with_values(t, np.where(wild, 1e4 * t.values, t.values)))
    before, then = score_of(CellPhie, inputs).details["genes"], score_of(CellPhie, after).details["genes"]
    assert all(before[gene] == then[gene] for gene in before if gene != "HRAS")


def test_only_the_twenty_eighth_day_and_the_scored_genes_count() -> None:
    inputs = CellPhie.tiny(0, 0.7)
    table = inputs.table
    extra = take(table, np.arange(60))
    late = with_column(Metadata_Timepoint="D21")(with_values(extra, extra.values * 50))
    both = FeatureTable(
        np.concatenate([table.values, late.values]),
        pd.concat([table.metadata, late.metadata], ignore_index=True),
        table.columns,
        table.dictionary,
    )
    assert score_of(CellPhie, Inputs({"table": both})).values == score_of(CellPhie, inputs).values
    scored = ~table.metadata["Metadata_Gene"].isin(LEFT_OUT_GENES).to_numpy()
    assert score_of(CellPhie, changed(inputs, lambda t: take(t, scored))).values == score_of(CellPhie, inputs).values


def test_a_gene_with_few_tested_neurons_is_left_out_and_told() -> None:
    inputs = CellPhie.tiny(0, 0.7)
    metadata = inputs.table.metadata
    lost = np.flatnonzero(metadata["Metadata_Gene"].eq("MSH3") & metadata["Metadata_Train"].eq(0))[4:]
    fewer = changed(inputs, lambda t: take(t, np.setdiff1d(np.arange(len(t)), lost)))
    found = score_of(CellPhie, fewer)
    assert found.details["skipped"] == {"MSH3": "20 cells to learn from, 4 to test on (at least 5)"}
    assert found.counts["genes"] == 3


@pytest.mark.parametrize("variant", CellPhie.variants)
def test_every_variant_finds_the_effect(variant: str) -> None:
    assert score_of(CellPhie, CellPhie.tiny(0, 1.0), CellPhie(variant=variant, max_iter=300)).values["auc"] > 0.8


def test_a_table_of_other_channels_than_fourteen_is_noted() -> None:
    assert "there are 3 channels; the published rows have 14" in score_of(CellPhie, CellPhie.tiny(0, 1.0)).notes


def _one_vector(table: FeatureTable) -> FeatureTable:
    return replace(
        table, dictionary=tuple({**entry, "channel": "image", "kind": "image"} for entry in table.dictionary)
    )


def _unknown_channels(table: FeatureTable) -> FeatureTable:
    return replace(table, dictionary=tuple({**entry, "channel": ""} for entry in table.dictionary))


BAD = {
    "one vector": (_one_vector, "does not say which feature belongs to which channel.*--variant global_20"),
    "no channels": (_unknown_channels, "does not say which feature belongs to which channel"),
    "all train": (with_column(Metadata_Train=1), "180 rows to learn from and 0 to test on remain"),
    "words": (with_column(Metadata_Train="maybe"), r"Metadata_Train holds 'maybe'; it says 1 \(to learn from\) or 0"),
    "no control": (with_column(Metadata_Gene="HTT"), "no 'non-target' cells to learn from"),
    "other day": (with_column(Metadata_Timepoint="D21"), r"0 rows to learn from and 0 to test on remain \(time D28"),
    "only controls": (with_column(Metadata_Gene=CONTROL), "no gene has cells to learn from and 5 cells to test on"),
    "no gene": (without_column("Metadata_Gene"), r"lacks the silenced gene \(or non-target\)"),
    "nan": (with_pixel(0, np.nan), "1 rows with NaN or infinite features"),
}


@pytest.mark.parametrize("name", BAD)
def test_tables_that_do_not_allow_the_score_are_one_sentence(name: str) -> None:
    change, message = BAD[name]
    with pytest.raises(DataError, match=message) as told:
        score_of(CellPhie, changed(CellPhie.tiny(0, 1.0), change))
    assert "\n" not in str(told.value)


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_iter=0 must be at least 1"):
        CellPhie(max_iter=0)
    with pytest.raises(ConfigError, match="No variant of CellPhie 'per_chanel_20'; did you mean 'per_channel_20'"):
        CellPhie(variant="per_chanel_20")

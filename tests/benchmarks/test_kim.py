"""Kim et al.: rankings, matches and clusters against loops, copairs and scikit-learn; what is left out is told."""

from itertools import combinations
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks.averaging import averaged
from morphem.benchmarks.base import Inputs, column, make_table, take
from morphem.benchmarks.classifiers import standardise
from morphem.benchmarks.hierarchy import complete_linkage, tightest_families
from morphem.benchmarks.kim import Kim
from morphem.benchmarks.label_ranking import f1_at_k, precision_at_r, ranked_precision, replicating
from morphem.benchmarks.retrieval import unit_rows
from morphem.benchmarks.runner import score_features
from morphem.errors import ConfigError, DataError
from tests.references import neighbourhoods as plain
from tests.references.scores import cosine


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Kim.tiny(0, 0.6)


@pytest.fixture(scope="module")
def wells(inputs: Inputs):
    keep = inputs.table.metadata["Metadata_Control"] == "trt"
    return take(inputs.table, keep.to_numpy())


def _score(inputs: Inputs, **settings):
    return Kim(null_draws=50, replicates=4, **settings).score(inputs)


@pytest.mark.parametrize("similarity", ["correlation", "cosine"])
def test_perturbation_map_is_that_of_scikit_learn_and_copairs(inputs: Inputs, wells, similarity: str) -> None:
    from copairs.map import average_precision
    from sklearn.metrics import average_precision_score

    profiles = averaged(wells, ("Metadata_Compound", "Metadata_Batch"))
    labels = column(profiles, "Metadata_Compound").astype(str)
    unit = unit_rows(profiles.values, similarity)  # type: ignore[arg-type]
    plainly = []
    for i in range(len(labels)):
        others = [j for j in range(len(labels)) if j != i]
        plainly.append(average_precision_score(labels[others] == labels[i], unit[others] @ unit[i]))
    found = _score(inputs, similarity=similarity).values["perturbation_map"]
    assert found == pytest.approx(np.mean(plainly))
    rows = profiles.values - profiles.values.mean(1, keepdims=True) if similarity == "correlation" else profiles.values
    meta = pd.DataFrame({"compound": labels})
    theirs = average_precision(meta, rows, ["compound"], [], [], ["compound"], progress_bar=False)
    assert found == pytest.approx(theirs["average_precision"].mean(), abs=1e-5)


@pytest.mark.parametrize("k", [1, 3, 7])
def test_f1_at_k_is_the_plain_one(wells, k: int) -> None:
    unit = unit_rows(wells.values, "correlation")
    labels = column(wells, "Metadata_Compound").astype(str)
    assert f1_at_k(unit, labels)[k] == pytest.approx(plain.f1_at((unit @ unit.T).tolist(), labels.tolist(), k))


def test_precision_at_r_is_the_plain_one_and_one_for_perfect_features() -> None:
    labels = np.asarray(["a", "a", "a", "b", "b", "c"])
    unit = unit_rows(np.random.default_rng(0).normal(size=(6, 4)))
    shares = []
    for i in range(5):
        order = sorted((j for j in range(6) if j != i), key=lambda j, i=i: -unit[i] @ unit[j])
        r = sum(labels == labels[i]) - 1
        shares.append(sum(labels[j] == labels[i] for j in order[:r]) / r)
    assert precision_at_r(unit, labels) == pytest.approx(np.mean(shares))
    perfect = np.eye(3)[np.unique(labels, return_inverse=True)[1]]
    assert precision_at_r(perfect, labels) == 1
    assert max(f1_at_k(perfect, labels).values()) > 0.7


def _same(c, i: int, j: int, *names: str) -> bool:
    return all(c[name][i] == c[name][j] for name in names)


RULES = {
    "nsb": ("Metadata_Compound", lambda c, i, j: not _same(c, i, j, "batch", "label")),
    "nsb_words": ("Metadata_Compound", lambda c, i, j: not _same(c, i, j, "batch")),
    "nss": ("Metadata_Compound", lambda c, i, j: not _same(c, i, j, "source", "label")),
    "nss_words": ("Metadata_Compound", lambda c, i, j: not _same(c, i, j, "source")),
    "nsbp": (
        "Metadata_Target",
        lambda c, i, j: not _same(c, i, j, "well") and not _same(c, i, j, "batch", "label"),
    ),
    "nsbp_words": (
        "Metadata_Target",
        lambda c, i, j: not _same(c, i, j, "batch") and not _same(c, i, j, "compound"),
    ),
}


@pytest.mark.parametrize("rule", RULES)
def test_matching_accuracies_are_the_plain_ones(inputs: Inputs, wells, rule: str) -> None:
    label, allowed = RULES[rule]
    columns = {
        "label": column(wells, label).astype(str),
        "compound": column(wells, "Metadata_Compound").astype(str),
        "batch": column(wells, "Metadata_Batch").astype(str),
        "source": column(wells, "Metadata_Source").astype(str),
        "well": column(wells, "Metadata_Well").astype(str),
    }
    scaled = standardise(wells.values, wells.values)[1]
    share, without = plain.accuracy(scaled, columns["label"], lambda i, j: allowed(columns, i, j))
    name = rule.removesuffix("_words")
    found = _score(inputs, wording="words" if rule.endswith("_words") else "code")
    assert found.values[name] == pytest.approx(share)
    assert found.counts[f"{name}_without_candidate"] == without


def test_percent_replicating_compares_medians_with_sets_of_different_perturbations() -> None:
    random = np.random.default_rng(0)
    centres = 3 * random.normal(size=(12, 20))
    centres[6:] = 0
    labels = np.repeat([f"c{i:02d}" for i in range(12)], 5)
    rows = np.repeat(centres, 5, axis=0) + random.normal(size=(60, 20))
    unit = unit_rows(rows, "correlation")
    medians, bar = replicating(unit, labels, random=np.random.default_rng(1), null_draws=300, replicates=5)
    for i in (0, 8):
        own = rows[i * 5 : i * 5 + 5]
        pairs = [cosine(a - a.mean(), b - b.mean()) for a, b in combinations(own, 2)]
        assert medians[f"c{i:02d}"] == pytest.approx(median(pairs))
    assert all(medians[f"c{i:02d}"] > bar for i in range(6))
    assert sum(medians[f"c{i:02d}"] > bar for i in range(6, 12)) <= 1


def test_profiles_without_a_positive_are_left_out_and_counted() -> None:
    labels = np.asarray(["a", "a", "b"])
    precision = ranked_precision(unit_rows(np.random.default_rng(0).normal(size=(3, 4))), labels)
    assert np.isnan(precision[2])
    assert np.isfinite(precision[:2]).all()
    table = Kim.tiny(0, 1.0).table
    lone = table.metadata["Metadata_Compound"].ne("compound00") | table.metadata["Metadata_Batch"].eq("batch0")
    found = _score(Inputs({"table": take(table, lone.to_numpy())}))
    assert found.counts["profiles_without_replicate"] == 1
    assert found.counts["nsb_without_candidate"] == 0


def test_permuted_labels_give_chance() -> None:
    scores = []
    for seed in range(4):
        table = Kim.tiny(seed, 1.0).table
        order = np.random.default_rng(seed).permutation(64)
        names = table.metadata["Metadata_Compound"].to_numpy().copy()
        names[:64] = names[:64][order]
        changed = make_table(table.values, table.metadata.assign(Metadata_Compound=names))
        scores.append(_score(Inputs({"table": changed}), wording="words").values["nsb"])
    assert np.mean(scores) == pytest.approx(1 / 16, abs=0.05)


def _families(effect: float) -> Inputs:
    random = np.random.default_rng(0)
    rows = [(f"gene{f}_{g}", f"family{f}") for f in range(6) for g in range(5)]
    centre = {f"family{f}": random.normal(size=30) for f in range(6)}
    metadata = pd.DataFrame(
        [{"Metadata_Compound": g, "Metadata_Target": f, "Metadata_Batch": b} for g, f in rows for b in ("b0", "b1")]
    )
    own = {gene: effect * centre[family] + random.normal(size=30) for gene, family in rows}
    values = np.stack([own[g] for g in metadata["Metadata_Compound"]]) + 0.3 * random.normal(size=(60, 30))
    return Inputs({"table": make_table(values, metadata)})


def test_gene_families_are_found_as_clusters_and_noise_is_not() -> None:
    from sklearn.metrics import adjusted_mutual_info_score

    found = _score(_families(3.0), variant="orf")
    assert found.values["ami"] > 0.9
    assert _score(_families(0.0), variant="orf").values["ami"] < 0.4
    mixed = _score(_families(0.5), variant="orf")
    assert mixed.values["ami"] <= mixed.values["ami_arithmetic"] + 1e-9
    genes = averaged(_families(0.5).table, ("Metadata_Compound", "Metadata_Target"))
    similar = np.corrcoef(genes.values.astype(np.float64))
    labels = column(genes, "Metadata_Target").astype(str)
    cluster = complete_linkage(similar, 6)
    assert mixed.values["ami"] == pytest.approx(
        adjusted_mutual_info_score(labels, cluster, average_method="max"), abs=1e-6
    )


def test_only_the_tightest_families_of_four_to_ten_are_taken() -> None:
    families = np.asarray(["a"] * 4 + ["b"] * 4 + ["small"] * 3 + ["large"] * 11)
    similar = np.full((22, 22), 0.1)
    similar[:4, :4], similar[4:8, 4:8], similar[8:11, 8:11] = 0.5, 0.9, 1.0
    assert tightest_families(similar, families) == ["a", "b"]
    assert tightest_families(similar, families, n=1) == ["b"]


def test_mixing_shows_profiles_between_clusters_and_shuffled_ones(inputs: Inputs) -> None:
    found = _score(inputs, mixing=True).details["mixing"]
    assert set(found) == {"batch", "source"}
    for group in found.values():
        lisi = {kind: group[kind]["lisi"]["15"] for kind in group}
        assert lisi["gaussian_clusters"] < lisi["profiles"]
        assert lisi["gaussian_clusters"] == pytest.approx(1, abs=0.05)
        assert lisi["shuffled_clusters"] > 1.5
    assert set(found["batch"]["profiles"]["graph_connectivity"]) == {"1", "2", "3", "5", "10", "15"}


SHARED = Path(__file__).parents[3] / "shared" / "data" / "jumpcp1-profiles"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data of {SHARED} are not here")
def test_real_compounds_are_found_again_on_other_plates() -> None:
    """CellProfiler profiles of seven plates of 306 compounds; a plate is the batch."""
    found = score_features("kim", SHARED, {"null_draws": 200}, leaks=False).score
    assert found.counts["controls_left_out"] == 448
    assert found.values["nsb"] == pytest.approx(0.40, abs=0.02)
    assert found.values["perturbation_map"] == pytest.approx(0.28, abs=0.02)
    assert found.values["percent_replicating"] > 0.9
    assert found.missing["target_map"] == "it needs Metadata_Target"


def test_what_the_table_lacks_is_said_and_not_scored(inputs: Inputs) -> None:
    table = inputs.table
    bare = make_table(table.values, table.metadata[["Metadata_Compound", "Metadata_Batch", "Metadata_Control"]])
    found = _score(Inputs({"table": bare}))
    assert found.missing["nss"] == "it needs Metadata_Source"
    assert found.missing["target_map"] == "it needs Metadata_Target"
    assert "nsb" in found.values


def test_bad_tables_and_settings_are_refused(inputs: Inputs) -> None:
    table = inputs.table
    with pytest.raises(ConfigError, match="similarity='l2' is 'correlation' or 'cosine'"):
        Kim(similarity="l2")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="kim: all 4 rows are controls"):
        _score(Inputs({"table": take(table, np.arange(64, 68))}))
    with pytest.raises(DataError, match="no perturbation is in two batches"):
        _score(Inputs({"table": take(table, (table.metadata["Metadata_Batch"] == "batch0").to_numpy())}))
    wells = ["A01", "A01", *(f"B{i}" for i in range(66))]
    doubled = table.metadata.assign(Metadata_Plate="P", Metadata_Well=wells, Metadata_Batch="b0", Metadata_Source="s0")
    with pytest.raises(DataError, match="2 rows whose Metadata_Source and Metadata_Batch and Metadata_Plate"):
        _score(Inputs({"table": make_table(table.values, doubled)}))
    flat = table.values.copy()
    flat[5] = 0
    with pytest.raises(DataError, match="kim: the table has 1 rows of zeros only"):
        _score(Inputs({"table": make_table(flat, table.metadata)}))
    one = (table.metadata["Metadata_Compound"] == "compound00").to_numpy()
    with pytest.raises(DataError, match="there are 1 perturbations besides controls; two are needed"):
        _score(Inputs({"table": take(table, one)}))

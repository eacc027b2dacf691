"""Z': the formula, robust moments, the published form that noise passes, the cross-fitted one that it does not."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from morphem.benchmarks import z_prime as module
from morphem.benchmarks.base import Inputs, make_table, take
from morphem.benchmarks.runner import score_features
from morphem.benchmarks.z_prime import FLOOR, ZPrime, halves_of_units, projected, robust_moments, z_prime
from morphem.errors import ConfigError, DataError
from tests.references import neighbourhoods as plain


def _noise(n_features: int, wells: int, seed: int = 0, plates: int | None = None) -> Inputs:
    metadata = pd.DataFrame({"Metadata_Group": ["neg"] * wells + ["pos"] * wells})
    if plates is not None:
        metadata["Metadata_Plate"] = [f"P{i % plates}" for i in range(2 * wells)]
    return Inputs({"table": make_table(np.random.default_rng(seed).normal(size=(2 * wells, n_features)), metadata)})


def test_the_formula_is_the_plain_one() -> None:
    random = np.random.default_rng(0)
    reference, target = random.normal(size=(9, 5)), random.normal(size=(7, 5)) + 6
    values, is_target = np.concatenate([reference, target]), np.arange(16) >= 9
    direction = target.mean(0) - reference.mean(0)
    found = z_prime(projected(values, is_target, values, is_target), is_target, module.plain_moments)
    assert found == pytest.approx(plain.z_prime(reference, target, direction))
    places = projected(values, is_target, values, is_target)
    assert places[~is_target].mean() == pytest.approx(0)
    assert places[is_target].mean() == pytest.approx(1)


@pytest.mark.parametrize("seed", range(4))
def test_robust_moments_are_the_plain_ones_and_shrug_off_an_outlier(seed: int) -> None:
    values = np.random.default_rng(seed).normal(3, 2, size=40)
    values[0] = 1000.0
    assert robust_moments(values) == pytest.approx(plain.algorithm_a(values.tolist()), rel=1e-9)
    mean, deviation = robust_moments(values)
    assert mean == pytest.approx(3, abs=1.2)
    assert deviation == pytest.approx(2, abs=1)


def test_robust_moments_of_a_normal_sample_are_its_plain_ones_nearly() -> None:
    values = np.random.default_rng(0).normal(5, 2, size=20000)
    assert robust_moments(values) == pytest.approx((5, 2), rel=0.03)


@pytest.mark.parametrize(("wells", "expected"), [(8, 0.64), (16, 0.48), (32, 0.25)])
def test_the_published_form_finds_noise_separated_as_was_measured(wells: int, expected: float) -> None:
    """Medians for 1,024 features of noise, as the facts about the public code say."""
    found = [
        ZPrime("published_paper", n_null=20).score(_noise(1024, wells, seed)).values["z_prime"] for seed in range(7)
    ]
    assert np.median(found) == pytest.approx(expected, abs=0.05)


def test_the_cross_fitted_form_does_not_and_its_null_says_the_same() -> None:
    found = ZPrime(n_null=20).score(_noise(1024, 8))
    assert found.values["z_prime"] < -1
    assert found.values["null"] < -1
    assert ZPrime("published_paper", n_null=20).score(_noise(1024, 8)).values["null"] > 0.5


def test_a_direction_never_comes_from_the_wells_that_are_scored(monkeypatch: pytest.MonkeyPatch) -> None:
    table = ZPrime.tiny(0, 1.0).table
    ids = {tuple(row): i for i, row in enumerate(table.values.astype(np.float64).round(6).tolist())}
    seen: list[tuple[set[int], set[int]]] = []
    original = module.projected

    def watching(learn, learn_target, test, test_target):  # type: ignore[no-untyped-def]
        seen.append(tuple({ids[tuple(row)] for row in side.round(6).tolist()} for side in (learn, test)))
        return original(learn, learn_target, test, test_target)

    monkeypatch.setattr(module, "projected", watching)
    ZPrime.tiny_instance().score(Inputs({"table": table}))
    assert seen
    assert all(not learn & test for learn, test in seen)


def test_halves_of_plates_keep_plates_whole() -> None:
    is_target = np.tile([False, True], 20)
    plates = np.repeat(np.arange(5), 8)
    half = halves_of_units(is_target, plates, np.random.default_rng(0))
    assert all(len(set(half[plates == plate])) == 1 for plate in range(5))
    with pytest.raises(DataError, match="no division of the plates"):
        halves_of_units(is_target, np.zeros(40, np.int64), np.random.default_rng(0))


def test_a_plate_effect_that_separates_wells_does_not_pass_across_plates() -> None:
    """Controls sit on some plates and treatments on others, which differ by plate alone."""
    random = np.random.default_rng(0)
    metadata = pd.DataFrame(
        [{"Metadata_Group": g, "Metadata_Plate": f"{g}{p}"} for g in ("neg", "pos") for p in range(4) for _ in range(8)]
    )
    offset = {plate: 8 * random.normal(size=64) for plate in metadata["Metadata_Plate"].unique()}
    values = np.stack([offset[p] for p in metadata["Metadata_Plate"]]) + random.normal(size=(64, 64))
    inputs = Inputs({"table": make_table(values, metadata)})
    wells = ZPrime(n_null=20).score(inputs)
    plates = ZPrime(n_null=20, halves="plates").score(inputs)
    assert plates.values["z_prime"] < wells.values["z_prime"]
    assert plates.values["z_prime"] < 0
    assert any("Wells of one plate are in both halves" in note for note in wells.notes)


def test_groups_that_fall_together_give_the_floor_and_no_infinity() -> None:
    assert z_prime(np.zeros(6), np.arange(6) > 2, module.plain_moments) == FLOOR
    metadata = pd.DataFrame({"Metadata_Group": ["a"] * 8 + ["b"] * 8})
    same = np.tile(np.random.default_rng(0).integers(-8, 8, size=(8, 3)), (2, 1))
    found = ZPrime("published_paper", n_null=20).score(Inputs({"table": make_table(same, metadata)}))
    assert found.values["z_prime"] == FLOOR
    with pytest.raises(DataError, match="all 3 features are constant"):
        ZPrime().score(Inputs({"table": make_table(np.ones((16, 3)), metadata)}))


def test_both_directions_of_a_pair_are_scored_and_the_order_of_rows_does_not_matter() -> None:
    table = ZPrime.tiny(0, 1.0).table
    found = ZPrime.tiny_instance().score(Inputs({"table": table}))
    assert len(found.details["pairs"]) == 4 * 3
    turned = take(table, np.random.default_rng(1).permutation(len(table)))
    assert ZPrime.tiny_instance().score(Inputs({"table": turned})).values == pytest.approx(found.values)
    assert all(pair["p_value"] == pytest.approx(1 / 21) for pair in found.details["pairs"])


def test_wells_without_a_group_are_left_out_and_counted() -> None:
    table = ZPrime.tiny(0, 1.0).table
    groups = table.metadata["Metadata_Group"].where(table.metadata["Metadata_Group"] != "pos_M2")
    found = ZPrime.tiny_instance().score(
        Inputs({"table": make_table(table.values, table.metadata.assign(Metadata_Group=groups))})
    )
    assert found.counts["wells_without_group"] == 12
    assert found.counts["groups"] == 3


SHARED = Path(__file__).parents[3] / "shared" / "data" / "jumpcp1-profiles"


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"the data of {SHARED} are not here")
def test_real_controls_overlap_but_less_than_shuffled_ones() -> None:
    """CellProfiler profiles of seven plates: kinds of controls beside DMSO, 560 features."""
    columns = {"Group": "Metadata_control_type"}
    honest = score_features("z_prime", SHARED, {"n_null": 20}, columns=columns, leaks=False).score
    inflated = score_features(
        "z_prime", SHARED, {"n_null": 20, "variant": "published_paper"}, columns=columns, leaks=False
    ).score
    assert honest.counts["wells_without_group"] == 1820
    assert inflated.values["null"] > honest.values["null"]
    assert honest.values["null"] < honest.values["z_prime"] < 0
    assert honest.values["share_above_null"] == 1


def test_bad_tables_and_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="n_null=5 at least 20"):
        ZPrime(n_null=5)
    with pytest.raises(DataError, match="the group 'neg' has 3 wells, but 4 are needed"):
        ZPrime().score(_noise(8, 3))
    with pytest.raises(DataError, match="halves='plates' needs Metadata_Plate"):
        ZPrime(halves="plates").score(_noise(8, 8))
    one = Inputs({"table": take(_noise(8, 8).table, np.arange(8))})
    with pytest.raises(DataError, match="1 groups of wells; it takes 2 to max_groups=50"):
        ZPrime().score(one)

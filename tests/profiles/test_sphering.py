from importlib.metadata import version

import numpy as np
import pytest

from morphem.errors import ConfigError, DataError
from morphem.profiles import Sphere, Sphering, check_pycytominer, records
from morphem.profiles import sphering as module
from tests.profiles.plates import CONTROLS, controls, plates, shuffled
from tests.references import profiles as reference

METHODS = ["ZCA-cor", "ZCA", "PCA-cor", "PCA"]
PLACES = ["singular value", "eigenvalue", "clip"]


def rows(n, d, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(n, d)) @ (generator.normal(size=(d, d)) + 2 * np.eye(d)) + 10 * np.arange(1, d + 1)


def covariance(values):
    return np.cov(values, rowvar=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("engine", ["pycytominer", "morphem"])
def test_the_covariance_of_the_fitted_rows_is_the_identity(method, engine, monkeypatch):
    monkeypatch.setattr(module, "_PYCYTOMINER_ROWS", 5000 if engine == "pycytominer" else 0)
    fit = rows(80, 6)
    sphering = Sphering(method, 1e-9).fit(fit)
    assert sphering.engine.startswith(engine)
    np.testing.assert_allclose(covariance(sphering.transform(fit)), np.eye(6), atol=1e-7)


@pytest.mark.parametrize("epsilon", [1e-6, 1e-3, 0.5])
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 6), (6, 6), (5, 9)])
def test_sphering_equals_the_plain_formula(method, place, shape, epsilon):
    fit, others = rows(*shape), rows(7, shape[1], seed=1)
    plain = reference.sphere(
        others,
        fit,
        correlation=method.endswith("-cor"),
        rotate_back=method.startswith("ZCA"),
        epsilon=epsilon,
        epsilon_on=place,
    )
    ours = Sphering(method, epsilon, place).fit(fit).transform(others)
    if method.startswith("PCA"):  # the sign of a direction is free
        ours, plain = np.abs(ours), np.abs(plain)
    np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=1e-5 * np.abs(plain).max())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(40, 6), (5, 9)])
def test_both_engines_agree(method, shape, monkeypatch):
    fit = rows(*shape) - 40
    theirs = Sphering(method, 1e-3).fit(fit)
    monkeypatch.setattr(module, "_PYCYTOMINER_ROWS", 0)
    ours = Sphering(method, 1e-3).fit(fit)
    assert (theirs.engine.split()[0], ours.engine) == ("pycytominer", "morphem")
    np.testing.assert_allclose(np.abs(ours.transform(fit)), np.abs(theirs.transform(fit)), atol=1e-8)


def test_the_step_agrees_with_pycytominer_normalize():
    from pycytominer import normalize

    table = plates(n_features=8)
    frame = table.to_frame().astype(dict.fromkeys(table.columns, "float64"))
    theirs = normalize(
        frame,
        features=list(table.columns),
        meta_features=list(table.metadata),
        samples=CONTROLS,
        method="spherize",
        spherize_epsilon=1e-3,
    )
    ours = Sphere(samples=CONTROLS, epsilon=1e-3)(table)
    np.testing.assert_allclose(ours.values, theirs[list(table.columns)].to_numpy(), atol=1e-5)


def test_the_controls_of_every_plate_are_white_when_plates_have_transforms_of_their_own():
    table = plates(n_wells=60, n_controls=40, offset=3)
    out = Sphere(samples=CONTROLS, per=["Metadata_Plate"])(table)
    for plate in ("P0", "P1", "P2"):
        mask = controls(table) & (table.metadata["Metadata_Plate"] == plate).to_numpy()
        np.testing.assert_allclose(covariance(out.values[mask]), np.eye(5), atol=1e-4)
        np.testing.assert_allclose(out.values[mask].mean(0), 0, atol=1e-5)


def test_the_order_of_rows_does_not_matter():
    table = plates()
    mixed, order = shuffled(table)
    step = Sphere(samples=CONTROLS, epsilon=1e-3)
    np.testing.assert_allclose(step(mixed).values, step(table).values[order], atol=1e-5)


@pytest.mark.parametrize("place", ["eigenvalue", "clip"])
def test_no_direction_is_blown_up_beyond_what_epsilon_allows(place):
    fit = rows(5, 9)
    sphering = Sphering("ZCA", 0.01, place).fit(fit)
    assert np.linalg.eigvalsh(sphering.weights).max() == pytest.approx(10, rel=1e-6)


def test_directions_that_the_controls_do_not_span_are_in_the_record():
    table = plates(n_plates=1, n_controls=4)
    record = records(Sphere(samples=CONTROLS, epsilon=1e-3)(table))[-1]
    assert record["rank"] == 3
    assert record["remarks"] == [
        "the fitted rows span 3 of 5 directions; the others get the largest gain",
        "all rows: fitted on no more rows than directions, which forces these rows apart; do not judge plate "
        "effects by them",
    ]


def test_few_controls_are_forced_apart_whatever_their_plates_are():
    """Why the record warns: with 10 controls and 40 features every pair of controls ends up equally far apart."""
    table = plates(n_plates=2, n_controls=5, n_features=40, offset=20)
    out = Sphere(samples=CONTROLS, epsilon=1e-9)(table)
    own = out.values[controls(table)].astype(float)
    distances = np.linalg.norm(own[:, None] - own[None], axis=2)[np.triu_indices(10, 1)]
    np.testing.assert_allclose(distances, np.sqrt(18), rtol=1e-3)


def test_components_have_names_that_pycytominer_infers():
    from pycytominer.cyto_utils import infer_cp_features

    out = Sphere(samples=CONTROLS, method="PCA-cor")(plates())
    assert infer_cp_features(out.to_frame()) == [f"Cells_PC_{i:04d}" for i in range(5)]
    assert {entry["kind"] for entry in out.dictionary} == {"component"}


def test_a_feature_that_is_the_sum_of_others_is_refused():
    fit = rows(40, 6)
    fit[:, 5] = fit[:, :5].sum(1)
    with pytest.raises(DataError, match=r"have rank 5 where 6 is needed.*epsilon_on: eigenvalue"):
        Sphering().fit(fit)
    assert np.isfinite(Sphering("ZCA-cor", 1e-3, "eigenvalue").fit(fit).transform(fit)).all()


def test_rounding_to_float32_does_not_hide_that_a_feature_is_the_sum_of_others():
    fit = rows(40, 6)
    fit[:, 5] = fit[:, :5].sum(1)
    with pytest.raises(DataError, match="have rank 5 where 6 is needed"):
        Sphering().fit(fit.astype(np.float32))


def test_a_control_row_that_is_there_twice_is_refused():
    fit = rows(5, 9)
    with pytest.raises(DataError, match=r"the 5 rows .* have rank 3 where 4 is needed, so rows are there twice"):
        Sphering().fit(np.concatenate([fit[:4], fit[:1]]))


def test_a_constant_feature_is_named():
    fit = rows(20, 3)
    fit[:, 1] = 0.1
    with pytest.raises(DataError, match=r"standard deviation of zero .* \(b\).*select_features"):
        Sphering().fit(fit, ["a", "b", "c"])


def test_one_control_is_too_few():
    with pytest.raises(DataError, match="fitted on 1 row; sphering needs at least two"):
        Sphering().fit(rows(1, 3))


def test_means_that_are_large_against_the_spread_are_no_reason_to_refuse():
    """Here pycytominer 1.7.1 takes the rounding of the centred rows for a direction, and raises."""
    fit = rows(5, 9) + 1000
    sphering = Sphering("ZCA-cor", 1e-3).fit(fit)
    assert (sphering.engine, sphering.rank) == ("morphem", 4)
    moved = Sphering("ZCA-cor", 1e-3).fit(fit - 1000)
    np.testing.assert_allclose(sphering.transform(fit), moved.transform(fit - 1000), atol=1e-6)


def test_a_table_of_another_width_is_refused():
    with pytest.raises(
        DataError, match="fitted on 6 features and given 4; a transform belongs to the features of one model"
    ):
        Sphering().fit(rows(20, 6)).transform(rows(3, 4))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "zca"}, "sphere: method is 'zca'; it must be one of ZCA-cor, ZCA, PCA-cor, PCA"),
        ({"epsilon": -1}, "epsilon is -1; it must be a number at least 0"),
        ({"epsilon": 0, "epsilon_on": "clip"}, "epsilon is 0; it must be a number above 0"),
        ({"epsilon_on": "sigma"}, "epsilon_on is 'sigma'"),
        ({"method": "PCA", "per": ["Metadata_Plate"]}, "axes of its own"),
    ],
)
def test_wrong_settings_are_named(settings, message):
    with pytest.raises(ConfigError, match=message):
        Sphere(**settings)


def test_controls_must_be_named():
    with pytest.raises(ConfigError, match="samples is 'controls', but no controls are named"):
        Sphere()(plates())


def test_a_plate_without_controls_is_in_the_record_of_a_pooled_transform():
    table = plates()
    table.metadata.loc[table.metadata["Metadata_Plate"] == "P2", "Metadata_control_type"] = None
    record = records(Sphere(samples=CONTROLS)(table))[-1]
    assert record["remarks"] == [f"no row of plate P2 is among the rows that it learned from ({CONTROLS})"]


def test_a_pycytominer_that_does_not_whiten_is_refused(monkeypatch):
    """Releases 1.3.0 to 1.7.0 took the singular values of the raw rows instead of the standardised ones."""
    from pycytominer.operations import Spherize

    fit = Spherize.fit

    def defective(self, x, y=None):
        fit(self, x, y)
        _, sigma, vt = np.linalg.svd(np.asarray(x, float), full_matrices=True)
        self.W = (vt / (sigma + self.epsilon)[:, None]).T * np.sqrt(len(x) - 1)
        if self.method.startswith("ZCA"):
            self.W = self.W @ vt
        return self

    check_pycytominer.cache_clear()
    monkeypatch.setattr(Spherize, "fit", defective)
    with pytest.raises(ConfigError, match=r"pycytominer .* does not whiten .*install pycytominer>=1.7.1"):
        Sphering().fit(rows(40, 6))
    monkeypatch.undo()
    assert check_pycytominer() == version("pycytominer")


def test_a_recipe_is_refused_before_a_table_is_read_if_pycytominer_does_not_whiten(monkeypatch):
    def wrong():
        raise ConfigError("it does not whiten")

    monkeypatch.setattr(module, "check_pycytominer", wrong)
    from morphem.profiles import apply

    with pytest.raises(ConfigError, match="step 1 of 1, it does not whiten"):
        apply("no_such_table.parquet", {"controls": CONTROLS, "steps": [{"step": "sphere"}]})


def test_many_controls_need_no_square_of_their_number():
    fit = np.random.default_rng(0).normal(size=(6000, 4)) + 5
    sphering = Sphering("ZCA-cor", 1e-6).fit(fit)
    assert sphering.engine == "morphem"
    np.testing.assert_allclose(covariance(sphering.transform(fit)), np.eye(4), atol=1e-6)


def test_a_constant_added_to_a_plate_is_removed_by_transforms_per_plate():
    table = plates(n_wells=40, n_controls=20)
    moved = table.values.copy()
    moved[(table.metadata["Metadata_Plate"] == "P1").to_numpy()] += np.float32(4)
    other = type(table)(moved, table.metadata, table.columns, table.dictionary)
    step = Sphere(samples=CONTROLS, per=["Metadata_Plate"])
    np.testing.assert_allclose(step(other).values, step(table).values, atol=1e-4)

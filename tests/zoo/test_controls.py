import numpy as np
import pytest
import torch

import morphem
from morphem.backbones.gaussian import GaussianFeatures
from morphem.errors import ConfigError, WeightsError
from morphem.testing import check_encoder
from morphem.weights import fingerprint
from morphem.zoo.controls import Controls

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 20, 24), dtype=np.uint8)
NAMES = ["actin", "nucleus"]


def _small(seed: int = 0) -> Controls:
    return Controls("random_vit", seed, network="test_vit")


def test_a_random_network_is_a_function_of_its_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = fingerprint(_small().build().state_dict())
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    assert fingerprint(_small().build().state_dict()) == first
    assert fingerprint(_small(1).build().state_dict()) != first


@pytest.mark.parametrize("family", [_small(), Controls("gaussian", embed_dim=5)])
def test_the_contract_of_encoders_is_kept(family: Controls) -> None:
    check_encoder(family.build())


def test_the_records_load_by_name() -> None:
    assert morphem.load("random-vits16").embed_dim == 384
    encoder = morphem.load("gaussian", seed=3, embed_dim=7)
    assert encoder.embed(PIXELS, NAMES).values.shape == (1, 14)
    assert encoder.provenance()["model"] == "gaussian"


def test_a_table_is_no_network() -> None:
    with pytest.raises(WeightsError, match=r"table of features, not a network; read it with morphem\.cellprofiler"):
        morphem.load("cellprofiler")


def test_chance_is_seeded_by_the_pixels() -> None:
    encoder = Controls("gaussian", embed_dim=64).build()
    one = encoder.embed(PIXELS, NAMES).values
    np.testing.assert_array_equal(encoder.embed(PIXELS[::-1], NAMES[::-1]).values, one)
    changed = PIXELS.copy()
    changed[0, 0, 0] ^= 1
    other = encoder.embed(changed, NAMES).values
    np.testing.assert_array_equal(other[:, 64:], one[:, 64:])
    assert abs(float(np.corrcoef(other[0, :64], one[0, :64])[0, 1])) < 0.5
    assert not np.array_equal(Controls("gaussian", seed=1, embed_dim=64).build().embed(PIXELS, NAMES).values, one)


def test_pixels_in_another_place_are_another_plane() -> None:
    network = GaussianFeatures(4)
    plane = torch.zeros(1, 1, 3, 4)
    plane[..., 0, 1] = 5
    moved = plane.roll(1, dims=3)
    turned = plane.reshape(1, 1, 4, 3)
    rows = torch.cat([network(plane), network(moved), network(turned)])
    assert float(torch.pdist(rows).min()) > 0.1


def test_the_numbers_are_normal() -> None:
    rows = GaussianFeatures(4096)(torch.arange(8.0).reshape(8, 1, 1, 1))
    assert abs(float(rows.mean())) < 0.03
    assert abs(float(rows.std()) - 1) < 0.03
    assert float(torch.corrcoef(rows).fill_diagonal_(0).abs().max()) < 0.1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"kind": "gauss"}, "kind='gauss' must be one of random_vit, gaussian, cellprofiler"),
        ({"kind": "gaussian", "network": "test_vit"}, "network='test_vit' has no effect"),
        ({"embed_dim": 3}, "embed_dim=3 has no effect with kind='random_vit'"),
    ],
)
def test_settings_without_effect_are_refused(facts: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Controls(**facts)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="embed_dim=0 must be at least 1"):
        GaussianFeatures(0)

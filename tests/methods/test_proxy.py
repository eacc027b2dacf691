"""Proxies: supervised training with the distances and numbers of the CHAMMI models."""

from pathlib import Path
from typing import Any

import pytest
import torch

from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.proxy import Proxy
from morphem.spec import from_spec, to_spec
from morphem.testing import check_method
from morphem.testing.batches import tiny_batch
from tests.methods.labelled_runs import labelled_data, run_processes, write_labelled
from tests.references import label_losses
from tests.tiny_fit import fit


def proxy(**changes: Any) -> Proxy:
    settings: dict[str, Any] = {"lr": 1e-3, "lr_per_images": None, "warmup_epochs": 0, **changes}
    return Proxy(Encoder.tiny(), Proxy.tiny().views, **settings)


@pytest.mark.slow
def test_it_keeps_the_contract_of_methods() -> None:
    check_method(Proxy)


def test_the_loss_is_the_share_of_the_right_proxy() -> None:
    method = proxy(classes=["first", "second"]).eval()
    batch = tiny_batch()
    views = method.make_views(batch)
    embeddings = torch.cat([method.encoder(view) for view in views]).detach().double().numpy()
    scores = label_losses.proxy_scores(embeddings, method.head.proxies.detach().double().numpy(), 0.07)
    labels = batch.labels[batch.image_of_plane(), 0].tolist() * 2
    expected = label_losses.class_loss(scores, labels, 0.0)
    assert float(method.step(views).loss.detach()) == pytest.approx(expected, rel=1e-4)


def test_the_checkpoints_spec_rebuilds_it_with_its_proxies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path / "cache"))
    method = proxy()
    fit(method, folder=tmp_path, data=labelled_data(write_labelled(tmp_path / "shards"), "treatment"))
    again = from_spec(to_spec(method))
    assert type(again) is Proxy
    again.load_state_dict(method.state_dict())
    assert again.head.proxies.shape == (3, method.encoder.embed_dim)


def test_a_setting_out_of_range_is_refused_under_its_own_name() -> None:
    with pytest.raises(ConfigError, match=r"proxy: temperature=-1\.0"):
        proxy(temperature=-1.0)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    path = "morphem.methods.proxy:Proxy"
    (alone,) = run_processes(1, tmp_path / "one", path)
    first, second = run_processes(2, tmp_path / "two", path)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for key, value in alone["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-6, msg=key)

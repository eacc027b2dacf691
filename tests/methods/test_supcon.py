"""Supervised contrast: which rows attract each other, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from morphem.channels.bag_of_channels import BagOfChannels
from morphem.data.views import MultiCrop, ViewRecipe
from morphem.encoder import Encoder
from morphem.errors import ConfigError
from morphem.methods.supcon import SupCon
from morphem.normalizers import SelfNormalize
from morphem.testing import check_method
from morphem.testing.batches import tiny_batch
from tests.methods.labelled_runs import labelled_data, run_processes, write_labelled
from tests.references import label_losses
from tests.tiny_fit import fit


def supcon(n_views: int = 2, **changes: Any) -> SupCon:
    settings: dict[str, Any] = {"head_hidden_dim": 16, "head_output_dim": 8, "head_layers": 2, "lr": 1e-3, **changes}
    views = MultiCrop([ViewRecipe(count=n_views, size_px=32, area=(0.4, 1.0))])
    encoder = Encoder(BagOfChannels.tiny(), SelfNormalize(), input_size_px=32)
    return SupCon(encoder, views, lr_per_images=None, warmup_epochs=0, **settings)


@pytest.mark.slow
def test_it_keeps_the_contract_of_methods() -> None:
    check_method(SupCon)


def test_all_views_of_a_class_are_contrasted_with_all_labelled_rows() -> None:
    method = supcon(classes=["first", "second"]).eval()
    batch = tiny_batch()
    views = method.make_views(batch)
    output = method.step(views)
    labels = batch.labels[batch.image_of_plane(), 0].tolist() * 2
    projections = torch.cat([method.head(method.encoder(view)) for view in views]).detach().double().numpy()
    expected = label_losses.supervised_contrast(projections, labels, 0.1)
    assert float(output.loss.detach()) == pytest.approx(expected, rel=1e-4)
    assert float(output.logs["counted"]) == sum(label >= 0 for label in labels)
    assert float(output.logs["unlabelled"]) == 3


def test_training_brings_a_class_together() -> None:
    method = supcon(classes=["first", "second"])
    views = method.make_views(tiny_batch())
    optimizer = torch.optim.AdamW(method.parameters(), 3e-3)

    def spread() -> float:
        with torch.no_grad():
            embeddings, labels, _ = method.embed_labelled(views)
            rows = torch.nn.functional.normalize(method.head(embeddings), dim=1)
            same = labels[:, None] == labels[None]
            known = (labels[:, None] >= 0) & (labels[None] >= 0)
            return float((rows @ rows.T)[same & known].mean() - (rows @ rows.T)[~same & known].mean())

    before = spread()
    for _ in range(40):
        optimizer.zero_grad()
        method.step(views).loss.backward()
        optimizer.step()
    assert spread() > before + 0.2


def test_it_learns_from_a_column_of_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MORPHEM_CACHE", str(tmp_path / "cache"))
    method = supcon()
    fit(method, folder=tmp_path, data=labelled_data(write_labelled(tmp_path / "shards"), "treatment"))
    assert method.classes == ("dmso", "nocodazole", "taxol")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_views": 1}, "at least 2 views"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"head_layers": 1}, "head_layers=1"),
        ({"head_output_dim": 0}, "head_output_dim=0"),
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        supcon(**changes)


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path) -> None:
    path = "morphem.methods.supcon:SupCon"
    (alone,) = run_processes(1, tmp_path / "one", path)
    first, second = run_processes(2, tmp_path / "two", path)
    assert first["losses"] == second["losses"]
    assert first["losses"] == pytest.approx(alone["losses"], rel=1e-5)
    for key, value in alone["state"].items():
        torch.testing.assert_close(first["state"][key], value, rtol=1e-4, atol=1e-6, msg=key)

import argparse
import errno
import os
import pickle
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import save_file

from morphem import weights
from morphem.errors import WeightsError


class RunsCode:
    """Unpickled without care, this would make a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self.path),))


def test_a_pickle_with_code_in_it_is_refused_and_not_run(tmp_path: Path) -> None:
    torch.save({"state_dict": RunsCode(tmp_path / "ran")}, tmp_path / "evil.ckpt")
    with pytest.raises(WeightsError, match=r"evil\.ckpt holds more than weights \(it wants to build .*mkdir"):
        weights.read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_plain_pickle_under_the_name_of_safetensors_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(pickle.dumps(RunsCode(tmp_path / "ran"), protocol=2))
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        weights.read_tensors(tmp_path / "model.safetensors")
    assert not (tmp_path / "ran").exists()


def test_a_namespace_of_arguments_is_let_through(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(lr=0.1), "student": {}}, tmp_path / "a.ckpt")
    assert weights.read_checkpoint(tmp_path / "a.ckpt")["args"].lr == 0.1


def test_tensors_are_read_whatever_the_container_is_called(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "right.bin")
    torch.save({"state_dict": tensors}, tmp_path / "wrong.safetensors")
    for name in ("right.bin", "wrong.safetensors"):
        assert torch.equal(weights.read_tensors(tmp_path / name)["a"], tensors["a"])


@pytest.mark.parametrize("name", ["a.safetensors", "a.ckpt"])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, name: str) -> None:
    save = torch.save if name.endswith("ckpt") else save_file
    save({"a": torch.zeros(1000)}, tmp_path / name)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    with pytest.raises(WeightsError, match=name):
        weights.read_tensors(tmp_path / name)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"gone\.ckpt does not exist"):
        weights.read_checkpoint(tmp_path / "gone.ckpt")


def test_missing_left_over_and_misshapen_weights_are_all_listed() -> None:
    module = torch.nn.Linear(2, 3)
    with pytest.raises(WeightsError) as caught:
        weights.load_strictly(module, {"weight": torch.zeros(3, 4), "gain": torch.zeros(1)}, "file.ckpt")
    message = str(caught.value)
    assert "1 missing (bias)" in message
    assert "1 unexpected (gain)" in message
    assert "weight (3, 4) for (3, 2)" in message
    assert module.weight.abs().sum() > 0


def test_the_fingerprint_is_the_same_in_any_order_and_changes_with_any_bit() -> None:
    a, b = torch.arange(4.0), torch.zeros((), dtype=torch.int64)
    first = weights.fingerprint({"a": a, "b": b})
    assert weights.fingerprint({"b": b, "a": a}) == first
    assert weights.fingerprint({"a": a, "c": b}) != first
    assert weights.fingerprint({"a": a.reshape(2, 2), "b": b}) != first
    a[3] += 1e-6
    assert weights.fingerprint({"a": a, "b": b}) != first


def test_a_full_disk_leaves_the_old_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights.write_folder(tmp_path, {"a": torch.zeros(2)}, {}, "card")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(weights, "save_file", full)
    with pytest.raises(WeightsError, match="No space left"):
        weights.write_folder(tmp_path, {"a": torch.ones(2)}, {}, "card")
    assert weights.read_weights(tmp_path, weights.read_config(tmp_path))["a"].sum() == 0
    assert not list(tmp_path.glob("*.partial"))


def _cached(cache: Path, files: dict[str, str]) -> None:
    """Lay files down as the hub's cache has them."""
    repository = cache / "models--lab--encoder"
    snapshot = repository / "snapshots" / ("c0ffee" * 7)[:40]
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(snapshot.name)
    for name, content in files.items():
        (snapshot / name).write_text(content)


def test_offline_files_of_the_hub_come_from_its_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    _cached(tmp_path, {"config.json": "{}"})
    folder = weights.fetch("lab/encoder", ["config.json"], None, True)
    assert folder.name == ("c0ffee" * 7)[:40]


def test_offline_a_model_that_is_not_cached_says_what_to_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(WeightsError, match=r"download config\.json from https://huggingface\.co/lab/encoder"):
        weights.fetch("lab/encoder", ["config.json"], None, True)


def test_offline_a_file_that_is_missing_from_the_cache_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    _cached(tmp_path, {"config.json": "{}"})
    with pytest.raises(WeightsError, match=r"download model\.safetensors from"):
        weights.fetch("lab/encoder", ["config.json", "model.safetensors"], None, True)


def test_without_a_network_the_error_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(WeightsError, match="'lab/encoder' cannot be loaded"):
        weights.fetch("lab/encoder", ["config.json"], None, None)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("a/b", True), ("CaicedoLab/MorphEm", True), ("a", False), ("a/b/c", False), ("/a/b", False)],
)
def test_hub_ids_have_an_owner_and_a_name(name: str, is_one: bool) -> None:
    assert weights.is_hub_id(name) is is_one

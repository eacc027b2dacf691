from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import constants

from morphem import zoo
from morphem.encoder import Encoder
from morphem.errors import WeightsError
from morphem.spec import to_spec

IMAGE = np.random.default_rng(0).integers(0, 256, (2, 20, 20), dtype=np.uint8)
CHANNELS = ["nucleus", "actin"]


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(3)
    return Encoder.tiny().eval()


def _checkpoint(encoder: Encoder, **changes: object) -> dict[str, object]:
    """What Lightning writes of a method that trains a student and exports its teacher."""
    teacher = {f"teacher.encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    student = {f"encoder.{name}": tensor + 1 for name, tensor in encoder.state_dict().items()}
    spec = {"name": "dino", "init_args": {"encoder": to_spec(encoder), "lr": 0.1}}
    ours = {"spec": spec, "exported": "teacher.encoder.", "version": "0"}
    return {"state_dict": {**student, **teacher}, "morphem": ours, "global_step": 3, **changes}


def _same(first: Encoder, second: Encoder) -> bool:
    return np.array_equal(first.embed(IMAGE, CHANNELS).values, second.embed(IMAGE, CHANNELS).values)


def test_a_folder_in_hub_form_loads(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path)
    assert _same(zoo.load(tmp_path), encoder)


def test_of_a_run_the_exported_encoder_is_taken(encoder: Encoder, tmp_path: Path) -> None:
    encoder.save_pretrained(tmp_path / "encoder")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_bytes(b"not read")
    assert _same(zoo.load(tmp_path), encoder)


def test_of_a_checkpoint_the_exported_network_is_taken(encoder: Encoder, tmp_path: Path) -> None:
    torch.save(_checkpoint(encoder), tmp_path / "a.ckpt")
    loaded = zoo.load(tmp_path / "a.ckpt")
    assert _same(loaded, encoder)
    assert not loaded.training


def test_of_a_run_without_export_the_last_checkpoint_is_taken(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "checkpoints").mkdir()
    torch.save(_checkpoint(encoder), tmp_path / "checkpoints" / "last.ckpt")
    (tmp_path / "checkpoints" / "epoch=3.ckpt").write_bytes(b"not read")
    assert _same(zoo.load(tmp_path), encoder)


def test_of_several_checkpoints_none_is_guessed(tmp_path: Path) -> None:
    for name in ("a.ckpt", "b.ckpt"):
        (tmp_path / name).touch()
    with pytest.raises(WeightsError, match=r"2 checkpoints \(a\.ckpt, b\.ckpt\); name one"):
        zoo.load(tmp_path)


def test_a_folder_without_any_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"no config\.json of morphem, no folder 'encoder' and no file of weights"):
        zoo.load(tmp_path)


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "epoch": 1}, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match=r"is of no family that morphem knows .*state_dict, epoch"):
        zoo.load(tmp_path / "a.ckpt")


def test_a_checkpoint_whose_weights_are_of_another_architecture_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    content = _checkpoint(encoder)
    for name in [name for name in content["state_dict"] if name.endswith("norm.bias")]:
        del content["state_dict"][name]
    torch.save(content, tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match=r"1 missing \(channels\.backbone\.network\.norm\.bias\)"):
        zoo.load(tmp_path / "a.ckpt")


def test_a_checkpoint_with_code_in_it_is_refused(encoder: Encoder, tmp_path: Path) -> None:
    torch.save(_checkpoint(encoder, hook=Path.touch), tmp_path / "a.ckpt")
    with pytest.raises(WeightsError, match="holds more than weights"):
        zoo.load(tmp_path / "a.ckpt")


def test_a_checkpoint_of_our_own_method_loads(tmp_path: Path) -> None:
    method = pytest.importorskip("morphem.methods.dino").DINO.tiny()
    content: dict[str, object] = {"state_dict": method.state_dict()}
    method.on_save_checkpoint(content)
    torch.save(content, tmp_path / "a.ckpt")
    assert _same(zoo.load(tmp_path / "a.ckpt"), method.exported_encoder())


def test_a_name_that_is_nothing_is_refused_with_the_nearest_model() -> None:
    with pytest.raises(WeightsError, match=r"neither a file, a folder nor a hub id.*did you mean 'morphem'"):
        zoo.load("morfem")


def test_a_missing_checkpoint_is_not_taken_for_a_hub_id() -> None:
    with pytest.raises(WeightsError, match="neither a file, a folder nor a hub id"):
        zoo.load("runs/gone.ckpt")


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="belongs to the hub"):
        zoo.load(tmp_path, revision="main")


@pytest.mark.parametrize("name", ["morphem", "CaicedoLab/MorphEm"])
def test_the_release_offline_says_what_to_fetch(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        WeightsError, match=r"download model\.safetensors from https://huggingface\.co/CaicedoLab/MorphEm"
    ):
        zoo.load(name, local_files_only=True)


def test_the_release_is_listed() -> None:
    assert "morphem" in zoo.list_models()

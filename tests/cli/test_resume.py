"""A resumed run has the settings of its checkpoint, or says which it does not have."""

import copy
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from morphem.cli.resume import CONFIG_KEY, differences, load_settings, refuse_differences
from morphem.errors import ConfigError, WeightsError

SETTINGS: dict[str, Any] = {
    "seed_everything": 0,
    "world_size": 2,
    "trainer": {"max_epochs": 3, "devices": 2, "precision": "32-true"},
    "model": {"class_path": "morphem.methods.dino.DINO", "init_args": {"lr": 1e-3, "betas": [0.9, 0.999]}},
    "data": {"class_path": "ShardData", "init_args": {"root": "a", "batch_size": 8, "unit": "plane", "num_workers": 2}},
}


def _changed(path: str, value: Any) -> dict[str, Any]:
    settings = copy.deepcopy(SETTINGS)
    inner = settings
    *above, last = path.split(".")
    for key in above:
        inner = inner[key]
    inner[last] = value
    return settings


def test_the_same_settings_differ_in_nothing() -> None:
    assert differences(SETTINGS, SETTINGS, world_size=2) == {}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("model.init_args.lr", 2e-3),
        ("model.init_args.betas", [0.9, 0.95]),
        ("model.class_path", "morphem.methods.mae.MAE"),
        ("trainer.max_epochs", 4),
        ("trainer.precision", "bf16-mixed"),
        ("data.init_args.unit", "image"),
        ("seed_everything", 1),
    ],
)
def test_what_changes_the_result_is_refused_with_both_values(path: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        refuse_differences("last.ckpt", SETTINGS, _changed(path, value), 2, [])
    assert path.split(".")[-1] in str(caught.value)
    assert "--resume_override" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 8


@pytest.mark.parametrize(
    ("path", "value"), [("data.init_args.root", "b"), ("data.init_args.num_workers", 0), ("trainer.devices", 1)]
)
def test_what_does_not_change_the_result_may_differ(path: str, value: Any) -> None:
    assert differences(SETTINGS, _changed(path, value), world_size=2) == {}


def test_the_global_batch_counts_not_its_parts() -> None:
    assert differences(SETTINGS, _changed("data.init_args.batch_size", 16), world_size=1) == {}
    assert "global batch" in next(iter(differences(SETTINGS, SETTINGS, world_size=1)))


def test_a_named_difference_is_accepted() -> None:
    settings = _changed("model.init_args.lr", 2e-3)
    accepted = refuse_differences("last.ckpt", SETTINGS, settings, 2, ["model.init_args.lr"])
    assert accepted == {"model.init_args.lr": (1e-3, 2e-3)}


def test_a_pickle_with_code_is_refused(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(WeightsError, match="more than weights"):
        load_settings(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.ckpt").write_bytes(content)
    with pytest.raises(WeightsError, match=r"last\.ckpt"):
        load_settings(tmp_path / "last.ckpt")


def test_a_missing_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"There is no checkpoint '.*last\.ckpt'"):
        load_settings(tmp_path / "last.ckpt")


def test_a_checkpoint_of_another_program_is_refused(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(WeightsError, match="not written by morphem fit"):
        load_settings(tmp_path / "other.ckpt")


def test_settings_come_back(tmp_path: Path) -> None:
    torch.save({CONFIG_KEY: SETTINGS}, tmp_path / "last.ckpt")
    assert load_settings(tmp_path / "last.ckpt") == SETTINGS

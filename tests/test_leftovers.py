"""What training checkpoints carry along is read without being built, and code in a file never runs."""

import argparse
import collections
import datetime
import functools
import io
import os
import pickle
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from morphem import leftovers, weights
from morphem.errors import WeightsError

WEIGHTS = {"a": torch.arange(3.0)}


def written(folder: Path, **extra: object) -> Path:
    torch.save({"state_dict": WEIGHTS, **extra}, folder / "file.ckpt")
    return folder / "file.ckpt"


def check_weights(content: dict) -> None:
    assert torch.equal(content["state_dict"]["a"], WEIGHTS["a"])


LEFTOVERS = {
    "a numpy scalar": np.float64(3.5),
    "a numpy array": np.arange(4),
    "the state of numpy's generator": np.random.RandomState(0).get_state(),
    "a namespace": argparse.Namespace(lr=0.1, path=Path("/data")),
    "a path": Path("/data"),
    "a date": datetime.datetime(2024, 1, 2),
    "a default dictionary": collections.defaultdict(list, {"x": [1]}),
    "a class of torch": torch.optim.lr_scheduler.LambdaLR,
    "a layer with arguments": functools.partial(torch.nn.LayerNorm, eps=1e-6),
    "a layer": torch.nn.Linear(2, 2),
}


@pytest.mark.parametrize("what", LEFTOVERS)
def test_a_training_checkpoint_loads_whatever_it_carries_along(what: str, tmp_path: Path) -> None:
    check_weights(weights.read_checkpoint(written(tmp_path, extra=LEFTOVERS[what])))


@pytest.mark.parametrize("what", [name for name in LEFTOVERS if "layer" not in name])
def test_a_file_of_the_oldest_kind_loads_whatever_it_carries_along(what: str, tmp_path: Path) -> None:
    torch.save(
        {"state_dict": WEIGHTS, "x": LEFTOVERS[what]}, tmp_path / "old.pth", _use_new_zipfile_serialization=False
    )
    check_weights(weights.read_checkpoint(tmp_path / "old.pth"))


def test_a_tree_of_omegaconf_is_read_without_omegaconf(tmp_path: Path) -> None:
    OmegaConf = pytest.importorskip("omegaconf").OmegaConf  # noqa: N806
    path = written(tmp_path, config=OmegaConf.create({"model": {"name": "dichavit", "sizes": [1, None]}, "x": "${y}"}))
    code = "import sys; from pathlib import Path; from morphem import weights; "
    code += f"weights.read_checkpoint(Path({str(path)!r})); sys.exit('omegaconf' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
    check_weights(weights.read_checkpoint(path))


def test_settings_of_lightning_are_read(tmp_path: Path) -> None:
    from lightning.fabric.utilities.data import AttributeDict

    content = weights.read_checkpoint(written(tmp_path, hyper_parameters=AttributeDict(lr=0.1)))
    assert content["hyper_parameters"]["lr"] == 0.1


def foreign(name: str, base: type) -> type:
    """A class of a module that is there when the file is written, and gone when it is read."""
    module = types.ModuleType("some_lab")
    sys.modules["some_lab"] = module
    made = type(name, (base,), {"__module__": "some_lab"})
    setattr(module, name, made)
    return made


@pytest.mark.parametrize("base", [object, dict])
def test_a_class_that_the_user_lets_through_is_never_built(base: type, tmp_path: Path) -> None:
    made = foreign("Config", base)
    value = made()
    value.depth = 3
    if base is dict:
        value["width"] = 4
    path = written(tmp_path, config=value)
    del sys.modules["some_lab"]
    with pytest.raises(WeightsError, match=r"holds more than weights \(it wants to build some_lab\.Config\)"):
        weights.read_checkpoint(path)
    content = weights.read_checkpoint(path, inert=["some_lab.Config"])
    check_weights(content)
    assert content["config"].depth == 3
    assert "some_lab" not in sys.modules


class Runs:
    """Calls a function when it is unpickled."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[object, ...]:
        return self.call


def attacks(target: Path) -> dict[str, Runs]:
    return {
        "a shell": Runs(os.system, f"touch {target}"),
        "a folder": Runs(os.mkdir, str(target)),
        "a process": Runs(subprocess.check_call, ["touch", str(target)]),
        "python": Runs(exec, f"open({str(target)!r}, 'w')"),
        "an expression": Runs(eval, f"open({str(target)!r}, 'w')"),
        "an attribute": Runs(getattr, argparse.Namespace, "mro"),
        "a torch file": Runs(torch.save, 1, str(target)),
        "a method of a path": Runs(Path.touch, target),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("what", attacks(Path()))
def test_a_file_with_code_in_it_is_refused_and_nothing_runs(what: str, legacy: bool, tmp_path: Path) -> None:
    content = {"state_dict": WEIGHTS, "x": attacks(tmp_path / "ran")[what]}
    torch.save(content, tmp_path / "evil.ckpt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(WeightsError, match=r"evil\.ckpt holds more than weights \(it wants to build"):
        weights.read_checkpoint(tmp_path / "evil.ckpt")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_code_behind_a_tolerated_name_is_replaced_by_what_does_nothing(legacy: bool, tmp_path: Path) -> None:
    path = tmp_path / "evil.ckpt"
    content = {"state_dict": WEIGHTS, "x": Runs(np.save, str(tmp_path / "ran.npy"), 1)}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    check_weights(weights.read_checkpoint(path))
    assert not (tmp_path / "ran.npy").exists()


def test_code_is_refused_by_name_even_where_the_user_lets_it_through(tmp_path: Path) -> None:
    path = written(tmp_path, x=Runs(os.mkdir, str(tmp_path / "ran")))
    with pytest.raises(WeightsError, match=r"holds more than weights \(it wants to build posix\.mkdir\)"):
        weights.read_checkpoint(path, inert=["posix.mkdir"])
    assert not (tmp_path / "ran").exists()


def test_a_stand_in_takes_anything_and_does_nothing() -> None:
    cls, name = leftovers.stand_in("numpy._core.multiarray.scalar")
    made = cls("f8", b"\0" * 8)
    made.__setstate__((1, 2))
    assert name == "numpy._core.multiarray.scalar"
    assert made.state == (1, 2)


@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "is empty"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a pointer of Git LFS"),
        (b"<!DOCTYPE html><html><title>Google Drive</title>", "is a web page"),
        (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, "is an HDF5 file"),
        (b"PK\x03\x04 damaged", "cannot be read"),
        (pickle.dumps({"a": 1}), "is not a file of weights"),
    ],
)
def test_a_file_that_holds_no_weights_is_called_what_it_is(data: bytes, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(WeightsError, match=rf"x\.pth {sentence}"):
        weights.read_checkpoint(tmp_path / "x.pth")


def test_a_torchscript_program_is_refused_because_it_is_code(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    (tmp_path / "x.pt").write_bytes(buffer.getvalue())
    with pytest.raises(WeightsError, match="is a TorchScript program, which is code"):
        weights.read_checkpoint(tmp_path / "x.pt")

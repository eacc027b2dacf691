"""Compiled blocks train what blocks train that are not, and a compiler that fails stops nothing."""

import shutil
import warnings
from pathlib import Path
from typing import Any

import lightning.pytorch as L
import pytest
import torch
from torch import nn

from morphem.callbacks import Compile
from morphem.callbacks.compiled import blocks
from morphem.errors import ConfigError
from morphem.methods.base import Method
from morphem.methods.simclr import SimCLR
from morphem.testing.training import train
from tests.tiny_fit import fit, tiny_dino


def trained(folder: Path, *callbacks: L.Callback, method: Method | None = None) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    method = method or tiny_dino()
    object.__setattr__(method.recipe, "eps", 1e-3)  # rounding noise in gradients of zero moves nothing
    fit(method, *callbacks, folder=folder)
    return method.state_dict()


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert set(first) == set(second)
    for key, value in first.items():
        torch.testing.assert_close(second[key], value, rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.slow
def test_compiled_blocks_train_what_others_train(tmp_path: Path) -> None:
    torch.compiler.reset()
    compile_ = Compile("aot_eager")
    assert_same(trained(tmp_path), trained(tmp_path, compile_))
    assert compile_.n_blocks == 4  # two of the student, two of the teacher
    assert compile_.failed is None


class Blocks(L.LightningModule):
    """One block."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 2)])


@pytest.mark.slow
def test_the_usual_compiler_gives_the_same_numbers() -> None:
    torch.compiler.reset()
    module, compile_ = Blocks(), Compile()
    x = torch.ones(2, 3, requires_grad=True)
    expected = module.blocks[0](x)
    compile_.on_fit_start(None, module)  # type: ignore[arg-type]
    found = module.blocks[0](x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.autograd.grad(found.sum(), x), torch.autograd.grad(expected.sum(), x))


class Losses(L.Callback):
    """Writes down the loss of every step."""

    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.values.append(float(outputs["loss"]))


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU, and there is no g++"
)
def test_a_run_with_the_usual_compiler_has_the_losses_of_one_without(tmp_path: Path) -> None:
    torch.compiler.reset()
    eager, compiled, compile_ = Losses(), Losses(), Compile()
    runs = []
    for callbacks in ([eager], [compiled, compile_]):
        torch.manual_seed(0)
        runs.append(trained(tmp_path, *callbacks, method=SimCLR.tiny()))  # views of one size: each compiles alone
    assert_same(*runs)
    assert compile_.failed is None
    assert compiled.values == pytest.approx(eager.values, rel=1e-4)
    assert len(set(eager.values)) == len(eager.values) > 1


@pytest.mark.slow
def test_without_a_compiler_on_the_machine_one_line_says_so_and_the_run_goes_on(tmp_path: Path) -> None:
    from torch._inductor import config

    torch.compiler.reset()
    compile_, losses = Compile(), Losses()
    missing = {"cpp.cxx": (str(tmp_path / "no-compiler"),), "force_disable_caches": True}
    with config.patch(missing), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trained(tmp_path, compile_, losses)
    said = [str(warning.message) for warning in caught if "torch.compile failed" in str(warning.message)]
    assert len(said) == 1
    assert "\n" not in said[0]
    assert "training goes on without it" in said[0]
    plain = Losses()
    trained(tmp_path, plain)
    assert losses.values == pytest.approx(plain.values, rel=1e-5)


def _no_compiler(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler here\nsecond line")


def test_a_compiler_that_fails_is_warned_of_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.compiler.reset()
    monkeypatch.setattr(torch._dynamo, "lookup_backend", lambda name: _no_compiler)
    compile_ = Compile()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compiled = trained(tmp_path, compile_)
    said = [str(warning.message) for warning in caught if "torch.compile failed" in str(warning.message)]
    assert said == ["torch.compile failed (RuntimeError: no compiler here); training goes on without it."]
    assert_same(trained(tmp_path), compiled)


def test_blocks_are_as_before_when_the_run_is_over(tmp_path: Path) -> None:
    torch.compiler.reset()
    method = tiny_dino()
    fit(method, Compile("eager"), folder=tmp_path)
    assert all(block._compiled_call_impl is None for block in blocks(method))
    train(method, epochs=1)


def test_an_unknown_compiler_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"backend='inducktor' is not known; it is one of .*inductor"):
        Compile("inducktor")


def test_a_network_without_blocks_is_refused(tmp_path: Path) -> None:
    method = tiny_dino()
    method.encoder.channels.backbone = nn.Identity()
    method.teacher_encoder.channels.backbone = nn.Identity()
    with pytest.raises(ConfigError, match="nothing to compile"):
        Compile().on_fit_start(None, method)  # type: ignore[arg-type]

"""How a check fails, and the few comparisons that all checks share."""

import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from morphem.errors import MorphemError
from morphem.spec import from_spec, to_spec

TOLERANCE = 1e-5
Module = TypeVar("Module", bound=nn.Module)


class ContractError(AssertionError):
    """A plug-in breaks a contract; the message says which class, what it did, and why that matters."""


def fail(what: object, message: str) -> NoReturn:
    """Raise a `ContractError`.

    Args:
        what: The class or object that is checked.
        message: What it did and why that matters.
    """
    cls = what if inspect.isclass(what) else type(what)
    raise ContractError(f"{cls.__module__}.{cls.__qualname__}: {message}")


def require(condition: bool, what: object, message: str) -> None:
    """Fail unless a condition holds."""
    if not condition:
        fail(what, message)


def attempt(what: object, message: str, call: Callable[[], Any]) -> Any:
    """Call something; let any exception fail the check with its reason.

    Args:
        what: The class that is checked.
        message: What could not be done, for example `tiny() cannot be built`.
        call: What to do.
    """
    try:
        return call()
    except ContractError:
        raise
    except Exception as fault:  # a stranger's code may raise anything
        raise ContractError(
            f"{what.__module__}.{what.__qualname__}: {message}: {type(fault).__name__}: {fault}"  # type: ignore[attr-defined]
        ) from fault


def check_class(cls: type, base: type) -> None:
    """Check what the command line and the registry need of any plug-in: base class, docstring, named arguments.

    Args:
        cls: The plug-in.
        base: What it must derive from.
    """
    require(inspect.isclass(cls), cls, f"is a {type(cls).__name__}, not a class; register the class itself")
    require(issubclass(cls, base), cls, f"does not derive from {base.__module__}.{base.__qualname__}")
    missing = sorted(getattr(cls, "__abstractmethods__", frozenset()))
    require(not missing, cls, f"is abstract; it must define {', '.join(missing)}")
    require(bool(inspect.getdoc(cls)) and cls.__doc__ is not None, cls, "has no docstring; `--help` would be empty")
    for parameter in inspect.signature(cls).parameters.values():
        named = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        require(named, cls, f"takes '{parameter}' in __init__; a config can only set arguments that have names")
        typed = parameter.annotation is not parameter.empty
        require(typed, cls, f"does not annotate the argument '{parameter.name}'; a config could not check it")


def same(first: Tensor, second: Tensor, tolerance: float = TOLERANCE) -> bool:
    """Whether two tensors agree, to a tolerance relative to the size of the numbers; NaN agrees with nothing."""
    if first.shape != second.shape or not (first.isfinite().all() and second.isfinite().all()):
        return False
    scale = float(first.abs().max().clamp(min=1.0)) if first.numel() else 1.0
    return bool(((first - second).abs() <= tolerance * scale).all())


def check_embedding(what: object, embedding: Any, shape: tuple[int, int]) -> None:
    """Check an embedding's type, shape and values."""
    require(isinstance(embedding, Tensor), what, f"returned a {type(embedding).__name__}, not a tensor")
    require(tuple(embedding.shape) == shape, what, f"returned the shape {tuple(embedding.shape)} instead of {shape}")
    require(embedding.dtype == torch.float32, what, f"returned {embedding.dtype} for float32 input")
    require(bool(embedding.isfinite().all()), what, "returned NaN or infinity for an ordinary batch")


def check_pure(what: object, run: Callable[[], Tensor]) -> Tensor:
    """Check that something gives the same numbers twice, whatever the global generator holds, and leaves that alone.

    Args:
        what: The class that is checked.
        run: Computes an embedding.
    """
    first = run()
    with torch.random.fork_rng():
        torch.manual_seed(20_011)
        before = torch.random.get_rng_state()
        second = run()
        untouched = torch.equal(before, torch.random.get_rng_state())
    require(
        torch.equal(first, second), what, "gives other numbers when called again; switch off what is random in eval()"
    )
    require(
        untouched, what, "draws from torch's global generator in eval(); draw from morphem.rng with the batch's seeds"
    )
    return first


def check_gradients(what: object, module: nn.Module, run: Callable[[], Tensor]) -> None:
    """Check that a loss on the output reaches every parameter that requires a gradient.

    Args:
        what: The class that is checked.
        module: In training mode.
        run: Computes an embedding with its graph.
    """
    module.zero_grad()
    output = run()
    require(output.requires_grad, what, "returns an embedding without a graph in train(); nothing could be trained")
    weights = torch.linspace(-1.0, 1.0, output.numel()).reshape(output.shape)
    (output * weights).sum().backward()  # type: ignore[no-untyped-call]
    missing = [name for name, value in module.named_parameters() if value.requires_grad and not has_gradient(value)]
    require(
        not missing,
        what,
        f"no gradient reaches {listed(missing)}; use the parameter, remove it, or set requires_grad=False "
        "(DDP waits for every trained parameter)",
    )


def listed(names: Sequence[str]) -> str:
    """Return the first five names, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def has_gradient(parameter: nn.Parameter) -> bool:
    """Whether a gradient arrived and is not all zeros."""
    return parameter.grad is not None and bool((parameter.grad != 0).any())


def check_copy(what: object, module: Module, run: Callable[[Module], Tensor]) -> None:
    """Check that a deep copy shares no storage and gives the same numbers: teachers are made this way."""
    twin = attempt(what, "cannot be deep-copied, as every teacher is", lambda: copy.deepcopy(module))
    mine = storages(module)
    shared = [name for name, value in named_tensors(twin) if value.untyped_storage().data_ptr() in mine]
    require(not shared, what, f"a deep copy shares {listed(shared)} with the original; a teacher would not be one")
    require(torch.equal(run(module), run(twin)), what, "a deep copy gives other numbers")


def named_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return all parameters and buffers with their names."""
    return [*module.named_parameters(), *module.named_buffers()]


def storages(module: nn.Module) -> set[int]:
    """Return the addresses of all memory that a module's parameters and buffers live in."""
    return {value.untyped_storage().data_ptr() for _, value in named_tensors(module) if value.numel()}


def rebuild(what: object, part: Any) -> Any:
    """Save a part as its spec (JSON) and its weights (safetensors), build it again from them, and return the new one.

    Args:
        what: The class that is checked.
        part: A module that derives from `Configurable`.
    """
    spec = attempt(what, "cannot be saved", lambda: json.loads(json.dumps(to_spec(part))))
    with torch.random.fork_rng(), TemporaryDirectory() as folder:
        file = Path(folder) / "model.safetensors"
        tensors = {name: value.contiguous() for name, value in part.state_dict().items()}
        attempt(what, "its weights cannot be written as safetensors", lambda: save_file(tensors, file))
        torch.manual_seed(4_242)  # other initial weights, so that a weight left out of state_dict shows
        again = attempt(what, "cannot be built again from its spec", lambda: from_spec(spec))
        require(type(again) is type(part), what, f"its spec builds a {type(again).__name__}")
        attempt(what, "does not take back its own weights", lambda: again.load_state_dict(load_file(file)))
    require(
        to_spec(again) == spec, what, f"its spec changes when it is built again: {difference(to_spec(again), spec)}"
    )
    return again.train(part.training)


def difference(first: Mapping[str, Any], second: Mapping[str, Any]) -> str:
    """Return the first place where two specs differ, as `key: value != value`."""
    for key in [*first, *second]:
        mine, theirs = first.get(key), second.get(key)
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping) and mine != theirs:
            return f"{key}.{difference(mine, theirs)}"
        if mine != theirs:
            return f"{key}: {mine!r} != {theirs!r}"
    return "nowhere"


def expect_error(what: object, kind: type[MorphemError], message: str, call: Callable[[], Any]) -> None:
    """Check that something is refused with one of morphem's errors.

    Args:
        what: The class that is checked.
        kind: The class of error.
        message: What was accepted, for the failure's sentence.
        call: What must be refused.
    """
    try:
        call()
    except kind:
        return
    except Exception as fault:  # any other class is the failure that this looks for
        fail(what, f"{message} with {type(fault).__name__} ({fault}) instead of {kind.__name__}")
    fail(what, f"{message} without an error")

"""Checks of a method over a channel strategy: it trains, or is refused with a reason."""

from morphem import registry
from morphem.channels.base import ChannelStrategy
from morphem.errors import ConfigError
from morphem.methods.base import Method
from morphem.testing.contract import ContractError, require
from morphem.testing.methods import check_learning, check_resume, check_step, make
from morphem.testing.parts import build


def check_pair(cls: type[Method], strategy: type[ChannelStrategy], *, epochs: int = 30) -> str | None:
    """Check that a method trains an encoder of a channel strategy, or refuses it with a reason.

    Where it trains: a finite loss that falls on synthetic images, gradients that reach all that is trained, features of
    the exported encoder that do not depend on batch mates, and a run that was cut and resumed ends with the same
    weights as one that was not.

    Args:
        cls: The method; it is built by `tiny(encoder)`.
        strategy: Its `tiny()` is the strategy of that encoder.
        epochs: Epochs of two steps in which the loss must fall.

    Returns:
        None where the method trains the strategy, else why it does not.

    Raises:
        ContractError: Names the method, what it broke and why that matters.
    """
    if reason := refusal(cls, strategy):
        return reason
    check_step(cls, strategy)
    check_learning(cls, epochs, strategy)
    check_resume(cls, strategy)
    return None


def refusal(cls: type[Method], strategy: type[ChannelStrategy]) -> str | None:
    """Return why a method does not work with a channel strategy, or None; check that it is then refused when built.

    Args:
        cls: The method.
        strategy: Its `tiny()` is asked about.

    Raises:
        ContractError: If the reason is not one sentence, or the method is built all the same, or not built without one.
    """
    reason = cls.compatible(build(strategy))
    if reason is None:
        make(cls, strategy)
        return None
    require(
        bool(reason.strip()) and "\n" not in reason, cls, f"refuses {strategy.__name__} without a sentence: {reason!r}"
    )
    try:
        make(cls, strategy)
    except ContractError as fault:
        require(
            isinstance(fault.__cause__, ConfigError),
            cls,
            f"fails on {strategy.__name__} instead of refusing it: {fault}",
        )
        return reason
    raise ContractError(
        f"{cls.__name__} says that it does not work with {strategy.__name__} ({reason}), but is built with it."
    )


def matrix() -> dict[tuple[str, str], str | None]:
    """Return for every registered method and channel strategy why the two do not go together, or None where they do.

    Raises:
        PluginError: If a plug-in cannot be imported.
        ContractError: If a method neither works with a strategy nor refuses it.
    """
    return {
        (method, strategy): refusal(registry.get("methods", method), registry.get("channels", strategy))
        for method in registry.names("methods")
        for strategy in registry.names("channels")
    }


def matrix_table(cells: dict[tuple[str, str], str | None]) -> str:
    """Return the matrix as a table in Markdown: methods down, strategies across, the reasons of refusals below.

    Args:
        cells: As `matrix` returns them.
    """
    methods = sorted({method for method, _ in cells})
    strategies = sorted({strategy for _, strategy in cells})
    reasons = sorted({reason for reason in cells.values() if reason is not None})
    lines = [
        "| method | " + " | ".join(f"`{strategy}`" for strategy in strategies) + " |",
        "|---" * (len(strategies) + 1) + "|",
    ]
    for method in methods:
        found = [cells[method, strategy] for strategy in strategies]
        marks = ["yes" if reason is None else f"no ({reasons.index(reason) + 1})" for reason in found]
        lines.append(f"| `{method}` | " + " | ".join(marks) + " |")
    notes = [f"{number}. {reason[0].upper()}{reason[1:].rstrip('.')}." for number, reason in enumerate(reasons, 1)]
    return "\n".join([*lines, *(["", *notes] if notes else [])])

"""Checks by registered name: what `morphem plugins --check` and a stranger's test call."""

import inspect
from collections.abc import Callable
from typing import Any

from morphem import registry
from morphem.testing.benchmarks import check_benchmark
from morphem.testing.contract import ContractError, fail, require
from morphem.testing.methods import check_method
from morphem.testing.parts import check_backbone, check_strategy
from morphem.testing.sources import check_source
from morphem.testing.zoo import check_pretrained

_CHECKS: dict[str, Callable[[Any], object]] = {
    "methods": check_method,
    "channels": check_strategy,
    "backbones": check_backbone,
    "sources": check_source,
    "zoo": check_pretrained,
    "benchmarks": check_benchmark,
}


def check_plugin(group: str, name: str) -> None:
    """Check that a registered plug-in can be found, imported and named, and keeps the contract of its group.

    Args:
        group: One of `morphem.registry.GROUPS`.
        name: Short name.

    Raises:
        PluginError: If the name is unknown or claimed twice, or the plug-in cannot be imported.
        ContractError: Names the class, what it broke and why that matters.
    """
    cls = registry.get(group, name)
    check_registration(group, name, cls)
    if group in _CHECKS:
        _CHECKS[group](cls)


def check_registration(group: str, name: str, cls: Any) -> None:
    """Check that a plug-in is a documented class, and that its class leads back to its name.

    Args:
        group: One of `morphem.registry.GROUPS`.
        name: Short name.
        cls: What was registered.

    Raises:
        ContractError: If it is not.
    """
    plugin = registry.find(group, name)
    if not inspect.isclass(cls):
        raise ContractError(f"{plugin.target} is a {type(cls).__name__}, not a class; register the class itself")
    if not name.isidentifier() or name != name.lower():
        fail(cls, f"is registered as '{name}'; a short name is lower case, of letters, digits and underscores")
    require(bool(cls.__doc__), cls, "has no docstring; `--help` would be empty")
    found = registry.plugin_of(cls)
    is_same = found is not None and (found.group, found.name) == (group, name)
    require(is_same, cls, f"is also registered as '{found.group}/{found.name}'; one name is enough" if found else "")

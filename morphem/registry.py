"""Plug-ins by short name, found through entry points and imported only when asked for.

Our own are registered in `pyproject.toml` in the same way as a stranger's.
"""

from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from morphem.errors import PluginError, unknown_name

GROUPS = {
    "methods": "self-supervised methods (LightningModules)",
    "channels": "channel strategies",
    "backbones": "networks on tokens",
    "benchmarks": "evaluation protocols",
    "zoo": "pretrained encoders",
    "sources": "data sources of `morphem ingest`",
}


@dataclass(frozen=True)
class Plugin:
    """One registered name.

    Attributes:
        name: Short name, as configs use it.
        group: One of `GROUPS`.
        target: Import path of the class or function, `module:name`.
        package: Distribution that registered it.
        version: Version of that distribution.
    """

    name: str
    group: str
    target: str
    package: str
    version: str

    @property
    def class_path(self) -> str:
        """Import path with dots only, as `class_path` in a config takes it."""
        return self.target.replace(":", ".")

    def load(self) -> Any:
        """Import the plug-in.

        Raises:
            PluginError: If importing it fails, with its name, package and the reason.
        """
        try:
            return EntryPoint(self.name, self.target, f"morphem.{self.group}").load()
        except Exception as fault:  # a stranger's module may raise anything while it is imported
            raise PluginError(
                f"Plug-in '{self.name}' ({self.target}) of {self.package} {self.version} cannot be imported: "
                f"{type(fault).__name__}: {str(fault).splitlines()[0] if str(fault) else ''}; "
                f"update or uninstall {self.package}."
            ) from fault


@cache
def plugins(group: str) -> tuple[Plugin, ...]:
    """Return all plug-ins of a group, sorted by name, without importing them.

    Two packages that register one name both appear; `find` refuses the name.

    Args:
        group: One of `GROUPS`.

    Raises:
        PluginError: If there is no such group.
    """
    if group not in GROUPS:
        raise PluginError(unknown_name("plug-in group", group, GROUPS))
    found = {
        Plugin(point.name, group, point.value, point.dist.name if point.dist else "unknown", _version(point))
        for point in entry_points(group=f"morphem.{group}")
    }
    return tuple(sorted(found, key=lambda plugin: (plugin.name, plugin.package)))


def _version(point: EntryPoint) -> str:
    return point.dist.version if point.dist else "unknown"


def names(group: str) -> list[str]:
    """Return the names registered in a group, sorted."""
    return sorted({plugin.name for plugin in plugins(group)})


def find(group: str, name: str) -> Plugin:
    """Return the plug-in of a name, without importing it.

    Raises:
        PluginError: If nobody registered the name (with the nearest one), or two packages did (with both).
    """
    found = [plugin for plugin in plugins(group) if plugin.name == name]
    if not found:
        raise PluginError(unknown_name(f"plug-in of group '{group}'", name, names(group)))
    if len({plugin.target for plugin in found}) > 1:
        claims = " and ".join(f"{plugin.package} ({plugin.target})" for plugin in found)
        raise PluginError(f"The name '{name}' in group '{group}' is claimed by {claims}; uninstall one of them.")
    return found[0]


def get(group: str, name: str) -> Any:
    """Import and return the plug-in of a name.

    Args:
        group: One of `GROUPS`.
        name: Short name.

    Raises:
        PluginError: If the name is unknown or claimed twice, or the plug-in cannot be imported.
    """
    return find(group, name).load()


def name_of(cls: type) -> str | None:
    """Return the short name under which a class is registered, or None."""
    target = f"{cls.__module__}:{cls.__qualname__}"
    return next((plugin.name for group in GROUPS for plugin in plugins(group) if plugin.target == target), None)

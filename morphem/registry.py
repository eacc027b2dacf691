"""Plug-ins by short name, found through entry points and imported only when asked for.

Our own are registered in `pyproject.toml` in the same way as a stranger's.
"""

import importlib
import re
import sys
from dataclasses import dataclass
from functools import cache
from importlib.metadata import Distribution, EntryPoint, distributions
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
_TARGET = re.compile(r"[\w.]+\s*:\s*[\w.]+\s*(\[.*\])?$")


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
        except (Exception, SystemExit) as fault:  # a stranger's module may raise anything while it is imported
            raise PluginError(
                f"Plug-in '{self.name}' ({self.target}) of {self.package} {self.version} cannot be imported: "
                f"{_reason(fault)}; update or uninstall {self.package}."
            ) from fault


@dataclass(frozen=True)
class Fault:
    """An installed package that registers plug-ins in a form that cannot be read.

    Attributes:
        package: The distribution.
        reason: What is wrong, in a few words.
    """

    package: str
    reason: str


@cache
def _scan() -> tuple[tuple[Plugin, ...], tuple[Fault, ...]]:
    """Read the entry points of every installed package, each on its own so that one cannot break the others."""
    found: list[Plugin] = []
    faults: list[Fault] = []
    seen: set[str] = set()
    for distribution in distributions():
        folded = re.sub(r"[-_.]+", "-", _folder_name(distribution)[0]).lower()
        if folded not in seen:  # the first on sys.path is the one that Python imports
            seen.add(folded)
            for entry in _registrations(distribution):
                if isinstance(entry, Plugin):
                    found.append(entry)
                else:
                    faults.append(entry)
    return tuple(sorted(set(found), key=lambda plugin: (plugin.name, plugin.package, plugin.target))), tuple(faults)


def _registrations(distribution: Distribution) -> list["Plugin | Fault"]:
    """Return what one package registers, or what is wrong with it."""
    try:
        points = [point for point in distribution.entry_points if point.group.startswith("morphem.")]
    except Exception as fault:  # a stranger's file may be damaged in any way
        reason = f"its entry_points.txt cannot be read ({_reason(fault)})"
        return [Fault(_folder_name(distribution)[0], reason)] if _is_ours(distribution) else []
    if not points:
        return []
    package, version = _identity(distribution)
    entries: list[Plugin | Fault] = []
    for point in points:
        group, target = point.group.removeprefix("morphem."), point.value.strip()
        if group not in GROUPS:
            reason = unknown_name("plug-in group", group, GROUPS).removesuffix(".")
            entries.append(Fault(package, f"'{point.name}': {reason}"))
        elif not _TARGET.match(target):
            entries.append(Fault(package, f"'{point.name}' points to '{target}', which is not of the form module:name"))
        else:
            entries.append(Plugin(point.name, group, re.sub(r"\s|\[.*", "", target), package, version))
    return entries


def _is_ours(distribution: Distribution) -> bool:
    """Whether a damaged entry_points.txt names a group of ours; damage elsewhere is not for us to report."""
    try:
        return "morphem." in (distribution.read_text("entry_points.txt") or "")
    except UnicodeDecodeError:
        return True


def _folder_name(distribution: Distribution) -> tuple[str, str]:
    """Return name and version as the folder of a distribution spells them (reading no file)."""
    folder = getattr(distribution, "_path", None)
    stem = getattr(folder, "name", "") or str(distribution.metadata["Name"])
    name, _, version = stem.removesuffix(".dist-info").removesuffix(".egg-info").partition("-")
    return name, version


def _identity(distribution: Distribution) -> tuple[str, str]:
    """Return name and version of a distribution, as its folder spells them where its metadata is damaged."""
    name, version = _folder_name(distribution)
    try:
        return distribution.metadata["Name"] or name, distribution.version or version
    except Exception:  # the metadata of a half-removed package: missing, or no text at all
        return name, version or "unknown"


def _reason(fault: BaseException) -> str:
    """Return the class of an exception and the first line of its message."""
    lines = str(fault).splitlines()
    return f"{type(fault).__name__}: {lines[0]}" if lines else type(fault).__name__


def refresh() -> None:
    """Forget what was found, so that packages installed since are seen (needed in notebooks and tests only)."""
    importlib.invalidate_caches()
    _scan.cache_clear()


def faults() -> tuple[Fault, ...]:
    """Return the installed packages whose registrations cannot be read; they are left out of `plugins`."""
    return _scan()[1]


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
    return tuple(plugin for plugin in _scan()[0] if plugin.group == group)


def names(group: str) -> list[str]:
    """Return the names registered in a group, sorted.

    Args:
        group: One of `GROUPS`.

    Raises:
        PluginError: If there is no such group.
    """
    return sorted({plugin.name for plugin in plugins(group)})


def list_plugins(group: str) -> list[str]:
    """Return the short names of a group's plug-ins, for `morphem.list_plugins`.

    Args:
        group: One of `GROUPS`.

    Raises:
        PluginError: If there is no such group.
    """
    return names(group)


def find(group: str, name: str) -> Plugin:
    """Return the plug-in of a name, without importing it.

    Args:
        group: One of `GROUPS`.
        name: Short name.

    Raises:
        PluginError: If nobody registered the name (with the nearest one), or two packages did (with both).
    """
    found = [plugin for plugin in plugins(group) if plugin.name == name]
    if not found:
        broken = "".join(f" Left out: {fault.package}, {fault.reason}." for fault in faults())
        raise PluginError(unknown_name(f"plug-in of group '{group}'", name, names(group)) + broken)
    if len(found) > 1:
        claims = " and ".join(f"{plugin.package} {plugin.version} ({plugin.target})" for plugin in found)
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
    """Return the short name under which a class is registered, or None.

    Args:
        cls: Any class. It is found by its own path and by any other path that its package registered it under.
    """
    plugin = plugin_of(cls)
    return plugin.name if plugin else None


def plugin_of(cls: type) -> Plugin | None:
    """Return the registration of a class, or None.

    Args:
        cls: Any class.
    """
    return next((plugin for group in GROUPS for plugin in plugins(group) if _leads_to(plugin, cls)), None)


def _leads_to(plugin: Plugin, cls: type) -> bool:
    """Whether a target is this class, by its own path or by an imported module that re-exports it."""
    if plugin.target == f"{cls.__module__}:{cls.__qualname__}":
        return True
    module, _, attribute = plugin.target.partition(":")
    value: Any = sys.modules.get(module)
    for part in attribute.split("."):
        value = getattr(value, part, None)
    return value is cls

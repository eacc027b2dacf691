"""All families of pretrained encoders and their records, by name."""

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from morphem import registry
from morphem.errors import ConfigError, PluginError, WeightsError, unknown_name
from morphem.zoo.base import Checkpoint, HubFile, Pretrained, Record


@dataclass(frozen=True)
class Entry:
    """A record with the family that reads it.

    Attributes:
        family: Short name of the family.
        cls: Its class.
        record: One of its records.
    """

    family: str
    cls: type[Pretrained]
    record: Record


def families() -> dict[str, type[Pretrained]]:
    """Return all registered families by short name.

    A family that cannot be imported, or whose name two packages claim, is left out with a warning that names it: it
    must not disturb the others.
    """
    found: dict[str, type[Pretrained]] = {}
    for name in registry.names("zoo"):
        try:
            found[name] = registry.get("zoo", name)
        except PluginError as fault:
            warnings.warn(f"the zoo goes on without family '{name}': {fault}", stacklevel=2)
    return found


def family(name: str) -> type[Pretrained]:
    """Return one family.

    Args:
        name: Its short name.

    Raises:
        PluginError: If there is none, or it is broken.
    """
    found: type[Pretrained] = registry.get("zoo", name)
    return found


def entries() -> dict[str, Entry]:
    """Return all records by name, family by family.

    Raises:
        PluginError: If two families use one name.
    """
    found: dict[str, Entry] = {}
    for name, cls in families().items():
        for record in cls.records:
            if record.name in found:
                raise PluginError(
                    f"Two families have a record '{record.name}': {found[record.name].family} and {name}; "
                    "one of them must rename it."
                )
            found[record.name] = Entry(name, cls, record)
    return found


def list_models() -> list[str]:
    """Return the names of all records that `load` takes."""
    return list(entries())


def find(name: str) -> Entry | None:
    """Return the record of a name, or the first one of a hub id; None where there is none.

    Args:
        name: Name of a record, or `owner/name`.
    """
    known = entries()
    if name in known:
        return known[name]
    hub_ids = (e for e in known.values() if isinstance(e.record.location, HubFile))
    return next((e for e in hub_ids if e.record.location.hub_id == name), None)  # type: ignore[union-attr]


def build(name: str, cls: type[Pretrained], facts: Mapping[str, Any]) -> Pretrained:
    """Build a family from facts.

    Args:
        name: Short name of the family, for messages.
        cls: The family.
        facts: Arguments of its constructor.

    Raises:
        ConfigError: If it does not know one of them.
    """
    known = list(inspect.signature(cls).parameters)
    for fact in facts:
        if fact not in known:
            raise ConfigError(unknown_name(f"fact of the family '{name}'", fact, known))
    return cls(**facts)


def recognise(checkpoint: Checkpoint, name: str | None = None) -> tuple[str, type[Pretrained]]:
    """Return the family that a file is of.

    Args:
        checkpoint: The file.
        name: Short name of the family, where the user says it.

    Raises:
        WeightsError: If no family recognises the file, or several do.
        PluginError: If there is no family of that name.
    """
    if name is not None:
        return name, family(name)
    found = {short: cls for short, cls in families().items() if cls.recognises(checkpoint)}
    found = {short: cls for short, cls in found.items() if not cls.generic} or found
    if len(found) == 1:
        return next(iter(found.items()))
    if found:
        raise WeightsError(
            f"{checkpoint.path} may be of the families {' and '.join(sorted(found))}; "
            f"say which with family='{min(found)}' or the like."
        )
    raise WeightsError(
        f"{checkpoint.path} is of no family that morphem knows ({seen(checkpoint)}); "
        f"say which with family=..., one of {', '.join(families())}."
    )


def seen(checkpoint: Checkpoint) -> str:
    """Say in a few words what a file holds.

    Args:
        checkpoint: The file.
    """
    keys = [str(key) for key in checkpoint.content]
    more = ", ..." if len(keys) > 4 else ""
    return f"it holds {len(keys)} entries: {', '.join(keys[:4])}{more}" if keys else "it is empty"

"""Objects that remember how they were built, so that a folder of weights can build them again.

A spec is plain data: `{"name": short name or class path, "init_args": {...}}`, with further specs inside. Only
registered plug-ins and morphem's own classes are ever built from one, so a spec from a stranger runs no code of his.
"""

import functools
import inspect
from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from morphem import registry
from morphem.errors import WeightsError

Spec = dict[str, Any]


class Configurable:
    """Base of every part of an encoder or method; remembers the arguments of its `__init__`.

    Subclasses need nothing: their arguments are recorded when they are built. Arguments must be plain data (numbers,
    strings, booleans, None, lists, tuples, mappings), frozen dataclasses of plain data, or other `Configurable`s.
    """

    _init_args: dict[str, Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" not in cls.__dict__:
            return
        original = cls.__init__
        signature = inspect.signature(original)

        @functools.wraps(original)
        def recording(self: Any, *args: Any, **kwargs: Any) -> None:
            if "_init_args" not in self.__dict__ and type(self).__init__ is cls.__init__:
                bound = signature.bind(self, *args, **kwargs)
                bound.apply_defaults()
                object.__setattr__(self, "_init_args", dict(list(bound.arguments.items())[1:]))
            original(self, *args, **kwargs)

        cls.__init__ = recording  # type: ignore[method-assign]


def to_spec(part: Configurable) -> Spec:
    """Return the spec of an object: its registered name (or class path) and arguments, as plain data.

    Raises:
        WeightsError: If an argument cannot be written as plain data.
    """
    cls = type(part)
    name = registry.name_of(cls) or f"{cls.__module__}.{cls.__qualname__}"
    arguments = part.__dict__.get("_init_args", {})
    return {"name": name, "init_args": {key: _plain(value, f"{name}.{key}") for key, value in arguments.items()}}


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Configurable):
        return to_spec(value)
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value), where)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise WeightsError(
        f"{where} is a {type(value).__name__}, which cannot be saved; "
        "pass plain data, a frozen dataclass, or a part that derives from morphem.spec.Configurable."
    )


def from_spec(spec: Spec, groups: tuple[str, ...] = ("channels", "backbones", "methods")) -> Any:
    """Build the object that a spec describes, with all parts inside it.

    Args:
        spec: As `to_spec` gives it.
        groups: Plug-in groups that may be built.

    Raises:
        WeightsError: If the spec is malformed or names a class that is neither registered nor morphem's own.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise WeightsError(f"not a spec (needs 'name' and 'init_args'): {str(spec)[:80]}.")
    cls = _class_of(spec["name"], groups)
    arguments = {
        key: from_spec(value, groups) if isinstance(value, Mapping) and "init_args" in value else value
        for key, value in spec.get("init_args", {}).items()
    }
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as fault:
        raise WeightsError(f"'{spec['name']}' does not take these arguments: {fault}; is it an older version?") from fault
    return cls(**arguments)


def _class_of(name: str, groups: tuple[str, ...]) -> Any:
    for group in groups:
        if name in registry.names(group):
            return registry.get(group, name)
    for group in groups:
        for plugin in registry.plugins(group):
            if plugin.class_path == name:
                return plugin.load()
    module, _, attribute = name.rpartition(".")
    if module.startswith("morphem."):
        cls = getattr(__import__(module, fromlist=[attribute]), attribute, None)
        if inspect.isclass(cls) and issubclass(cls, Configurable):
            return cls
    raise WeightsError(
        f"'{name}' is not a registered plug-in; install the package that provides it (registered: "
        f"{', '.join(n for group in groups for n in registry.names(group)) or 'none'})."
    )

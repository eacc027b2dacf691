"""Objects that remember how they were built, so that a folder of weights can build them again.

A spec is plain data: `{"name": short name or class path, "init_args": {...}}`, with further specs inside. Only
registered plug-ins, and `Configurable`s and dataclasses of morphem or of a package that registers a plug-in, are ever
built from one: a spec from a stranger runs nothing that was not installed on purpose.
"""

import functools
import importlib
import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from typing import Any

from morphem import registry
from morphem.errors import WeightsError

Spec = dict[str, Any]
GROUPS = ("channels", "backbones", "methods")


class Configurable:
    """Base of every part of an encoder or method; remembers the arguments of its `__init__`.

    Subclasses need nothing: their arguments are recorded when they are built. Arguments must be plain data (numbers,
    strings, booleans, None, lists, tuples, mappings), frozen dataclasses of plain data, or other `Configurable`s; they
    are named, so an `__init__` that takes `*args` can be built but not saved.
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
                object.__setattr__(self, "_init_args", _record(signature.bind(self, *args, **kwargs)))
            original(self, *args, **kwargs)

        cls.__init__ = recording  # type: ignore[method-assign]


def _record(bound: inspect.BoundArguments) -> dict[str, Any]:
    """Return the arguments by name, defaults included; lists and mappings are copied to keep later changes out."""
    bound.apply_defaults()
    arguments: dict[str, Any] = {}
    for name, value in list(bound.arguments.items())[1:]:
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            arguments.update({f"*{name}": value} if value else {})
        else:
            arguments[name] = type(value)(value) if type(value) in (list, dict) else value
    return arguments


def to_spec(part: Configurable) -> Spec:
    """Return the spec of an object: its registered name (or class path) and arguments, as plain data.

    Args:
        part: Any `Configurable`.

    Raises:
        WeightsError: If an argument cannot be written as plain data, or was passed without a name.
    """
    name = _name_of(class_of(part))
    return {"name": name, "init_args": _plain_arguments(part.__dict__.get("_init_args", {}), name)}


def class_of(part: object) -> type:
    """Return the class that an object was built from: sharding puts a class of torch's before it.

    Args:
        part: Any object.
    """
    first, *rest = type(part).__mro__
    sharded = bool(rest) and rest[0].__module__.startswith("torch.distributed.fsdp")
    return rest[1] if sharded else first


def _name_of(cls: type) -> str:
    """Return the short name of a class, or its path where it has none or where two groups know the name."""
    plugin = registry.plugin_of(cls)
    if plugin and sum(plugin.name in registry.names(group) for group in GROUPS) <= 1:
        return plugin.name
    return f"{cls.__module__}.{cls.__qualname__}"


def _plain_arguments(arguments: Mapping[str, Any], name: str) -> Spec:
    for key in arguments:
        if key.startswith("*"):
            raise WeightsError(f"{name} was built with '{key}', which has no names to save; spell its arguments out.")
    return {key: _plain(value, f"{name}.{key}") for key, value in arguments.items()}


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Configurable):
        return to_spec(value)
    if is_dataclass(value) and not isinstance(value, type):
        arguments = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
        name = _name_of(type(value))
        return {"name": name, "init_args": _plain_arguments(arguments, name)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, where) for item in value]
    if value is None or isinstance(value, bool):
        return value
    # NumPy's numbers and subclasses of str become the plain thing: a checkpoint is read with weights-only unpickling
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise WeightsError(
        f"{where} is a {type(value).__name__}, which cannot be saved; "
        "pass plain data, a frozen dataclass, or a part that derives from morphem.spec.Configurable."
    )


def from_spec(spec: Spec, groups: tuple[str, ...] = GROUPS) -> Any:
    """Build the object that a spec describes, with all parts inside it.

    Args:
        spec: As `to_spec` gives it.
        groups: Plug-in groups that may be built.

    Raises:
        WeightsError: If the spec is malformed, or names a class that is neither registered nor of morphem or a package
            that registers plug-ins, or its arguments do not fit the class.
        PluginError: If the plug-in that it names cannot be imported or is claimed by two packages.
    """
    if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
        raise WeightsError(f"not a spec (needs 'name' and 'init_args'): {str(spec)[:80]}.")
    if not isinstance(spec.get("init_args", {}), Mapping):
        raise WeightsError(f"the 'init_args' of '{spec['name']}' are not a mapping: {str(spec['init_args'])[:80]}.")
    cls = _class_of(spec["name"], groups)
    arguments = {key: _build(value, groups) for key, value in spec.get("init_args", {}).items()}
    if is_dataclass(cls):  # they are frozen, so their sequences are tuples
        arguments = {key: tuple(value) if isinstance(value, list) else value for key, value in arguments.items()}
    try:
        inspect.signature(cls).bind(**arguments)
    except TypeError as fault:
        raise WeightsError(
            f"'{spec['name']}' does not take these arguments: {fault}; is it an older version?"
        ) from fault
    return cls(**arguments)


def _build(value: Any, groups: tuple[str, ...]) -> Any:
    """Replace every spec inside a value by what it describes."""
    if isinstance(value, Mapping):
        if set(value) == {"name", "init_args"}:
            return from_spec(dict(value), groups)
        return {key: _build(item, groups) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_build(item, groups) for item in value]
    return value


def _class_of(name: str, groups: tuple[str, ...]) -> Any:
    known = [group for group in groups if name in registry.names(group)]
    if len(known) > 1:
        raise WeightsError(f"'{name}' is registered in the groups {' and '.join(known)}; give the class path instead.")
    if known:
        return _checked(registry.get(known[0], name), name)
    for group in groups:
        for plugin in registry.plugins(group):
            if plugin.class_path == name:
                return _checked(plugin.load(), name)
    module, _, attribute = name.rpartition(".")
    if module and module.partition(".")[0] in _trusted(groups):
        return _checked(_attribute(module, attribute), name)
    raise WeightsError(
        f"'{name}' is not a registered plug-in; install the package that provides it (registered: "
        f"{', '.join(n for group in groups for n in registry.names(group)) or 'none'})."
    )


def _trusted(groups: tuple[str, ...]) -> set[str]:
    """Return the top-level modules of morphem and of every package that registers a plug-in."""
    targets = (plugin.target for group in groups for plugin in registry.plugins(group))
    return {"morphem", *(target.partition(":")[0].partition(".")[0] for target in targets)}


def _attribute(module: str, attribute: str) -> Any:
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as fault:
        raise WeightsError(
            f"'{module}.{attribute}' does not exist in the installed {module.partition('.')[0]} ({fault}); "
            "install the version that saved these weights."
        ) from fault


def _checked(cls: Any, name: str) -> Any:
    """Return a class if specs may build it, that is, if it records its arguments or is a dataclass."""
    if not inspect.isclass(cls) or not (issubclass(cls, Configurable) or is_dataclass(cls)):
        raise WeightsError(f"'{name}' is no part that a spec may build: it must derive from morphem.spec.Configurable.")
    if inspect.isabstract(cls):
        raise WeightsError(f"'{name}' is abstract; a spec names a class that can be built.")
    return cls

"""Settings of a source from the command line: `--set KEY=VALUE`, read as the source's constructor declares them."""

import inspect
import types
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin, get_type_hints

from morphem.errors import ConfigError, nearest

if TYPE_CHECKING:
    from morphem.sources.base import Source

_ALIASES = "channel_aliases"
_WORDS = {"true": True, "yes": True, "false": False, "no": False}


def read_settings(cls: "type[Source]", given: Mapping[str, str], aliases: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments for a source's constructor, besides the location.

    Args:
        cls: The source.
        given: Keys and texts of `--set`.
        aliases: Further names of channel types.

    Raises:
        ConfigError: If the source has no such setting, or a text is no value of its type.
    """
    parameters = list(inspect.signature(cls).parameters)[1:]
    known = [name for name in parameters if name != _ALIASES]
    kinds = get_type_hints(cls.__init__)
    for key in given:
        if key not in known:
            close = nearest(key, known, count=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ConfigError(
                f"--set {key}: {cls.__name__} has no such setting; {hint}it has {', '.join(known) or 'none'}."
            )
    settings = {key: read_value(text, kinds.get(key, str), f"--set {key}") for key, text in given.items()}
    if aliases:
        if _ALIASES not in parameters:
            raise ConfigError(
                f"the source {cls.__name__} takes no names of channels; leave --channel and --aliases out."
            )
        settings[_ALIASES] = dict(aliases)
    return settings


def read_value(text: str, kind: Any, name: str) -> Any:
    """Turn a text into a value of a type.

    Args:
        text: What the user typed.
        kind: Annotation: str, int, float, bool, a Literal, a sequence of these (commas between), or a union with None.
        name: What to call it in an error.

    Raises:
        ConfigError: If it is no such value.
    """
    for choice in _choices(kind):
        value = _try(text, choice)
        if value is not None:
            return value
    raise ConfigError(f"{name}={text}: this is no {_spelled(kind)}.")


def _choices(kind: Any) -> list[Any]:
    """The members of a union without None; texts last, because everything is one."""
    members = get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)
    return sorted((member for member in members if member is not type(None)), key=lambda member: member in (str, Any))


def _try(text: str, kind: Any) -> Any:
    """Return the value, or None where the text is no value of that type."""
    origin = get_origin(kind) or kind
    if origin is Literal:
        return next((value for value in get_args(kind) if str(value) == text), None)
    if origin is bool:
        return _WORDS.get(text.lower())
    if origin in (int, float):
        try:
            return origin(text)
        except ValueError:
            return None
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return None
    if isinstance(origin, type) and issubclass(origin, Sequence) and origin is not str:
        inner = next((member for member in get_args(kind) if member is not Ellipsis), str)
        values = [_try(part.strip(), _choices(inner)[0]) for part in text.split(",")]
        return None if None in values else (tuple(values) if origin is tuple else values)
    return text


def _spelled(kind: Any) -> str:
    words = {int: "whole number", float: "number", bool: "true or false", str: "text"}
    said = [words.get(choice, str(choice).replace("typing.", "")) for choice in _choices(kind)]
    return " or ".join(said)

"""Checks of a run's settings before anything heavy is imported, with the file, the line and the nearest valid name."""

import ast
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from morphem.cli import static_schema
from morphem.cli.config_files import (
    OWN_CLASSES,
    PACKAGE,
    SLOTS,
    ConfigFile,
    Path_,
    expand,
    full_class_path,
    parse_value,
    read_config,
)
from morphem.errors import ConfigError, MorphemError, nearest

LISTED = {"callbacks", "logger"}
"""Trainer settings that hold one class or a list of classes."""

TRAINER = "lightning.pytorch.trainer.trainer.Trainer"
CLI_KEYS = {"seed_everything", "trainer", "model", "data", "ckpt_path", "weights_only", "resume_override"}
_OTHER_KEYS = {"fit": set(), "validate": {"verbose"}, "test": {"verbose"}, "predict": {"return_predictions"}}


@dataclass(frozen=True)
class _Place:
    """Where a setting was made: a file (or the command line), and the path of keys inside it."""

    file: ConfigFile | None
    path: Path_

    def __str__(self) -> str:
        if self.file is None:
            return "command line"
        line = next(
            (self.file.lines[self.path[:n]] for n in range(len(self.path), 0, -1) if self.path[:n] in self.file.lines),
            1,
        )
        return f"{self.file.name}:{line}"

    def below(self, *keys: str | int) -> "_Place":
        return _Place(self.file, (*self.path, *keys))

    @property
    def dotted(self) -> str:
        return ".".join(map(str, self.path))


def complain(
    place: object, what: str, *, value: Any = None, allowed: str = "", near: list[str] | None = None
) -> ConfigError:
    """Return the error for one wrong setting: at most five short lines.

    Args:
        place: File and line.
        what: What is wrong, with the key.
        value: What was given, where it helps.
        allowed: What would have been right.
        near: Nearest valid names, best first.
    """
    lines = [f"{place}: {what}"]
    if value is not None:
        lines.append(f"  given:   {_short(value)}")
    if near:
        lines.append(f"  nearest: {', '.join(near)}")
    if allowed:
        lines.append(f"  allowed: {allowed if len(allowed) < 400 else allowed[:397] + '...'}")
    return ConfigError("\n".join(lines))


def _short(value: Any) -> str:
    text = repr(value) if not isinstance(value, str) else value
    return text if len(text) < 100 else text[:97] + "..."


def check_arguments(command: str, argv: list[str]) -> list[str]:
    """Check the settings of `fit`, `validate`, `test` or `predict` as far as that is possible without importing torch.

    Args:
        command: The subcommand.
        argv: What follows it on the command line.

    Returns:
        The same arguments, with configs replaced by their full paths and short names by import paths.

    Raises:
        ConfigError: For the first setting that is wrong.
    """
    arguments = _split(argv)
    files = [read_config(value) for key, value in arguments if key == "config" and value is not None]
    known: dict[str, str] = {}
    for file in files:
        _check_top(command, file.values, _Place(file, ()), known)
    for key, value in arguments:
        if key not in {"config", "print_config", "help", None} and not str(key).endswith(".help"):
            _check_option(command, str(key), value, known)
    return _rewrite(argv)


def _split(argv: list[str]) -> list[tuple[str | None, str | None]]:
    """Turn `--key value`, `--key=value` and `-c value` into pairs; a lone word has no key."""
    pairs: list[tuple[str | None, str | None]] = []
    waiting = iter(argv)
    for word in waiting:
        if word in {"-c", "--config"}:
            pairs.append(("config", next(waiting, None)))
        elif word in {"-h", "--help"}:
            pairs.append(("help", None))
        elif word.startswith("--") and "=" in word:
            key, _, value = word[2:].partition("=")
            pairs.append((key, value))
        elif word.startswith("--print_config") or word.endswith(".help"):
            pairs.append((word[2:], None))
        elif word.startswith("--"):
            pairs.append((word[2:], next(waiting, None)))
        else:
            pairs.append((None, word))
    return pairs


def _rewrite(argv: list[str]) -> list[str]:
    """Replace config names by paths and short class names by import paths."""
    out: list[str] = []
    waiting = iter(argv)
    for word in waiting:
        key, has_value, value = word.partition("=")
        if word in {"-c", "--config"}:
            out += ["--config", str(read_config(next(waiting, "")).path)]
        elif key == "--config" and has_value:
            out.append(f"--config={read_config(value).path}")
        elif key.startswith("--") and not key.startswith("--print_config") and not key.endswith("help"):
            if not has_value:
                value = next(waiting, "")
            slot = key[2:].removesuffix(".class_path").split(".")[-1]
            out.append(f"{key}={full_class_path(value, slot)}")
        else:
            out.append(word)
    return out


def _check_top(command: str, values: dict[str, Any], place: _Place, known: dict[str, str]) -> None:
    allowed = CLI_KEYS | _OTHER_KEYS[command]
    for key, value in values.items():
        if key not in allowed:
            raise complain(
                place.below(key), f"unknown key '{key}'", allowed=", ".join(sorted(allowed)), near=nearest(key, allowed)
            )
        here = place.below(key)
        if key == "seed_everything" and (isinstance(value, bool) or not isinstance(value, int)):
            raise complain(here, "seed_everything seeds all that is random", value=value, allowed="a whole number")
        if key == "trainer" and value is not None:
            _check_mapping(value, TRAINER, here)
        elif key in {"model", "data"} and value is not None:
            _check_class(_expanded(value, key, here), here, known, slot=key)


def _expanded(value: Any, slot: str, place: _Place) -> Any:
    try:
        return expand(value, slot)
    except MorphemError as fault:
        raise complain(_unresolved(value, place) or place, str(fault)) from fault


def _unresolved(value: Any, place: _Place) -> _Place | None:
    """The place of the first class name at or below a value that nobody registered."""
    if isinstance(value, list):
        return next(filter(None, (_unresolved(item, place.below(i)) for i, item in enumerate(value))), None)
    name = value.get("class_path") if isinstance(value, dict) else value
    slot = str(place.path[-1])
    if isinstance(name, str) and (isinstance(value, dict) or slot in SLOTS):
        try:
            full_class_path(name, slot)
        except MorphemError:
            return place.below("class_path") if isinstance(value, dict) else place
    if not isinstance(value, dict):
        return None
    return next(filter(None, (_unresolved(item, place.below(key)) for key, item in value.items())), None)


def _check_class(value: Any, place: _Place, known: dict[str, str], slot: str) -> None:
    """Check a class with its arguments: a name, or a mapping of class_path and init_args."""
    if isinstance(value, str):
        value = {"class_path": value}
    if not isinstance(value, dict):
        raise complain(place, f"'{place.dotted}' needs class_path and init_args", value=value)
    extra = sorted(set(value) - {"class_path", "init_args", "dict_kwargs"})
    if extra and ("class_path" in value or place.dotted not in known):
        what = f"unknown key '{place.dotted}.{extra[0]}'"
        near = nearest(extra[0], ["class_path", "init_args"], count=1) or ["init_args"]
        raise complain(place.below(extra[0]), what, near=near, allowed="class_path, init_args")
    if "class_path" in value:
        known[place.dotted] = _class_path(value["class_path"], place)
    class_path = known.get(place.dotted)
    if class_path is None:
        return
    if static_schema.find_class(class_path) is None and static_schema.module_file(class_path.split(".")[0]) is None:
        raise complain(
            place.below("class_path"),
            f"'{place.dotted}' names a class of a package that is not installed",
            value=class_path,
            allowed="install the package, or name another class",
        )
    inner = value.get("init_args")
    unwrapped = slot == "data" and "init_args" not in place.path and _wrapped_by_us(place)
    if inner is not None:
        _check_mapping(inner, class_path, place if unwrapped else place.below("init_args"), known)


def _class_path(name: Any, place: _Place) -> str:
    """The import path of a class that may go by its name alone."""
    if not isinstance(name, str):
        raise complain(place.below("class_path"), f"'{place.dotted}.class_path' is the name of a class", value=name)
    if "." in name:
        return name
    classes = short_classes()
    if name not in classes:
        near = nearest(name, classes)
        what = f"no class '{name}' for '{place.dotted}'"
        raise complain(
            place.below("class_path"),
            what,
            near=near,
            allowed="a class of Lightning or morphem by its name, any other by its import path",
        )
    return classes[name]


def _wrapped_by_us(place: _Place) -> bool:
    """Whether a file wrote `data` without class_path, so that its keys stand one level higher than in full."""
    value = place.file.values.get("data") if place.file is not None else None
    return isinstance(value, dict) and "class_path" not in value and "init_args" not in value


def _check_mapping(values: Any, class_path: str, place: _Place, known: dict[str, str] | None = None) -> None:
    """Check keys and values against the arguments of a class."""
    if not isinstance(values, dict):
        raise complain(place, f"'{place.dotted}' is a mapping of keys to values", value=values)
    arguments = static_schema.arguments(class_path)
    if arguments is None:
        return
    for key, value in values.items():
        name = str(key).removesuffix("+")
        here = place.below(key)
        if name not in arguments:
            raise complain(
                here,
                f"unknown key '{here.dotted}'",
                value=value,
                near=nearest(name, arguments),
                allowed=", ".join(sorted(arguments)),
            )
        _check_value(value, arguments[name], here, known if known is not None else {})


def _check_value(value: Any, argument: static_schema.Argument, place: _Place, known: dict[str, str]) -> None:
    if argument.name in LISTED and isinstance(value, dict | list | str):
        for position, item in enumerate(value if isinstance(value, list) else [value]):
            where = place.below(position) if isinstance(value, list) else place
            _check_class({"class_path": item} if isinstance(item, str) else item, where, known, slot="")
        return
    if isinstance(value, dict) and ("class_path" in value or "init_args" in value or place.dotted in known):
        _check_class(value, place, known, slot="")
        return
    inner = _element(argument)
    if isinstance(value, list) and inner is not None:
        for position, item in enumerate(value):
            if isinstance(item, dict):
                _check_mapping(item, inner, place.below(position))
        return
    settings = _dataclass(argument)
    if isinstance(value, dict) and settings is not None:
        _check_mapping(value, settings, place)
        return
    expected = static_schema.mismatch(value, argument.annotation)
    if expected is not None:
        raise complain(place, f"wrong type for '{place.dotted}'", value=value, allowed=expected)


def _element(argument: static_schema.Argument) -> str | None:
    """The dataclass that a list argument holds, or None."""
    for option in static_schema.options(argument.annotation) if argument.annotation is not None else []:
        if isinstance(option, ast.Subscript) and ast.unparse(option.value) in {"list", "Sequence"}:
            return static_schema.resolve(option.slice, argument.module)
    return None


def _dataclass(argument: static_schema.Argument) -> str | None:
    """The dataclass that an argument is, or None."""
    for option in static_schema.options(argument.annotation) if argument.annotation is not None else []:
        target = static_schema.resolve(option, argument.module) if isinstance(option, ast.Name) else None
        found = static_schema.find_class(target) if target else None
        if found is not None and any("dataclass" in ast.unparse(mark) for mark in found[1].decorator_list):
            return target
    return None


@cache
def short_classes() -> dict[str, str]:
    """Import paths of the classes that go by class name alone: Lightning's and ours, by name."""
    found = dict(OWN_CLASSES)
    for module in ("callbacks", "loggers", "profilers", "strategies", "plugins"):
        found.update(_classes_in(f"lightning.pytorch.{module}"))
    found.update(_classes_in("morphem.callbacks"))
    return found


def _classes_in(module: str) -> dict[str, str]:
    """Public classes written in the modules of a package, by name."""
    init = static_schema.module_file(module)
    found: dict[str, str] = {}
    for path in sorted(init.parent.glob("*.py")) if init else []:
        stem = "" if path.stem == "__init__" else f".{path.stem}"
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name] = f"{module}{stem}.{node.name}"
    return found


def _check_option(command: str, key: str, text: str | None, known: dict[str, str]) -> None:
    """Check one `--key value` of the command line, which may abbreviate `model.init_args.lr` to `model.lr`."""
    value = parse_value(text) if text is not None else None
    head, *rest = key.split(".")
    if not rest:
        _check_top(command, {head.removesuffix("+"): value}, _Place(None, ()), known)
        return
    class_path = TRAINER if head == "trainer" else known.get(head)
    place = _Place(None, (head,))
    if head not in {"trainer", "model", "data"}:
        _check_top(command, {head: value}, _Place(None, ()), known)
    if head == "data" and class_path is None:
        class_path = "morphem.data.module.ShardData"
    for position, part in enumerate(rest):
        place = place.below(part)
        name = part.removesuffix("+")
        if name == "class_path":
            known[".".join([head, *rest[:position]])] = full_class_path(
                str(value), rest[position - 1] if position else head
            )
            return
        arguments = static_schema.arguments(class_path) if class_path else None
        if name == "init_args" or name.isdigit() or arguments is None:
            continue
        if name not in arguments:
            raise complain(
                place,
                f"unknown option --{key}",
                near=[f"--{'.'.join([head, *rest[:position]])}.{n}" for n in nearest(name, arguments)],
                value=value,
                allowed=", ".join(sorted(arguments)),
            )
        if position == len(rest) - 1:
            _check_value(value, arguments[name], place, known)
        class_path = known.get(f"{head}.init_args.{name}") or known.get(f"{head}.{name}")


def shipped_configs() -> list[Path]:
    """Return the configs of runs that the package ships, sorted; recipes of `morphem ingest` have `steps` instead."""
    folder = PACKAGE / "configs"
    found = sorted((folder if folder.is_dir() else PACKAGE.parent / "configs").glob("*.yaml"))
    return [path for path in found if not re.search(r"^steps:", path.read_text(), re.MULTILINE)]

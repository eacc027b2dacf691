"""Config files: where they are found, how they are read, and what short names in them mean. Imports no torch."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from morphem import registry
from morphem.errors import ConfigError, nearest

PACKAGE = Path(__file__).resolve().parents[1]

SLOTS = {"model": "methods", "channels": "channels", "backbone": "backbones"}
"""Which plug-in group a class in a config belongs to, by the key that it stands under."""

OWN_CLASSES = {
    "Encoder": "morphem.encoder.Encoder",
    "SelfNormalize": "morphem.normalizers.SelfNormalize",
    "DatasetNormalize": "morphem.normalizers.DatasetNormalize",
    "MultiCrop": "morphem.data.views.MultiCrop",
    "ShardData": "morphem.data.module.ShardData",
}
"""Short names of classes that are no plug-ins."""

Path_ = tuple[str | int, ...]


@dataclass(frozen=True)
class ConfigFile:
    """One config file as it was read.

    Attributes:
        name: What the user typed.
        path: Where it was found.
        values: Its content.
        lines: Line of every key, by the path of keys that leads to it; counted from 1.
    """

    name: str
    path: Path
    values: dict[str, Any]
    lines: dict[Path_, int] = field(repr=False)


def config_folders() -> list[Path]:
    """Return where configs are looked for: the working directory, then those that the package ships."""
    shipped = PACKAGE / "configs"
    return [Path.cwd(), shipped if shipped.is_dir() else PACKAGE.parent / "configs"]


def find_config(name: str) -> Path:
    """Return the path of a config.

    Args:
        name: A path, or the name of a config in the working directory or among those that the package ships.

    Raises:
        ConfigError: If there is no such file, with the nearest names.
    """
    if Path(name).is_file():
        return Path(name).resolve()
    folders = config_folders()
    if Path(name).name == name and (folders[1] / name).is_file():
        return folders[1] / name
    shipped = sorted(path.name for path in folders[1].glob("*.yaml"))
    here = sorted(path.name for path in folders[0].glob("*.yaml"))
    close = nearest(name, [*here, *shipped], count=1)
    hint = f"did you mean '{close[0]}'? " if close else ""
    raise ConfigError(
        f"There is no config '{name}' in {folders[0]} or among those shipped with morphem; {hint}"
        f"shipped: {', '.join(shipped)}."
    )


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 5e-5 as a number (YAML 1.1 wants 5.0e-5) and dates as text, as jsonargparse does."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in pairs
        if tag not in {"tag:yaml.org,2002:float", "tag:yaml.org,2002:timestamp"}
    ]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(
        r"""^(?:[-+]?(?:[0-9][0-9_]*)\.[0-9_]*(?:[eE][-+]?[0-9]+)?|[-+]?(?:[0-9][0-9_]*)(?:[eE][-+]?[0-9]+)
        |\.[0-9_]+(?:[eE][-+][0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$""",
        re.X,
    ),
    list("-+0123456789."),
)


def read_config(name: str) -> ConfigFile:
    """Find and read one config file.

    Raises:
        ConfigError: If it is missing, is not valid YAML, is not a mapping, or has a key twice.
    """
    path = find_config(name)
    try:
        text = path.read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=_Loader)
        values = yaml.load(text, Loader=_Loader)
    except yaml.MarkedYAMLError as fault:
        line = fault.problem_mark.line + 1 if fault.problem_mark else "?"
        raise ConfigError(f"{name}:{line}: this is not valid YAML: {fault.problem or fault.context}.") from fault
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise ConfigError(f"{name}: cannot be read: {fault}.") from fault
    if not isinstance(values, dict):
        raise ConfigError(
            f"{name}: a config is a mapping of keys to values; this file holds a {type(values).__name__}."
        )
    lines: dict[Path_, int] = {}
    for key_path, line in _key_lines(node, ()):
        if key_path in lines:
            dotted = ".".join(map(str, key_path))
            raise ConfigError(
                f"{name}:{line}: the key '{dotted}' stands here for the second time; keep one of the two."
            )
        lines[key_path] = line
    return ConfigFile(name, path, values, lines)


def parse_value(text: str) -> Any:
    """Read one value of the command line as a config would read it; what is no YAML is text."""
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError:
        return text


def _key_lines(node: yaml.Node | None, above: Path_) -> Iterator[tuple[Path_, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            here = (*above, str(key.value))
            yield here, key.start_mark.line + 1
            yield from _key_lines(value, here)
    elif isinstance(node, yaml.SequenceNode):
        for position, value in enumerate(node.value):
            here = (*above, position)
            yield here, value.start_mark.line + 1
            yield from _key_lines(value, here)


def full_class_path(name: str, slot: str | None) -> str:
    """Return the import path for a short name in a config; other names come back as they are.

    Args:
        name: `dino`, `Encoder`, `lab.methods.Mine`.
        slot: The key that the class stands under, for example `model`.

    Raises:
        PluginError: If a slot of plug-ins holds a short name that nobody registered.
    """
    if "." in name:
        return name
    if name in OWN_CLASSES:
        return OWN_CLASSES[name]
    if slot in SLOTS:
        return registry.find(SLOTS[slot], name).class_path
    return name


def expand(values: Any, slot: str | None = None) -> Any:
    """Replace short names by import paths in a config, and give `data` its class where it has none.

    Args:
        values: A config or a part of one; it is not changed.
        slot: The key that it stands under.
    """
    if isinstance(values, list):
        return [expand(item, None) for item in values]
    if not isinstance(values, dict):
        return full_class_path(values, slot) if slot in SLOTS and isinstance(values, str) else values
    out = {key: expand(value, key) for key, value in values.items() if key != "class_path"}
    if "class_path" in values:
        return {"class_path": full_class_path(str(values["class_path"]), slot), **out}
    if slot == "data" and values and "init_args" not in values:
        return {"class_path": OWN_CLASSES["ShardData"], "init_args": out}
    return out


def load_for_parser(text: str) -> Any:
    """Read YAML for jsonargparse, with short names expanded (installed as its loader of YAML)."""
    from jsonargparse._loaders_dumpers import yaml_load

    return expand(yaml_load(text))  # type: ignore[no-untyped-call]

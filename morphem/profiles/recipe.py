"""A recipe: the steps from features to profiles in any order, from a YAML file or from Python."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import yaml

from morphem.errors import ConfigError, DataError, MorphemError, nearest, unknown_name
from morphem.features import FeatureTable
from morphem.profiles.aggregate import UNIT, Aggregate, Consensus
from morphem.profiles.combat import Combat
from morphem.profiles.conventions import CHANNEL, FINER_THAN_WELL, OUTER, PLATE, WELL, select_rows
from morphem.profiles.integration import Harmony, Scanorama
from morphem.profiles.rows import Annotate, FillMetadata, Filter, Impute
from morphem.profiles.scaling import InverseNormal, MadRobustize, Robustize, Standardize
from morphem.profiles.selection import DropFeatures, SelectFeatures
from morphem.profiles.sphering import Sphere
from morphem.profiles.step import Step
from morphem.profiles.tvn import TVN

STEPS: dict[str, type[Step]] = {
    step.name: step
    for step in (
        Annotate,
        FillMetadata,
        Filter,
        Aggregate,
        Consensus,
        DropFeatures,
        SelectFeatures,
        Impute,
        Standardize,
        Robustize,
        MadRobustize,
        InverseNormal,
        Sphere,
        TVN,
        Combat,
        Harmony,
        Scanorama,
    )
}
"""The steps that a YAML recipe may name."""

Rows = Literal["infer", "well", "other"]
Leaks = Literal["record", "error"]
_KEYS = ("controls", "held_out", "leaks", "features", "rows", "steps")
_EXAMPLE = "steps: [{step: mad_robustize, samples: controls}]"
_LIBRARIES = ("morphem", "pycytominer", "scikit-learn", "numpy", "scipy", "pandas")


class _Loader(yaml.SafeLoader):
    """Safe YAML that reads 1e-3 as a number; YAML 1.1 wants 1.0e-3 and takes the other for a text."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+"), list("-+0123456789")
)


@dataclass(frozen=True)
class Recipe:
    """Steps in order, and what they share.

    Attributes:
        steps: At least one.
        controls: Query of the controls, which steps call `controls`; a step that learns from other rows says so in its
            record.
        held_out: Query of rows that no step should learn from; one that does says so in its record.
        features: `infer`, or names and patterns of the feature columns.
        rows: What a row is: `well` (no well may be there twice), `other`, or `infer`: wells where the table says so, or
            has plate and well and no column of anything finer.
        leaks: `record`: a step that learns from rows that are no controls, or held out, says so in its record; `error`:
            it is refused.
    """

    steps: tuple[Step, ...]
    controls: str = ""
    held_out: str = ""
    features: str | tuple[str, ...] = "infer"
    rows: Rows = "infer"
    leaks: Leaks = "record"

    def __post_init__(self) -> None:
        """Check the settings."""
        if not self.steps:
            raise ConfigError(f"a recipe has a list of 'steps', for example {_EXAMPLE}.")
        for key in ("controls", "held_out"):
            if not isinstance(getattr(self, key), str):
                raise ConfigError(f"{key} is {getattr(self, key)!r}; it must be a query in quotes.")
        if self.controls in ("all", "controls"):
            raise ConfigError(
                f"controls is '{self.controls}'; it must be a query, such as Metadata_control_type == 'negcon'."
            )
        for key, allowed in (("rows", get_args(Rows)), ("leaks", get_args(Leaks))):
            if getattr(self, key) not in allowed:
                raise ConfigError(f"{key} is {getattr(self, key)!r}; it must be one of {', '.join(allowed)}.")

    @classmethod
    def read(cls, path: str | Path, settings: Sequence[str] = ()) -> "Recipe":
        """Read a recipe from a YAML file.

        Args:
            path: A file with `steps`, a list in which every entry names a `step` and gives its settings.
            settings: Changes, `KEY=VALUE` with YAML values, where KEY is a key of the recipe or `STEP.SETTING`.

        Raises:
            ConfigError: If the file is no recipe, with file, line and key, and the nearest name where one is unknown.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            node, values = yaml.compose(text, _Loader), yaml.load(text, _Loader)
        except yaml.MarkedYAMLError as fault:
            line = fault.problem_mark.line + 1 if fault.problem_mark else "?"
            raise ConfigError(f"{path}:{line}: this is not valid YAML: {fault.problem or fault.context}.") from fault
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
            raise ConfigError(f"the recipe '{path}' cannot be read: {fault}.") from fault
        for setting in settings:
            _change(values, setting)
        _find_tables(values, Path(path).resolve().parent)
        return cls._build(values, str(path), _lines(node))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from the content of a YAML file, or from what `to_dict` gave.

        Args:
            values: `steps` and any of `controls`, `held_out`, `leaks`, `features`, `rows`.

        Raises:
            ConfigError: If it is no recipe.
        """
        return cls._build(values, "recipe", [])

    @classmethod
    def _build(cls, values: Any, where: str, lines: Sequence[int]) -> "Recipe":
        if not isinstance(values, Mapping) or not isinstance(values.get("steps"), list) or not values["steps"]:
            raise ConfigError(f"{where}: a recipe has a list of 'steps', for example {_EXAMPLE}.")
        _check_keys(values, _KEYS, where)
        steps = [
            _step(entry, f"{where}:{lines[i]}" if i < len(lines) else f"{where}, step {i + 1}")
            for i, entry in enumerate(values["steps"])
        ]
        others = {key: value for key, value in values.items() if key != "steps"}
        if isinstance(others.get("features"), list):
            others["features"] = tuple(others["features"])
        try:
            return cls(tuple(steps), **others)
        except ConfigError as fault:
            raise ConfigError(f"{where}: {fault}") from fault

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data with all settings, defaults included."""
        features = list(self.features) if isinstance(self.features, tuple) else self.features
        steps = [{"step": step.name, **step.settings()} for step in self.steps]
        common = {"controls": self.controls, "held_out": self.held_out, "leaks": self.leaks}
        return {**common, "features": features, "rows": self.rows, "steps": steps}

    def prepare(self) -> None:
        """Find out, before a table is read, whether what the steps need is there.

        Raises:
            ConfigError: If a library or a file is missing; with the number of the step.
        """
        for number, step in enumerate(self.steps, 1):
            try:
                step.prepare()
            except MorphemError as fault:
                raise type(fault)(f"step {number} of {len(self.steps)}, {fault}") from fault

    def run(self, table: FeatureTable, begin: int = 0, end: int | None = None) -> FeatureTable:
        """Do some of the steps.

        Args:
            table: Rows.
            begin: First step, from 0.
            end: Step before which to stop; the end where not given.

        Raises:
            ConfigError: If a setting does not fit the table; with the number of the step.
            DataError: If the rows are not what a step needs.
        """
        for number, step in list(enumerate(self.steps, 1))[begin:end]:
            try:
                table = step(table, controls=self.controls, held_out=self.held_out, forbid_leaks=self.leaks == "error")
            except MorphemError as fault:
                raise type(fault)(f"step {number} of {len(self.steps)}, {fault}") from fault
        return table

    def check(self, table: FeatureTable) -> None:
        """Check a table before the first step.

        Args:
            table: Rows.

        Raises:
            ConfigError: If the queries of controls or held-out rows do not fit; those that a step makes possible (a
                column that `annotate` brings) are checked by the steps.
            DataError: If a well is there twice.
        """
        brings = any(isinstance(step, Annotate | FillMetadata) for step in self.steps)
        for key in ("controls", "held_out"):
            if getattr(self, key) and not brings:
                select_rows(table.metadata, getattr(self, key), key)
        check_wells(table, self.rows)

    def sign(self, table: FeatureTable) -> FeatureTable:
        """Return a table whose provenance holds the recipe, its hash, and the versions of the libraries.

        Args:
            table: The result.
        """
        plain = self.to_dict()
        digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
        software = {name: version(name) for name in _LIBRARIES}
        signed = {**table.provenance, "recipe": plain, "recipe_sha256": digest, "software": software}
        return replace(table, provenance=signed)


def check_wells(table: FeatureTable, rows: Rows) -> None:
    """Refuse tables of wells in which a well is there twice.

    Args:
        table: Rows.
        rows: As a recipe says.

    Raises:
        ConfigError: If `rows` is `well` and the table has no plate or no well.
        DataError: With the first doubled well.
    """
    metadata = table.metadata
    named = PLATE in metadata and WELL in metadata
    if rows == "well" and not named:
        raise ConfigError(f"rows is 'well', but the table has no {PLATE} or no {WELL}.")
    says = set(metadata[UNIT].dropna().astype(str)) if UNIT in metadata else set()
    finer = any(name in metadata for name in FINER_THAN_WELL)
    if rows == "other" or not named or (rows == "infer" and says != {"well"} and (says or finer)):
        return
    key = [name for name in (*OUTER, PLATE, WELL, CHANNEL) if name in metadata]
    doubled = metadata[key].astype(str).duplicated(keep=False)
    if doubled.any():
        first = metadata[key].iloc[int(np.argmax(doubled))]
        raise DataError(
            f"{int(doubled.sum())} rows share their well with another, first {' '.join(map(str, first))}; if a row is "
            "less "
            "than a well, say rows: other in the recipe and aggregate; if not, remove the doubled rows."
        )


def _step(entry: Any, where: str) -> Step:
    """Build a step from its entry in a recipe."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("step"), str):
        raise ConfigError(f"{where}: every entry of 'steps' names its step, for example {_EXAMPLE}; got {entry!r}.")
    name = entry["step"]
    if name not in STEPS:
        raise ConfigError(f"{where}: {unknown_name('step', name, STEPS)}")
    settings = {key: value for key, value in entry.items() if key != "step"}
    known = settings_of(STEPS[name])
    _check_keys(settings, [field.name for field in known], f"{where}: {name}")
    for field in known:
        if field.default is MISSING and field.name not in settings:
            raise ConfigError(f"{where}: the step '{name}' needs '{field.name}'.")
        if field.name in settings and field.type is str and not isinstance(settings[field.name], str):
            raise ConfigError(f"{where}: {name}: {field.name} is {settings[field.name]!r}; it must be a text.")
    try:
        return STEPS[name](**settings)
    except ConfigError as fault:
        raise ConfigError(f"{where}: {fault}") from fault


def settings_of(step: type[Step]) -> tuple[Field[Any], ...]:
    """Return the settings of a kind of step, in order.

    Args:
        step: One of `STEPS`.
    """
    return fields(step)  # type: ignore[arg-type]


def _check_keys(values: Mapping[Any, Any], allowed: Sequence[str], where: str) -> None:
    for key in values:
        if key not in allowed:
            close = nearest(str(key), allowed, count=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ConfigError(f"{where}: unknown key '{key}'; {hint}allowed: {', '.join(allowed)}.")


def _change(values: Any, setting: str) -> None:
    """Put one `KEY=VALUE` into the content of a recipe."""
    key, sign, text = setting.partition("=")
    if not sign or not isinstance(values, dict):
        raise ConfigError(f"--set {setting}: write KEY=VALUE, for example --set sphere.epsilon=1.0e-3.")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as fault:
        raise ConfigError(f"--set {setting}: '{text}' is not valid YAML.") from fault
    head, dot, name = key.partition(".")
    if not dot:
        if key not in _KEYS or key == "steps":
            raise ConfigError(f"--set {setting}: {unknown_name('key', key, [k for k in _KEYS if k != 'steps'])}")
        values[key] = value
        return
    entries = [e for e in values.get("steps") or [] if isinstance(e, dict) and e.get("step") == head]
    if len(entries) != 1:
        names = [str(e.get("step")) for e in values.get("steps") or [] if isinstance(e, dict)]
        count = "has no" if not entries else f"has {len(entries)} times the"
        raise ConfigError(f"--set {setting}: the recipe {count} step '{head}' (it has {', '.join(names)}).")
    entries[0][name] = value


def _find_tables(values: Any, folder: Path) -> None:
    """Complete relative paths of plate maps that lie beside the recipe."""
    for entry in (values.get("steps") or []) if isinstance(values, Mapping) else []:
        if isinstance(entry, dict) and entry.get("step") == Annotate.name and isinstance(entry.get("table"), str):
            beside = folder / entry["table"]
            if not Path(entry["table"]).is_file() and beside.is_file():
                entry["table"] = str(beside)


def _lines(node: yaml.Node | None) -> list[int]:
    """Return the line of every entry of `steps`, from 1."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if key.value == "steps" and isinstance(value, yaml.SequenceNode):
                return [item.start_mark.line + 1 for item in value.value]
    return []

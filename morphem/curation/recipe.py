"""A recipe: the steps of curation in order, from a YAML file or from Python."""

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

from morphem.curation.clusters import Clusters
from morphem.curation.duplicates import NearDuplicates
from morphem.curation.selection import Selection
from morphem.curation.step import IMAGE, Floats, Mask, Step, image_numbers
from morphem.curation.steps_metadata import CentralZPlanes, ControlWells, EvenlySpacedFrames
from morphem.curation.steps_pixels import Foreground, Intensity, Quality, Select
from morphem.errors import ConfigError, DataError, nearest, unknown_name
from morphem.rng import mix

STEPS: dict[str, type[Step]] = {
    step.name: step
    for step in (
        Select,
        CentralZPlanes,
        EvenlySpacedFrames,
        ControlWells,
        Intensity,
        Foreground,
        Quality,
        NearDuplicates,
        Clusters,
    )
}
"""The steps that a YAML recipe may name."""

_EXAMPLE = "steps: [{step: central_z_planes, share: 0.2}]"
_KEYS = ("seed", "steps")


@dataclass(frozen=True)
class Recipe:
    """Steps of curation in order; each sees what the one before left.

    Attributes:
        steps: Those on metadata first; with none, every image stays.
        seed: The only source of chance. The draws of a step depend on it, the study and the step's name, not on other
            steps.

    Raises:
        ConfigError: If a step on metadata comes after one on pixels, or the seed is no whole number.
    """

    steps: tuple[Step, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the order of the steps."""
        if isinstance(self.seed, bool) or not isinstance(self.seed, int):
            raise ConfigError(f"seed is {self.seed!r}; it must be a whole number.")
        pixels: str | None = None
        for step in self.steps:
            if step.needs == "metadata" and pixels:
                raise ConfigError(
                    f"the step '{step.name}' reads metadata alone and stands after '{pixels}', which needs pixels; "
                    "move it before all steps on pixels, so that images that it removes are never read."
                )
            pixels = pixels or (step.name if step.needs != "metadata" else None)

    @classmethod
    def read(cls, path: str | Path) -> "Recipe":
        """Read a recipe from a YAML file.

        Args:
            path: A file with `steps`, a list in which every entry names a `step` and gives its settings, and `seed`.

        Raises:
            ConfigError: If the file is no recipe, with file, line and key, and the nearest name where one is unknown.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
            node, values = yaml.compose(text, yaml.SafeLoader), yaml.safe_load(text)
        except yaml.MarkedYAMLError as fault:
            line = fault.problem_mark.line + 1 if fault.problem_mark else "?"
            raise ConfigError(f"{path}:{line}: this is not valid YAML: {fault.problem or fault.context}.") from fault
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
            raise ConfigError(f"the recipe '{path}' cannot be read: {fault}.") from fault
        return cls._from_values(values, str(path), _lines_of_steps(node))

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Recipe":
        """Build a recipe from what `to_dict` gave, or from the content of a YAML file.

        Args:
            values: `steps` and `seed`.

        Raises:
            ConfigError: If it is no recipe.
        """
        return cls._from_values(values, "recipe", [])

    @classmethod
    def _from_values(cls, values: Any, where: str, lines: Sequence[int]) -> "Recipe":
        if not isinstance(values, Mapping) or not isinstance(values.get("steps"), list) or not values["steps"]:
            raise ConfigError(f"{where}: a recipe has a list of 'steps', for example {_EXAMPLE}.")
        _check_keys(values, _KEYS, where)
        steps = []
        for number, entry in enumerate(values["steps"]):
            place = f"{where}:{lines[number]}" if lines else f"{where}, step {number + 1}"
            steps.append(_step(entry, place))
        try:
            return cls(tuple(steps), values.get("seed", 0))
        except ConfigError as fault:
            raise ConfigError(f"{where}: {fault}") from fault

    def to_dict(self) -> dict[str, Any]:
        """Return the recipe as plain data with all settings, defaults included; for fingerprints and reports."""
        steps = [{"step": step.name, **_plain(step.__dict__.get("_init_args", {}))} for step in self.steps]
        return {"seed": self.seed, "steps": steps}

    @property
    def before_pixels(self) -> "Recipe":
        """The steps that run before a pixel is read; perhaps none."""
        return Recipe(tuple(step for step in self.steps if step.needs == "metadata"), self.seed)

    @property
    def after_pixels(self) -> "Recipe":
        """The steps that need measurements or features; perhaps none."""
        return Recipe(tuple(step for step in self.steps if step.needs != "metadata"), self.seed)

    @property
    def needs(self) -> frozenset[str]:
        """What the steps need: any of `metadata`, `quality` and `features`."""
        return frozenset(step.needs for step in self.steps)

    def check_studies(self, studies: Iterable[str]) -> None:
        """Check that every study that a step names is there.

        Args:
            studies: All studies of a run.

        Raises:
            ConfigError: If one is not, with the nearest.
        """
        known = sorted(studies)
        for step in self.steps:
            for study in step.studies:
                if study not in known:
                    raise ConfigError(f"{step.name}.studies: {unknown_name('study', study, known)}")

    def apply(self, study: str, planes: pd.DataFrame, features: Floats | None = None) -> Selection:
        """Run all steps on one study.

        Args:
            study: Its name.
            planes: One row per channel plane, the planes of an image one after another.
            features: (N, D), one row per image in order of first appearance; needed by steps on features.

        Returns:
            What stays and what each step removed; a step that does not look at this study is not in it.

        Raises:
            ConfigError: If a setting does not fit the table.
            DataError: If the table, or the features, are not what a step needs.
        """
        if IMAGE not in planes:
            raise DataError(f"the plane table of study '{study}' has no column '{IMAGE}'.")
        names = planes[IMAGE].astype(str).drop_duplicates().tolist()
        if features is not None and len(features) != len(names):
            raise DataError(f"study '{study}' has {len(names)} images and {len(features)} rows of features.")
        selection = Selection(study, len(names), names)
        for step, label in zip(self.steps, self._labels(), strict=True):
            if not step.applies_to(study):
                continue
            mask = self._run(step, label, selection, planes, features)
            selection.removed[label] = [name for name, stays in zip(selection.kept, mask, strict=True) if not stays]
            selection.kept = [name for name, stays in zip(selection.kept, mask, strict=True) if stays]
            planes = planes[mask[image_numbers(planes)]]
            features = None if features is None else features[mask]
        return selection

    def _run(self, step: Step, label: str, selection: Selection, planes: pd.DataFrame, features: Floats | None) -> Mask:
        """Ask one step, and check what it says."""
        if not selection.kept:
            return np.ones(0, np.bool_)
        given = features if step.needs == "features" else None
        if step.needs == "features" and features is None:
            raise DataError(f"the step '{label}' needs features of the images; give them to Recipe.apply.")
        mask = np.asarray(step.keep(planes.reset_index(drop=True), given, mix(self.seed, selection.study, label)))
        if mask.shape != (len(selection.kept),) or mask.dtype != np.bool_:
            raise DataError(
                f"the step '{label}' returned {mask.dtype} of shape {mask.shape} for {len(selection.kept)} images; "
                "it must return one truth value for each."
            )
        remark = step.remark(planes.reset_index(drop=True))
        selection.remarks += [remark] if remark else []
        return mask

    def _labels(self) -> list[str]:
        """Return a name for every step: a step that stands in the recipe again gets a number, `quality 2`."""
        seen: Counter[str] = Counter()
        labels = []
        for step in self.steps:
            seen[step.name] += 1
            labels.append(step.name if seen[step.name] == 1 else f"{step.name} {seen[step.name]}")
        return labels


def _step(entry: Any, where: str) -> Step:
    """Build a step from its entry in a recipe."""
    if not isinstance(entry, Mapping) or not isinstance(entry.get("step"), str):
        raise ConfigError(f"{where}: every entry of 'steps' names its step, for example {_EXAMPLE}; got {entry!r}.")
    name = entry["step"]
    if name not in STEPS:
        raise ConfigError(f"{where}: {unknown_name('step', name, STEPS)}")
    settings = {key: value for key, value in entry.items() if key != "step"}
    parameters = inspect.signature(STEPS[name]).parameters
    _check_keys(settings, list(parameters), f"{where}: {name}")
    missing = [key for key, one in parameters.items() if one.default is inspect.Parameter.empty and key not in settings]
    if missing:
        raise ConfigError(f"{where}: the step '{name}' needs '{missing[0]}'.")
    try:
        return STEPS[name](**settings)
    except ValueError as fault:
        raise ConfigError(f"{where}: {fault}") from fault


def _check_keys(values: Mapping[Any, Any], allowed: Sequence[str], where: str) -> None:
    for key in values:
        if key not in allowed:
            close = nearest(str(key), allowed, count=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ConfigError(f"{where}: unknown key '{key}'; {hint}allowed: {', '.join(allowed)}.")


def _lines_of_steps(node: yaml.Node | None) -> list[int]:
    """Return the line of every entry of `steps`, from 1."""
    if not isinstance(node, yaml.MappingNode):
        return []
    for key, value in node.value:
        if key.value == "steps" and isinstance(value, yaml.SequenceNode):
            return [item.start_mark.line + 1 for item in value.value]
    return []


def _plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {key: list(value) if isinstance(value, tuple) else value for key, value in settings.items()}

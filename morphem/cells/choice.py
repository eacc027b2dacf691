"""Which cells an ingest takes: what the words after `--cells` mean."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from morphem.cells.base import CellFinder, Cells
from morphem.cells.cellpose import CellposeCells
from morphem.cells.classical import ClassicalCells
from morphem.cells.tables import CellsFromLabelImages, CellsFromTable
from morphem.errors import ConfigError, unknown_name

if TYPE_CHECKING:
    from morphem.data.record import ImageRecord

_DETECTORS: dict[str, tuple[type[CellFinder], dict[str, Any]]] = {
    "otsu": (ClassicalCells, {"threshold": "otsu"}),
    "adaptive": (ClassicalCells, {"threshold": "adaptive"}),
    "cellpose": (CellposeCells, {}),
}
_WORDS = ("source", "none", *_DETECTORS)


class NoCells(CellFinder):
    """Looks for no cells; those that a source has are not taken."""

    def find(self, image: "ImageRecord") -> Cells | None:
        """Return None."""
        return None

    def without_cells(self, image: "ImageRecord") -> str | None:
        """Return None: no cells are what was asked for."""
        return None


class CellsPerStudy(CellFinder):
    """Finds the cells of each study in its own way.

    Args:
        finders: One for each study, by its name. None takes the cells that the source has.
        default: For the other studies.
    """

    def __init__(self, finders: Mapping[str, CellFinder | None], default: CellFinder | None = None) -> None:
        self.finders = dict(finders)
        self.default = default

    def find(self, image: "ImageRecord") -> Cells | None:
        """Return the cells of an image in the way of its study.

        Args:
            image: Any image.
        """
        finder = self.finders.get(str(image.rows[0].get("experiment.study")), self.default)
        if finder is not None:
            return finder.find(image)
        if image.cells is None:
            return None
        labels = {name: list(values) for name, values in (image.cell_labels or {}).items()}
        return Cells(image.cells, labels, None, image.masks)

    def without_cells(self, image: "ImageRecord") -> str | None:
        """Return what the study's finder remarks; None where the study takes the source's cells."""
        finder = self.finders.get(str(image.rows[0].get("experiment.study")), self.default)
        return None if finder is None else finder.without_cells(image)


def cells_from_option(text: str, **settings: Any) -> CellFinder | None:
    """Return the cell finder that some words describe.

    Args:
        text: `source` (the cells that the source has), `none`, `otsu`, `adaptive` or `cellpose`, each detector with
            settings after a colon, for example `otsu:channel=nucleus,min_diameter_px=20`; or the path of a CSV of
            cells, of a folder of label images, or of a YAML file that has such words, or a mapping with `find` and
            settings, for each study and for `default`.
        settings: Further settings of a detector.

    Returns:
        None for `source`.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        ConfigError: If the words mean nothing, or a setting is unknown or wrong.
    """
    word, _, tail = text.partition(":")
    if word in _DETECTORS:
        return _detector(word, {**_settings_of(tail), **settings})
    path = Path(text)
    if settings or (word in _WORDS and tail):
        name = next(iter(settings), tail)
        raise ConfigError(f"cells '{text}' takes no setting '{name}'; only {', '.join(_DETECTORS)} have settings.")
    if text == "source":
        return None
    if text == "none":
        return NoCells()
    if path.suffix.lower() in (".yaml", ".yml") and path.is_file():
        return _per_study(path)
    if path.suffix.lower() == ".csv" and path.is_file():
        return CellsFromTable(str(path))
    if path.is_dir():
        return CellsFromLabelImages(str(path))
    if "/" in text or path.suffix:
        raise ConfigError(f"There is no file or folder '{text}' with cells; give a .csv, a .yaml or a folder.")
    raise ConfigError(unknown_name("way to find cells", text, _WORDS))


def _detector(word: str, settings: dict[str, Any]) -> CellFinder:
    import inspect

    cls, fixed = _DETECTORS[word]
    known = [name for name in inspect.signature(cls).parameters if name not in fixed]
    wrong = [name for name in settings if name not in known]
    if wrong:
        raise ConfigError(unknown_name(f"setting of '{word}'", wrong[0], known))
    try:
        return cls(**fixed, **settings)
    except TypeError as fault:
        raise ConfigError(f"a setting of '{word}' has the wrong type: {fault}.") from fault


def _settings_of(text: str) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError(f"'{part}' is no setting; write name=value, with commas between.")
        settings[name.strip()] = yaml.safe_load(value)
    return settings


def _per_study(path: Path) -> CellsPerStudy:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as fault:
        raise ConfigError(f"'{path}' cannot be read as YAML: {str(fault).splitlines()[0]}.") from fault
    if not isinstance(content, dict) or not content:
        raise ConfigError(f"'{path}' needs a mapping from names of studies (and 'default') to ways to find cells.")
    finders = {str(study): _finder_of(entry, f"'{path}', '{study}'") for study, entry in content.items()}
    return CellsPerStudy(finders, finders.pop("default", None))


def _finder_of(entry: Any, where: str) -> CellFinder | None:
    try:
        if isinstance(entry, str):
            return cells_from_option(entry)
        if isinstance(entry, dict) and isinstance(entry.get("find"), str):
            return cells_from_option(**{"text": entry["find"], **{k: v for k, v in entry.items() if k != "find"}})
    except ConfigError as fault:
        raise ConfigError(f"{where}: {fault}") from fault
    raise ConfigError(f"{where} must be words as after --cells, or a mapping with 'find' and settings.")

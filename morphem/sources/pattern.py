"""Images whose file names say what they are: a regular expression with named groups, or a preset for a microscope."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Self

import pandas as pd

from morphem.data.schema import COLUMNS, UNKNOWN
from morphem.data.wells import normalise_well
from morphem.errors import ConfigError, DataError, unknown_name
from morphem.readers.files import Files, open_files
from morphem.sources.panels import image_name, study_name, with_panels
from morphem.sources.table import TableSource

IMAGE_SUFFIXES = (".tif", ".tiff", ".png", ".jpg", ".jpeg", ".bmp")
_SYNONYMS = {"field": "site", "fov": "site", "wavelength": "channel", "col": "column", "timepoint": "t", "time": "t"}
_COLUMN_OF = {
    "study": "experiment.study",
    "plate": "experiment.plate",
    "well": "experiment.well",
    "site": "microscopy.fov",
    "z": "geometry.z_slice",
    "t": "geometry.timepoint",
}
_PREFIXES = {"site": "s", "z": "z", "t": "t"}
_OWN = ("study", "plate", "well", "row", "column", "site", "channel", "z", "t")


@dataclass(frozen=True)
class Layout:
    """How file names are read.

    Attributes:
        patterns: Regular expressions with named groups, tried in order.
        leave_out: Paths in which this is found are no images of the plate.
        defaults: Values of groups that a name lacks.
        values: For a group, values that stand for something else.
        examples: Paths and the groups in them.
        what: Instrument and folder layout, in words.
    """

    patterns: tuple[str, ...]
    leave_out: str | None = None
    defaults: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    examples: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    what: str = "a pattern of the user"

    def read(self, path: str) -> dict[str, str] | None:
        """Return the groups that a path names, or None if no pattern is found in it.

        Args:
            path: With '/' between folders; a pattern without '/' sees the last part alone.
        """
        if self.leave_out and re.search(self.leave_out, path):
            return None
        for pattern in self.patterns:
            found = re.search(pattern, path if "/" in pattern else path.rpartition("/")[2])
            if found:
                named = {name: value for name, value in found.groupdict().items() if value is not None}
                return {**self.defaults, **named}
        return None


@cache
def presets() -> dict[str, Layout]:
    """Return the layouts of file_patterns.yaml by name."""
    import yaml

    text = resources.files("morphem.data").joinpath("file_patterns.yaml").read_text(encoding="utf-8")
    entries: dict[str, dict[str, Any]] = yaml.safe_load(text)
    return {
        name: Layout(
            tuple(entry["patterns"]),
            entry.get("leave_out"),
            entry.get("defaults", {}),
            entry.get("values", {}),
            entry["examples"],
            entry["what"],
        )
        for name, entry in entries.items()
    }


class PatternSource(TableSource):
    r"""Reads images by their file names.

    Named groups of the pattern: `plate`, `well` (or `row` and `column`), `site`, `channel`, `z`, `t`, `study`; a group
    `biology__cell_line` fills the column `biology.cell_line`, and so on; every other group is a label. All groups but
    `channel` together name the image. A pattern with a '/' in it is searched in the path, which begins with the name of
    the location's own folder; one without is searched in the file name.

    Args:
        location: A folder, a zip or a bucket.
        pattern: Regular expression, for example `(?P<plate>\w+)_(?P<well>[A-P]\d\d)_(?P<channel>\w+)\.tif`.
        preset: Name of a microscope in `morphem/data/file_patterns.yaml`, in place of a pattern; the one that reads
            most of the names if neither is given.
        study: Name of the study, where no group tells it; one of those that the group `study` found, where it does.
        channel_aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        ConfigError: If pattern or preset cannot be used.
        DataError: If no file fits.
    """

    priority = -20

    def __init__(
        self,
        location: str,
        pattern: str | None = None,
        preset: str | None = None,
        study: str | None = None,
        channel_aliases: Mapping[str, str] | None = None,
    ) -> None:
        files = open_files(location)
        layout = chosen_layout(files, pattern, preset)
        table, left = pattern_table(files.names(), layout, folder_name(location), study or study_name(location))
        if table.empty:
            raise DataError(
                f"'{location}' has {len(left)} image files but none fits {layout.what}, "
                f"for example '{left[0] if left else 'nothing'}'; correct the pattern or choose a preset: {_known()}."
            )
        table = _of_study(table, study, location)
        super().__init__(files, table, channel_aliases=channel_aliases)
        self.remarks.update({"image files whose names do not fit the pattern": len(left)} if left else {})

    @classmethod
    def open(cls, location: str, **settings: Any) -> list[Self]:
        """Return one source for each study that the group `study` names.

        Args:
            location: As in the constructor.
            settings: As in the constructor.
        """
        group = re.search(r"\(\?P<(study)>", settings.get("pattern") or "", re.IGNORECASE)
        if settings.get("study") is not None or group is None:
            return [cls(location, **settings)]
        files = open_files(location)
        layout = chosen_layout(files, settings["pattern"], settings.get("preset"))
        read = (layout.read(_path(name, folder_name(location))) or {} for name in _images(files.names()))
        studies = dict.fromkeys(groups[group[1]] for groups in read if groups.get(group[1]))
        return [cls(location, **{**settings, "study": study}) for study in studies] or [cls(location, **settings)]

    @classmethod
    def recognises(cls, files: Files) -> bool:
        """Whether a preset reads at least half of the image files.

        Args:
            files: The files of a location.
        """
        return _best_preset(files) is not None

    @classmethod
    def tiny(cls, folder: Path) -> Self:
        """Write one well of two sites and two channels, named as an ImageXpress does, and return its source.

        Args:
            folder: Exists and is empty.
        """
        import numpy as np
        import tifffile

        ramp = np.arange(16 * 20, dtype=np.uint16).reshape(16, 20)
        for site in (1, 2):
            for wavelength in (1, 2):
                path = folder / f"tiny_B03_s{site}_w{wavelength}.tif"
                tifffile.imwrite(path, (ramp * wavelength + site).astype(np.uint16))
        return cls(str(folder), preset="imagexpress", study="tiny", channel_aliases={"w1": "nucleus", "w2": "actin"})


def pattern_table(names: Iterable[str], layout: Layout, folder: str, study: str) -> tuple[pd.DataFrame, list[str]]:
    """Return the plane table that file names tell, and the image files that do not fit.

    Args:
        names: Files inside the location, '/' separated.
        layout: How their names are read.
        folder: Name of the location's own folder.
        study: Name of the study where the names do not tell.
    """
    rows, left = [], []
    for name in _images(names):
        groups = layout.read(_path(name, folder))
        if groups is not None:
            rows.append(_row(name, groups, layout, study))
        elif not (layout.leave_out and re.search(layout.leave_out, name)):
            left.append(name)
    table = pd.DataFrame(rows, dtype=str).fillna("")
    if table.empty:
        return table, left
    fields = ["experiment.plate", "experiment.well", "microscopy.fov", "geometry.timepoint"]
    slices = table["geometry.z_slice"]
    depth = slices.groupby([table[name] for name in fields]).transform("nunique").astype(str)
    return with_panels(table.assign(**{"geometry.depth": depth.where(slices != UNKNOWN, UNKNOWN)})), left


def chosen_layout(files: Files, pattern: str | None, preset: str | None) -> Layout:
    """Return the layout that the user asks for, or the preset that reads most names.

    Args:
        files: The files of the location.
        pattern: Regular expression with named groups, or None.
        preset: Name of a preset, or None.

    Raises:
        ConfigError: If both are given, the preset does not exist, or the pattern is none.
        DataError: If neither is given and no preset fits.
    """
    if pattern is not None and preset is not None:
        raise ConfigError("Both 'pattern' and 'preset' are given; leave one of them out.")
    if preset is not None:
        if preset not in presets():
            raise ConfigError(unknown_name("preset of file names", preset, presets()))
        return presets()[preset]
    if pattern is not None:
        return _users_layout(pattern)
    best = _best_preset(files)
    if best is None:
        raise DataError(f"'{files.location}': the file names fit no preset ({_known()}); pass --set pattern=... .")
    return presets()[best]


def _users_layout(pattern: str) -> Layout:
    try:
        groups = list(re.compile(pattern).groupindex)
    except re.error as fault:
        raise ConfigError(f"The pattern '{pattern}' is no regular expression: {fault}; correct it.") from fault
    names = {_group(name) for name in groups}
    wrong = [name for name in groups if "__" in name and name.replace("__", ".") not in COLUMNS]
    if wrong:
        raise ConfigError(unknown_name("column", wrong[0].replace("__", "."), COLUMNS))
    if not names:
        raise ConfigError(f"The pattern '{pattern}' has no named group such as (?P<well>...); name what it finds.")
    if len(names) < len(groups) or {"row", "column"} & names not in (set(), {"row", "column"}):
        raise ConfigError(f"The pattern '{pattern}' names a group twice, or a row without a column; correct it.")
    return Layout((pattern,))


def _group(name: str) -> str:
    lower = name.casefold().removeprefix("metadata_")
    return _SYNONYMS.get(lower, lower)


def _row(name: str, read: Mapping[str, str], layout: Layout, study: str) -> dict[str, str]:
    groups = {_group(key): value.strip() for key, value in read.items()}
    if "row" in groups:
        row, column = groups.pop("row"), groups.pop("column")
        groups["well"] = normalise_well(f"R{int(row):02d}C{int(column):02d}" if row.isdecimal() else f"{row}{column}")
    elif "well" in groups:
        groups["well"] = normalise_well(groups["well"])
    for key in ("site", "z", "t"):
        value = layout.values.get(key, {}).get(groups.get(key, ""), groups.get(key, UNKNOWN))
        groups[key] = str(int(value)) if value.isdecimal() else value
    further = {key: value for key, value in groups.items() if key not in _OWN}
    known = {_COLUMN_OF[key]: value for key, value in groups.items() if key in _COLUMN_OF}
    parts = [(_PREFIXES.get(key, ""), groups.get(key, "")) for key in ("plate", "well", "site", "z", "t")]
    return {
        "file": name,
        "plane_axis": "none",
        "plane_index": "0",
        "experiment.study": study,
        "experiment.plate": UNKNOWN,
        "experiment.well": UNKNOWN,
        **known,
        "imaging.multi_channel_id": image_name(*parts, *(("", further[key]) for key in sorted(further)))
        or Path(name).stem,
        "channel_name": groups.pop("channel", "single channel"),
        "storage.path": name,
        **{key.replace("__", "."): value for key, value in further.items()},
    }


def _of_study(table: pd.DataFrame, study: str | None, location: str) -> pd.DataFrame:
    studies = list(dict.fromkeys(table["experiment.study"]))
    if len(studies) == 1:
        return table.assign(**{"experiment.study": study}) if study else table
    if study in studies:
        return table[table["experiment.study"] == study].reset_index(drop=True)
    raise DataError(f"'{location}' holds the studies {', '.join(studies)}; choose one of them with --set study=NAME.")


def _best_preset(files: Files) -> str | None:
    """The preset that reads most image names, at least half of them; None if there is none."""
    names = [_path(name, folder_name(files.location)) for name in _images(files.names())][:2000]
    counts = {key: sum(layout.read(name) is not None for name in names) for key, layout in presets().items()}
    best = max(counts, key=lambda key: counts[key])
    return best if counts[best] and counts[best] * 2 >= len(names) else None


def folder_name(location: str) -> str:
    """Return the last part of a path or URL, that of the real folder where the path is `.` or ends in `..`.

    Args:
        location: A path or URL.
    """
    text = location if "://" in location else str(Path(location).resolve())
    return re.split(r"[\\/]", text.rstrip("\\/"))[-1].removesuffix(".zip")


def _path(name: str, folder: str) -> str:
    return f"{folder}/{name}"


def _images(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.lower().endswith(IMAGE_SUFFIXES)]


def _known() -> str:
    return ", ".join(presets())

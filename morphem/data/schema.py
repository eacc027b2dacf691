"""The metadata of a channel plane: 22 columns, the vocabulary of channel types, and the checks on both.

Source: the metadata table of CHAMMI-75, one row per channel plane, missing values written as `unknown`
(https://github.com/CaicedoLab/CHAMMI-75).
"""

import csv
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd

from morphem.errors import ChannelError, DataError, nearest, unknown_name

UNKNOWN = "unknown"

COLUMNS: dict[str, str] = {
    "experiment.study": "string",
    "experiment.plate": "string",
    "experiment.well": "string",
    "experiment.reagent": "string",
    "experiment.control": "string",
    "biology.organism": "string",
    "biology.cell_line": "string",
    "biology.cell_type": "string",
    "imaging.multi_channel_id": "string",
    "imaging.panel": "string",
    "imaging.channel": "int64",
    "imaging.channel_type": "string",
    "microscopy.type": "string",
    "microscopy.magnification": "string",
    "microscopy.fov": "string",
    "geometry.width": "int64",
    "geometry.height": "int64",
    "geometry.depth": "string",
    "geometry.channels": "int64",
    "geometry.z_slice": "string",
    "geometry.timepoint": "string",
    "storage.path": "string",
}
"""Name and type of each column, in order."""

DESCRIPTIONS: dict[str, str] = {
    "experiment.study": "source data set; its images share microscope, assay and channels",
    "experiment.plate": "plate, slide or dish",
    "experiment.well": "well of the plate, for example A01",
    "experiment.reagent": "compound, gene or other perturbation",
    "experiment.control": "'no' for a treated sample, else the kind of control",
    "biology.organism": "species, for example Homo sapiens",
    "biology.cell_line": "cell line, for example U2OS",
    "biology.cell_type": "cell type or tissue",
    "imaging.multi_channel_id": "name of the image that the plane belongs to, unique in its study",
    "imaging.panel": "all channels of the image, with commas between, in panel order",
    "imaging.channel": "position of the plane in the panel, from 1",
    "imaging.channel_type": "what the plane shows, from channel_types.csv",
    "microscopy.type": "how it was imaged, one of MICROSCOPY_TYPES",
    "microscopy.magnification": "of the objective, as the source gives it",
    "microscopy.fov": "field of view (site) in the well",
    "geometry.width": "pixels, 1 or more",
    "geometry.height": "pixels, 1 or more",
    "geometry.depth": "number of z slices",
    "geometry.channels": "number of planes of the image, 1 or more",
    "geometry.z_slice": "slice of the stack, 'all', or how the slices were combined",
    "geometry.timepoint": "frame of the time series",
    "storage.path": "where the source keeps the plane",
}
"""What each column means."""

MICROSCOPY_TYPES: dict[str, tuple[str, ...]] = {
    "fluorescence": ("epifluorescence", "widefield fluorescence", "immunofluorescence"),
    "confocal": ("confocal fluorescence", "spinning disk confocal", "laser scanning confocal"),
    "light-sheet": ("spim",),
    "super-resolution": ("sted", "palm", "storm", "sim"),
    "bright-field": ("transmitted light", "histology"),
    "phase contrast": (),
    "differential interference contrast": ("dic",),
    "dark-field": (),
    "quantitative phase": ("qpi", "digital holography"),
    "imaging mass cytometry": ("imc",),
    "electron": ("electron microscopy", "sem", "tem"),
    UNKNOWN: (),
}
"""Known values of `microscopy.type`, with other spellings of each."""


@dataclass(frozen=True)
class ChannelType:
    """One entry of the channel vocabulary.

    Attributes:
        name: Lower-case words; the one spelling used in shards, configs and feature columns.
        aliases: Other spellings that mean the same.
        source: Where the entry comes from.
    """

    name: str
    aliases: tuple[str, ...]
    source: str


def _fold(name: str) -> str:
    """Reduce a spelling to letters, digits and other signs: without case, spaces, commas, hyphens and underscores."""
    return "".join(sign for sign in name.casefold() if not sign.isspace() and sign not in "-_,")


@cache
def channel_vocabulary() -> dict[str, ChannelType]:
    """Return all channel types by name, in the order of channel_types.csv.

    Raises:
        ChannelError: If the table gives one spelling to two types.
    """
    text = files("morphem.data").joinpath("channel_types.csv").read_text(encoding="utf-8")
    entries = [
        ChannelType(row["name"], tuple(filter(None, row["aliases"].split("|"))), row["source"])
        for row in csv.DictReader(text.splitlines())
    ]
    _by_spelling({entry.name: entry.aliases for entry in entries}, "channel_types.csv")
    return {entry.name: entry for entry in entries}


def _by_spelling(known: Mapping[str, Iterable[str]], where: str) -> dict[str, str]:
    """Return the name for every folded spelling, and refuse a spelling with two meanings."""
    names: dict[str, str] = {}
    for name, aliases in known.items():
        for spelling in (name, *aliases):
            if names.setdefault(_fold(spelling), name) != name:
                raise ChannelError(f"{where}: '{spelling}' stands for '{names[_fold(spelling)]}' and for '{name}'.")
    return names


@cache
def _channel_spellings() -> dict[str, str]:
    return _by_spelling({name: entry.aliases for name, entry in channel_vocabulary().items()}, "channel_types.csv")


def resolve_channel(name: str, aliases: Mapping[str, str] | None = None) -> str:
    """Return the channel type that a name stands for.

    Case, spaces, commas, hyphens and underscores do not matter: `Bright_Field` is `bright-field`.

    Args:
        name: A channel type or an alias of one.
        aliases: Further names, each with the channel type (or alias) that it stands for; they go first.

    Raises:
        ChannelError: If the name is not in the vocabulary, with the nearest name that is.
    """
    extra = {_fold(alias): target for alias, target in (aliases or {}).items()}
    spelling = extra.get(_fold(name), name)
    found = _channel_spellings().get(_fold(spelling))
    if found is None:
        close = ", ".join(f"'{candidate}'" for candidate in nearest(spelling, _suggestions())) or "none"
        raise ChannelError(
            f"No channel type '{spelling}'; nearest: {close}; use 'other' for a stain that the vocabulary does not "
            f"name, '{UNKNOWN}' where the source does not tell."
        )
    return found


_WORD = re.compile(r"[^\W\d_]+|\d+")
_HUMP = re.compile(r"(?<=[a-z])(?=[A-Z])")  # OrigDNA, MitoTracker
_COLOURS = ("r", "g", "b", "red", "green", "blue")  # of a dye or a filter, more often than of a camera
_ALONE = (*_COLOURS, "ph", "pm", "em", "trans", "phase", "electron", "dead", "other", UNKNOWN)  # mean little in a name
_GENERIC = ("protein", "assorted")  # give way to what is more exact


def guess_channel(name: str, aliases: Mapping[str, str] | None = None) -> str | None:
    """Return the channel type that a stain's name tells without doubt, or None.

    A name of the vocabulary or an alias is taken first. Else the names that occur in it as whole words are looked for:
    `DNA (DAPI)` and `w1 Hoechst 33342 405nm` are `nucleus`. Names of two types, or of none, tell nothing; `protein`
    gives way to any other type.

    Args:
        name: As a microscope or a sheet calls the channel.
        aliases: Further names, each with the channel type (or alias) that it stands for; they go first.

    Raises:
        ChannelError: If an alias stands for a channel type that does not exist.
    """
    extra = {_fold(alias): target for alias, target in (aliases or {}).items()}
    if _fold(name) in extra or _fold(name) in _channel_spellings():
        return resolve_channel(name, aliases)
    found = _types_within(_words(name)) or _types_within(_words(_HUMP.sub(" ", name)))
    kinds = found - set(_GENERIC) or found
    return next(iter(kinds)) if len(kinds) == 1 else None


def _words(text: str) -> tuple[str, ...]:
    return tuple(_WORD.findall(text.casefold()))


@cache
def _types_by_words() -> dict[tuple[str, ...], str]:
    return {
        _words(spelling): name
        for name, entry in channel_vocabulary().items()
        for spelling in (name, *entry.aliases)
        if spelling not in _ALONE
    }


def _types_within(words: tuple[str, ...]) -> set[str]:
    """Return the types whose spellings occur in some words, the longest first; a word counts for one of them."""
    known = _types_by_words()
    longest = max(map(len, known))
    found, start = set(), 0
    while start < len(words):
        lengths = [n for n in range(min(longest, len(words) - start), 0, -1) if words[start : start + n] in known]
        if lengths:
            found.add(known[words[start : start + lengths[0]]])
        start += lengths[0] if lengths else 1
    return found


def load_aliases(path: str | Path) -> dict[str, str]:
    """Read names of stains and the channel types that they stand for.

    Args:
        path: A YAML mapping (`w1: nucleus`), or a CSV with the columns `name` and `channel_type`.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        DataError: If it is no such file, or gives one name twice.
    """
    import yaml

    try:
        text = Path(path).read_text(encoding="utf-8-sig")
        pairs = _csv_pairs(text) if Path(path).suffix.lower() == ".csv" else _yaml_pairs(yaml.compose(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, csv.Error) as fault:
        raise DataError(f"'{path}' cannot be read: {' '.join(str(fault).split())}.") from fault
    if pairs is None:
        raise DataError(f"'{path}' must be a YAML mapping (name: channel type) or a CSV of name,channel_type.")
    aliases: dict[str, str] = {}
    for name, target in pairs:
        if aliases.setdefault(name, target) != target:
            raise DataError(f"'{path}' says that '{name}' is '{aliases[name]}' and '{target}'; keep one of them.")
        try:
            resolve_channel(target)
        except ChannelError as fault:
            raise ChannelError(f"'{path}', '{name}': {fault}") from fault
    return aliases


def _csv_pairs(text: str) -> list[tuple[str, str]] | None:
    lines = csv.DictReader(text.splitlines())
    if not {"name", "channel_type"} <= set(lines.fieldnames or ()):
        return None
    return [(line["name"], line["channel_type"] or "") for line in lines]


def _yaml_pairs(node: Any) -> list[tuple[str, str]] | None:
    """Pairs of a YAML mapping as written: repeated names are seen, and numbers and `no` stay texts."""
    pairs: Any = getattr(node, "value", ())
    if getattr(node, "id", "") != "mapping" or any(part.id != "scalar" for pair in pairs for part in pair):
        return None
    return [(name.value, target.value) for name, target in pairs]


@cache
def _suggestions() -> tuple[str, ...]:
    return tuple(s for entry in channel_vocabulary().values() for s in (entry.name, *entry.aliases))


@cache
def _microscopy_spellings() -> dict[str, str]:
    return _by_spelling(MICROSCOPY_TYPES, "MICROSCOPY_TYPES")


def resolve_microscopy(name: str) -> str:
    """Return the microscopy type that a name stands for.

    Args:
        name: A microscopy type or another spelling of one.

    Raises:
        DataError: If it is not known, with the nearest name that is.
    """
    found = _microscopy_spellings().get(_fold(name))
    if found is None:
        raise DataError(unknown_name("microscopy type", name, MICROSCOPY_TYPES))
    return found


def complete(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row with all 22 columns first, in order and of their types, then the others as they are.

    A missing text becomes `unknown`; channel type and microscopy type are resolved.

    Args:
        row: At least the five whole numbers' columns and `imaging.channel_type`, `imaging.multi_channel_id`.

    Raises:
        ChannelError: If the channel type is not in the vocabulary.
        DataError: If a whole number is missing or none, or a text that is needed is missing.
    """
    full: dict[str, Any] = {}
    for column, kind in COLUMNS.items():
        value = row.get(column)
        full[column] = _whole_number(column, value) if kind == "int64" else _text(value)
    for column in ("imaging.channel_type", "imaging.multi_channel_id"):
        if is_missing(row.get(column)):
            raise DataError(f"a row of {full['experiment.study']} has no '{column}'; every channel plane needs one.")
    full["imaging.channel_type"] = resolve_channel(full["imaging.channel_type"])
    full["microscopy.type"] = resolve_microscopy(full["microscopy.type"])
    return full | {column: value for column, value in row.items() if column not in COLUMNS}


def is_missing(value: Any) -> bool:
    """Whether a cell of a table says nothing: None, NaN, an empty text, or the text `nan`."""
    return value is None or bool(pd.isna(value)) or str(value).strip().casefold() in ("", "nan")


def missing_in(values: "pd.Series[str]") -> "pd.Series[bool]":
    """Tell for each text of a column whether `is_missing`, without a call per row.

    Args:
        values: A column of texts.
    """
    return values.isna() | values.str.strip().str.casefold().isin(("", "nan"))


def _text(value: Any) -> str:
    return UNKNOWN if is_missing(value) else str(value)


def _whole_number(column: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError) as fault:
        raise DataError(f"'{column}' is {value!r}; it must be a whole number.") from fault
    if number != float(value) or number < 1:
        raise DataError(f"'{column}' is {value!r}; it must be a whole number of 1 or more.")
    return number


def validate(table: pd.DataFrame) -> None:
    """Check a table of channel planes: columns, types, missing values and vocabularies.

    Args:
        table: One row per channel plane; further columns are allowed.

    Raises:
        ChannelError: If a channel type is not in the vocabulary.
        DataError: If anything else is wrong, with column and row.
    """
    missing = [column for column in COLUMNS if column not in table.columns]
    if missing:
        raise DataError(f"the metadata table has no column '{missing[0]}' (and {len(missing) - 1} more missing).")
    for column, kind in COLUMNS.items():
        _check_column(table[column], kind)
    for name in table["imaging.channel_type"].unique():
        if resolve_channel(name) != name:
            raise ChannelError(f"channel type '{name}' is spelled '{resolve_channel(name)}' in the vocabulary.")
    for name in table["microscopy.type"].unique():
        if resolve_microscopy(name) != name:
            raise DataError(f"microscopy type '{name}' is spelled '{resolve_microscopy(name)}' in the vocabulary.")


def _check_column(values: "pd.Series[Any]", kind: str) -> None:
    if kind == "int64":
        wrong = ~values.map(lambda value: isinstance(value, int) and value >= 1)
    else:
        wrong = ~values.map(lambda value: isinstance(value, str) and value != "")
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        rule = "a whole number of 1 or more" if kind == "int64" else f"a text, '{UNKNOWN}' where it is missing"
        raise DataError(f"row {row} of '{values.name}' is {values.tolist()[row]!r}; it must be {rule}.")

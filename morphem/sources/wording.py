"""The words of a plane table: channel types, microscopy types and wells in the spelling of the schema."""

from collections import Counter
from collections.abc import Callable, Mapping

import pandas as pd

from morphem.data.schema import UNKNOWN, guess_channel, is_missing, resolve_channel, resolve_microscopy
from morphem.data.wells import is_well, normalise_well

_TYPE, _NAME, _WELL, _MICROSCOPY = "imaging.channel_type", "channel_name", "experiment.well", "microscopy.type"


def worded(table: pd.DataFrame, unrecognised: Counter[str], aliases: Mapping[str, str] | None = None) -> pd.DataFrame:
    """Return a plane table in the words of the schema.

    A channel type that is stated is resolved; one that is missing is guessed from `channel_name`. Wells get the form
    `A01`.

    Args:
        table: One row per channel plane, all texts.
        unrecognised: Counts the planes of each stain and well that was not understood.
        aliases: Further names of channel types, each with the type that it stands for.

    Raises:
        ChannelError: If a channel type that is stated is not in the vocabulary.
        DataError: If a microscopy type is not known.
    """
    columns: dict[str, pd.Series[str]] = {_TYPE: _channel_types(table, unrecognised, aliases)}
    if _WELL in table.columns:
        columns[_WELL] = _mapped(table[_WELL], normalise_well)
        for well, count in table[_WELL].value_counts(sort=False).items():
            if not is_missing(well) and well != UNKNOWN and not is_well(str(well)):
                unrecognised[f"well '{well}'"] += int(count)
    if _MICROSCOPY in table.columns:
        columns[_MICROSCOPY] = _mapped(
            table[_MICROSCOPY], lambda name: UNKNOWN if is_missing(name) else resolve_microscopy(name)
        )
    return table.assign(**columns)


def _mapped(column: "pd.Series[str]", change: Callable[[str], str]) -> "pd.Series[str]":
    """Change each different value once."""
    return column.map({value: change(value) for value in column.unique()})


def _channel_types(
    table: pd.DataFrame, unrecognised: Counter[str], aliases: Mapping[str, str] | None
) -> "pd.Series[str]":
    empty = pd.Series("", index=table.index)
    stated, names = table.get(_TYPE, empty), table.get(_NAME, empty)
    pairs = list(zip(stated, names, strict=True))
    types: dict[tuple[str, str], str] = {}
    for (said, name), count in Counter(pairs).items():
        if not is_missing(said) and said != UNKNOWN:
            types[said, name] = resolve_channel(said, aliases)
            continue
        guessed = None if is_missing(name) else guess_channel(name, aliases)
        types[said, name] = UNKNOWN if guessed is None or (said == UNKNOWN and not _named(name, aliases)) else guessed
        if guessed is None and said != UNKNOWN:
            unrecognised[name or "a channel without a name"] += count
    return pd.Series([types[pair] for pair in pairs], index=table.index, dtype=str)


def _named(name: str, aliases: Mapping[str, str] | None) -> bool:
    """Whether the user says what a name stands for; that goes before what the source says."""
    return name in (aliases or {})
